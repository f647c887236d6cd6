//! Texts of a copy are a stranger's: what would move a cursor, end a line or turn writing around is shown, not done.

use serde_json::Value;

/// Longer is cut: a sentence is to be read.
const LONGEST: usize = 1024;

/// The text on one line, harmless to a terminal.
pub fn text(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(LONGEST));
    for c in text.chars() {
        if out.len() >= LONGEST {
            out.push('…');
            break;
        }
        match c {
            c if c.is_control() || turns(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// Characters that change the direction of what follows, or are not seen at all.
fn turns(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// Every text in it, member names included.
pub fn value(value: &Value) -> Value {
    match value {
        Value::String(s) => Value::String(text(s)),
        Value::Array(items) => items.iter().map(self::value).collect(),
        Value::Object(members) => {
            Value::Object(members.iter().map(|(name, member)| (text(name), self::value(member))).collect())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_the_terminal_but_text() {
        assert_eq!(text("\x1b[2J/srv\r\nok"), "\\u{1b}[2J/srv\\u{d}\\u{a}ok");
        assert_eq!(text("a\u{202e}b\u{9b}c"), "a\\u{202e}b\\u{9b}c");
        assert_eq!(text("größer /mnt/ü"), "größer /mnt/ü");
        assert!(text(&"x".repeat(1 << 20)).len() < 1100);
    }
}
