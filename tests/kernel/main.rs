//! The kernel tests: real file systems that really freeze, real databases, real kills. One module per promise or door;
//! the laboratory they run in is `tests/lab`. Needs root; freezes nothing but loop devices it made.

#[path = "../lab/mod.rs"]
#[macro_use]
mod lab;

mod lab_itself;

use std::process::ExitCode;

fn main() -> ExitCode {
    lab::main(&[lab_itself::FACTS])
}
