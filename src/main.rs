//! holdstill: parse, dispatch, turn the result into text and an exit code; nothing else.

use std::{collections::BTreeMap, path::Path, process::ExitCode};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let verb = arguments.next().unwrap_or_default();
    match verb.to_str() {
        Some("warden") => holdstill::warden::run::main(arguments),
        Some("rescue") => {
            let run = arguments.nth(1).unwrap_or_else(|| "/run/holdstill".into());
            match holdstill::rescue::run(Path::new(&run), &BTreeMap::new()) {
                Ok(rescued) => {
                    eprintln!("{rescued}");
                    if rescued.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
                }
                Err(error) => {
                    eprintln!("failed to {error}");
                    ExitCode::from(4)
                }
            }
        }
        Some(_) | None => ExitCode::from(2),
    }
}
