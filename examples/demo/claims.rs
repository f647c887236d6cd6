//! What the demo says, and whether it is so: tables for what was measured, claims for what must be true.

use std::fmt::Write as _;

/// Sentences with the condition each stands on, in the order they were made.
#[derive(Debug, Default)]
pub struct Claims {
    made: Vec<(String, bool)>,
}

impl Claims {
    /// Adds a sentence; `so` is what the code found, not what it hoped.
    pub fn claim(&mut self, sentence: impl Into<String>, so: bool) {
        self.made.push((sentence.into(), so));
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        for (sentence, so) in &self.made {
            let _ = writeln!(text, "  {}  {sentence}", if *so { "true  " } else { "NOT SO" });
        }
        text
    }

    pub fn count(&self) -> usize {
        self.made.len()
    }

    pub fn untrue(&self) -> usize {
        self.made.iter().filter(|(_, so)| !so).count()
    }
}

/// Three columns, aligned: what, without a hold, inside a hold.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<[String; 3]>,
}

impl Table {
    pub fn row(&mut self, what: impl Into<String>, without: impl Into<String>, inside: impl Into<String>) {
        self.rows.push([what.into(), without.into(), inside.into()]);
    }

    pub fn text(&self, title: &str) -> String {
        let width = |column: usize| self.rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
        let (first, second) = (width(0).max(title.chars().count().saturating_sub(2)), width(1).max(14));
        let mut text = String::new();
        let _ = writeln!(text, "{title:<w$}  {:<second$}  inside a hold", "without a hold", w = first + 2);
        for [what, without, inside] in &self.rows {
            let _ = writeln!(text, "  {what:<first$}  {without:<second$}  {inside}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_that_is_not_so_is_counted_and_shown() {
        let mut claims = Claims::default();
        claims.claim("water is wet", true);
        claims.claim("two is three", false);
        assert_eq!((claims.count(), claims.untrue()), (2, 1));
        assert_eq!(claims.text(), "  true    water is wet\n  NOT SO  two is three\n");
    }

    #[test]
    fn columns_line_up_whatever_is_in_them() {
        let mut table = Table::default();
        table.row("lost", "12 of 40", "0 of 80");
        table.row("a longer name", "0", "0");
        let text = table.text("Transactions");
        let at: Vec<_> = text.lines().map(|l| l.rfind("  ").expect("columns")).collect();
        assert!(at.iter().all(|a| *a == at[0]), "{text}");
    }
}
