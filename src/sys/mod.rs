//! The only `unsafe`, the only ioctls, the only process spawning.
#![expect(unsafe_code, reason = "this is the room for it; every block says why and why it is sound")]

pub mod attach;
pub mod clock;
pub mod credentials;
pub mod family;
pub mod files;
pub mod freeze;
pub mod kept;
pub mod memory;
pub mod notify;
pub mod packet;
pub mod peer;
pub mod priority;
pub mod process;
pub mod run_child;
pub mod sockets;
pub mod table;
pub mod terminal;
pub mod view;
pub mod writeback;
