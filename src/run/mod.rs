//! `run -- CMD`: the command between hold and release.
//!
//! ```text
//!   resolve CMD ─▶ check ─▶ gate ready ─▶ hold (a lease) ─▶ gate opens ─▶ CMD ends ─▶ thaw ─▶ output, --keep, --report
//!   └──────────── nothing waits ───────┘                    │
//!                                                           └─ the hold breaks: TERM, after 5 s KILL
//! ```
//!
//! Between held and released this process writes nothing anywhere: not to stdout or stderr, not to a file.
//! Exit status: CMD's own if the hold was unbroken, else one of the `RUN_` constants of [`crate::error`].

pub mod gate;
mod keep;
mod output;
pub mod overlay;

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::unix::{ffi::OsStrExt, fs::DirBuilderExt},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::{
    signal::Signal,
    statfs::{TMPFS_MAGIC, statfs},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use tokio_stream::StreamExt;

use crate::{
    cli,
    client::{
        RELEASE_PATIENCE,
        connect::{self, Client, Daemon, Lease},
        print_failure, show, words,
    },
    error::{Failure, RUN_BROKEN, RUN_NOT_EXECUTABLE, RUN_NOT_FOUND, RUN_NOT_HELD, RUN_SIGNALED, reason},
    guest::Dev,
    hold::RefusalKind,
    json, proto,
    sys::run_child::{self, Child, Ended},
};

/// Setting up the command's root: beyond it a mount hangs.
const SETUP_LIMIT: Duration = Duration::from_secs(20);
/// Between TERM and KILL when the hold broke.
const GRACE: Duration = Duration::from_secs(5);
/// How long a killed command may take to be gone; one stuck in the kernel is left behind.
const REAP_LIMIT: Duration = Duration::from_secs(2);
/// How long output of something left in the background is waited for.
const DRAIN_LIMIT: Duration = Duration::from_millis(500);

/// Why CMD did not run, or not under a hold: everything is let go.
struct NotRun {
    status: u8,
    failure: Box<Failure>,
}

impl From<Failure> for NotRun {
    fn from(failure: Failure) -> NotRun {
        NotRun { status: RUN_NOT_HELD, failure: Box::new(failure) }
    }
}

/// CMD ran and everything is let go.
struct Ran {
    ended: Ended,
    /// what the daemon answered to the thaw
    released: Result<proto::ThawResponse, Failure>,
    output: output::Output,
    stage: Option<keep::Stage>,
}

/// Runs the verb and returns its exit status.
pub async fn run(daemon: &Daemon, args: &cli::Run) -> u8 {
    let mut record = match args.report.as_deref().map(|path| File::create(path).map_err(|e| (path, e))).transpose() {
        Ok(record) => record,
        Err((path, error)) => {
            print_failure(&Failure::io(format!("create {}", path.display()), &error), false);
            return RUN_NOT_HELD;
        }
    };
    match held(daemon, args).await {
        Ok(ran) => told(&ran, args, record.as_mut()),
        Err(NotRun { status, failure }) => {
            print_failure(&failure, false);
            write_record(record.as_mut(), &failure.to_json());
            status
        }
    }
}

/// Everything up to the release.
async fn held(daemon: &Daemon, args: &cli::Run) -> Result<Ran, NotRun> {
    let program = resolve(&args.command[0], std::env::var_os("PATH").as_deref())?;
    let mut signals = Signals::new().map_err(|e| Failure::io("watch for signals", &e))?;
    let mut client = daemon.connect().await?;
    let spec = args.spec.to_proto();
    let plan = plan(daemon, &mut client, &spec).await?;
    let held = devices(&plan);
    // what is held in a guest is not what the command writes to
    let overlaid = !(args.no_overlay || daemon.endpoint.is_remote());
    let scaffold = if overlaid { Some(Scaffold::new(&held)?) } else { None };
    let (child, mut gate, stage) = at_the_gate(&program, args, &held, scaffold.as_ref()).await?;
    let Child { pid, process, stdout, stderr, .. } = child;
    let output = output::Output::pump(stdout, stderr).map_err(|e| Failure::io("read the command's output", &e))?;
    let mut end = waited_for(process);

    // from here on until the release nothing is written anywhere
    let id = args.spec.id.clone().unwrap_or_default();
    let limit = daemon.patience_for(&spec);
    let mut lease = tokio::select! {
        lease = connect::lease(&mut client, id, spec, limit) => lease?,
        signal = signals.next() => return Err(interrupted(signal).into()),
    };
    let id = lease.held.id.clone();
    if scaffold.is_some() && !devices(&lease.held).is_subset(&held) {
        let _ = thaw(&mut client, &id).await;
        return Err(changed_meanwhile().into());
    }
    if let Err(failure) = gate.open(&id).await {
        let _ = thaw(&mut client, &id).await;
        return Err(NotRun { status: RUN_NOT_EXECUTABLE, failure: Box::new(failure) });
    }
    let ended = watched(pid, &mut end, &mut lease, &mut signals).await;
    let released = thaw(&mut client, &id).await;
    // not a moment before the thaw is answered: a lease that ends first is a caller that is gone
    drop(lease);
    Ok(Ran { ended, released, output, stage })
}

/// After the release: says everything that had to wait, and finds the exit status.
fn told(ran: &Ran, args: &cli::Run, record: Option<&mut File>) -> u8 {
    ran.output.write(DRAIN_LIMIT);
    let status = match &ran.released {
        Ok(response) => {
            let report = response.report.clone().unwrap_or_default();
            // a closed stderr changes nothing
            let _ = writeln!(io::stderr(), "holdstill: {}", show::released(&report, false));
            write_record(record, &json::to_json(response));
            match report.verdict() {
                proto::Verdict::Unbroken => own_status(ran.ended),
                proto::Verdict::Broken | proto::Verdict::NeverHeld | proto::Verdict::Unspecified => RUN_BROKEN,
            }
        }
        Err(failure) => {
            print_failure(failure, false);
            write_record(record, &failure.to_json());
            RUN_BROKEN
        }
    };
    match (kept(ran.stage.as_ref(), &args.keep), status) {
        (false, 0) => RUN_NOT_HELD,
        _ => status,
    }
}

fn own_status(ended: Ended) -> u8 {
    match ended {
        Ended::Exited(code) => code,
        Ended::Signaled(signal) => RUN_SIGNALED.saturating_add(signal),
    }
}

fn write_record(record: Option<&mut File>, document: &serde_json::Value) {
    let Some(file) = record else { return };
    if let Err(error) = writeln!(file, "{document}").and_then(|()| file.sync_all()) {
        print_failure(&Failure::io("write the report", &error), false);
    }
}

/// Copies what `--keep` names; false if something could not be.
fn kept(stage: Option<&keep::Stage>, paths: &[PathBuf]) -> bool {
    let mut all = true;
    for path in paths {
        let told = match (std::path::absolute(path), stage) {
            (Ok(absolute), Some(stage)) => stage.keep(&absolute),
            (Ok(_), None) => Ok(keep::Kept::AlreadySo),
            (Err(error), _) => Err(error),
        };
        let line = match told {
            Ok(keep::Kept::Copied(n)) => format!("kept {} ({n} {})", path.display(), words::plural(n, "file", "files")),
            Ok(keep::Kept::AlreadySo) => {
                format!("nothing to keep: the command wrote nothing to {} in memory", path.display())
            }
            Err(error) => {
                all = false;
                format!("failed to keep {}: {error}", path.display())
            }
        };
        let _ = writeln!(io::stderr(), "holdstill: {line}");
    }
    all
}

/// Finds the program as a shell would. 127 not found, 126 not executable.
fn resolve(command: &OsStr, path: Option<&OsStr>) -> Result<PathBuf, NotRun> {
    let name = command.display();
    let refused = |status, why: &str| {
        let failure = Failure::local(RefusalKind::NotFound, reason::LOCAL, format!("failed to run {name}: {why}"));
        NotRun { status, failure: Box::new(failure) }
    };
    let candidates: Vec<PathBuf> = if command.as_bytes().contains(&b'/') {
        vec![PathBuf::from(command)]
    } else {
        let path = path.unwrap_or(OsStr::new("/usr/local/bin:/usr/bin:/bin"));
        std::env::split_paths(path).map(|dir| dir.join(command)).collect()
    };
    let mut unusable = false;
    for candidate in candidates.iter().filter(|c| !command.is_empty() && c.exists()) {
        if candidate.is_file() && nix::unistd::access(candidate, nix::unistd::AccessFlags::X_OK).is_ok() {
            // the command starts in another root, at the same place
            return std::path::absolute(candidate).map_err(|e| refused(RUN_NOT_EXECUTABLE, &e.to_string()));
        }
        unusable = true;
    }
    Err(if unusable {
        refused(RUN_NOT_EXECUTABLE, "it is not executable")
    } else {
        refused(RUN_NOT_FOUND, "it was not found")
    })
}

/// What would be held; refused here is refused before anything was set up.
async fn plan(daemon: &Daemon, client: &mut Client, spec: &proto::HoldSpec) -> Result<proto::Report, Failure> {
    let request = proto::CheckRequest { spec: Some(spec.clone()) };
    let response = connect::within(daemon.patience, client.check(request)).await?;
    let plan = response.plan.unwrap_or_default();
    if response.would_refuse {
        let why = plan.problems.iter().find(|p| p.severity() == proto::Severity::Refusal).cloned().unwrap_or_default();
        let message = if why.message.is_empty() { "a freeze would be refused".to_owned() } else { why.message };
        return Err(Failure::local(RefusalKind::FailedPrecondition, &why.code, message).hint(why.hint));
    }
    Ok(plan)
}

/// The file systems that are, or will be, held.
fn devices(report: &proto::Report) -> BTreeSet<Dev> {
    let device = |step: &proto::Step| match (&step.detail, step.outcome()) {
        (_, proto::StepOutcome::Skipped) => None,
        (Some(proto::step::Detail::Filesystem(fs)), _) => Some(Dev { major: fs.major, minor: fs.minor }),
        (Some(proto::step::Detail::Database(_) | proto::step::Detail::Hook(_)) | None, _) => None,
    };
    report.steps.iter().filter_map(device).collect()
}

fn changed_meanwhile() -> Failure {
    let message = "a file system was mounted between the check and the hold: the command could block on it";
    Failure::local(RefusalKind::Aborted, reason::LOCAL, message).hint("run it again")
}

fn interrupted(signal: Signal) -> Failure {
    Failure::local(RefusalKind::Cancelled, reason::LOCAL, format!("interrupted by {signal} before everything was held"))
}

/// The directory the command's root is put together on; ours to remove.
struct Scaffold {
    dir: PathBuf,
}

impl Scaffold {
    /// In memory if there is such a place: then it can be removed while disks are held.
    fn new(held: &BTreeSet<Dev>) -> Result<Scaffold, Failure> {
        let places = ["/run", "/dev/shm", "/tmp"].map(Path::new);
        let in_memory =
            |p: &&Path| statfs(*p).is_ok_and(|s| s.filesystem_type() == TMPFS_MAGIC) && !held.contains(&dev(p));
        let place = places.iter().copied().find(in_memory).unwrap_or(Path::new("/tmp"));
        let dir = place.join(format!("holdstill-run-{}", std::process::id()));
        // left by a process of the same number that was killed
        let _ = fs::remove_dir(&dir);
        DirBuilder::new().mode(0o700).create(&dir).map_err(|e| Failure::io(format!("create {}", dir.display()), &e))?;
        Ok(Scaffold { dir })
    }
}

impl Drop for Scaffold {
    /// Runs after the release, or when there is no hold.
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.dir);
    }
}

