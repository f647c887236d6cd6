//! Bytes to requests: framing, then one request's shape, in the words the stock agent has for what is wrong.
//!
//! A request is one JSON object on one line. It is complete with its last brace, newline or not, as for the stock
//! agent; a newline always ends it, so one damaged request never swallows the next. A byte 0xFF, which no UTF-8 text
//! has, throws away what came before it.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Map, Value, value::RawValue};

use super::reply::Error;

/// The longest request, in bytes. What comes to us is short; what is relayed may carry a file's content.
pub const REQUEST_MAX: usize = 4 << 20;

/// What a client sends to throw away a half-sent request, and what precedes the answer to `guest-sync-delimited`.
pub const RESET: u8 = 0xFF;

/// What the bytes so far amount to.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// one request, whole; not looked at yet
    Request(Vec<u8>),
    /// a reset that threw away part of a request
    Torn,
    /// a request of more than [`REQUEST_MAX`] bytes, thrown away
    TooLong,
}

/// Cuts a stream of bytes into requests. Keeps at most one unfinished request.
#[derive(Debug, Default)]
pub struct Framer {
    pending: Vec<u8>,
    depth: usize,
    within: Within,
    /// what comes until the next newline belongs to a request that was too long
    skipping: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Within {
    #[default]
    Structure,
    Text,
    Escape,
}

impl Framer {
    /// Takes bytes up to the end of the first frame: how many were taken, and the frame if it is whole. Call again
    /// with the rest.
    pub fn take(&mut self, bytes: &[u8]) -> (usize, Option<Frame>) {
        for (index, &byte) in bytes.iter().enumerate() {
            if let Some(frame) = self.one(byte) {
                return (index + 1, Some(frame));
            }
        }
        (bytes.len(), None)
    }

    /// The other end is gone: it will not finish what it began.
    pub fn forget(&mut self) {
        *self = Framer::default();
    }

    fn one(&mut self, byte: u8) -> Option<Frame> {
        if self.skipping {
            if byte == b'\n' || byte == RESET {
                self.skipping = false;
                return Some(Frame::TooLong);
            }
            return None;
        }
        match byte {
            RESET => {
                let torn = !self.pending.is_empty();
                self.forget();
                return torn.then_some(Frame::Torn);
            }
            b'\n' => return self.finish(),
            _ if self.pending.is_empty() && byte.is_ascii_whitespace() => return None,
            _ => {}
        }
        if self.pending.len() == REQUEST_MAX {
            self.forget();
            self.skipping = true;
            return None;
        }
        self.pending.push(byte);
        self.follow(byte).then(|| self.finish()).flatten()
    }

    /// Follows the structure; says whether an object has just been closed.
    fn follow(&mut self, byte: u8) -> bool {
        match (self.within, byte) {
            (Within::Escape, _) => self.within = Within::Text,
            (Within::Text, b'\\') => self.within = Within::Escape,
            (Within::Text, b'"') => self.within = Within::Structure,
            (Within::Text, _) => {}
            (Within::Structure, b'"') => self.within = Within::Text,
            (Within::Structure, b'{' | b'[') => self.depth += 1,
            (Within::Structure, b'}' | b']') => {
                self.depth = self.depth.saturating_sub(1);
                // what does not begin as an object ends with its line
                return self.depth == 0 && self.pending.first() == Some(&b'{');
            }
            (Within::Structure, _) => {}
        }
        false
    }

