//! What a statement is, from its first words, and how it may be shown: its shape, never its data.

/// Longest part of a statement that is shown.
const SHOWN: usize = 60;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Select,
    /// changes rows
    Write,
    /// CREATE … SELECT, which changes both
    CreateSelect,
    /// changes tables
    Ddl,
    /// FLUSH, LOCK, BACKUP: another one who stops the server
    Lock,
    Other,
}

pub(super) fn verb(statement: &str) -> Verb {
    let upper = without_comments(statement).to_ascii_uppercase();
    let mut words = upper.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).filter(|word| !word.is_empty());
    match words.next().unwrap_or("") {
        "SELECT" => Verb::Select,
        "INSERT" | "UPDATE" | "DELETE" | "REPLACE" | "LOAD" => Verb::Write,
        // a common table expression may stand before any of these
        "WITH" => words
            .find_map(|word| match word {
                "INSERT" | "UPDATE" | "DELETE" | "REPLACE" => Some(Verb::Write),
                _ => None,
            })
            .unwrap_or(Verb::Select),
        "CREATE" => {
            let table = words.by_ref().take(3).any(|word| word == "TABLE");
            if table && words.any(|word| word == "SELECT") { Verb::CreateSelect } else { Verb::Ddl }
        }
        "ALTER" | "DROP" | "TRUNCATE" | "RENAME" | "OPTIMIZE" | "REPAIR" | "ANALYZE" => Verb::Ddl,
        "FLUSH" | "LOCK" | "BACKUP" => Verb::Lock,
        _ => Verb::Other,
    }
}

/// A SELECT without FROM reads no table; anything else may.
pub(super) fn uses_tables(statement: &str) -> bool {
    verb(statement) != Verb::Select || {
        let upper = shape(statement).to_ascii_uppercase();
        upper.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == "FROM")
    }
}

/// It reads and nothing else: no lock, no file, no variable.
pub(super) fn only_reads(statement: &str) -> bool {
    let upper = shape(statement).to_ascii_uppercase();
    verb(statement) == Verb::Select
        && !upper.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| matches!(word, "INTO" | "UPDATE" | "SHARE"))
}

/// The beginning of it, with every literal replaced.
pub(super) fn shown(statement: &str) -> String {
    let shape = shape(statement);
    match shape.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &shape[..end]),
        None => shape,
    }
}

/// Without comments and literals, in one line.
fn shape(statement: &str) -> String {
    let text = without_comments(statement);
    let mut shape = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    let mut in_word = false;
    while let Some(c) = chars.next() {
        match c {
            '\'' | '"' => {
                while let Some(inside) = chars.next() {
                    match inside {
                        '\\' => drop(chars.next()),
                        _ if inside == c && chars.peek() == Some(&c) => drop(chars.next()),
                        _ if inside == c => break,
                        _ => {}
                    }
                }
                shape.push('?');
            }
            '0'..='9' if !in_word => {
                while chars.peek().is_some_and(|next| next.is_ascii_alphanumeric() || *next == '.') {
                    chars.next();
                }
                shape.push('?');
            }
            c if c.is_whitespace() => {
                if !shape.ends_with(' ') {
                    shape.push(' ');
                }
            }
            c => shape.push(c),
        }
        in_word = c.is_alphanumeric() || matches!(c, '_' | '$' | '`');
    }
    shape.trim().to_owned()
}

/// Comments at its beginning may hide what it is, and anywhere may hold anything. `/*! … */` is not one.
fn without_comments(statement: &str) -> String {
    let mut rest = statement;
    let mut text = String::with_capacity(statement.len());
    while let Some(at) = rest.find("/*") {
        text.push_str(&rest[..at]);
        let Some(end) = rest[at..].find("*/") else { return text };
        if rest[at..].starts_with("/*!") {
            text.push_str(&rest[at + 3..at + end]);
        }
        text.push(' ');
        rest = &rest[at + end + 2..];
    }
    text.push_str(rest);
    text.trim_start_matches(|c: char| c.is_whitespace() || c == '(').to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_statement_is_known_by_its_first_words() {
        assert_eq!(verb("  (SELECT 1) UNION SELECT 2"), Verb::Select);
        assert_eq!(verb("/* app */ insert into t values (1)"), Verb::Write);
        assert_eq!(verb("WITH x AS (SELECT 1) UPDATE t, x SET a = 1"), Verb::Write);
        assert_eq!(verb("WITH x AS (SELECT 1) SELECT * FROM x"), Verb::Select);
        assert_eq!(verb("create table t as select * from u"), Verb::CreateSelect);
        assert_eq!(verb("CREATE TABLE t (i int)"), Verb::Ddl);
        assert_eq!(verb("create or replace table t as select 1"), Verb::CreateSelect);
        assert_eq!(verb("CREATE VIEW v AS SELECT 1"), Verb::Ddl);
        assert_eq!(verb("ALTER TABLE t ADD x int"), Verb::Ddl);
        assert_eq!(verb("FLUSH TABLES WITH READ LOCK"), Verb::Lock);
        assert_eq!(verb("backup stage start"), Verb::Lock);
        assert_eq!(verb("COMMIT"), Verb::Other);
        assert_eq!(verb(""), Verb::Other);
    }

    #[test]
    fn only_a_plain_select_may_be_ended() {
        assert!(only_reads("SELECT * FROM t WHERE a = 'INTO'"));
        assert!(!only_reads("SELECT * FROM t INTO OUTFILE '/x'"));
        assert!(!only_reads("SELECT * FROM t FOR UPDATE"));
        assert!(!only_reads("SELECT * FROM t LOCK IN SHARE MODE"));
        assert!(!only_reads("UPDATE t SET a = 1"));
        assert!(!uses_tables("SELECT SLEEP(30)"));
        assert!(uses_tables("SELECT SLEEP(30) FROM t"));
        assert!(!uses_tables("SELECT ' FROM t'"));
    }

    #[test]
    fn what_is_shown_has_no_data_in_it() {
        assert_eq!(
            shown("SELECT *\n  FROM t1 WHERE a = 'it''s \\' me' AND b=42.5"),
            "SELECT * FROM t1 WHERE a = ? AND b=?"
        );
        assert_eq!(shown("INSERT /* secret */ INTO `t` VALUES (0x41, \"x\")"), "INSERT INTO `t` VALUES (?, ?)");
        let long = shown(&format!("SELECT {} FROM t", "column_name, ".repeat(20)));
        assert_eq!(long.chars().count(), 61);
        assert!(long.ends_with('…'));
    }

    proptest! {
        #[test]
        fn no_statement_panics_and_no_quoted_word_is_shown(before in "[a-z (*/!'\"\\\\`0-9é]{0,30}", word in "[A-Z]{8}") {
            drop((shown(&before), verb(&before), uses_tables(&before), only_reads(&before)));
            let quoted = format!("SELECT * FROM t WHERE a = '{word}' AND b");
            prop_assert!(!shown(&quoted).contains(&word));
        }
    }
}
