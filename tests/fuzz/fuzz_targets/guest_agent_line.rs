//! Any bytes from a host: no crash, memory bounded by the longest request, every answer one line of JSON, and the next
//! valid sync is found whole.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../../src/door/qga/reply.rs"]
#[expect(dead_code, reason = "the rest is the agent's")]
mod reply;
#[path = "../../../src/door/qga/wire.rs"]
mod wire;

use wire::{Frame, Framer, REQUEST_MAX};

const SYNC: &[u8] = b"{\"execute\": \"guest-sync-delimited\", \"arguments\": {\"id\": 4711}}";

fuzz_target!(|data: &[u8]| {
    // the first byte says how the stream is cut
    let (size, noise) = data.split_first().map_or((1, data), |(first, rest)| (usize::from(*first) + 1, rest));
    let mut framer = Framer::default();
    let mut last = None;
    for part in noise.chunks(size).chain([b"\n", SYNC, b"\n"]) {
        let mut rest = part;
        while !rest.is_empty() {
            let (taken, frame) = framer.take(rest);
            assert!(taken > 0, "no progress");
            rest = &rest[taken..];
            if let Some(frame) = frame {
                look_at(&frame);
                last = Some(frame);
            }
        }
    }
    assert_eq!(last, Some(Frame::Request(SYNC.to_vec())), "the next sync is answered");
});

fn look_at(frame: &Frame) {
    let Frame::Request(line) = frame else { return };
    assert!(!line.is_empty() && line.len() <= REQUEST_MAX);
    let (answer, id) = match wire::parse(line) {
        Ok(mut request) => {
            let strings = request.arguments.strings("mountpoints").map(|list| list.unwrap_or_default().join(" "));
            let answer = request.arguments.integer("id").map(|id| serde_json::json!([id, strings.unwrap_or_default()]));
            (request.arguments.done().and(answer), request.id)
        }
        Err(malformed) => (Err(malformed.error), malformed.id),
    };
    let reply = reply::line(&answer, id.as_deref());
    assert_eq!(reply.iter().filter(|byte| **byte == b'\n').count(), 1, "an answer is one line");
    serde_json::from_slice::<serde::de::IgnoredAny>(&reply).expect("an answer is JSON");
}