fn dev(path: &Path) -> Dev {
    let dev = fs::metadata(path).map(|m| std::os::unix::fs::MetadataExt::dev(&m)).unwrap_or_default();
    let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    Dev { major: number(nix::sys::stat::major(dev)), minor: number(nix::sys::stat::minor(dev)) }
}

/// Our end of the gate.
struct Gate {
    words: tokio::io::Lines<BufReader<OwnedReadHalf>>,
    say: OwnedWriteHalf,
}

impl Gate {
    /// The next word, or what the gate could not do.
    async fn hears(&mut self, wanted: &str) -> Result<(), Failure> {
        let silent = |why: &str| {
            let message = format!("failed to set up the command's own root: {why}");
            let hint = "with --no-overlay the command runs in the real one, and blocks if it writes to what is held";
            Failure::local(RefusalKind::FailedPrecondition, reason::LOCAL, message).hint(hint)
        };
        let word = match tokio::time::timeout(SETUP_LIMIT, self.words.next_line()).await {
            Ok(Ok(Some(word))) => word,
            Ok(Ok(None)) => return Err(silent("it ended")),
            Ok(Err(error)) => return Err(silent(&error.to_string())),
            Err(_) => return Err(silent("a mount did not answer within 20s")),
        };
        match word.strip_prefix(gate::FAILED).and_then(|rest| rest.split_once(' ')) {
            None if word == wanted => Ok(()),
            None => Err(silent(&word)),
            Some((errno, what)) if errno.parse() == Ok(nix::libc::EPERM) => Err(Failure::local(
                RefusalKind::PermissionDenied,
                reason::NOT_PERMITTED,
                format!("failed to set up the command's own root: {what}"),
            )
            .hint("run it as root, or with --no-overlay")),
            Some((_, what)) => Err(silent(what)),
        }
    }

