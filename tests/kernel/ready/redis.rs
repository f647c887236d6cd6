//! `20-redis`, with every server of this family that is installed; Debian 12 has Redis, later ones Valkey too.

use std::{fs, path::Path, path::PathBuf, thread, time::Duration};

use super::{Server, add, has, output, said};
use crate::lab::{Daemon, Fs, Lab, Type, command, until};

facts! {
    what_redis_acknowledged_is_in_the_copy_and_readers_go_on within 60,
    without_the_hook_readers_wait_too within 60,
    a_redis_without_log_is_saved_before_the_hold_or_exactly within 60,
    a_redis_that_is_neither_logged_nor_saved_fails_the_hold_and_is_not_left_paused within 60,
    a_redis_whose_daemon_was_killed_is_not_left_paused within 60,
    a_redis_that_is_found_lowers_the_level_unless_a_hook_says_that_it_holds_it within 60,
    a_redis_that_does_not_answer_is_not_waited_for within 60,
}

struct Redis<'lab> {
    cli: &'static str,
    socket: PathBuf,
    server: Server,
    daemon: Daemon<'lab>,
    disk: Fs<'lab>,
}

/// Those that are installed: server and command line.
fn editions() -> Vec<(&'static str, &'static str)> {
    let all = [("redis-server", "redis-cli"), ("valkey-server", "valkey-cli")];
    all.into_iter().filter(|(server, _)| has(server)).collect()
}

fn serve(server: &str, cli: &str, dir: &Path, socket: &Path, options: &[&str]) -> Server {
    fs::create_dir_all(dir).expect("it has room");
    let mut start = command(server);
    start
        .args(["--port", "0", "--save", "", "--loglevel", "warning", "--unixsocket"])
        .arg(socket)
        .arg("--dir")
        .arg(dir);
    let server = Server::start(start.args(options).stdout(std::process::Stdio::null()));
    let up = || {
        let ping = command(cli).arg("-s").arg(socket).arg("PING").output().expect("it is installed");
        ping.stdout.starts_with(b"PONG")
    };
    assert!(until(Duration::from_secs(10), up), "it does not answer");
    server
}

fn redis<'lab>(
    lab: &'lab Lab,
    (server, cli): (&'static str, &'static str),
    options: &[&str],
    settings: &str,
    edits: &[(&str, &str)],
) -> Redis<'lab> {
    let disk = lab.fs(Type::Ext4);
    let socket = lab.memory_dir("redis").join("sock");
    let server = serve(server, cli, &disk.mount.join("data"), &socket, options);
    // as on a machine: what runs there is found
    let daemon = lab.daemon(&[&disk]).set("databases.discover", true).start();
    let instance = format!("-s {}", socket.display());
    let command_line = format!("cli={cli} ");
    let usual = [("-s /run/redis/redis-server.sock", instance.as_str()), ("cli=redis-cli ", &command_line)];
    add(&daemon, "20-redis", settings, &[&usual, edits].concat());
    Redis { cli, socket, server, daemon, disk }
}

impl Redis<'_> {
    fn ask(&self, words: &[&str]) -> String {
        said(&[&[self.cli, "-s", self.socket.to_str().expect("ASCII")], words].concat())
    }

    /// Repeats a command without end; what was acknowledged is in the file.
    fn repeat(&self, acknowledged: &Path, words: &[&str]) -> Server {
        let mut client = command(self.cli);
        client.arg("-s").arg(&self.socket).args(["-r", "-1"]).args(words);
        Server::start(client.stdout(fs::File::create(acknowledged).expect("memory")))
    }

    /// Opens the copy with a server of its own and asks it.
    fn in_copy(&self, lab: &Lab, image: &Path, options: &[&str], words: &[&str]) -> String {
        let copy = lab.mount_copy(Type::Ext4, image);
        let socket = lab.memory_dir("copy").join("sock");
        let server = self.cli.replace("cli", "server");
        let _server = serve(&server, self.cli, &copy.mount.join("data"), &socket, options);
        said(&[&[self.cli, "-s", socket.to_str().expect("ASCII")], words].concat())
    }

    fn writes_again(&self) -> bool {
        let mut client =
            command(self.cli).arg("-s").arg(&self.socket).args(["SET", "probe", "1"]).spawn().expect("there");
        crate::lab::finish(&mut client, Duration::from_secs(2)).is_some_and(|s| s.success())
    }
}

