//! The program asking a daemon in a guest, through the socket of a vsock device in user space: what it asks, what it says,
//! and what it does when the guest is gone. The device is a fake with a fake daemon behind it.

#[expect(dead_code, reason = "the command line's own tests use the rest of it")]
mod fake;

use std::{
    fs,
    io::{self, BufRead, BufReader, Write},
    net::Shutdown,
    os::unix::{
        fs::MetadataExt,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use fake::{Daemon, Fake, filesystem};
use holdstill::proto;
use serde_json::Value as Json;

const PORT: u32 = 7411;

/// A vsock device's socket: says OK to whoever asks for [`PORT`] and connects them to the daemon, hangs up on all others.
struct Device {
    daemon: Daemon,
    endpoint: String,
    /// both ends of every connection
    open: Arc<Mutex<Vec<UnixStream>>>,
    _dir: tempfile::TempDir,
}

impl Device {
    fn before(daemon: Daemon) -> Device {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a temporary directory");
        let path = dir.path().join("v.vsock");
        let listener = UnixListener::bind(&path).expect("bind");
        let open = Arc::new(Mutex::new(Vec::new()));
        let (inside, connections) = (daemon.socket.clone(), Arc::clone(&open));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                // one that hung up meanwhile is no matter
                let _ = connected(stream, &inside, &connections);
            }
        });
        Device { daemon, endpoint: format!("vsock:{}:{PORT}", path.display()), open, _dir: dir }
    }

    fn holdstill(&self, args: &[&str]) -> Command {
        let mut command = bare();
        command.args(["--endpoint", &self.endpoint]).args(args);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.holdstill(args).output().expect("it starts")
    }

    /// The guest is no more.
    fn cut(&self) {
        for stream in self.open.lock().expect("no holder panics").iter() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn connected(mut outside: UnixStream, inside: &Path, open: &Mutex<Vec<UnixStream>>) -> io::Result<()> {
    let mut lines = BufReader::with_capacity(1, outside.try_clone()?);
    let mut line = String::new();
    lines.read_line(&mut line)?;
    if line != format!("CONNECT {PORT}\n") {
        return Ok(());
    }
    outside.write_all(b"OK 1073741824\n")?;
    let inside = UnixStream::connect(inside)?;
    open.lock().expect("no holder panics").extend([outside.try_clone()?, inside.try_clone()?]);
    for (mut from, mut to) in [(outside.try_clone()?, inside.try_clone()?), (inside, outside)] {
        thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
    }
    Ok(())
}

fn bare() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdstill"));
    command.env_remove("HOLDSTILL_SOCKET").env_remove("HOLDSTILL_ENDPOINT").stdin(Stdio::null());
    command
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it exits by itself")
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

#[test]
fn a_guest_is_asked_as_a_daemon_here_is_and_thaw_is_named_as_it_must_be_typed() {
    let device = Device::before(Fake::default().start());
    assert_eq!(code(&device.run(&["status"])), 0);
    let held = device.run(&["freeze"]);
    assert_eq!(code(&held), 0, "{}", err(&held));
    let wanted = format!("take the snapshot, then `holdstill --endpoint {} thaw h1`\n", device.endpoint);
    assert!(out(&held).ends_with(&wanted), "{}", out(&held));
    assert_eq!(code(&device.run(&["thaw", "h1"])), 0);
    assert_eq!(code(&device.run(&["rehearse"])), 0);
    assert_eq!(device.daemon.asked(), ["status", "freeze ", "thaw h1", "hold ", "thaw h1"]);
}

#[test]
fn the_environment_may_name_the_guest() {
    let device = Device::before(Fake::default().start());
    let output = bare().arg("status").env("HOLDSTILL_ENDPOINT", &device.endpoint).output().expect("it starts");
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert_eq!(device.daemon.asked(), ["status"]);
}

/// The numbers of a guest's disks say nothing about ours.
#[test]
fn output_on_a_disk_of_the_hosts_is_not_at_stake() {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a temporary directory");
    let file = fs::File::create(dir.path().join("out")).expect("create");
    let dev = file.metadata().expect("stat").dev();
    let numbers = (nix::sys::stat::major(dev), nix::sys::stat::minor(dev));
    let numbers = (u32::try_from(numbers.0).expect("small"), u32::try_from(numbers.1).expect("small"));
    let held = proto::Report { steps: vec![filesystem("/", numbers, proto::StepOutcome::Done)], ..Default::default() };
    let check = proto::CheckResponse { plan: Some(held.clone()), ..Default::default() };
    let status = proto::GetStatusResponse { current: Some(held), ..Default::default() };
    let device = Device::before(Fake { check, status, ..Fake::default() }.start());
    for verb in [&["freeze"][..], &["status"], &["history"], &["extend", "--for", "9s"]] {
        let file = file.try_clone().expect("a descriptor");
        let output = device.holdstill(verb).stdout(file).output().expect("it starts");
        assert_eq!(code(&output), 0, "{verb:?}: {}", err(&output));
    }
    assert_eq!(device.daemon.asked(), ["freeze ", "status", "extend"]);
}

#[test]
fn run_holds_the_guest_and_runs_the_command_here_without_an_overlay() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let record = dir.path().join("record.json");
    let device = Device::before(Fake::default().start());
    let script = "echo $HOLDSTILL_ID >snapshot; readlink /proc/self/ns/mnt; exit 7";
    let record_arg = record.to_str().expect("UTF-8");
    let output = device
        .holdstill(&["run", "--report", record_arg, "--", "sh", "-c", script])
        .current_dir(dir.path())
        .output()
        .expect("it starts");
    assert_eq!(code(&output), 7, "{}", err(&output));
    assert_eq!(device.daemon.asked(), ["check", "hold ", "thaw h1"]);
    assert_eq!(fs::read_to_string(dir.path().join("snapshot")).expect("what it wrote stays"), "h1\n");
    let ours = fs::read_link("/proc/self/ns/mnt").expect("a link");
    assert_eq!(out(&output).trim(), ours.to_str().expect("UTF-8"), "in our own mount namespace");
    let record: Json = serde_json::from_slice(&fs::read(record).expect("written")).expect("JSON");
    assert_eq!(record["report"]["verdict"], "unbroken");
}

