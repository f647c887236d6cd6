//! The picture as SVG: one file, no script, no font and no address from elsewhere, readable on light and on dark, and with a
//! title and a description for whoever does not see it. What kind a bar is, is told by its pattern and by words, too.

use std::fmt::{self, Display, Write};

use super::{
    disks::{Disk, Fate, Map},
    timeline::{Mark, Row, Timeline, text},
};
use crate::{
    client::{show, words},
    proto,
};

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 200.0;
/// Of the bars; what is right of them is numbers.
const BARS: f64 = 500.0;
const LINE: f64 = 22.0;
/// Characters that fit left and right of the bars.
const NAME: usize = 28;
const NUMBERS: usize = 46;

/// Colours with enough contrast on white and on black; the patterns tell the same to whoever sees none.
const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#222}\
.h{font-size:15px;font-weight:600}.n{fill:#555}.bad{fill:#b3261e}\
.axis{stroke:#999;stroke-width:1}.track{fill:#8883}\
.paper{fill:#fff}\
.ph0{fill:#8882}.ph1{fill:#8884}\
@media (prefers-color-scheme:dark){text{fill:#eee}.n{fill:#bbb}.bad{fill:#ff8a80}.paper{fill:#15171a}}";

const PATTERNS: &str = r##"<defs>
<pattern id="doing" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="6" height="6" fill="#d9a400"/><rect width="2" height="6" fill="#7a5c00"/></pattern>
<pattern id="undoing" width="6" height="6" patternUnits="userSpaceOnUse"><rect width="6" height="6" fill="#4a9d5b"/><circle cx="3" cy="3" r="1.5" fill="#1e5128"/></pattern>
<pattern id="transient" width="8" height="8" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="8" height="8" fill="#e08214"/><rect width="3" height="8" fill="#7f3b08"/></pattern>
<pattern id="mixed" width="8" height="8" patternUnits="userSpaceOnUse"><rect width="8" height="8" fill="#b48ad6"/><path d="M0 0L8 8M8 0L0 8" stroke="#4b1f6f" stroke-width="1.5"/></pattern>
<pattern id="lost" width="8" height="8" patternUnits="userSpaceOnUse" patternTransform="rotate(-45)"><rect width="8" height="8" fill="#d6604d"/><rect width="4" height="8" fill="#67001f"/></pattern>
</defs>
"##;

/// Draws a hold.
pub fn draw(report: &proto::Report) -> String {
    let (timeline, map) = (Timeline::of(report), Map::of(report));
    let mut body = Body { out: String::new(), y: 28.0 };
    body.heading(report, &timeline);
    body.timeline(&timeline);
    if !map.disks.is_empty() {
        body.map(&map);
    }
    let height = body.y + 16.0;
    let (title, about) = (Text(format!("Hold {}", text(&report.id))), Text(describe(report, &timeline, &map)));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH:.0} {height:.0}\" width=\"{WIDTH:.0}\" height=\"{height:.0}\" \
         role=\"img\" aria-labelledby=\"title about\">\n<title id=\"title\">{title}</title>\n<desc id=\"about\">{about}</desc>\n\
         <style>{STYLE}</style>\n{PATTERNS}<rect class=\"paper\" width=\"100%\" height=\"100%\"/>\n{}</svg>\n",
        body.out
    )
}

/// The same in words.
fn describe(report: &proto::Report, timeline: &Timeline, map: &Map) -> String {
    let mut words = format!("{}. ", text(&show::ended(report)));
    for phase in &timeline.phases {
        let _ = write!(words, "{} {}. ", phase.name, span(phase.took));
    }
    for disk in &map.disks {
        let _ = write!(words, "{}: {}, {}. ", disk.name, disk.about, disk.fate_text);
    }
    words.trim_end().to_owned()
}

fn span(time: std::time::Duration) -> String {
    words::duration(time.try_into().ok().as_ref())
}

struct Body {
    out: String,
    y: f64,
}

impl Body {
    fn heading(&mut self, report: &proto::Report, timeline: &Timeline) {
        let label = if report.label.is_empty() { String::new() } else { format!(" ({})", text(&report.label)) };
        let when = report.admitted_time.map(|time| prost_types::Timestamp { nanos: 0, ..time }.to_string());
        self.text(16.0, "h", &cut(&format!("Hold {}{label}", text(&report.id)), 90));
        self.y += 20.0;
        self.text(16.0, "n", &cut(&text(&show::ended(report)), 150));
        self.y += 18.0;
        let phases = timeline.phases.iter().map(|phase| format!("{} {}", phase.name, span(phase.took)));
        let facts: Vec<String> = when.map(|when| format!("admitted {when}")).into_iter().chain(phases).collect();
        self.text(16.0, "n", &facts.join("  ·  "));
        self.y += 26.0;
    }

    fn timeline(&mut self, timeline: &Timeline) {
        let top = self.y;
        let height = LINE * rows(timeline);
        for (number, phase) in timeline.phases.iter().enumerate() {
            let (x, end) = (x(phase.begins), x(phase.ends));
            let class = number % 2;
            let _ = writeln!(
                self.out,
                "<rect class=\"ph{class}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>",
                top - 14.0,
                end - x,
                height + 18.0
            );
            self.text(x + 4.0, "n", phase.name);
        }
        self.y += 4.0;
        for row in &timeline.rows {
            self.y += LINE;
            self.row(row);
        }
        self.y += LINE;
        if timeline.left_out > 0 {
            let n = timeline.left_out;
            self.text(16.0, "n", &format!("and {n} {} left out", words::plural(n, "other", "others")));
            self.y += LINE;
        }
        let legend =
            [(Mark::Doing, "being done"), (Mark::Held, "frozen, locked or paused"), (Mark::Undoing, "being undone")];
        let mut at = LEFT;
        for (mark, words) in legend {
            self.bar(at, 14.0, fill(mark));
            self.text(at + 20.0, "n", words);
            at += 195.0;
        }
        self.y += 18.0;
        self.text(LEFT, "n", "Each phase has a scale of its own, wider the longer it took.");
        self.y += 30.0;
    }

    fn row(&mut self, row: &Row) {
        let class = if row.bad { "bad" } else { "" };
        let _ =
            writeln!(self.out, "<g><title>{}</title>", Text(format!("{}: {}, {}", row.name, row.outcome, row.numbers)));
        self.text(16.0, class, &cut(&row.name, NAME));
        for span in &row.spans {
            // an instant is seen, too
            self.bar(x(span.begins), (x(span.ends) - x(span.begins)).max(1.5), fill(span.mark));
        }
        let numbers = match (row.spans.is_empty(), row.bad) {
            (false, false) => row.numbers.clone(),
            (true, _) | (_, true) => format!("{}: {}", row.outcome, row.numbers),
        };
        self.text(LEFT + BARS + 12.0, if row.bad { "bad" } else { "n" }, &cut(&numbers, NUMBERS));
        self.out.push_str("</g>\n");
    }

    fn map(&mut self, map: &Map) {
        self.text(16.0, "h", "Disks");
        for disk in &map.disks {
            self.y += LINE + 4.0;
            self.disk(disk);
        }
        self.y += LINE;
        if map.left_out > 0 {
            let n = map.left_out;
            let words = words::plural(n, "other is nearly empty or", "others are nearly empty or");
            self.text(16.0, "n", &format!("{n} {words} left out"));
            self.y += LINE;
        }
        let legend = [Fate::InSnapshot, Fate::NotTold, Fate::Mixed, Fate::Transient, Fate::NotInSnapshot];
        let mut at = 16.0;
        for fate in legend {
            let words = match fate {
                Fate::InSnapshot => "in the snapshot",
                Fate::NotTold => "durable, snapshot not told",
                Fate::Mixed => "partly transient",
                Fate::Transient => "transient",
                Fate::NotInSnapshot => "not in the snapshot",
            };
            self.bar(at, 14.0, colour(fate));
            self.text(at + 20.0, "n", words);
            at += 190.0;
        }
        self.y += 18.0;
        self.text(16.0, "n", "Bars are as long as disks are large; what is in use is filled.");
        self.y += 8.0;
    }

    fn disk(&mut self, disk: &Disk) {
        let missed = if disk.missed.is_empty() { String::new() } else { format!("; at risk: {}", disk.missed) };
        let title = Text(format!("{}: {}, {}{missed}", disk.name, disk.about, disk.fate_text));
        let _ = writeln!(self.out, "<g><title>{title}</title>");
        self.text(16.0, "", &cut(&disk.name, NAME));
        let width = (disk.size * BARS).max(3.0);
        let _ = writeln!(
            self.out,
            "<rect class=\"track\" x=\"{LEFT:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"14\" stroke=\"{}\" stroke-width=\"2\"/>",
            self.y - 11.0,
            colour(disk.fate)
        );
        self.bar(LEFT, (disk.used * width).max(1.5), colour(disk.fate));
        self.text(LEFT + BARS + 12.0, "n", &cut(&disk.about, NUMBERS));
        self.y += 15.0;
        self.text(LEFT, if missed.is_empty() { "n" } else { "bad" }, &cut(&format!("{}{missed}", disk.fate_text), 120));
        self.out.push_str("</g>\n");
    }

    fn bar(&mut self, x: f64, width: f64, fill: &str) {
        let y = self.y - 11.0;
        let _ =
            writeln!(self.out, "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"14\" fill=\"{fill}\"/>");
    }

    fn text(&mut self, x: f64, class: &str, words: &str) {
        let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
        let _ = writeln!(self.out, "<text x=\"{x:.1}\" y=\"{:.1}\"{class}>{}</text>", self.y, Text(words.to_owned()));
    }
}

#[expect(clippy::cast_precision_loss, reason = "at most 200 rows")]
fn rows(timeline: &Timeline) -> f64 {
    timeline.rows.len() as f64
}

fn x(part: f64) -> f64 {
    LEFT + part * BARS
}

fn fill(mark: Mark) -> &'static str {
    match mark {
        Mark::Doing => "url(#doing)",
        Mark::Held => "#2166ac",
        Mark::Undoing => "url(#undoing)",
    }
}

fn colour(fate: Fate) -> &'static str {
    match fate {
        Fate::InSnapshot => "#2f8f4e",
        Fate::NotTold => "#4393c3",
        Fate::Mixed => "url(#mixed)",
        Fate::Transient => "url(#transient)",
        Fate::NotInSnapshot => "url(#lost)",
    }
}

/// To what fits there; whole it is in the title beside it.
fn cut(words: &str, most: usize) -> String {
    match words.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &words[..end]),
        None => words.to_owned(),
    }
}

