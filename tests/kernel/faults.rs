//! Faults: every process of ours (and the hook, and the database server) killed or stopped at every named transition of a
//! hold, and at 200 random instants. Afterwards everything is writable, no tunable is changed, no process is left, and a
//! new hold works. `HOLDSTILL_SEED=N` repeats a run of the random instants.

use std::{
    fmt, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::lab::{
    Daemon, Fs, Lab, Type, Writer, command,
    daemon::{BINARY, Running, Setup},
    database::{Durability, Engine, Server},
    now,
    process::{Process, all, ours, signal},
    until,
};

facts! {
    at_admitted within 180,
    at_prepared within 180,
    at_armed within 180,
    at_hook_frozen within 180,
    at_freezing within 180,
    at_frozen within 180,
    at_held within 180,
    at_releasing within 180,
    at_thawed within 180,
    at_undone within 180,
    at_settled within 180,
    at_databases_held within 300,
    at_barrier within 300,
    at_proven within 300,
    a_hook_killed_or_stopped_is_undone_and_nothing_stays_held within 120,
    at_two_hundred_random_instants within 900,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whom {
    Daemon,
    Warden,
    DaemonAndWarden,
    Guardian,
    Sentinel,
    Server,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Killed,
    Stopped,
}

#[derive(Clone, Copy)]
struct Case {
    transition: &'static str,
    whom: Whom,
    fault: Fault,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} at {}", self.whom, self.fault, self.transition)
    }
}

/// How long the daemon waits at the transition, so that the fault meets it there.
const PAUSE: Duration = Duration::from_millis(300);
/// No hold here has an earlier deadline.
const SHORTEST_HOLD: Duration = Duration::from_secs(2);
/// The deadline of the holds: the last mechanism that lets go.
const HOLD: &str = "3s";
/// A kill is noticed at once; the rest is the pause and a busy machine.
const AFTER_KILL: Duration = Duration::from_millis(1500);
/// A stop is noticed by its silence; a case that nothing else ends is ended by the deadline.
const AFTER_STOP: Duration = Duration::from_secs(9);

fn at_admitted(lab: &Lab) {
    at(lab, "admitted", &[Whom::Daemon, Whom::Warden, Whom::DaemonAndWarden]);
}

fn at_prepared(lab: &Lab) {
    at(lab, "prepared", PROCESSES);
}

fn at_armed(lab: &Lab) {
    at(lab, "armed", PROCESSES);
}

fn at_hook_frozen(lab: &Lab) {
    at(lab, "hook_frozen", PROCESSES);
}

fn at_freezing(lab: &Lab) {
    at(lab, "freezing", PROCESSES);
}

fn at_frozen(lab: &Lab) {
    at(lab, "frozen", PROCESSES);
}

fn at_held(lab: &Lab) {
    at(lab, "held", PROCESSES);
}

fn at_releasing(lab: &Lab) {
    at(lab, "releasing", PROCESSES);
}

fn at_thawed(lab: &Lab) {
    at(lab, "thawed", PROCESSES);
}

fn at_undone(lab: &Lab) {
    at(lab, "undone", &[Whom::Daemon, Whom::Warden, Whom::DaemonAndWarden]);
}

fn at_settled(lab: &Lab) {
    at(lab, "settled", &[Whom::Daemon, Whom::Warden, Whom::DaemonAndWarden]);
}

fn at_databases_held(lab: &Lab) {
    with_database(lab, "databases_held");
}

fn at_barrier(lab: &Lab) {
    with_database(lab, "barrier");
}

fn at_proven(lab: &Lab) {
    with_database(lab, "proven");
}

const PROCESSES: &[Whom] = &[Whom::Daemon, Whom::Warden, Whom::DaemonAndWarden, Whom::Guardian, Whom::Sentinel];

/// What all cases of one fact share: file systems being written to, perhaps a database, hooks that note what they do.
struct Scene<'lab> {
    lab: &'lab Lab,
    setup: Setup<'lab>,
    hook_log: PathBuf,
    writers: Vec<Writer>,
    server: Option<Server<'lab>>,
    _disks: Vec<Fs<'lab>>,
}

fn at(lab: &Lab, transition: &'static str, whom: &[Whom]) {
    let disks = vec![lab.fs(Type::Ext4), lab.fs(Type::Ext4)];
    let setup = lab.daemon(&disks.iter().collect::<Vec<_>>());
    let writers = disks.iter().map(|fs| lab.writer(fs)).collect();
    scene(lab, setup, writers, None, disks).play(transition, whom);
}

