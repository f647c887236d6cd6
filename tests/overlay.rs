//! `run` with `/` really frozen: a private root on a loop device, in its own mount and pid namespace, and a command that
//! does what a cloud's CLI does: keeps an SQLite database in WAL mode in $HOME, writes /tmp and caches, changes a file that
//! was there, while its stdout is redirected to the frozen disk.
//!
//! Ignored by default: it needs root and a loop device. `cargo test --test overlay -- --ignored`
//!
//! The one test plays three parts, told apart by an environment variable: the outer part makes the private root, and a
//! reaper that holds a descriptor of it and thaws it after a limit whatever happens; the inner part is process 1 in there
//! and plays the daemon; the writer is the command.

#[expect(dead_code, reason = "the command line's own tests use the rest of it")]
mod fake;

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use fake::{Fake, filesystem};
use holdstill::{
    proto,
    sys::{clock, run_child},
};

const PART: &str = "HOLDSTILL_OVERLAY_TEST_PART";
const NAME: &str = "a_command_writes_its_home_its_tmp_and_its_stdout_while_the_root_is_frozen";
/// The reaper thaws after so many seconds; the whole test takes about two.
const LIMIT: u32 = 25;

#[test]
#[ignore = "needs root and a loop device, and freezes it"]
fn a_command_writes_its_home_its_tmp_and_its_stdout_while_the_root_is_frozen() {
    match env::var(PART).as_deref() {
        Ok("inner") => inner(),
        Ok("writer") => writer(),
        _ => outer(),
    }
}

fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().expect("sh starts");
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}

/// A loop device over an ext4 image in memory; both gone when dropped.
struct Loop {
    _dir: tempfile::TempDir,
    device: String,
}

impl Loop {
    fn new() -> Loop {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a temporary directory");
        let image = dir.path().join("image");
        let image = image.display();
        let device = sh(&format!("truncate -s 64M {image}; mkfs.ext4 -q -F {image}; losetup -f --show {image}"));
        Loop { _dir: dir, device }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.device]).status();
    }
}

/// The private root: the loop device, this machine's programs read-only, and everything that lives in memory.
const SETUP: &str = r#"
set -e
root=$1; device=$2; tree=$3; shift 3
mount -t ext4 "$device" "$root"; cd "$root"
mkdir -p old proc sys dev run tmp root etc usr ".$tree"
mount --bind -o ro /usr usr; mount --bind -o ro "$tree" ".$tree"
for link in bin sbin lib lib64; do [ -e "/$link" ] && ln -s "usr/$link" "$link"; done
printf 'root:x:0:0::/root:/bin/sh\n' > etc/passwd; printf 'root:x:0:\n' > etc/group
cp /etc/ld.so.cache etc/ 2>/dev/null || true
mount -t proc proc proc; mount -t tmpfs run run; mount -t tmpfs dev dev; mkdir dev/shm
mknod -m 666 dev/null c 1 3; mknod -m 666 dev/urandom c 1 9; ln -s /proc/self/fd dev/fd
pivot_root . old; cd /; umount -l /old; rmdir /old
exec "$@"
"#;

fn outer() {
    let device = Loop::new();
    let mountpoint = tempfile::tempdir_in("/dev/shm").expect("a temporary directory");
    let me = env::current_exe().expect("known");
    // both programs are below the build directory
    let tree = me.ancestors().nth(3).expect("target/debug/deps/overlay").to_owned();
    let mut namespace = Command::new("timeout")
        .args(["-k", "5", "60", "unshare", "-m", "-p", "-f", "--kill-child=KILL", "--propagation", "private"])
        .args(["sh", "-c", SETUP, "setup"])
        .args([mountpoint.path(), Path::new(&device.device), &tree, &me])
        .args([NAME, "--exact", "--ignored", "--nocapture"])
        .env(PART, "inner")
        .spawn()
        .expect("timeout starts");
    let inside = process_one(namespace.id());
    let root = PathBuf::from(format!("/proc/{inside}/root"));
    until("the private root is there", || fs::metadata(&root).is_ok_and(|m| nix::sys::stat::major(m.dev()) == 7));
    until("it has its /run", || root.join("run/waiting").exists());
    let script = format!("exec 9<{}; echo ready; sleep {LIMIT}; fsfreeze -u /proc/self/fd/9", root.display());
    let mut reaper = Command::new("sh");
    let mut reaper = reaper.args(["-c", &script]).stdout(Stdio::piped()).process_group(0).spawn().expect("sh starts");
    let mut line = String::new();
    BufReader::new(reaper.stdout.take().expect("piped")).read_line(&mut line).expect("it speaks");
    assert_eq!(line, "ready\n");
    fs::write(root.join("run/reaper"), "ready").expect("its /run is in memory");
    let status = namespace.wait().expect("ours");
    // with its sleep, which has the descriptor too
    let group = nix::unistd::Pid::from_raw(i32::try_from(reaper.id()).expect("a pid"));
    run_child::signal_group(group, nix::sys::signal::Signal::SIGKILL).expect("it is asleep");
    reaper.wait().expect("ours");
    assert!(status.success(), "the inner part failed: {status}");
}

