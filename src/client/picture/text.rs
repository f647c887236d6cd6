//! The picture on a terminal: blocks, or plain ASCII where nothing else can be shown; as wide as it may be. No colour, so it
//! is the same in a file.

use std::fmt::Write;

use super::{
    disks::{Disk, Fate, Map},
    timeline::{Mark, Row, Timeline},
};
use crate::{client::words, proto};

/// What bars are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Letters {
    Blocks,
    Ascii,
}

impl Letters {
    /// What this terminal says of itself: the first of these that is set decides (setlocale(3)).
    pub fn of_this_terminal() -> Letters {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).unwrap_or_default().to_ascii_lowercase();
        if locale.contains("utf-8") || locale.contains("utf8") { Letters::Blocks } else { Letters::Ascii }
    }

    fn mark(self, mark: Mark) -> char {
        match (self, mark) {
            (Letters::Blocks, Mark::Doing) => '▒',
            (Letters::Blocks, Mark::Held) => '█',
            (Letters::Blocks, Mark::Undoing) => '░',
            (Letters::Ascii, Mark::Doing) => '-',
            (Letters::Ascii, Mark::Held) => '#',
            (Letters::Ascii, Mark::Undoing) => '~',
        }
    }

    fn fate(self, fate: Fate) -> char {
        match (self, fate) {
            (Letters::Blocks, Fate::InSnapshot | Fate::NotTold) => '█',
            (Letters::Blocks, Fate::Mixed) => '▓',
            (Letters::Blocks, Fate::Transient) => '▒',
            (Letters::Blocks, Fate::NotInSnapshot) => '░',
            (Letters::Ascii, Fate::InSnapshot | Fate::NotTold) => '#',
            (Letters::Ascii, Fate::Mixed) => '%',
            (Letters::Ascii, Fate::Transient) => '!',
            (Letters::Ascii, Fate::NotInSnapshot) => 'x',
        }
    }

    fn nothing(self) -> char {
        match self {
            Letters::Blocks => '·',
            Letters::Ascii => '.',
        }
    }
}

/// What bars get at least: below it they tell nothing.
const FEWEST: usize = 16;
const WIDEST: usize = 200;
/// Of a name.
const NAME: usize = 26;

/// Prints a hold in lines of at most `width` columns, as far as that can be done.
pub fn print(report: &proto::Report, width: usize, letters: Letters) -> String {
    let width = width.min(WIDEST);
    let mut out = timeline(&Timeline::of(report), width, letters);
    out.push_str(&map(&Map::of(report), width, letters));
    out
}

fn timeline(timeline: &Timeline, width: usize, letters: Letters) -> String {
    let drawn: Vec<&Row> = timeline.rows.iter().filter(|row| !row.spans.is_empty()).collect();
    if drawn.is_empty() || timeline.phases.is_empty() {
        return String::new(); // the table of steps has told it all
    }
    let name = drawn.iter().map(|row| row.name.chars().count()).max().unwrap_or(0).min(NAME);
    let bars = width.saturating_sub(name + 3).max(FEWEST);
    let mut out = String::from("\n");
    let _ = writeln!(out, "{:name$}  {}", "", ruler(timeline, bars));
    for row in drawn {
        let mut line = vec![letters.nothing(); bars];
        for span in &row.spans {
            let (from, to) = (column(span.begins, bars), column(span.ends, bars));
            // an instant is seen, too, but does not hide what it leads to
            let to = to.max(from + 1).min(bars);
            line[from.min(bars - 1)..to].fill(letters.mark(span.mark));
        }
        let line: String = line.into_iter().collect();
        let _ = writeln!(out, "{:name$}  {line}", cut(&row.name, name));
    }
    let took = timeline
        .phases
        .iter()
        .map(|phase| format!("{} {}", phase.name, words::duration(phase.took.try_into().ok().as_ref())));
    for line in wrapped(took, ", ", width) {
        let _ = writeln!(out, "{line}");
    }
    let legend =
        [(Mark::Doing, "being done"), (Mark::Held, "frozen, locked or paused"), (Mark::Undoing, "being undone")];
    let legend = legend.into_iter().map(|(mark, words)| format!("{} {words}", letters.mark(mark)));
    for line in wrapped(legend.chain(["each phase has its own scale".to_owned()]), "   ", width) {
        let _ = writeln!(out, "{line}");
    }
    out
}

/// "|prepare      |quiesce|held    |release"
fn ruler(timeline: &Timeline, bars: usize) -> String {
    let mut line = vec![' '; bars];
    for phase in &timeline.phases {
        let (from, to) = (column(phase.begins, bars).min(bars - 1), column(phase.ends, bars));
        line[from] = '|';
        for (at, c) in (from + 1..to).zip(phase.name.chars()) {
            line[at] = c;
        }
    }
    line.into_iter().collect::<String>().trim_end().to_owned()
}