fn last_number(file: &Path) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    // the last line may be half written
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().last().and_then(|l| l.trim().parse().ok()).unwrap_or(0)
}

fn what_redis_acknowledged_is_in_the_copy_and_readers_go_on(lab: &Lab) {
    for edition in editions() {
        let log = ["--appendonly", "yes", "--appendfsync", "everysec"];
        let it = redis(lab, edition, &log, "holds = [\"redis\", \"valkey\"]\n", &[]);
        let acknowledged = lab.memory_dir("acknowledged").join("numbers");
        let writer = it.repeat(&acknowledged, &["INCR", "n"]);
        assert!(until(Duration::from_secs(5), || last_number(&acknowledged) > 1000), "nobody writes");
        let before = last_number(&acknowledged);
        let report = it.daemon.freeze(&["--for", "20s"]);
        assert_eq!(report["consistency"], "application", "{report:#}");
        assert!(output(&report, "20-redis").contains("the append-only file is complete"), "{report:#}");
        let held = last_number(&acknowledged);
        // readers are served while writers wait
        let read = it.ask(&["GET", "n"]).parse::<u64>().expect("a number");
        assert!(held >= before && read >= held, "{before} {held} {read}");
        thread::sleep(Duration::from_millis(300));
        assert_eq!(it.ask(&["GET", "n"]), read.to_string(), "somebody wrote while held");
        let copy = it.disk.copy();
        assert_eq!(it.daemon.thaw()["verdict"], "unbroken");
        assert!(until(Duration::from_secs(2), || last_number(&acknowledged) > read), "writers wait after the thaw");
        let copied: u64 = it.in_copy(lab, &copy, &log, &["GET", "n"]).parse().expect("a number");
        assert_eq!(copied, read, "the copy has {copied}, {held} were acknowledged before the hold");
        drop(writer);
    }
}

/// What the first lines of the hook say of a hold without it.
fn without_the_hook_readers_wait_too(lab: &Lab) {
    for edition in editions() {
        let it = redis(lab, edition, &["--appendonly", "yes"], "", &[]);
        fs::remove_file(it.daemon.setup().hooks_dir().join("20-redis")).expect("added above");
        let acknowledged = lab.memory_dir("acknowledged").join("numbers");
        let writer = it.repeat(&acknowledged, &["INCR", "n"]);
        assert!(until(Duration::from_secs(5), || last_number(&acknowledged) > 100), "nobody writes");
        it.daemon.freeze(&["--for", "20s"]);
        let reads = || {
            let reader = command(it.cli).arg("-s").arg(&it.socket).args(["GET", "n"]).spawn();
            crate::lab::finish(&mut reader.expect("it is installed"), Duration::from_millis(500)).is_some()
        };
        assert!(until(Duration::from_secs(3), || !reads()), "readers are served: then why pause writers?");
        it.daemon.thaw();
        assert!(until(Duration::from_secs(3), reads));
        drop(writer);
    }
}

fn a_redis_without_log_is_saved_before_the_hold_or_exactly(lab: &Lab) {
    for edition in editions() {
        let it = redis(lab, edition, &[], "prepare = true\ntimeout = \"20s\"\n", &[]);
        it.ask(&["SET", "a", "before"]);
        // what comes between prepare and freeze is not in the copy, and that is said
        let late = format!("[ $1 = freeze ] && {} -s {} SET a late; exit 0", it.cli, it.socket.display());
        it.daemon.setup().hook("10-late", &late);
        let report = it.daemon.freeze(&["--for", "20s"]);
        let said = output(&report, "20-redis");
        assert!(said.contains("1 changes came after the last save and are NOT in the copy"), "{said}");
        let copy = it.disk.copy();
        it.daemon.thaw();
        assert_eq!(it.in_copy(lab, &copy, &[], &["GET", "a"]), "before");

        add(
            &it.daemon,
            "20-redis",
            "",
            &[
                ("-s /run/redis/redis-server.sock", &format!("-s {}", it.socket.display())),
                ("cli=redis-cli ", &format!("cli={} ", it.cli)),
                ("exact=no ", "exact=yes "),
            ],
        );
        it.ask(&["SET", "a", "before"]);
        it.daemon.freeze(&["--for", "20s"]);
        let copy = it.disk.copy();
        it.daemon.thaw();
        assert!(it.writes_again());
        assert_eq!(it.in_copy(lab, &copy, &[], &["GET", "a"]), "late");
    }
}