#[test]
fn run_ends_the_command_and_exits_124_when_the_guest_is_gone() {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a temporary directory");
    let started = dir.path().join("started");
    let device = Device::before(Fake::default().start());
    let script = format!("touch {}; exec sleep 60", started.display());
    let mut child =
        device.holdstill(&["run", "--", "sh", "-c", &script]).stderr(Stdio::piped()).spawn().expect("starts");
    while !started.exists() {
        assert!(child.try_wait().expect("ours").is_none(), "it ended before its command ran");
        thread::sleep(Duration::from_millis(10));
    }
    device.cut();
    let output = child.wait_with_output().expect("ours");
    assert_eq!(code(&output), 124);
    assert!(err(&output).contains("went away before it answered"), "{}", err(&output));
}

#[test]
fn a_guest_that_is_not_there_is_exit_5_and_for_run_125() {
    let device = Device::before(Fake::default().start());
    let elsewhere = device.endpoint.replace("7411", "7412");
    let output = bare().args(["--endpoint", &elsewhere, "--json", "thaw"]).output().expect("it starts");
    assert_eq!(code(&output), 5);
    let document: Json = serde_json::from_str(&out(&output)).expect("one document");
    assert_eq!(document["error"]["reason"], "DAEMON_UNREACHABLE");
    assert!(
        err(&output).contains("nobody answers in the guest\nhint: ")
            && err(&output).contains("`vsock = 7412` in [listen]"),
        "{}",
        err(&output)
    );
    let output = bare().args(["run", "--endpoint", &elsewhere, "--", "true"]).output().expect("it starts");
    assert_eq!(code(&output), 125);
    let output = bare().args(["--endpoint", "vsock:/nowhere/v:1", "status"]).output().expect("it starts");
    assert_eq!(code(&output), 5, "{}", err(&output));
}

#[test]
fn an_endpoint_that_is_none_is_exit_2_before_anything_is_asked() {
    let device = Device::before(Fake::default().start());
    for wrong in [
        &["--endpoint", "vsock:2:7411", "status"][..],
        &["--endpoint", &device.endpoint, "--socket", "/s", "status"],
        &["--endpoint", &device.endpoint, "verify"],
        &["--endpoint", &device.endpoint, "config"],
    ] {
        let output = bare().args(wrong).output().expect("it starts");
        assert_eq!(code(&output), 2, "{wrong:?}: {}", err(&output));
    }
    assert_eq!(device.daemon.asked(), [""; 0]);
}