fn map(map: &Map, width: usize, letters: Letters) -> String {
    if map.disks.is_empty() {
        return String::new();
    }
    let name = map.disks.iter().map(|disk| disk.name.chars().count()).max().unwrap_or(0).min(NAME);
    let about = map.disks.iter().map(|disk| told(disk).chars().count()).max().unwrap_or(0);
    // what is said of a disk goes below its bar where there is no room beside it
    let beside = name + about + 4 + FEWEST <= width;
    let bars = width.saturating_sub(name + 3 + if beside { about + 2 } else { 0 }).clamp(FEWEST, 60);
    let mut out = String::from("\n");
    for disk in &map.disks {
        let whole = column(disk.size, bars).max(1);
        let used = column(disk.used, whole).max(1);
        let mut line = vec![' '; bars];
        line[..whole].fill(letters.nothing());
        line[..used].fill(letters.fate(disk.fate));
        let line: String = line.into_iter().collect();
        let _ = match beside {
            true => writeln!(out, "{:name$}  {line}  {}", cut(&disk.name, name), told(disk)),
            false => writeln!(
                out,
                "{:name$}  {}\n  {}",
                cut(&disk.name, name),
                line.trim_end(),
                cut(&told(disk), width.max(20) - 2)
            ),
        };
        if !disk.missed.is_empty() {
            let _ = writeln!(out, "  at risk: {}", cut(&disk.missed, width.max(40) - 11));
        }
    }
    if map.left_out > 0 {
        let n = map.left_out;
        let _ = writeln!(out, "and {n} {} that hold next to nothing", words::plural(n, "other", "others"));
    }
    out
}

fn told(disk: &Disk) -> String {
    format!("{}, {}", disk.about, disk.fate_text)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "0 to 1 of at most 200"
)]
fn column(part: f64, of: usize) -> usize {
    ((part.clamp(0.0, 1.0) * of as f64).round() as usize).min(of)
}

fn cut(words: &str, most: usize) -> String {
    match words.chars().count() > most {
        true => words.chars().take(most.saturating_sub(1)).chain(['~']).collect(),
        false => words.to_owned(),
    }
}

fn wrapped(parts: impl Iterator<Item = String>, between: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in parts {
        match lines.last_mut() {
            Some(line) if line.chars().count() + between.len() + part.chars().count() <= width => {
                line.push_str(between);
                line.push_str(&part);
            }
            _ => lines.push(part),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::picture::samples;

    #[test]
    fn a_hold_is_readable_in_eighty_plain_columns() {
        let printed = print(&samples::hold(), 80, Letters::Ascii);
        let lines: Vec<&str> = printed.lines().collect();
        assert!(printed.is_ascii(), "{printed}");
        assert!(lines.iter().all(|line| line.chars().count() <= 80), "{printed}");
        assert!(
            lines[1].contains("|prepare") && lines[1].contains("|quiesce") && lines[1].contains("|held"),
            "{printed}"
        );
        let row = lines.iter().find(|line| line.starts_with("fs:/srv")).expect("it has a bar");
        assert!(row.contains("-#") && row.contains("#~"), "done, frozen, undone: {row}");
        assert!(printed.contains("prepare 20 s, quiesce 5.0 ms, held 2.0 s, release 12.0 ms"), "{printed}");
        let lost = lines.iter().position(|line| line.starts_with("/mnt (vdb)")).expect("every disk has a bar");
        assert!(lines[lost].contains('x') && printed.contains("NOT in the snapshot, transient"), "{printed}");
        assert!(printed.contains("at risk: db:orders, docker"), "{printed}");
    }

    #[test]
    fn every_width_is_kept_to_as_far_as_it_can_be_and_nothing_panics() {
        for letters in [Letters::Blocks, Letters::Ascii] {
            for width in [0, 1, 7, 20, 40, 60, 80, 132, 100_000] {
                let printed = print(&samples::hold(), width, letters);
                let widest = printed.lines().map(|line| line.chars().count()).max().unwrap_or(0);
                assert!(widest <= width.clamp(50, WIDEST), "{width}: {widest}\n{printed}");
            }
        }
    }

    #[test]
    fn hostile_texts_obey_nobody_and_are_cut() {
        for hostile in samples::HOSTILE {
            let printed = print(&samples::all(hostile), 80, Letters::Blocks);
            assert!(printed.chars().all(|c| c == '\n' || !c.is_control()), "{printed:?}");
        }
        let long = print(&samples::all(&"\u{1b}[31m".repeat(100_000)), 80, Letters::Blocks);
        assert!(long.len() < 20_000, "{} bytes", long.len());
        assert_eq!(print(&proto::Report::default(), 80, Letters::Ascii), "");
    }
}
