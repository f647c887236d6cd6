//! Runs facts one after another, each in its own world, and speaks the command line of Rust's own test harness, so that
//! `cargo test` and `cargo nextest` both work. Skipped facts are counted as such, never as passed.
//!
//! Facts are about time as well, and a machine that runs tests may stand still for seconds. So a few that failed are tried
//! once more when all others have ended. What the first try said is printed, and that there was one: a fact that needs
//! this more than once in a while is not a fact.

use std::{
    fs,
    io::{self, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use nix::fcntl::{Flock, FlockArg};

use super::{Fact, Lab, Skipped, database::template, disk, finish, now, reaper, until};

/// What the command line asked for.
#[derive(Default)]
struct Wanted {
    list: bool,
    ignored: bool,
    exact: bool,
    no_capture: bool,
    /// `--together` or `--alone`: one of the two kinds only
    kind: Option<Kind>,
    names: Vec<String>,
    skip: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Together,
    Alone,
}

impl Wanted {
    fn parse(args: &[String]) -> Wanted {
        let mut wanted = Wanted::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--list" => wanted.list = true,
                "--ignored" => wanted.ignored = true,
                "--exact" => wanted.exact = true,
                "--nocapture" | "--no-capture" => wanted.no_capture = true,
                "--together" => wanted.kind = Some(Kind::Together),
                "--alone" => wanted.kind = Some(Kind::Alone),
                "--skip" => wanted.skip.extend(args.next().cloned()),
                // they take a value and change nothing here
                "--format" | "--test-threads" | "--color" | "-Z" => drop(args.next()),
                flag if flag.starts_with('-') => {}
                name => wanted.names.push(name.to_owned()),
            }
        }
        wanted
    }

    fn wants(&self, name: &str) -> bool {
        let matches = |pattern: &String| if self.exact { name == pattern } else { name.contains(pattern.as_str()) };
        !self.ignored && (self.names.is_empty() || self.names.iter().any(matches)) && !self.skip.iter().any(matches)
    }
}

/// When more than this many failed, it was not the machine.
const SECOND_TRIES: usize = 3;

/// How many ended how.
#[derive(Default)]
struct Count {
    passed: usize,
    failed: Vec<(usize, Fact)>,
    skipped: usize,
}

impl Count {
    fn tell(&mut self, number: usize, fact: &Fact, end: End, took: f64) {
        match end {
            End::Passed => {
                self.passed += 1;
                println!("ok ({took:.1} s)");
            }
            End::Skipped(why) => {
                self.skipped += 1;
                println!("ignored, {why}");
                note_skip(&format!("{}: {why}", short(fact.name)));
            }
            End::Failed(output) => {
                self.failed.push((number, *fact));
                println!("FAILED ({took:.1} s)\n---- {} ----\n{output}\n----", short(fact.name));
            }
        }
    }
}

/// How a fact ended.
enum End {
    Passed,
    Failed(String),
    Skipped(String),
}

/// The harness itself; `side_by_side` facts of `together` run at the same time, and then those of `alone`.
pub fn main(together: &[Fact], alone: &[Fact], args: &[String], side_by_side: usize) -> ExitCode {
    let wanted = Wanted::parse(args);
    let known = together.len() + alone.len();
    let of = |facts: &[Fact], kind| -> Vec<Fact> {
        let wanted = |fact: &&Fact| wanted.kind.is_none_or(|only| only == kind) && wanted.wants(short(fact.name));
        facts.iter().filter(wanted).copied().collect()
    };
    let (together, alone) = (of(together, Kind::Together), of(alone, Kind::Alone));
    let all = together.len() + alone.len();
    if wanted.list {
        for fact in together.iter().chain(&alone) {
            println!("{}: test", short(fact.name));
        }
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {all} tests");
    let begun = now();
    // one kernel, one RCU tunable, one lab at a time; also between processes
    let lock = lock();
    let count = Mutex::new(Count::default());
    for (chosen, first, side_by_side) in [(&together, 0, side_by_side), (&alone, together.len(), 1)] {
        let next = AtomicUsize::new(0);
        // whoever starts a world waits for its end: a world ends with the thread that started it
        let work = || {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(fact) = chosen.get(at) else { return };
                if side_by_side == 1 {
                    print!("test {} ... ", short(fact.name));
                    let _ = io::stdout().flush();
                }
                let begun = now();
                let end = match &lock {
                    Ok(_) => run(fact, first + at, wanted.no_capture),
                    Err(e) => End::Skipped(format!("kernel tests need root and a lab directory: {e}")),
                };
                let mut count = count.lock().expect("nobody panics while printing");
                if side_by_side > 1 {
                    print!("test {} ... ", short(fact.name));
                }
                count.tell(first + at, fact, end, (now() - begun).as_secs_f64());
            }
        };
        thread::scope(|scope| {
            for _ in 0..side_by_side {
                scope.spawn(work);
            }
        });
    }
    let mut count = count.into_inner().expect("nobody panics while printing");
    if count.failed.len() <= SECOND_TRIES && all > SECOND_TRIES {
        for (number, fact) in std::mem::take(&mut count.failed) {
            print!("second try: test {} ... ", short(fact.name));
            let _ = io::stdout().flush();
            let begun = now();
            let end = run(&fact, all + number, wanted.no_capture);
            count.tell(number, &fact, end, (now() - begun).as_secs_f64());
        }
    }
    if lock.is_ok() {
        template::forget();
    }
    let Count { passed, failed, skipped } = count;
    let failed = failed.len();
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {passed} passed; {failed} failed; {skipped} ignored; 0 measured; {} filtered out; \
         finished in {:.1}s\n",
        known - all,
        (now() - begun).as_secs_f64()
    );
    // as Rust's own harness ends when tests failed
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(101) }
}

