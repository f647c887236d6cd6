//! Promise: hooks run in order, and each one that was started is undone: newest first, once, whatever happened.

pub mod ends;
pub mod meddling;
pub mod nasty;
pub mod order;
pub mod place;
pub mod refused;
pub mod schedules;
mod script;
mod story;
pub mod verdict;