/// Text between tags, whoever wrote it. Control characters are gone already: XML has none.
struct Text(String);

impl Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '&' => f.write_str("&amp;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c if c.is_control() => f.write_char('?')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::picture::samples;

    /// Well-formed, and nothing in it but shapes and words.
    fn parsed(svg: &str) -> Vec<String> {
        let document = roxmltree::Document::parse(svg).unwrap_or_else(|error| panic!("{error}: {svg}"));
        let known = ["svg", "title", "desc", "style", "defs", "pattern", "rect", "circle", "path", "g", "text"];
        for node in document.descendants().filter(roxmltree::Node::is_element) {
            let name = node.tag_name().name();
            assert!(known.contains(&name), "<{name}> is none of ours");
            for attribute in node.attributes() {
                let (name, value) = (attribute.name(), attribute.value());
                assert!(!name.starts_with("on") && !name.contains("href"), "{name}={value}");
                assert!(!value.contains("NaN") && !value.contains("inf"), "{name}={value}");
                let number =
                    matches!(name, "x" | "y" | "width" | "height").then(|| value.parse::<f64>().ok()).flatten();
                assert!(number.is_none_or(|number| (-20.0..1_000_000.0).contains(&number)), "{name}={value}");
            }
        }
        document.descendants().filter_map(|node| node.text()).map(str::to_owned).collect()
    }

    #[test]
    fn every_step_and_disk_is_in_it_with_its_numbers() {
        let report = samples::hold();
        let texts = parsed(&draw(&report)).join("\n");
        for step in &report.steps {
            assert!(texts.contains(&step.name), "{} is missing: {texts}", step.name);
        }
        for words in [
            "Hold nightly",
            "prepare 20 s",
            "quiesce 5.0 ms",
            "held 2.0 s",
            "frozen 2.0 s",
            "/mnt (vdb)",
            "db:orders, docker",
        ] {
            assert!(texts.contains(words), "{words} is missing: {texts}");
        }
        assert!(texts.contains("vfat has no freeze operation"), "why it was left out is said");
    }

    #[test]
    fn what_is_at_risk_is_hatched_and_said() {
        let svg = draw(&samples::hold());
        assert_eq!(svg.matches("fill=\"url(#lost)\"").count(), 2, "a disk, and the legend");
        assert_eq!(svg.matches("stroke=\"url(#lost)\"").count(), 1, "what is empty of it, too");
        assert!(svg.contains("NOT in the snapshot, transient; at risk: db:orders, docker"), "{svg}");
    }

    #[test]
    fn hostile_texts_are_words_and_nothing_else() {
        for hostile in samples::HOSTILE {
            parsed(&draw(&samples::all(hostile)));
        }
        let long = samples::all(&"<\u{1b}".repeat(200_000));
        let svg = draw(&long);
        assert!(svg.len() < 200_000, "{} bytes", svg.len());
        parsed(&svg);
    }

    #[test]
    fn thousands_of_steps_and_disks_are_counted_and_an_empty_report_is_a_picture() {
        let mut report = samples::hold();
        report.steps = vec![report.steps[0].clone(); 4096];
        report.coverage = vec![report.coverage[0].clone(); 4096];
        let svg = draw(&report);
        assert!(svg.contains("and 3896 others left out") && svg.len() < 400_000, "{} bytes", svg.len());
        parsed(&svg);
        parsed(&draw(&proto::Report::default()));
    }

    /// `UPDATE=1` draws it anew.
    #[test]
    fn the_picture_in_the_documentation_is_what_is_drawn() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/hold.svg");
        let drawn = draw(&samples::hold());
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, &drawn).expect("docs/ is there");
        }
        assert!(std::fs::read_to_string(path).is_ok_and(|kept| kept == drawn), "UPDATE=1 cargo test --lib picture");
    }
}
