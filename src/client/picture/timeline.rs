//! When what happened in a hold: a pure model that both pictures are drawn from. Every number is finite, every text short and
//! without anything that a terminal or a browser would obey.

use std::time::Duration;

use crate::{
    client::{show, words},
    proto::{self, StepKind, StepOutcome, step::Detail},
};

/// A hold, laid out along one axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Timeline {
    /// in their order; those that never began are left out
    pub phases: Vec<Phase>,
    pub rows: Vec<Row>,
    /// steps that hold nothing on a disk, or are too many
    pub left_out: usize,
}

/// One phase. Each has a scale of its own, else five milliseconds would not be seen beside twenty seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Phase {
    pub name: &'static str,
    pub from: Duration,
    pub took: Duration,
    /// where it is drawn, of 0 to 1
    pub begins: f64,
    pub ends: f64,
}

/// One step.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub name: String,
    pub kind: StepKind,
    pub outcome: &'static str,
    /// it failed, or undoing it did
    pub bad: bool,
    /// may be empty: it was left out, or its times are not known
    pub spans: Vec<Span>,
    /// "took 12 ms, held 2.0 s, undone in 3 ms", or why it was left out
    pub numbers: String,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Span {
    pub mark: Mark,
    /// of 0 to 1
    pub begins: f64,
    pub ends: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    Doing,
    /// done, and not undone yet: for a file system, its frozen window
    Held,
    Undoing,
}

/// More rows than this are counted: nobody reads them in a picture.
const ROWS: usize = 200;
/// Of a text, in characters.
const LONGEST: usize = 160;
/// A phase is never narrower than this part of the picture: its name has to be read.
const NARROWEST: f64 = 0.12;

impl Timeline {
    pub fn of(report: &proto::Report) -> Timeline {
        let phases = phases(report);
        let shown = report.steps.iter().filter(|step| !show::holds_nothing(step));
        let rows: Vec<Row> = shown.take(ROWS).map(|step| row(step, report, &phases)).collect();
        Timeline { left_out: report.steps.len() - rows.len(), phases, rows }
    }
}