    fn finish(&mut self) -> Option<Frame> {
        let request = std::mem::take(&mut self.pending);
        self.forget();
        (!request.is_empty()).then_some(Frame::Request(request))
    }
}

/// One request of the right shape.
#[derive(Debug)]
pub struct Request {
    pub command: String,
    pub arguments: Arguments,
    /// to be echoed to the letter, whatever it is: a number may have more digits than we could hold
    pub id: Option<Box<RawValue>>,
}

/// A request of the wrong shape; its `id` is echoed nevertheless.
#[derive(Debug)]
pub struct Malformed {
    pub error: Error,
    pub id: Option<Box<RawValue>>,
}

/// One request's shape: `execute`, and nothing but `arguments` and `id` beside it. Takes no more memory than the
/// line: values are not looked into.
///
/// # Errors
/// What is wrong with it, for the host.
pub fn parse(line: &[u8]) -> Result<Request, Malformed> {
    let bare = |desc: String| Malformed { error: Error::generic(desc), id: None };
    let members: Members = match serde_json::from_slice(line) {
        Ok(members) => members,
        Err(error) if error.is_data() => return Err(bare("QMP input must be a JSON object".to_owned())),
        Err(error) => return Err(bare(format!("JSON parse error, {error}"))),
    };
    let Members { execute, arguments, id, unexpected } = members;
    let wrong = |desc: String, id| Err(Malformed { error: Error::generic(desc), id });
    if let Some(name) = unexpected {
        return wrong(format!("QMP input member '{name}' is unexpected"), id);
    }
    let command = match execute.map(|raw| serde_json::from_str::<String>(raw.get())) {
        Some(Ok(command)) => command,
        Some(Err(_)) => return wrong("QMP input member 'execute' must be a string".to_owned(), id),
        None => return wrong("QMP input lacks member 'execute'".to_owned(), id),
    };
    if arguments.as_ref().is_some_and(|raw| !raw.get().starts_with('{')) {
        return wrong("QMP input member 'arguments' must be an object".to_owned(), id);
    }
    Ok(Request { command, arguments: Arguments::Given(arguments), id })
}

#[derive(Debug, Default)]
struct Members {
    execute: Option<Box<RawValue>>,
    arguments: Option<Box<RawValue>>,
    id: Option<Box<RawValue>>,
    /// the first name that has no business here, its beginning
    unexpected: Option<String>,
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Members, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Members::default();
                while let Some(name) = map.next_key::<String>()? {
                    match name.as_str() {
                        "execute" => members.execute = Some(map.next_value()?),
                        "arguments" => members.arguments = Some(map.next_value()?),
                        "id" => members.id = Some(map.next_value()?),
                        other => {
                            map.next_value::<IgnoredAny>()?;
                            members.unexpected.get_or_insert_with(|| other.chars().take(64).collect());
                        }
                    }
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(Visit)
    }
}

/// The most that is looked into, in bytes; more is for the relay alone.
const ARGUMENTS_MAX: usize = 1 << 20;

/// A command's arguments, taken one by one.
#[derive(Debug)]
pub enum Arguments {
    Given(Option<Box<RawValue>>),
    Opened(Map<String, Value>),
}

impl Arguments {
    /// As they came, before they were looked into.
    pub fn raw(&self) -> Option<&RawValue> {
        match self {
            Arguments::Given(raw) => raw.as_deref(),
            Arguments::Opened(_) => None,
        }
    }

    fn open(&mut self) -> Result<&mut Map<String, Value>, Error> {
        if let Arguments::Given(raw) = self {
            let text = raw.as_ref().map_or("{}", |raw| raw.get());
            if text.len() > ARGUMENTS_MAX {
                return Err(Error::generic(format!("The arguments are longer than {ARGUMENTS_MAX} bytes")));
            }
            let members =
                serde_json::from_str(text).map_err(|error| Error::generic(format!("JSON parse error, {error}")))?;
            *self = Arguments::Opened(members);
        }
        match self {
            Arguments::Opened(members) => Ok(members),
            Arguments::Given(_) => unreachable!("opened above"),
        }
    }

    /// # Errors
    /// It is missing, or no 64-bit integer.
    pub fn integer(&mut self, name: &str) -> Result<i64, Error> {
        let value = self.open()?.shift_remove(name);
        let value = value.ok_or_else(|| Error::generic(format!("Parameter '{name}' is missing")))?;
        value.as_i64().ok_or_else(|| mistyped(name, "integer"))
    }

