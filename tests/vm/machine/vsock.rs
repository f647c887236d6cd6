//! vsock.
