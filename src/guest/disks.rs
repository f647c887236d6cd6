//! (being written)

/// Block devices and what they lie on, from /sys.
#[derive(Debug, Clone, Default)]
pub struct BlockGraph {}