    async fn says(&mut self, word: &str) -> Result<(), Failure> {
        let line = format!("{word}\n");
        self.say.write_all(line.as_bytes()).await.map_err(|e| Failure::io("talk to the gate", &e))
    }

    /// Lets it through: silence means that it has become the command.
    async fn open(&mut self, id: &str) -> Result<(), Failure> {
        self.says(&format!("{}{id}", gate::GO)).await?;
        match tokio::time::timeout(SETUP_LIMIT, self.words.next_line()).await {
            Ok(Ok(None)) => Ok(()),
            Ok(Ok(Some(word))) => {
                let what = word
                    .strip_prefix(gate::FAILED)
                    .and_then(|rest| rest.split_once(' '))
                    .map_or(word.as_str(), |w| w.1);
                Err(Failure::local(RefusalKind::FailedPrecondition, reason::LOCAL, format!("failed to {what}")))
            }
            Ok(Err(error)) => Err(Failure::io("talk to the gate", &error)),
            Err(_) => Err(Failure::local(RefusalKind::Aborted, reason::LOCAL, "the command did not start within 20s")),
        }
    }
}

/// Starts the gate and waits until it is ready: from then on starting CMD is one execve.
async fn at_the_gate(
    program: &Path,
    args: &cli::Run,
    held: &BTreeSet<Dev>,
    scaffold: Option<&Scaffold>,
) -> Result<(Child, Gate, Option<keep::Stage>), Failure> {
    let mut words: Vec<OsString> = vec!["gate".into()];
    if let Some(scaffold) = scaffold {
        words.extend(["--stage".into(), scaffold.dir.clone().into_os_string()]);
        words.extend(held.iter().flat_map(|dev| [OsString::from("--held"), dev.to_string().into()]));
    }
    words.extend(["--".into(), program.as_os_str().to_owned()]);
    words.extend(args.command.iter().cloned());
    let child = run_child::spawn(&us(), &words).map_err(|e| Failure::io("start the gate", &e))?;
    let stream = child.gate.try_clone().and_then(|socket| {
        socket.set_nonblocking(true)?;
        UnixStream::from_std(socket)
    });
    let (read, say) = stream.map_err(|e| Failure::io("talk to the gate", &e))?.into_split();
    let mut gate = Gate { words: BufReader::new(read).lines(), say };
    let mut stage = None;
    if scaffold.is_some() {
        gate.hears(gate::STAGED).await?;
        stage = Some(keep::Stage::of(child.pid).map_err(|e| Failure::io("open the overlay", &e))?);
        gate.says(gate::BUILD).await?;
    }
    gate.hears(gate::READY).await?;
    Ok((child, gate, stage))
}