    /// # Errors
    /// It is there, and is no list of strings.
    pub fn strings(&mut self, name: &str) -> Result<Option<Vec<String>>, Error> {
        match self.open()?.shift_remove(name) {
            None => Ok(None),
            Some(Value::Array(items)) => {
                let text = |(index, item): (usize, Value)| match item {
                    Value::String(text) => Ok(text),
                    _ => Err(mistyped(&format!("{name}[{index}]"), "string")),
                };
                items.into_iter().enumerate().map(text).collect::<Result<_, _>>().map(Some)
            }
            Some(_) => Err(mistyped(name, "array")),
        }
    }

    /// # Errors
    /// Something was given that the command does not take.
    pub fn done(mut self) -> Result<(), Error> {
        match self.open()?.keys().next() {
            None => Ok(()),
            Some(name) => Err(Error::generic(format!("Parameter '{name}' is unexpected"))),
        }
    }
}

fn mistyped(name: &str, expected: &str) -> Error {
    Error::generic(format!("Invalid parameter type for '{name}', expected: {expected}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames(framer: &mut Framer, mut bytes: &[u8]) -> Vec<Frame> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let (taken, frame) = framer.take(bytes);
            found.extend(frame);
            bytes = &bytes[taken..];
        }
        found
    }

    fn texts(bytes: &[u8]) -> Vec<String> {
        let text = |frame| match frame {
            Frame::Request(line) => String::from_utf8_lossy(&line).into_owned(),
            Frame::Torn => "TORN".into(),
            Frame::TooLong => "TOO LONG".into(),
        };
        frames(&mut Framer::default(), bytes).into_iter().map(text).collect()
    }

    #[test]
    fn requests_end_with_their_line_or_their_last_brace() {
        assert_eq!(
            texts(b"{\"a\": 1}\r\n\n {\"b\": \"}\"}{\"c\": [{}]}\n"),
            ["{\"a\": 1}", "{\"b\": \"}\"}", "{\"c\": [{}]}"]
        );
        assert_eq!(texts(b"{\"a\": \"\\\"}\"}"), ["{\"a\": \"\\\"}\"}"], "an escaped quote ends no text");
        assert_eq!(texts(b"[1, {}]\n7\n"), ["[1, {}]", "7"], "no request, but somebody's line");
    }

    #[test]
    fn a_damaged_line_does_not_swallow_the_next() {
        assert_eq!(texts(b"{\"execute\": \"gu\n{\"b\": 1}\n"), ["{\"execute\": \"gu", "{\"b\": 1}"]);
        assert_eq!(texts(b"]]}}\n{\"b\": 1}\n"), ["]]}}", "{\"b\": 1}"]);
    }

    #[test]
    fn a_reset_throws_away_what_came_before_it_and_nothing_else() {
        assert_eq!(texts(b"\xff{\"a\": 1}\n"), ["{\"a\": 1}"], "nothing was lost, nothing is said");
        assert_eq!(texts(b"{\"exec\xff{\"a\": 1}\n"), ["TORN", "{\"a\": 1}"]);
        assert_eq!(texts(b"\xff\xff\xff\n\n"), [] as [&str; 0]);
    }

    #[test]
    fn a_request_too_long_is_thrown_away_whole_and_said_once() {
        let mut framer = Framer::default();
        let long = vec![b'{'; REQUEST_MAX];
        assert_eq!(frames(&mut framer, &long), []);
        assert_eq!(frames(&mut framer, b"}}}} more and more"), []);
        assert!(framer.pending.capacity() < 1024, "nothing of it is kept");
        assert_eq!(frames(&mut framer, b"\n{}\n"), [Frame::TooLong, Frame::Request(b"{}".to_vec())]);
    }

    fn wrong(line: &str) -> String {
        parse(line.as_bytes()).expect_err("malformed").error.desc
    }

    #[test]
    fn what_is_wrong_with_a_request_is_said_in_the_stock_agents_words() {
        assert!(wrong("{'execute': 'guest-ping'}").starts_with("JSON parse error, "));
        assert!(wrong("{\"execute\": \"\u{1}\"}").starts_with("JSON parse error, "));
        assert_eq!(wrong("[]"), "QMP input must be a JSON object");
        assert_eq!(wrong("{}"), "QMP input lacks member 'execute'");
        assert_eq!(wrong("{\"execute\": 7}"), "QMP input member 'execute' must be a string");
        assert_eq!(wrong("{\"execute\": \"a\", \"arguments\": []}"), "QMP input member 'arguments' must be an object");
        assert_eq!(wrong("{\"exec-oob\": \"a\"}"), "QMP input member 'exec-oob' is unexpected");
    }

    #[test]
    fn the_id_is_kept_to_the_letter_even_of_a_malformed_request() {
        let id = |line: &str| match parse(line.as_bytes()) {
            Ok(request) => request.id,
            Err(malformed) => malformed.id,
        };
        assert_eq!(id("{\"execute\": \"a\", \"id\": 18446744073709551616}").unwrap().get(), "18446744073709551616");
        assert_eq!(id("{\"id\": {\"x\": [1]}}").unwrap().get(), "{\"x\": [1]}");
        assert!(id("{\"execute\": \"a\"}").is_none());
    }

    #[test]
    fn arguments_are_checked_as_the_stock_agent_does() {
        let given = |text: &str| Arguments::Given(Some(RawValue::from_string(text.into()).expect("JSON")));
        assert_eq!(given("{\"id\": 1795220334038}").integer("id"), Ok(1_795_220_334_038));
        assert_eq!(given("{}").integer("id").unwrap_err().desc, "Parameter 'id' is missing");
        for wrong in ["\"7\"", "1.5", "9223372036854775808", "null"] {
            let error = given(&format!("{{\"id\": {wrong}}}")).integer("id").unwrap_err();
            assert_eq!(error.desc, "Invalid parameter type for 'id', expected: integer");
        }
        let mut list = given("{\"mountpoints\": [\"/\", 7]}");
        assert_eq!(
            list.strings("mountpoints").unwrap_err().desc,
            "Invalid parameter type for 'mountpoints[1]', expected: string"
        );
        assert_eq!(given("{\"x\": 1}").done().unwrap_err().desc, "Parameter 'x' is unexpected");
    }

    #[test]
    fn depth_is_no_danger() {
        assert!(wrong(&"{\"execute\":".repeat(100_000)).starts_with("JSON parse error, "));
        let deep =
            format!("{{\"execute\": \"a\", \"arguments\": {{\"x\": {}{}}}}}", "[".repeat(100_000), "]".repeat(100_000));
        let error = parse(deep.as_bytes()).expect("not looked into").arguments.done().unwrap_err();
        assert!(error.desc.starts_with("JSON parse error, recursion limit"), "{error}");
    }

    proptest! {
        /// Whatever came before, and however it was cut: after a newline the next request is found whole.
        #[test]
        fn after_any_bytes_the_next_line_is_a_request(noise in proptest::collection::vec(any::<u8>(), 0..300), cut in 1usize..40) {
            let mut framer = Framer::default();
            let wanted = b"{\"execute\": \"guest-sync\", \"arguments\": {\"id\": 1}}";
            let mut all = noise.clone();
            all.push(b'\n');
            all.extend_from_slice(wanted);
            all.push(b'\n');
            let mut found = Vec::new();
            for part in all.chunks(cut) {
                found.extend(frames(&mut framer, part));
            }
            prop_assert_eq!(found.last(), Some(&Frame::Request(wanted.to_vec())));
            prop_assert!(framer.pending.is_empty());
        }

        #[test]
        fn no_line_makes_the_parser_panic(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&line);
        }
    }
}
