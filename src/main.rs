//! holdstill: parse, dispatch, turn the result into text and an exit code; nothing else.

fn main() {}
