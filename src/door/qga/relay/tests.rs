//! The relay against a stock agent that follows a schedule. The real one is in `tests/relay.rs`.

use std::{collections::VecDeque, fs, os::unix::fs::PermissionsExt, path::Path};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::UnixListener,
    sync::mpsc,
    time::sleep,
};

use super::{start::FREEZING, *};

/// What it does with one request.
#[derive(Clone)]
enum Act {
    Say(&'static str),
    /// so many bytes within one reply
    SayMuch(usize),
    SayAfter(Duration, &'static str),
    Nothing,
    /// says this much of a reply, and closes
    Die(&'static str),
    /// says nothing ever again
    Hang,
    /// answers, and says this too when it was long in step
    SayMore(&'static str, &'static str),
}

/// What the fake was asked, and how often it was connected to.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Connection,
    Request(String),
}

struct Fake {
    run: TempDir,
    seen: mpsc::UnboundedReceiver<Seen>,
    relay: Relay,
}

impl Fake {
    /// One connection after another; acts are used up one for each request.
    fn new(acts: impl IntoIterator<Item = Act>) -> Fake {
        let run = tempfile::tempdir().expect("a directory");
        fs::create_dir(run.path().join("relay")).expect("created");
        let listener = UnixListener::bind(run.path().join("relay/socket")).expect("bound");
        let (tell, seen) = mpsc::unbounded_channel();
        let mut acts: VecDeque<Act> = acts.into_iter().collect();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("accepted");
                let _ = tell.send(Seen::Connection);
                let _ = serve(stream, &mut acts, &tell).await;
            }
        });
        let relay = relay(run.path(), "exec sleep 1000");
        Fake { run, seen, relay }
    }

    async fn ask(&mut self, line: &str) -> (Result<(), Failed>, String) {
        let mut sink = Vec::new();
        let done = self.relay.pass(line.as_bytes(), true, &mut sink).await;
        (done, String::from_utf8(sink).expect("text"))
    }

    fn seen(&mut self) -> Vec<Seen> {
        std::iter::from_fn(|| self.seen.try_recv().ok()).collect()
    }
}

/// A process that ignores what it is told and runs `script`.
fn relay(run: &Path, script: &str) -> Relay {
    let args = ["-c", script, "fake"].map(OsString::from).to_vec();
    Relay::with_program(run, &Policy::default(), "/bin/sh".into(), args)
}

async fn serve(stream: UnixStream, acts: &mut VecDeque<Act>, tell: &mpsc::UnboundedSender<Seen>) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut more = None;
    loop {
        let mut line = Vec::new();
        if reader.read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        if !line.starts_with('{') {
            writer.write_all(b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error\"}}\n").await?;
            continue;
        }
        if line.contains("guest-sync") {
            let id: String = line.chars().filter(char::is_ascii_digit).collect();
            let mark: &[u8] = if line.contains("delimited") { b"\xff" } else { b"" };
            writer.write_all(&[mark, format!("{{\"return\": {id}}}\n").as_bytes()].concat()).await?;
            if let Some(more) = more.take() {
                sleep(Duration::from_secs(1)).await;
                writer.write_all(str::as_bytes(more)).await?;
            }
            continue;
        }
        let _ = tell.send(Seen::Request(line));
        match acts.pop_front().unwrap_or(Act::Say("{\"return\": {}}")) {
            Act::Say(reply) => writer.write_all(format!("{reply}\n").as_bytes()).await?,
            Act::SayMuch(length) => {
                let (piece, mut left) = (vec![b'x'; 1 << 16], length);
                while left > 0 {
                    writer.write_all(&piece[..left.min(piece.len())]).await?;
                    left = left.saturating_sub(piece.len());
                }
                writer.write_all(b"\n").await?;
            }
            Act::SayAfter(delay, reply) => {
                sleep(delay).await;
                writer.write_all(format!("{reply}\n").as_bytes()).await?;
            }
            Act::Nothing => {}
            Act::Die(part) => return writer.write_all(part.as_bytes()).await,
            Act::Hang => std::future::pending().await,
            Act::SayMore(reply, later) => {
                writer.write_all(format!("{reply}\n").as_bytes()).await?;
                more = Some(later);
            }
        }
    }
}

