//! The ways in. Each only translates between its protocol and [`crate::hold::Handle`]; none does work.

pub mod grpc;
pub mod listen;
