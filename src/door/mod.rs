//! The ways in. Each only translates between its protocol and [`crate::hold::Handle`]; none does work.
//!
//! ```text
//!   listen ──▶ entrance ──▶ grpc ──▶ hold::Handle
//!   who it is   may they?    input checked, asked, answered
//!               delivered?
//! ```

pub mod access;
mod delivery;
pub mod entrance;
mod events;
pub mod grpc;
mod input;
pub mod listen;
pub mod qga;
#[cfg(test)]
mod tests;
