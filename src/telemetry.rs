//! Tracing, buffered in memory while anything is frozen: our own log line must never wait for our own freeze.
