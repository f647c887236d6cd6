//! A hold where people would rather look: when what happened, and what is on which disk. `receipt` and `history ID` print
//! it, `--svg` draws it.

mod disks;
#[cfg(test)]
mod samples;
mod svg;
mod text;
mod timeline;

use std::{fs, os::fd::AsFd, path::Path};

pub use svg::draw;
pub use text::{Letters, print};

use super::Answer;
use crate::{
    error::{Exit, Failure, reason},
    hold::RefusalKind,
    proto, sys,
};

/// As this terminal can show it; where there is none, in lines that fit most pages.
pub fn here(report: &proto::Report) -> String {
    let told = || std::env::var("COLUMNS").ok()?.parse().ok();
    let columns = sys::terminal::columns(std::io::stdout().as_fd()).or_else(told).unwrap_or(100);
    print(report, usize::from(columns), Letters::of_this_terminal())
}

/// `--svg`: into `file`, or to stdout where that is `-`.
///
/// # Errors
/// The file cannot be written.
pub fn drawn(report: &proto::Report, file: &Path) -> Result<Answer, Failure> {
    let svg = draw(report);
    if file == Path::new("-") {
        let document = serde_json::json!({"hold_id": report.id, "svg": svg});
        return Ok(Answer { document, table: svg, sentence: String::new(), exit: Exit::Done });
    }
    if file.is_dir() {
        let message = format!("failed to draw into {}: it is a directory", file.display());
        return Err(Failure::local(RefusalKind::InvalidArgument, reason::MALFORMED, message)
            .hint("--svg takes a file; `holdstill receipt DIR --svg FILE`"));
    }
    fs::write(file, &svg).map_err(|error| Failure::io(format!("write {}", file.display()), &error))?;
    Ok(Answer {
        document: serde_json::json!({"hold_id": report.id, "file": file}),
        table: String::new(),
        sentence: format!("drew the hold {} into {}", timeline::text(&report.id), file.display()),
        exit: Exit::Done,
    })
}