fn with_database(lab: &Lab, transition: &'static str) {
    let disks = vec![lab.fs_at(Type::Ext4, "/mnt/db".as_ref(), 512)];
    let server = lab.server(Engine::Mariadb, &disks[0], Durability::Full);
    let setup = lab.daemon(&[&disks[0]]).database(server.entry("orders"));
    let writers = vec![server.ledger(), lab.writer(&disks[0])];
    let whom = [Whom::Daemon, Whom::Warden, Whom::DaemonAndWarden, Whom::Server];
    scene(lab, setup, writers, Some(server), disks).play(transition, &whom);
}

fn scene<'lab>(
    lab: &'lab Lab,
    setup: Setup<'lab>,
    writers: Vec<Writer>,
    server: Option<Server<'lab>>,
    disks: Vec<Fs<'lab>>,
) -> Scene<'lab> {
    let hook_log = lab.memory_dir("hooks").join("log");
    // whoever stops inside the kernel's freeze is waited for that long
    let setup = setup.set("hold.quiesce", "3s");
    setup.hook("10-noted", &format!("echo $1 >> {}", hook_log.display()));
    Scene { lab, setup, hook_log, writers, server, _disks: disks }
}

impl Scene<'_> {
    /// Plays every fault, and tells of all that went wrong.
    fn play(&self, transition: &'static str, whom: &[Whom]) {
        let mut wrong = Vec::new();
        for whom in whom.iter().copied() {
            for fault in [Fault::Killed, Fault::Stopped] {
                // a killed server is gone for the cases to come; that a hold notices is the database tests' business
                if (whom, fault) == (Whom::Server, Fault::Killed) {
                    continue;
                }
                let case = Case { transition, whom, fault };
                let begun = now();
                let played = catch_unwind(AssertUnwindSafe(|| self.case(case)));
                eprintln!(
                    "{case}: {} ({:.1} s)",
                    if played.is_ok() { "ok" } else { "WRONG" },
                    (now() - begun).as_secs_f64()
                );
                if played.is_err() {
                    wrong.push(case.to_string());
                    self.clear();
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    /// After a case that went wrong: what it left must not spoil the next.
    fn clear(&self) {
        self.lab.reaper_thaws();
        clear_processes();
        self.lab.reaper_thaws();
        if let Some(server) = &self.server {
            signal(server.pid(), Signal::SIGCONT);
        }
        let _ = fs::remove_dir_all(self.setup.run_dir());
    }

    fn case(&self, case: Case) {
        let reached = self.lab.memory_dir("reached").join("transitions");
        let daemon = self
            .setup
            .clone()
            .set("hold.max", HOLD)
            .env("HOLDSTILL_FAILPOINT", format!("{}:pause={}", case.transition, PAUSE.as_millis()))
            .env("HOLDSTILL_FAILPOINT_FILE", reached.display().to_string())
            .start();
        let _ = fs::remove_file(&self.hook_log);
        // freeze, and thaw when held: one client process, so that either may be cut short
        let script = "\"$0\" --socket \"$1\" --json freeze && exec \"$0\" --socket \"$1\" --json thaw";
        let client = Running::start(self.lab, command("sh").args(["-c", script, BINARY]).arg(daemon.socket()));
        let at = || fs::read_to_string(&reached).unwrap_or_default().lines().any(|l| l == case.transition);
        assert!(until(Duration::from_secs(10), at), "{} was never reached", case.transition);
        let victims = self.victims(&daemon, case.whom);
        let signals = if case.fault == Fault::Killed { Signal::SIGKILL } else { Signal::SIGSTOP };
        if matches!(case.whom, Whom::Daemon | Whom::DaemonAndWarden) {
            if case.fault == Fault::Killed { daemon.kill() } else { daemon.stop() }
        }
        for victim in &victims {
            signal(*victim, signals);
        }
        let limit = match (case.whom, case.fault) {
            // nobody notices a sentinel that cannot die until the thaw; a thaw or the deadline comes
            (Whom::Sentinel, _) | (_, Fault::Stopped) => AFTER_STOP,
            _ => AFTER_KILL + Duration::from_secs(if case.whom == Whom::Guardian { 3 } else { 0 }),
        };
        self.all_writable(limit, case.whom == Whom::Server);
        for victim in &victims {
            signal(*victim, Signal::SIGCONT);
        }
        self.all_writable(Duration::from_secs(5), false);
        // the client gets its answer, whatever it is
        let answer = client.finish_within(Duration::from_secs(20));
        assert!(!answer.err.contains("panicked"), "a client panicked: {answer:?}");
        assert!(!daemon.log().contains("panicked"), "the daemon panicked");
        self.lab.assert_tunable_restored();
        // every process goes; then a new daemon on the same run directory holds again
        drop(daemon);
        let next = self.setup.clone().start();
        self.holds(&next, case);
        drop(next);
        self.hook_is_undone();
    }

    fn victims(&self, daemon: &Daemon, whom: Whom) -> Vec<i32> {
        match whom {
            Whom::Daemon => vec![daemon.pid()],
            Whom::Warden => vec![daemon.warden()],
            Whom::DaemonAndWarden => vec![daemon.pid(), daemon.warden()],
            Whom::Guardian => daemon.guardian().into_iter().collect(),
            Whom::Sentinel => daemon.sentinel().into_iter().collect(),
            Whom::Server => self.server.iter().map(Server::pid).collect(),
        }
    }

    /// All go on writing within `limit`; a stopped server's clients cannot.
    fn all_writable(&self, limit: Duration, server_stopped: bool) {
        let until = now() + limit;
        let first = if server_stopped { 1 } else { 0 };
        for writer in &self.writers[first..] {
            writer.assert_writable_within(until.saturating_sub(now()).max(Duration::from_millis(100)));
        }
    }

    /// A whole, unbroken hold. On a machine that stood still meanwhile its deadline may have passed before it was looked
    /// at: then once more.
    fn holds(&self, daemon: &Daemon, case: Case) {
        for _ in 0..5 {
            let begun = now();
            let seen = catch_unwind(AssertUnwindSafe(|| self.holds_once(daemon, case)));
            match seen {
                Ok(()) => return,
                Err(_) if now() - begun > SHORTEST_HOLD => eprintln!("after {case}: the machine was too slow to see"),
                Err(wrong) => std::panic::resume_unwind(wrong),
            }
            let _ = daemon.cli(&["thaw"]);
        }
        panic!("after {case}: five holds took longer than {SHORTEST_HOLD:?} to look at");
    }

    fn holds_once(&self, daemon: &Daemon, case: Case) {
        let report = daemon.freeze(&[]);
        let counts = || self.writers.iter().map(|w| w.progress().count).collect::<Vec<_>>();
        let before = counts();
        thread::sleep(Duration::from_millis(60));
        let after = counts();
        let still = before.iter().zip(&after).all(|(b, a)| a - b <= 1);
        assert!(still, "after {case}, writers went on while held: {before:?} → {after:?} {report:#}");
        let report = daemon.thaw();
        assert_eq!(report["verdict"], "unbroken", "after {case}: {report:#}");
        self.all_writable(Duration::from_secs(3), false);
    }

    /// Started as often as undone; the last thing it heard was thaw.
    fn hook_is_undone(&self) {
        let story = || fs::read_to_string(&self.hook_log).unwrap_or_default();
        let balanced = || {
            let story = story();
            let count = |phase| story.lines().filter(|l| *l == phase).count();
            count("freeze") <= count("thaw") && count("thaw") <= count("freeze") + 1
        };
        assert!(until(Duration::from_secs(3), balanced), "hooks were left started: {:?}", story());
    }
}

/// Ends whatever of ours still lives.
fn clear_processes() {
    until(Duration::from_secs(3), || {
        for process in ours() {
            signal(process.pid, Signal::SIGCONT);
            signal(process.pid, Signal::SIGKILL);
        }
        ours().is_empty()
    });
}

fn a_hook_killed_or_stopped_is_undone_and_nothing_stays_held(lab: &Lab) {
    let disk = lab.fs(Type::Ext4);
    let writer = lab.writer(&disk);
    let daemon = lab.daemon(&[&disk]).set("hooks.timeout", "2s").start();
    let log = lab.memory_dir("hooks").join("log");
    let script = format!("echo $1 $$ >> {}; [ $1 = freeze ] && sleep 20; exit 0", log.display());
    daemon.setup().hook("10-slow", &script);
    for kind in [Signal::SIGKILL, Signal::SIGSTOP] {
        let _ = fs::remove_file(&log);
        let client = daemon.start_cli(&["freeze"]);
        let lines = || fs::read_to_string(&log).unwrap_or_default();
        assert!(until(Duration::from_secs(5), || lines().starts_with("freeze")), "the hook never ran");
        let pid = lines().split_whitespace().nth(1).and_then(|p| p.parse().ok()).expect("it noted its pid");
        signal(pid, kind);
        let answer = client.finish_within(Duration::from_secs(12));
        answer.exits(1).says("10-slow");
        assert!(until(Duration::from_secs(3), || lines().lines().last().is_some_and(|l| l.starts_with("thaw"))));
        writer.assert_writable_within(Duration::from_secs(1));
        let sleeping = || all().into_iter().any(|p: Process| p.state != 'Z' && p.command.starts_with("sleep 20"));
        assert!(until(Duration::from_secs(5), || !sleeping()), "what the hook started lives on");
    }
}

/// xorshift64*: the same instants for the same seed, as far as the machine lets them be the same.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        usize::try_from(high).expect("31 bits") % bound
    }
}

fn at_two_hundred_random_instants(lab: &Lab) {
    let seed = std::env::var("HOLDSTILL_SEED").ok().and_then(|s| s.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::try_from(now().as_nanos()).unwrap_or(1) | 1);
    eprintln!("HOLDSTILL_SEED={seed}");
    let mut random = Random(seed);
    let disks = vec![lab.fs(Type::Ext4), lab.fs(Type::Ext4)];
    let setup = lab.daemon(&disks.iter().collect::<Vec<_>>()).set("hold.max", "2s");
    let writers = disks.iter().map(|fs| lab.writer(fs)).collect();
    let scene = scene(lab, setup, writers, None, disks);
    let mut wrong = Vec::new();
    // the daemon that proved that a new one holds is the next one to be hit
    let mut daemon = None;
    for round in 0..200 {
        let mut story = format!("round {round}");
        let target = daemon.take().unwrap_or_else(|| scene.setup.clone().start());
        match catch_unwind(AssertUnwindSafe(|| scene.random_fault(target, &mut random, &mut story))) {
            Ok(next) => daemon = Some(next),
            Err(_) => {
                eprintln!("WRONG: {story}");
                wrong.push(story);
                scene.clear();
            }
        }
        // ten stories say enough, and each wrong one may have taken many seconds
        if wrong.len() >= 10 {
            break;
        }
    }
    assert!(wrong.is_empty(), "HOLDSTILL_SEED={seed}: {wrong:#?}");
}

impl<'lab> Scene<'lab> {
    fn random_fault(&self, daemon: Daemon<'lab>, random: &mut Random, story: &mut String) -> Daemon<'lab> {
        let _ = fs::remove_file(&self.hook_log);
        let script = "\"$0\" --socket \"$1\" --json freeze && exec \"$0\" --socket \"$1\" --json thaw";
        let client = Running::start(self.lab, command("sh").args(["-c", script, BINARY]).arg(daemon.socket()));
        thread::sleep(Duration::from_micros(u64::try_from(random.below(160_000)).expect("small")));
        let (pid, clients) = (daemon.pid(), |p: &Process| p.command.contains("freeze") || p.command.contains("thaw"));
        let candidates: Vec<Process> = ours().into_iter().filter(|p| !clients(p)).collect();
        // most are kills: a stop takes seconds to be noticed
        let fault = if random.below(6) == 0 { Fault::Stopped } else { Fault::Killed };
        let mut victims = vec![candidates[random.below(candidates.len())].clone()];
        if random.below(5) == 0 {
            victims = candidates.into_iter().filter(|p| p.pid == pid || p.parent == pid).collect();
        }
        let names: Vec<String> = victims.iter().map(|p| format!("{} ({})", p.name, p.state)).collect();
        *story = format!("{story}: {fault:?} {}", names.join(", "));
        if victims.iter().any(|p| p.pid == pid) {
            if fault == Fault::Killed { daemon.kill() } else { daemon.stop() }
        }
        let kind = if fault == Fault::Killed { Signal::SIGKILL } else { Signal::SIGSTOP };
        victims.iter().for_each(|p| signal(p.pid, kind));
        let limit = if fault == Fault::Killed { AFTER_KILL + Duration::from_secs(2) } else { AFTER_STOP };
        self.all_writable(limit, false);
        victims.iter().for_each(|p| signal(p.pid, Signal::SIGCONT));
        client.finish_within(Duration::from_secs(20));
        self.all_writable(Duration::from_secs(3), false);
        assert!(!daemon.log().contains("panicked"), "the daemon panicked");
        self.lab.assert_tunable_restored();
        drop(daemon);
        assert!(ours().is_empty(), "left: {:?}", ours());
        let next = self.setup.clone().start();
        self.holds(&next, Case { transition: "a random instant", whom: Whom::Daemon, fault });
        self.hook_is_undone();
        next
    }
}
