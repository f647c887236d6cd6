//! What a hold does, one file per kind of step. The driver stacks each step's undo before the step acts.

pub mod database;
pub mod filesystem;
pub mod hook;
pub mod mysql;
pub mod postgres;
pub mod reporter;
pub mod restored;