/// This very program, also when its file has been replaced meanwhile.
fn us() -> PathBuf {
    PathBuf::from("/proc/self/exe")
}

/// Waits for the child in a thread of its own: waitpid(2) blocks.
fn waited_for(mut process: std::process::Child) -> oneshot::Receiver<Ended> {
    let (tell, told) = oneshot::channel();
    std::thread::spawn(move || {
        // it is ours and nobody else waits for it
        let status = process.wait().map_or(Ended::Signaled(0), Ended::from);
        let _ = tell.send(status);
    });
    told
}

/// The signals that would end us: they go to the command first, so that everything is let go in order.
struct Signals([tokio::signal::unix::Signal; 3]);

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?]))
    }

    async fn next(&mut self) -> Signal {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => Signal::SIGINT,
            _ = terminate.recv() => Signal::SIGTERM,
            _ = hangup.recv() => Signal::SIGHUP,
        }
    }
}

/// Waits for the command while watching the lease. If that ends first: TERM, and KILL after 5 s.
async fn watched(
    pid: nix::unistd::Pid,
    end: &mut oneshot::Receiver<Ended>,
    lease: &mut Lease,
    signals: &mut Signals,
) -> Ended {
    /// Nobody answered for it: it was killed and is stuck in the kernel.
    const STUCK: Ended = Ended::Signaled(9);
    loop {
        tokio::select! {
            ended = &mut *end => return ended.unwrap_or(STUCK),
            signal = signals.next() => {
                // gone already is what we want
                let _ = run_child::signal_group(pid, signal);
            }
            event = lease.events.next() => if let None | Some(Err(_)) = event { break } else if released(&event) { break },
        }
    }
    for (signal, patience) in [(Signal::SIGTERM, GRACE), (Signal::SIGKILL, REAP_LIMIT)] {
        let _ = run_child::signal_group(pid, signal);
        if let Ok(ended) = tokio::time::timeout(patience, &mut *end).await {
            return ended.unwrap_or(STUCK);
        }
    }
    STUCK
}