fn phases(report: &proto::Report) -> Vec<Phase> {
    let took = [
        ("prepare", &report.prepare_took),
        ("quiesce", &report.quiesce_took),
        ("held", &report.held_took),
        ("release", &report.release_took),
    ];
    let mut known: Vec<(&'static str, Duration)> =
        took.into_iter().filter_map(|(name, took)| Some((name, time(took.as_ref())?))).collect();
    let last: Duration = known.iter().map(|(_, took)| *took).sum();
    let end = report.steps.iter().flat_map(|step| {
        [(&step.began, &step.took), (&step.undo_began, &step.undo_took)].map(|(began, took)| {
            time(began.as_ref()).map(|at| at.saturating_add(time(took.as_ref()).unwrap_or_default()))
        })
    });
    let end = end.flatten().max().unwrap_or_default();
    // a receipt in a copy knows of what was before the copy alone
    let next = known.last().map_or(Some("prepare"), |(last, _)| match *last {
        "prepare" => Some("quiesce"),
        "quiesce" => Some("held"),
        "held" => Some("release"),
        _ => None,
    });
    if let Some(next) = next.filter(|_| end > last) {
        known.push((next, end - last));
    }
    let weights: Vec<f64> = known.iter().map(|(_, took)| (1.0 + took.as_secs_f64() * 1000.0).ln() + 1.0).collect();
    let shares = shares(&weights);
    let (mut from, mut begins) = (Duration::ZERO, 0.0);
    let place = |((name, took), share): ((&'static str, Duration), f64)| {
        let phase = Phase { name, from, took, begins, ends: begins + share };
        from = from.saturating_add(took);
        begins = phase.ends;
        phase
    };
    known.into_iter().zip(shares).map(place).collect()
}

/// Parts of the whole by weight, none too narrow to be read.
fn shares(weights: &[f64]) -> Vec<f64> {
    let whole: f64 = weights.iter().sum();
    let raised: Vec<f64> = weights.iter().map(|weight| (weight / whole).max(NARROWEST)).collect();
    let whole: f64 = raised.iter().sum();
    raised.into_iter().map(|share| share / whole).collect()
}

/// Where a moment is drawn.
fn at(moment: Duration, phases: &[Phase]) -> f64 {
    let Some(phase) = phases.iter().rev().find(|phase| phase.from <= moment) else { return 0.0 };
    let part = match phase.took.as_secs_f64() {
        took if took > 0.0 => ((moment - phase.from).as_secs_f64() / took).min(1.0),
        _ => 0.0,
    };
    phase.begins + part * (phase.ends - phase.begins)
}

fn row(step: &proto::Step, report: &proto::Report, phases: &[Phase]) -> Row {
    let [began, took, undo_began, undo_took] =
        [&step.began, &step.took, &step.undo_began, &step.undo_took].map(|field| time(field.as_ref()));
    let done = began.map(|began| began.saturating_add(took.unwrap_or_default()));
    let undone = undo_began.map(|began| began.saturating_add(undo_took.unwrap_or_default()));
    let holds = matches!(step.outcome(), StepOutcome::Done | StepOutcome::Undone | StepOutcome::UndoFailed);
    let mut spans = Vec::new();
    let mut span = |mark, from: Option<Duration>, to: Option<Duration>| {
        if let (Some(from), Some(to), false) = (from, to, phases.is_empty()) {
            spans.push(Span { mark, begins: at(from, phases), ends: at(to.max(from), phases) });
        }
    };
    span(Mark::Doing, began, done);
    // what is held now is held to the end of what is known
    let until = undo_began.or_else(|| report.verdict.eq(&0).then(|| phases.last().map(|p| p.from + p.took)).flatten());
    if holds {
        span(Mark::Held, done, until);
    }
    span(Mark::Undoing, undo_began, undone);
    let held = done.zip(until).filter(|_| holds).map(|(done, until)| until.saturating_sub(done));
    let words = [(took, "took"), (held, held_word(step)), (undo_took, "undone in")];
    let words: Vec<String> = words
        .into_iter()
        .filter_map(|(time, word)| Some(format!("{word} {}", words::duration(time?.try_into().ok().as_ref()))))
        .collect();
    let numbers = match (words.is_empty(), step.reason.is_empty()) {
        (false, _) => words.join(", "),
        (true, false) => text(&step.reason),
        (true, true) => String::new(),
    };
    Row {
        name: text(&step.name),
        kind: step.kind(),
        outcome: words::outcome(step.outcome()),
        bad: matches!(step.outcome(), StepOutcome::Failed | StepOutcome::UndoFailed),
        spans,
        numbers,
    }
}

fn held_word(step: &proto::Step) -> &'static str {
    match &step.detail {
        Some(Detail::Filesystem(_)) => "frozen",
        Some(Detail::Database(_) | Detail::Hook(_)) | None => "held",
    }
}

/// A duration of the contract; `None` also for one that is negative, or longer than a person could mean.
fn time(duration: Option<&prost_types::Duration>) -> Option<Duration> {
    const A_YEAR: u64 = 366 * 24 * 60 * 60;
    let (seconds, nanos) = (u64::try_from(duration?.seconds).ok()?, u32::try_from(duration?.nanos).ok()?);
    (seconds <= A_YEAR && nanos < 1_000_000_000).then(|| Duration::new(seconds, nanos))
}

/// Short, and plain: reports may be anybody's. What turns text around or draws it elsewhere is shown as `?`.
pub fn text(text: &str) -> String {
    let plain = |c: char| match c {
        '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' => '?',
        '\u{fdd0}'..='\u{fdef}' | '\u{fffe}' | '\u{ffff}' | '\u{fff9}'..='\u{fffb}' => '?',
        c if c.is_control() => '?',
        c => c,
    };
    let mut out: String = text.chars().take(LONGEST).map(plain).collect();
    if text.chars().nth(LONGEST).is_some() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::picture::samples::{self, millis};

    #[test]
    fn five_milliseconds_are_seen_beside_twenty_seconds() {
        let timeline = Timeline::of(&samples::hold());
        let names: Vec<_> = timeline.phases.iter().map(|phase| phase.name).collect();
        assert_eq!(names, ["prepare", "quiesce", "held", "release"]);
        for phase in &timeline.phases {
            assert!(phase.ends - phase.begins >= 0.09, "{phase:?}");
        }
        assert!((timeline.phases[3].ends - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_file_system_is_frozen_from_the_end_of_its_freeze_to_the_begin_of_its_thaw() {
        let timeline = Timeline::of(&samples::hold());
        let row = timeline.rows.iter().find(|row| row.name == "fs:/srv").expect("every step has a row");
        let marks: Vec<_> = row.spans.iter().map(|span| span.mark).collect();
        assert_eq!(marks, [Mark::Doing, Mark::Held, Mark::Undoing]);
        assert!(row.spans.windows(2).all(|pair| pair[0].ends <= pair[1].begins), "{row:?}");
        let held = timeline.phases.iter().find(|phase| phase.name == "held").expect("it was held");
        assert!(row.spans[1].begins <= held.begins && row.spans[1].ends >= held.ends, "{row:?}");
        assert!(row.numbers.contains("frozen 2.0 s"), "{}", row.numbers);
    }

    #[test]
    fn an_older_report_has_numbers_and_no_bars() {
        let mut report = samples::hold();
        report.release_took = None;
        for step in &mut report.steps {
            (step.began, step.undo_began) = (None, None);
        }
        let timeline = Timeline::of(&report);
        assert_eq!(timeline.phases.len(), 3);
        assert!(timeline.rows.iter().all(|row| row.spans.is_empty()));
        assert!(timeline.rows.iter().any(|row| row.numbers.starts_with("took ")), "{:?}", timeline.rows);
    }

    #[test]
    fn a_copy_knows_of_what_was_before_it_was_cut() {
        let mut report = samples::hold();
        (report.quiesce_took, report.held_took, report.release_took) = (None, None, None);
        report.set_verdict(proto::Verdict::Unspecified);
        report.steps.truncate(1);
        (report.steps[0].undo_began, report.steps[0].undo_took) = (None, None);
        let timeline = Timeline::of(&report);
        let names: Vec<_> = timeline.phases.iter().map(|phase| phase.name).collect();
        assert_eq!(names, ["prepare", "quiesce"]);
        assert!((timeline.phases[1].ends - timeline.rows[0].spans[0].ends).abs() < 1e-9);
    }

    #[test]
    fn nothing_that_is_no_number_gets_into_a_picture() {
        let mut report = samples::hold();
        report.prepare_took = Some(prost_types::Duration { seconds: -5, nanos: -5 });
        report.held_took = Some(prost_types::Duration { seconds: i64::MAX, nanos: i32::MAX });
        report.quiesce_took = Some(prost_types::Duration::default());
        report.steps[0].began = Some(prost_types::Duration { seconds: i64::MIN, nanos: 0 });
        report.steps[1].began = millis(9_000_000);
        for report in [report, proto::Report::default()] {
            let timeline = Timeline::of(&report);
            let spans = timeline.rows.iter().flat_map(|row| row.spans.iter().map(|span| (span.begins, span.ends)));
            let phases = timeline.phases.iter().map(|phase| (phase.begins, phase.ends));
            for (begins, ends) in spans.chain(phases) {
                assert!(
                    begins.is_finite() && ends.is_finite() && (0.0..=1.000_001).contains(&begins) && ends >= begins
                );
            }
        }
    }

    #[test]
    fn texts_are_short_and_obey_nobody() {
        let hostile = text(&("\u{1b}[2J\u{202e}a\0\u{9b}".to_owned() + &"x".repeat(10_000_000)));
        assert!(hostile.starts_with("?[2J?a??x") && hostile.chars().count() == LONGEST + 1, "{hostile}");
    }
}