fn a_redis_that_is_neither_logged_nor_saved_fails_the_hold_and_is_not_left_paused(lab: &Lab) {
    for edition in editions() {
        let mut it = redis(lab, edition, &[], "", &[]);
        it.ask(&["SET", "a", "1"]);
        it.daemon.cli(&["freeze", "--id", "unsaved"]).exits(1);
        let said = output(&it.daemon.cli(&["history", "unsaved"]).report(), "20-redis");
        assert!(said.contains("1 changes not saved"), "{said}");
        assert!(it.writes_again(), "it is still paused");
        // undoing what did nothing touches nothing: somebody else's pause stays
        assert_eq!(it.ask(&["CLIENT", "PAUSE", "60000", "WRITE"]), "OK");
        let hook = it.daemon.setup().hooks_dir().join("20-redis");
        let thaw = command("sh").arg(hook).arg("thaw").status().expect("sh");
        assert!(thaw.success() && !it.writes_again(), "the pause of somebody else is gone");
        it.ask(&["CLIENT", "UNPAUSE"]);
        it.server.kill();
        it.daemon.cli(&["freeze"]).exits(1).says("20-redis: it exited with status 1");
    }
}

fn a_redis_whose_daemon_was_killed_is_not_left_paused(lab: &Lab) {
    for edition in editions() {
        let it = redis(lab, edition, &["--appendonly", "yes"], "", &[]);
        it.daemon.freeze(&["--for", "20s"]);
        assert!(!it.writes_again());
        it.daemon.kill();
        assert!(until(Duration::from_secs(5), || it.writes_again()), "it is still paused");
        assert!(it.disk.writable_within(Duration::from_secs(2)));
    }
}

fn a_redis_that_is_found_lowers_the_level_unless_a_hook_says_that_it_holds_it(lab: &Lab) {
    for edition in editions() {
        let it = redis(lab, edition, &["--appendonly", "yes"], "", &[]);
        let engine = it.cli.trim_end_matches("-cli");
        let hint = format!("--holds {engine}");
        it.daemon.cli(&["check"]).exits(0).says("is not held").says(&hint);
        assert_eq!(it.daemon.freeze(&["--for", "5s"])["consistency"], "filesystem");
        it.daemon.thaw();
        let settings = it.daemon.setup().hooks_dir().join("20-redis.toml");
        fs::write(&settings, format!("holds = [\"{engine}\"]\n")).expect("memory");
        let report = it.daemon.freeze(&["--for", "5s", "--require", "application"]);
        assert!(report.to_string().contains("is held by the hook 20-redis"), "{report:#}");
        it.daemon.thaw();
        // one that may fail vouches for nothing
        fs::write(&settings, format!("holds = [\"{engine}\"]\nrequired = false\n")).expect("memory");
        it.daemon.cli(&["freeze", "--require", "application"]).exits(4);
    }
}

fn a_redis_that_does_not_answer_is_not_waited_for(lab: &Lab) {
    for edition in editions() {
        for phases in ["phases = [\"prepare\"]", ""] {
            let mut it = redis(lab, edition, &["--appendonly", "yes"], phases, &[]);
            it.server.kill();
            it.daemon.cli(&["freeze"]).exits(1).says("it exited with status 1");
            assert!(output(&it.daemon.thaw(), "20-redis").contains("no answer"));
        }
    }
}