/// "kernel::lets_go::a_fact" → "lets_go::a_fact"
fn short(name: &str) -> &str {
    name.split_once("::").map_or(name, |(_, rest)| rest)
}

/// Under nextest, where a skipped test looks like a passed one, whoever adds up reads this file.
fn note_skip(line: &str) {
    let Some(path) = std::env::var_os("HOLDSTILL_SKIPS") else { return };
    let file = fs::OpenOptions::new().append(true).create(true).open(path);
    let _ = file.and_then(|mut f| writeln!(f, "{line}"));
}

fn lock() -> io::Result<Flock<fs::File>> {
    if !nix::unistd::geteuid().is_root() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    fs::create_dir_all(disk::base())?;
    let mut file = Some(fs::File::create(disk::base().join("lock"))?);
    let mut lock = None;
    until(Duration::from_secs(900), || {
        match Flock::lock(file.take().expect("put back below"), FlockArg::LockExclusiveNonblock) {
            Ok(locked) => lock = Some(locked),
            Err((back, _)) => file = Some(back),
        }
        lock.is_some()
    });
    let lock = lock.ok_or_else(|| io::Error::other("another run has been using the lab for 15 minutes"))?;
    disk::sweep()?;
    Ok(lock)
}

/// Runs one fact in a new world.
fn run(fact: &Fact, number: usize, no_capture: bool) -> End {
    // short: the reaper's socket lies in it, and a socket's path has room for 107 bytes
    let dir = disk::base().join(format!("{}-{number}", std::process::id()));
    match fs::create_dir_all(&dir).and_then(|()| in_world(fact, &dir, no_capture)) {
        Ok(end) => end,
        Err(e) => End::Failed(format!("the harness failed: {e}")),
    }
}

fn in_world(fact: &Fact, dir: &Path, no_capture: bool) -> io::Result<End> {
    let reaper = reaper::Reaper::start(dir, fact.limit)?;
    let output = dir.join("output");
    let mut world = Command::new("setpriv");
    world
        .args(["--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--ipc", "--fork", "--kill-child=KILL"])
        .args(["--propagation", "private"])
        .arg(std::env::current_exe()?)
        .arg("--lab-init")
        .arg(dir)
        .arg(fact.name)
        .current_dir("/")
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null());
    if !no_capture {
        let file = fs::File::create(&output)?;
        world.stdout(file.try_clone()?).stderr(file);
    }
    let mut world = world.spawn()?;
    let status = until_end(&mut world, fact.limit);
    if status.is_none() {
        // what waits for a frozen file system cannot be killed: thaw first
        reaper::Client::connect(dir)?.thaw_all()?;
        let _ = finish(&mut world, Duration::ZERO);
    }
    drop(reaper);
    // others may run beside it
    let left = || disk::attached_in(dir);
    let clean = until(Duration::from_secs(5), || left().is_empty());
    let mut said = fs::read_to_string(&output).unwrap_or_default();
    let skipped = fs::read_to_string(dir.join("skipped")).ok();
    if !clean {
        said.push_str(&format!("loop devices were left: {:?}\n", left()));
    } else if let Err(e) = fs::remove_dir_all(dir) {
        said.push_str(&format!("the lab's directory stays: {e}\n"));
    }
    Ok(match (status, skipped) {
        (None, _) => End::Failed(format!("{said}it had not ended after {:?}", fact.limit)),
        (Some(_), Some(why)) if clean => End::Skipped(why),
        (Some(status), _) if status.success() && clean => End::Passed,
        (Some(status), _) => End::Failed(format!("{said}{status}")),
    })
}

/// Waits without killing.
fn until_end(world: &mut std::process::Child, limit: Duration) -> Option<std::process::ExitStatus> {
    let mut status = None;
    until(limit, || {
        status = world.try_wait().ok().flatten();
        status.is_some()
    });
    status
}

/// The process of one fact, within its world.
pub fn run_fact(facts: &[Fact], name: &str) -> ExitCode {
    let fact = facts.iter().find(|f| f.name == name).expect("the harness names one of our facts");
    let store_fd = std::env::var("HOLDSTILL_LAB_STORE").expect("init sets it");
    let lab = match Lab::open(&store_fd) {
        Ok(lab) => lab,
        Err(e) => {
            eprintln!("failed to enter the lab: {e}");
            return ExitCode::FAILURE;
        }
    };
    let store: PathBuf = lab.store("");
    let ran = catch_unwind(AssertUnwindSafe(|| (fact.run)(&lab)));
    let troubles = lab.close();
    if let Err(thrown) = &ran
        && let Some(Skipped(why)) = thrown.downcast_ref::<Skipped>()
    {
        fs::write(store.join("skipped"), why).expect("the lab's directory is writable");
        return ExitCode::SUCCESS;
    }
    for trouble in &troubles {
        eprintln!("failed: {trouble}");
    }
    if ran.is_ok() && troubles.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