/// The first process of the namespace, as seen from here: timeout → unshare → it.
fn process_one(timeout: u32) -> u32 {
    let child = |of: u32| {
        let mut found = 0;
        until("a child", || {
            let children = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
            found = children.split_whitespace().next().and_then(|c| c.parse().ok()).unwrap_or(0);
            found != 0
        });
        found
    };
    child(child(timeout))
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = clock::monotonic() + Duration::from_secs(15);
    while !is_so() {
        assert!(clock::monotonic() < end, "not within 15 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn root_device() -> (u32, u32) {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").expect("readable");
    let line = mountinfo.lines().rfind(|l| l.split(' ').nth(4) == Some("/")).expect("there is a root");
    let (major, minor) = line.split(' ').nth(2).and_then(|f| f.split_once(':')).expect("MAJOR:MINOR");
    (major.parse().expect("a number"), minor.parse().expect("a number"))
}

fn inner() {
    assert_eq!(root_device().0, 7, "this must be the private root");
    fs::write("/run/waiting", "").expect("/run is in memory");
    until("the reaper is there", || Path::new("/run/reaper").exists());
    fs::create_dir_all("/root/.cache").expect("mkdir");
    fs::write("/root/existing", "before").expect("write");

    let frozen = |action: &'static str| {
        move || {
            assert_eq!(root_device().0, 7);
            assert!(Command::new("fsfreeze").args([action, "/"]).status().expect("it starts").success(), "{action}");
        }
    };
    let report = |outcome, verdict: proto::Verdict| proto::Report {
        steps: vec![filesystem("/", root_device(), outcome)],
        ..fake::report(verdict)
    };
    let plan = Some(report(proto::StepOutcome::Planned, proto::Verdict::Unspecified));
    let daemon = Fake {
        check: proto::CheckResponse { plan, ..Default::default() },
        freeze: Ok(report(proto::StepOutcome::Done, proto::Verdict::Unspecified)),
        thaw: Ok(report(proto::StepOutcome::Undone, proto::Verdict::Unbroken)),
        freezes: Box::new(frozen("-f")),
        thaws: Box::new(frozen("-u")),
        ..Fake::default()
    }
    .start();
    let me = env::current_exe().expect("known");
    let me = me.to_str().expect("UTF-8");
    let args = [
        "run",
        "--keep",
        "/root/kept",
        "--report",
        "/root/record.json",
        "--",
        me,
        NAME,
        "--exact",
        "--ignored",
        "--nocapture",
    ];
    let began = clock::monotonic();
    let status = daemon
        .holdstill(&args)
        .env(PART, "writer")
        .env("HOME", "/root")
        .current_dir("/root")
        .stdout(fs::File::create("/out").expect("create"))
        .stderr(fs::File::create("/err").expect("create"))
        .status()
        .expect("it starts");
    let took = clock::monotonic() - began;
    let (out, err) = (fs::read_to_string("/out").expect("there"), fs::read_to_string("/err").expect("there"));
    assert!(status.success(), "{status}\n{out}\n{err}");
    assert!(took < Duration::from_secs(15), "something waited for the thaw: {took:?}\n{out}\n{err}");
    assert_eq!(daemon.asked(), ["check", "hold ", "thaw h1"]);
    assert!(out.contains("the writer counted 100 rows"), "{out}");
    assert!(err.contains("holdstill: unbroken: ") && err.contains("kept /root/kept (1 file)"), "{err}");
    assert_eq!(fs::read_to_string("/root/kept").expect("kept"), "worth keeping");
    assert_eq!(fs::read_to_string("/root/existing").expect("there"), "before", "the disk itself was not written to");
    for gone in ["/root/state.db", "/root/state.db-wal", "/tmp/scratch", "/root/.cache/cli"] {
        assert!(!Path::new(gone).exists(), "{gone} should have vanished with the overlay");
    }
    assert!(fs::read_to_string("/root/record.json").expect("written").contains(r#""verdict":"unbroken""#));
    let left: Vec<_> = ["/run", "/dev/shm", "/tmp"]
        .iter()
        .flat_map(|dir| fs::read_dir(dir).expect("readable"))
        .filter(|entry| entry.as_ref().expect("readable").file_name().to_string_lossy().starts_with("holdstill-run-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// The command: it must not notice anything.
fn writer() {
    assert_eq!(env::current_dir().expect("known"), Path::new("/root"));
    assert_eq!(env::var("HOLDSTILL_ID").as_deref(), Ok("h1"));
    assert_eq!(fs::read_to_string("/root/existing").expect("readable"), "before");
    let database = rusqlite::Connection::open("/root/state.db").expect("opens");
    let mode: String = database.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0)).expect("answers");
    assert_eq!(mode, "wal");
    database.execute_batch("PRAGMA synchronous=FULL; CREATE TABLE t(n INTEGER)").expect("creates");
    for n in 0..100 {
        database.execute("INSERT INTO t VALUES (?1)", [n]).expect("inserts");
    }
    let rows: i64 = database.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).expect("counts");
    fs::write("/tmp/scratch", "x".repeat(1 << 20)).expect("writes");
    fs::write("/root/.cache/cli", "token").expect("writes");
    let mut existing = fs::File::options().append(true).open("/root/existing").expect("opens");
    existing.write_all(b" and after").expect("appends");
    existing.sync_all().expect("syncs");
    fs::write("/root/kept", "worth keeping").expect("writes");
    println!("the writer counted {rows} rows");
}
