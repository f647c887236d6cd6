//! x
facts! {}
