//! The only `unsafe`, the only ioctls, the only process spawning.
#![expect(unsafe_code, reason = "this is the room for it; every block says why and why it is sound")]

pub mod clock;
pub mod process;
pub mod run_child;
