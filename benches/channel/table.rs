//! The one table that is printed.

use std::{fmt, time::Duration};

#[derive(Default)]
pub struct Table {
    rows: Vec<[String; 4]>,
    notes: Vec<String>,
}

impl Table {
    /// A row of the stock agent's time and ours.
    pub fn times(&mut self, what: &str, [theirs, ours]: [Duration; 2]) {
        let ratio = theirs.as_secs_f64() / ours.as_secs_f64();
        let ratio = if ratio >= 1.0 { format!("1/{ratio:.1}") } else { format!("{:.1} ×", 1.0 / ratio) };
        self.row(what, [theirs, ours].map(|time| format!("{:.1} ms", time.as_secs_f64() * 1e3)), &ratio);
    }

    pub fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    pub fn row(&mut self, what: &str, [theirs, ours]: [String; 2], ratio: &str) {
        self.rows.push([what.to_owned(), theirs, ours, ratio.to_owned()]);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["", "qemu-ga", "holdstill", "ratio"].map(str::to_owned);
        let rows: Vec<&[String; 4]> = std::iter::once(&head).chain(&self.rows).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let (a, b, c, d) = (width(0), width(1), width(2), width(3));
        for [what, theirs, ours, ratio] in rows {
            writeln!(f, "{what:<a$}  {theirs:>b$}  {ours:>c$}  {ratio:>d$}")?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "({note})"))
    }
}

pub fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