fn request(line: &str) -> Seen {
    Seen::Request(line.into())
}

const PING: &str = "{\"execute\": \"guest-ping\", \"id\": 1e400}";

#[tokio::test]
async fn nothing_is_started_or_written_before_the_first_need() {
    let run = tempfile::tempdir().expect("a directory");
    let mut relay = relay(run.path(), "exec sleep 1000");
    assert!(relay.running().is_none() && !run.path().join("relay").exists());
}

#[tokio::test]
async fn requests_go_through_to_the_letter_one_after_another_on_one_connection() {
    let mut fake = Fake::new([Act::Say("{\"return\": 1}"), Act::Say("{\"error\": {\"desc\": \"\\u00e4\"}}")]);
    assert_eq!(fake.ask(PING).await.1, "{\"return\": 1}\n");
    assert_eq!(fake.ask("{ }").await.1, "{\"error\": {\"desc\": \"\\u00e4\"}}\n");
    assert_eq!(fake.seen(), [Seen::Connection, request(PING), request("{ }")]);
    let mode = fs::metadata(fake.run.path().join("relay")).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "nobody else may ask it");
}

#[tokio::test]
async fn a_reply_of_thirty_megabytes_arrives_whole_at_a_host_that_reads_slowly() {
    let mut fake = Fake::new([Act::SayMuch(30 << 20), Act::Say("next")]);
    let (mut host, mut sink) = tokio::io::duplex(4096);
    let reading = tokio::spawn(async move {
        let (mut total, mut buffer) = (0, vec![0; 1 << 16]);
        loop {
            match host.read(&mut buffer).await.expect("readable") {
                0 => return total,
                got => total += got,
            }
        }
    });
    fake.relay.pass(PING.as_bytes(), true, &mut sink).await.expect("passed");
    drop(sink);
    assert_eq!(reading.await.expect("no panic"), (30 << 20) + 1);
    assert_eq!(fake.ask(PING).await.1, "next\n");
}

#[tokio::test(start_paused = true)]
async fn a_command_may_take_nine_minutes_and_not_eleven() {
    let minutes = |n: u64| Duration::from_secs(60 * n);
    let mut fake =
        Fake::new([Act::SayAfter(minutes(9), "slow"), Act::SayAfter(minutes(11), "late"), Act::Say("again")]);
    assert_eq!(fake.ask(PING).await.1, "slow\n");
    let pid = fake.relay.running().expect("kept").child.pid();
    let (done, said) = fake.ask(PING).await;
    let error = done.expect_err("too slow");
    assert!(matches!(error.why, Why::Silent) && error.sent == 0 && said.is_empty(), "{error}");
    assert_eq!(error.to_string(), "get an answer from qemu-ga within 10 minutes; it was ended");
    sleep(minutes(2)).await; // the fake is not the process that was ended: it comes to an end by itself
    assert_eq!(fake.ask(PING).await.1, "again\n");
    assert_ne!(fake.relay.running().expect("started again").child.pid(), pid);
}

#[tokio::test(start_paused = true)]
async fn an_answer_cut_off_is_ended_for_the_hosts_parser_and_said() {
    let mut fake = Fake::new([Act::Die("{\"return\": {\"buf-b64\": \"AAAA"), Act::Say("again")]);
    let (done, said) = fake.ask(PING).await;
    let error = done.expect_err("cut off");
    assert_eq!(said, "{\"return\": {\"buf-b64\": \"AAAA\n");
    assert_eq!(error.to_string(), "get an answer from qemu-ga: it ended after 28 bytes, which the host has got");
    assert_eq!(fake.ask(PING).await.1, "again\n");
}

