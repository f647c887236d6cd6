//! What a guest agent answers: a value or an error of a class, as one line of JSON the way QEMU writes it.

use std::io;

use serde::Serialize;
use serde_json::{Value, ser::Formatter, value::RawValue};

/// The error classes of QEMU's protocol that a guest agent uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    GenericError,
    /// unknown, or disabled: hosts tell the two apart by the text
    CommandNotFound,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{desc}")]
pub struct Error {
    pub class: Class,
    pub desc: String,
}

/// A command's answer: what stands behind `"return"`, or an error.
pub type Answer = Result<Value, Error>;

impl Error {
    pub fn generic(desc: impl Into<String>) -> Error {
        Error { class: Class::GenericError, desc: desc.into() }
    }

    pub fn not_found(command: &str) -> Error {
        Error { class: Class::CommandNotFound, desc: format!("The command {command} has not been found") }
    }

    /// `why` completes "has been disabled: …"; hosts look for these words.
    pub fn disabled(command: &str, why: &str) -> Error {
        Error { class: Class::CommandNotFound, desc: format!("Command {command} has been disabled: {why}") }
    }
}

/// One reply with its newline. `id` is echoed as it was sent.
pub fn line(answer: &Answer, id: Option<&RawValue>) -> Vec<u8> {
    #[derive(Serialize)]
    struct Reply<'a> {
        #[serde(rename = "return", skip_serializing_if = "Option::is_none")]
        value: Option<&'a Value>,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<Wrong<'a>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a RawValue>,
    }
    #[derive(Serialize)]
    struct Wrong<'a> {
        class: &'a str,
        desc: &'a str,
    }
    let class = |class| match class {
        Class::GenericError => "GenericError",
        Class::CommandNotFound => "CommandNotFound",
    };
    let reply = Reply {
        value: answer.as_ref().ok(),
        error: answer.as_ref().err().map(|e| Wrong { class: class(e.class), desc: &e.desc }),
        id,
    };
    let mut line = Vec::new();
    reply
        .serialize(&mut serde_json::Serializer::with_formatter(&mut line, AsQemu))
        .expect("a vector takes all, and every key is a string");
    line.push(b'\n');
    line
}

/// QEMU puts a space after each colon and comma.
struct AsQemu;

impl Formatter for AsQemu {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(answer: &Answer, id: Option<&str>) -> String {
        let id = id.map(|id| RawValue::from_string(id.to_owned()).expect("JSON"));
        String::from_utf8(line(answer, id.as_deref())).expect("text")
    }

    #[test]
    fn a_reply_is_one_line_spaced_as_qemu_does() {
        assert_eq!(text(&Ok(json!({})), None), "{\"return\": {}}\n");
        assert_eq!(text(&Ok(json!([1, {"a": "b", "c": []}])), None), "{\"return\": [1, {\"a\": \"b\", \"c\": []}]}\n");
        assert_eq!(text(&Ok(json!("frozen")), Some("7")), "{\"return\": \"frozen\", \"id\": 7}\n");
    }

    #[test]
    fn an_id_is_echoed_to_the_letter() {
        for id in ["18446744073709551616", "1e400", "\"\\u00e4\"", "{\"a\": [1,  2]}"] {
            assert!(text(&Ok(json!({})), Some(id)).contains(&format!("\"id\": {id}}}")));
        }
    }

    #[test]
    fn an_error_names_its_class() {
        assert_eq!(
            text(&Err(Error::not_found("guest-fly")), None),
            "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"The command guest-fly has not been found\"}}\n"
        );
        assert!(
            text(&Err(Error::disabled("guest-exec", "no")), None).contains("Command guest-exec has been disabled: no")
        );
        assert!(text(&Err(Error::generic("a \"b\"\n")), None).contains("a \\\"b\\\"\\n"), "still one line");
    }
}
