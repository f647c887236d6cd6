//! A daemon with nothing in it but the warden's client: it reads one command per line and answers each with one line.
//! Events are lines of their own, starting with `event`.

use std::{
    io::{BufRead, BufReader, Write, stdin},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use holdstill::{
    guest::{Dev, MountPoint},
    sys::{clock::monotonic, files},
    warden::{Receipt, Target, client::Warden, marker::StartedHook},
};
use tokio::sync::mpsc::unbounded_channel;

/// The test's side of it.
pub struct Daemon {
    pub child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    events: Vec<String>,
}

impl Daemon {
    pub fn start(run: &Path) -> Daemon {
        let mut child = Command::new("/proc/self/exe");
        let mut child = child
            .arg("daemon")
            .arg(run)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it is this binary");
        let (lines_out, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| lines_out.send(line)));
        let stdin = child.stdin.take().unwrap();
        let mut daemon = Daemon { child, stdin, lines, events: vec![] };
        assert_eq!(daemon.answer(), "ready");
        daemon
    }

    pub fn ask(&mut self, command: &str) -> String {
        self.tell(command);
        self.answer()
    }

    pub fn tell(&mut self, command: &str) {
        writeln!(self.stdin, "{command}").unwrap();
    }

    /// begin, prepare, arm, freeze: all one after another, each of which must succeed.
    pub fn hold(&mut self, mounts: &[PathBuf], deadline: Duration) {
        self.prepare(mounts);
        assert_eq!(self.ask(&format!("arm {}", deadline.as_millis())), "armed");
        let all: Vec<_> = (0..mounts.len()).map(|index| index.to_string()).collect();
        let answer = self.ask(&format!("freeze {}", all.join(",")));
        assert!(answer.starts_with("frozen"), "{answer}");
    }

    pub fn prepare(&mut self, mounts: &[PathBuf]) {
        assert_eq!(self.ask("begin h-1"), "begun");
        let answer = self.ask(&prepare("receipt", mounts));
        assert_eq!(answer, format!("prepared{}", " ok".repeat(mounts.len())));
    }

    pub fn answer(&mut self) -> String {
        loop {
            let line = self.lines.recv_timeout(Duration::from_secs(20)).expect("the daemon answers");
            match line.strip_prefix("event ") {
                Some(event) => self.events.push(event.to_owned()),
                None => return line,
            }
        }
    }

    /// Waits for an event.
    pub fn event(&mut self, event: &str, limit: Duration) {
        let until = monotonic() + limit;
        while !self.events.iter().any(|e| e == event) {
            let left = until.saturating_sub(monotonic());
            let line = self.lines.recv_timeout(left).unwrap_or_else(|_| panic!("no {event}: {:?}", self.events));
            self.events.extend(line.strip_prefix("event ").map(str::to_owned));
        }
    }

    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn prepare(how: &str, mounts: &[PathBuf]) -> String {
    let mounts: Vec<_> = mounts.iter().map(|mount| mount.display().to_string()).collect();
    format!("prepare {how} {}", mounts.join(" "))
}

/// `daemon RUN`
pub fn main(run: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(serve(Path::new(run)));
}

async fn serve(run: &Path) {
    let (commands_out, mut commands) = unbounded_channel();
    std::thread::spawn(move || stdin().lines().map_while(Result::ok).try_for_each(|line| commands_out.send(line)));
    let (mut warden, mut events) = Warden::spawn(run, None).await.unwrap();
    println!("ready");
    loop {
        tokio::select! {
            Some(event) = events.recv() => println!("event {event:?}"),
            command = commands.recv() => {
                let Some(command) = command else { return };
                if command == "replace" {
                    (warden, events) = Warden::spawn(run, None).await.unwrap();
                    println!("replaced");
                } else {
                    println!("{}", perform(&warden, &command).await);
                }
            }
        }
    }
}

async fn perform(warden: &Warden, command: &str) -> String {
    let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
    match verb {
        "begin" => warden.begin(rest).await.map_or_else(|error| format!("{error:?}"), |()| "begun".into()),
        "prepare" | "prepare-in" => {
            let (how, mounts) = rest.split_once(' ').unwrap();
            let namespace = (verb == "prepare-in").then(|| how.parse().unwrap());
            let targets = mounts.split(' ').map(|mount| target(Path::new(mount), namespace, how)).collect();
            match warden.prepare(targets, Duration::from_secs(1)).await {
                Ok(results) => results.into_iter().fold("prepared".to_owned(), |line, result| {
                    line + " "
                        + &match result {
                            Ok(prepared) => {
                                prepared.no_receipt.map_or("ok".into(), |why| format!("[no receipt: {why}]"))
                            }
                            Err(error) => format!("[{error:?}]"),
                        }
                }),
                Err(lost) => format!("{lost:?}"),
            }
        }
        "flush" => format!("{:?}", warden.flush(Duration::from_secs(2)).await.map(|all| all.iter().all(Result::is_ok))),
        "arm" => {
            let armed = warden.arm(Duration::from_millis(rest.parse().unwrap())).await;
            armed.map_or_else(|lost| format!("{lost:?}"), |()| "armed".into())
        }
        "guard" => {
            let socket = std::net::TcpStream::connect(rest).unwrap();
            // the daemon keeps its own end open; only shutdown(2) can end the connection
            let copy = OwnedFd::from(socket.try_clone().unwrap());
            std::mem::forget(socket);
            warden.guard_socket("db", copy).await.map_or_else(|lost| format!("{lost:?}"), |()| "guarded".into())
        }
        "hook" => {
            let (name, path) = rest.split_once(' ').unwrap();
            let started = warden.marker().hook_started(&StartedHook {
                name: name.to_owned(),
                program: PathBuf::from(path),
                thaw: vec!["thaw".into()],
                failed: vec!["thaw".into()],
                limit: Duration::from_secs(5),
                fine: None,
                user: None,
            });
            format!("{started:?}")
        }
        "freeze" => {
            let level = |text: &str| text.split(',').map(|index| index.parse().unwrap()).collect::<Vec<usize>>();
            let levels: Vec<_> = rest.split(' ').map(level).collect();
            let receipts = levels.iter().flatten().map(|&index| (index, json("frozen"))).collect();
            let start = monotonic();
            let second = Duration::from_secs(1);
            match warden.freeze(levels, receipts, true, second, 2 * second).await {
                Ok(took) => {
                    let longest = took.iter().map(|(_, took)| *took).max().unwrap_or_default();
                    format!("frozen {} {}", (monotonic() - start).as_micros(), longest.as_micros())
                }
                Err(error) => format!("{error:?}"),
            }
        }
        "thaw" => {
            let start = monotonic();
            let how = warden.thaw().await;
            format!("thawed {} {how:?}", (monotonic() - start).as_micros())
        }
        "cycle" => {
            let start = monotonic();
            let all: Vec<usize> = (0..rest.parse().unwrap()).collect();
            let second = Duration::from_secs(1);
            let took = warden.freeze(vec![all], vec![], true, second, second).await.unwrap();
            let frozen = monotonic();
            warden.thaw().await;
            let longest = took.iter().map(|(_, took)| *took).max().unwrap_or_default();
            let (freeze, thaw) = ((frozen - start).as_micros(), (monotonic() - frozen).as_micros());
            format!("cycle {freeze} {thaw} {}", longest.as_micros())
        }
        "pause" => {
            tokio::time::sleep(Duration::from_millis(rest.parse().unwrap())).await;
            "paused".into()
        }
        "testify" => {
            let receipts = rest.split(',').map(|index| (index.parse().unwrap(), json("verdict"))).collect();
            warden.testify(receipts, false, Duration::from_secs(1)).await;
            "testified".into()
        }
        "end" => {
            warden.end().await;
            "ended".into()
        }
        other => panic!("unknown command {other}"),
    }
}

fn json(word: &str) -> Vec<u8> {
    format!("{:64}", format!("{{\"is\":\"{word}\"}}")).into_bytes()
}

fn state(word: &str) -> Vec<u8> {
    let mut sector = format!("{word}\n").into_bytes();
    sector.resize(4096, 0);
    sector
}

fn target(mount: &Path, namespace: Option<i32>, how: &str) -> Target {
    let root = files::open_mount(mount, namespace).unwrap();
    let mount_id = files::mount_id(root.as_fd()).unwrap();
    let text = std::fs::read_to_string(match namespace {
        Some(pid) => format!("/proc/{pid}/mountinfo"),
        None => "/proc/self/mountinfo".to_owned(),
    });
    let text = text.unwrap();
    let line = text.lines().find(|line| line.starts_with(&format!("{mount_id} "))).unwrap();
    let (major, minor) = line.split(' ').nth(2).unwrap().split_once(':').unwrap();
    let dev = Dev { major: major.parse().unwrap(), minor: minor.parse().unwrap() };
    let receipt = Receipt {
        json: json("prepared"),
        prepared: state("prepared"),
        frozen: state("frozen"),
        released: state("released"),
        aborted: state("aborted"),
    };
    Target {
        dev: if how == "vanished" { Dev { major: 7, minor: 250 } } else { dev },
        mount: mount.to_owned(),
        open_at: MountPoint { path: mount.to_owned(), mount_id, fs_root: "/".into() },
        namespace,
        uuid: String::new(),
        freeze: true,
        receipt: (how != "bare").then_some(receipt),
    }
}