#[tokio::test(start_paused = true)]
async fn one_that_dies_before_it_answers_leaves_the_answer_to_us() {
    let mut fake = Fake::new([Act::Die("")]);
    let (done, said) = fake.ask(PING).await;
    assert!(matches!(done, Err(Failed { why: Why::Ended, sent: 0 })) && said.is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_that_died_while_nobody_asked_is_started_again_at_most_once_a_second() {
    let mut fake = Fake::new([]);
    fake.ask(PING).await.0.expect("answered");
    let begun = Instant::now();
    for _ in 0..3 {
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(fake.relay.running().expect("kept").child.pid().cast_signed()),
            nix::sys::signal::Signal::SIGKILL,
        )
        .expect("ours");
        fake.relay.running.as_ref().expect("kept").child.ended().await;
        fake.ask(PING).await.0.expect("answered by the next");
    }
    assert!(begun.elapsed() >= 2 * AGAIN, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn silence_is_a_success_only_where_it_was_to_be_expected() {
    let mut fake = Fake::new([Act::Nothing, Act::Nothing, Act::Say("{\"error\": 1}")]);
    let mut sink = Vec::new();
    fake.relay.pass(b"{\"execute\": \"guest-shutdown\"}", false, &mut sink).await.expect("silence is success");
    assert_eq!(sink, b"");
    let error = fake.relay.pass(PING.as_bytes(), true, &mut sink).await.expect_err("silence");
    assert!(matches!(error.why, Why::Unanswered) && sink.is_empty());
    fake.relay.pass(b"{\"execute\": \"guest-shutdown\"}", false, &mut sink).await.expect("an error is an answer");
    assert_eq!(sink, b"{\"error\": 1}\n");
}

#[tokio::test(start_paused = true)]
async fn a_line_nobody_asked_for_is_never_taken_for_the_next_answer() {
    let mut fake = Fake::new([Act::SayMore("first", "stale\n"), Act::Say("second")]);
    assert_eq!(fake.ask(PING).await.1, "first\n");
    sleep(Duration::from_secs(2)).await;
    assert_eq!(fake.ask(PING).await.1, "second\n");
    assert_eq!(fake.seen().iter().filter(|seen| **seen == Seen::Connection).count(), 2, "on a connection of its own");
}

#[tokio::test(start_paused = true)]
async fn what_a_caller_stopped_waiting_for_is_not_the_next_ones_answer() {
    let mut fake = Fake::new([Act::SayAfter(Duration::from_secs(30), "old"), Act::Say("new")]);
    let mut sink = Vec::new();
    assert!(timeout(Duration::from_secs(10), fake.relay.pass(PING.as_bytes(), true, &mut sink)).await.is_err());
    let begun = Instant::now();
    assert_eq!(fake.ask(PING).await.1, "new\n");
    assert!(begun.elapsed() >= Duration::from_secs(20), "it was still at work");
}

#[tokio::test]
async fn a_host_that_went_away_costs_the_agent_nothing() {
    let mut fake = Fake::new([Act::Say("{\"return\": 1}"), Act::Say("{\"return\": 2}")]);
    let (host, mut sink) = tokio::io::duplex(4);
    drop(host);
    let error = fake.relay.pass(PING.as_bytes(), true, &mut sink).await.expect_err("nobody there");
    assert!(matches!(error.why, Why::Sink(_)));
    assert!(fake.relay.running().is_some());
    assert_eq!(fake.ask(PING).await.1, "{\"return\": 2}\n");
}

const INFO: &str = "{\"return\": {\"version\": \"7.2\", \"supported_commands\": [\
    {\"enabled\": true, \"name\": \"guest-exec\", \"success-response\": true}, \
    {\"enabled\": false, \"name\": \"guest-shutdown\", \"success-response\": false}, \
    {\"enabled\": true, \"name\": \"guest-old\"}]}}";

#[tokio::test(start_paused = true)]
async fn what_it_can_do_is_asked_once_for_each_start() {
    let mut fake = Fake::new([Act::Say(INFO), Act::Say(INFO)]);
    let command = |name: &str, enabled, success_response| Command { name: name.into(), enabled, success_response };
    let expected =
        [command("guest-exec", true, true), command("guest-shutdown", false, false), command("guest-old", true, true)];
    assert_eq!(fake.relay.commands().await, expected);
    assert_eq!(fake.relay.commands().await, expected);
    fake.relay.end().await;
    assert_eq!(fake.relay.commands().await, expected);
    let asked = fake.seen();
    assert_eq!(
        asked.iter().filter(|seen| matches!(seen, Seen::Request(line) if line.contains("guest-info"))).count(),
        2
    );
}

#[tokio::test(start_paused = true)]
async fn one_that_does_not_say_what_it_can_do_can_do_nothing_this_time() {
    let mut fake = Fake::new([Act::Say("garbage"), Act::SayAfter(Duration::from_secs(6), INFO), Act::Say(INFO)]);
    assert_eq!(fake.relay.commands().await, []);
    let begun = Instant::now();
    assert_eq!(fake.relay.commands().await, []);
    assert!(begun.elapsed() < Duration::from_secs(6));
    assert_eq!(fake.relay.commands().await.len(), 3, "asked again");
}

#[tokio::test(start_paused = true)]
async fn one_that_hangs_is_given_up() {
    let mut fake = Fake::new([Act::Hang]);
    assert!(matches!(fake.ask(PING).await.0, Err(Failed { why: Why::Silent, .. })));
    assert!(fake.relay.running.is_none());
}

#[tokio::test]
async fn without_one_there_is_nothing_to_pass_to() {
    let mut off = Relay::off();
    assert_eq!(off.commands().await, []);
    let error = off.pass(PING.as_bytes(), true, &mut Vec::new()).await.expect_err("off");
    assert_eq!(error.to_string(), "find qemu-ga, which would answer this: it is not installed");
    let run = tempfile::tempdir().expect("a directory");
    let mut missing = Relay::with_program(run.path(), &Policy::default(), "/nonexistent".into(), vec![]);
    let error = missing.pass(PING.as_bytes(), true, &mut Vec::new()).await.expect_err("missing");
    assert!(told(&error).starts_with("start /nonexistent: No such file"), "{}", told(&error));
}

#[tokio::test(start_paused = true)]
async fn one_that_exits_at_once_or_never_listens_is_said_to() {
    let run = tempfile::tempdir().expect("a directory");
    let mut ends = relay(run.path(), "exit 1");
    assert!(matches!(ends.pass(b"{}", true, &mut Vec::new()).await, Err(Failed { why: Why::Ended | Why::Deaf, .. })));
    let mut deaf = relay(run.path(), "exec sleep 1000");
    assert!(matches!(deaf.pass(b"{}", true, &mut Vec::new()).await, Err(Failed { why: Why::Deaf, .. })));
    assert!(deaf.running.is_none());
}

#[test]
fn its_own_configuration_keeps_it_from_freezing_and_repeats_what_the_administrator_wrote() {
    let root = tempfile::tempdir().expect("a directory");
    let path = root.path().join("etc/qemu/qemu-ga.conf");
    fs::create_dir_all(path.parent().expect("below the root")).expect("created");
    let of = |text: &str| {
        fs::write(&path, format!("[general]\ndaemon=1\npath=/dev/ttyS0\n{text}\n")).expect("written");
        configuration(&Policy::read(root.path()))
    };
    let freezing = FREEZING.join(",");
    assert_eq!(of(""), format!("[general]\nblacklist={freezing}\nblock-rpcs={freezing}\n"));
    assert_eq!(
        of("block-rpcs=guest-exec,guest-sync,evil\\nx=y"),
        format!("[general]\nblacklist=guest-exec,{freezing}\nblock-rpcs=guest-exec,{freezing}\n")
    );
    assert_eq!(
        of("allow-rpcs=guest-ping,guest-exec,guest-fsfreeze-freeze\nblock-rpcs=guest-exec"),
        format!(
            "[general]\nblacklist=guest-exec,{freezing}\nallow-rpcs=guest-info,guest-ping,guest-sync,guest-sync-delimited\n"
        )
    );
}