fn released(event: &Option<Result<proto::HoldResponse, tonic::Status>>) -> bool {
    let what =
        event.as_ref().and_then(|e| e.as_ref().ok()).and_then(|e| e.event.as_ref()).and_then(|e| e.what.as_ref());
    matches!(what, Some(proto::event::What::Released(_)))
}

async fn thaw(client: &mut Client, id: &str) -> Result<proto::ThawResponse, Failure> {
    let request = proto::ThawRequest { id: id.to_owned(), snapshot_ref: String::new() };
    connect::within(RELEASE_PATIENCE, client.thaw(request)).await
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn status(command: &str, path: &Path) -> u8 {
        resolve(OsStr::new(command), Some(path.as_os_str())).map_or_else(|refused| refused.status, |_| 0)
    }

    #[test]
    fn a_command_is_found_as_a_shell_finds_it() {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let make = |name: &str, mode| {
            fs::write(temp.path().join(name), "#!/bin/sh\n").expect("write");
            fs::set_permissions(temp.path().join(name), fs::Permissions::from_mode(mode)).expect("chmod");
        };
        make("yes", 0o755);
        make("no", 0o644);
        fs::create_dir(temp.path().join("dir")).expect("mkdir");
        for (command, wanted) in [("yes", 0), ("no", 126), ("dir", 126), ("gone", 127), ("", 127)] {
            assert_eq!(status(command, temp.path()), wanted, "{command}");
        }
        assert_eq!(status("/bin/sh", temp.path()), 0);
        assert_eq!(status("/gone/sh", temp.path()), 127);
        assert_eq!(status("/etc/passwd", temp.path()), 126);
    }

    #[test]
    fn the_commands_own_status_is_passed_on_and_a_signal_as_shells_do() {
        assert_eq!((own_status(Ended::Exited(7)), own_status(Ended::Signaled(15))), (7, 143));
    }

    #[test]
    fn skipped_file_systems_are_not_covered() {
        let step = |major, outcome: proto::StepOutcome| proto::Step {
            outcome: outcome.into(),
            detail: Some(proto::step::Detail::Filesystem(proto::Filesystem { major, minor: 1, ..Default::default() })),
            ..Default::default()
        };
        let steps = vec![step(8, proto::StepOutcome::Planned), step(9, proto::StepOutcome::Skipped)];
        let report = proto::Report { steps, ..Default::default() };
        assert_eq!(devices(&report), BTreeSet::from([Dev { major: 8, minor: 1 }]));
    }
}
