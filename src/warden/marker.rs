//! The marker: a small table on tmpfs, mapped by every process of ours; what is left when they are gone.

/// The mapped table.
#[derive(Debug)]
pub struct Marker {}
