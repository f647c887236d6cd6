//! holdstill makes a running Linux VM hold still for the instant its disks are snapshotted.
//!
//! A *hold* is the bounded time in which the guest is still. In reading order:
//!
//! - [`hold`]: what a hold is: its phases, who may ask for what, the plan, the one task that acts
//! - [`guest`]: reading the guest: mounts, block devices, databases, platform
//! - [`step`]: one file per kind of thing a hold does: hooks, databases, file systems
//! - [`warden`]: the processes beside the daemon that let go when it cannot
//! - [`rescue`]: letting go with none of them left
//! - [`door`]: the ways in; each only translates
//! - [`silence`]: noticing that the other end of a wire is gone, when nobody tells
//! - [`daemon`], [`client`], [`cli`], [`run`], [`config`], [`error`]: the program around it
//! - [`sys`]: the only `unsafe`, the only ioctls, the only process spawning

pub mod cli;
pub mod client;
pub mod config;
pub mod daemon;
pub mod door;
pub mod error;
pub mod failpoint;
pub mod guest;
pub mod hold;
pub mod json;
pub mod rescue;
pub mod run;
pub mod silence;
pub mod step;
pub mod sys;
pub mod telemetry;
pub mod warden;

/// The contract with callers, generated from `proto/holdstill/v1/holdstill.proto`.
#[expect(clippy::all, clippy::pedantic, clippy::allow_attributes, reason = "generated code")]
pub mod proto {
    tonic::include_proto!("holdstill.v1");

    /// The compiled contract, for reflection and for printing messages as JSON.
    pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.binpb"));
}
