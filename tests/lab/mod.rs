//! The laboratory of the kernel tests: real file systems, databases and daemons that can hurt nobody.
//!
//! Every fact (test) runs in processes of its own:
//!
//! ```text
//!   harness ─┬─ reaper (own session): descriptors on every mount root; thaws at the limit, on EOF, on command
//!            └─ unshare ─ init (pid 1 of a private pid namespace) ─ the fact ─ daemons, writers, servers
//! ```
//!
//! The world of a fact (see [`world`]) has a root that *cannot* be frozen: an overlay over the machine's own, after
//! `pivot_root`, with nothing of the machine's disks mounted any more. The only block devices mounted there are loop
//! devices whose backing files lie in the lab's directory. When the fact ends, however it ends, the kernel kills all its
//! processes, and the reaper thaws what is still frozen.
//!
//! A fact panics to fail, and calls [`Lab::skip`] when it cannot be run here. What is noticed too late to panic (in a
//! `Drop`) is noted with [`Lab::trouble`] and fails the fact at its end.

pub mod accounts;
pub mod adapter;
pub mod daemon;
pub mod database;
pub mod disk;
pub mod grpc;
pub mod guest_agent;
pub mod harness;
pub mod private_root;
pub mod process;
pub mod qemu_ga;
pub mod reaper;
pub mod world;
pub mod writer;

use std::{
    cell::{Cell, RefCell},
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

pub use daemon::Daemon;
pub use disk::{Fs, Type};
pub use holdstill::sys::clock::monotonic as now;
pub use process::{command, finish, until};
pub use writer::Writer;

/// One test: a function that panics if the fact is not so.
#[derive(Clone, Copy)]
pub struct Fact {
    pub name: &'static str,
    pub run: fn(&Lab),
    /// after this it is ended, thawed, and has failed
    pub limit: Duration,
}

impl Fact {
    pub const fn new(name: &'static str, run: fn(&Lab)) -> Fact {
        Fact { name, run, limit: Duration::from_secs(30) }
    }

    pub const fn within(self, seconds: u64) -> Fact {
        Fact { limit: Duration::from_secs(seconds), ..self }
    }
}

/// Lists a module's facts: `facts! { a_fact, a_slow_fact within 120 }`. A fact that is not listed is dead code, and said.
macro_rules! facts {
    ($($name:ident $(within $seconds:literal)?),* $(,)?) => {
        pub const FACTS: &[$crate::lab::Fact] = &[$(
            $crate::lab::Fact::new(concat!(module_path!(), "::", stringify!($name)), $name)$(.within($seconds))?
        ),*];
    };
}

/// Dispatches the roles this binary plays; without one it is the harness.
pub fn main(facts: &[&'static [Fact]]) -> ExitCode {
    main_side_by_side(facts, 1)
}

/// As [`main`], with so many facts at the same time: for those that measure nothing.
pub fn main_side_by_side(facts: &[&'static [Fact]], side_by_side: usize) -> ExitCode {
    main_of(facts, &[], side_by_side)
}

/// Two facts at a time, and then, one after another, those that look at how long something takes.
pub fn main_of_two_kinds(facts: &[&'static [Fact]], alone: &[&'static [Fact]]) -> ExitCode {
    main_of(facts, alone, 2)
}

fn main_of(together: &[&'static [Fact]], alone: &[&'static [Fact]], side_by_side: usize) -> ExitCode {
    let (together, alone) = (together.concat(), alone.concat());
    let facts = [together.as_slice(), alone.as_slice()].concat();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["--lab-reaper", dir, limit] => reaper::serve(Path::new(dir), limit),
        ["--lab-init", dir, name] => world::init(Path::new(dir), name),
        ["--lab-fact", name] => harness::run_fact(&facts, name),
        ["--lab-writer", file, progress] => writer::write_forever(Path::new(file), Path::new(progress)),
        ["--lab-accounts", dir, progress] => accounts::keep(Path::new(dir), Path::new(progress)),
        ["--lab-ledger", engine, address, progress, sql] => {
            database::ledger::repeat_forever(engine, address, Path::new(progress), sql)
        }
        ["--lab-enter", place @ ..] => database::enter::enter(place),
        _ => harness::main(&together, &alone, &args, side_by_side),
    }
}

/// Where the lab's directory on the machine's disk is reachable from within a world: a descriptor of init.
const DISK_STORE: &str = "/proc/1/fd";

/// What one fact has to work with.
pub struct Lab {
    store: PathBuf,
    reaper: reaper::Client,
    troubles: RefCell<Vec<String>>,
    count: Cell<u32>,
    rcu_expedited: String,
}

const RCU_EXPEDITED: &str = "/sys/kernel/rcu_expedited";

fn rcu_expedited() -> String {
    fs::read_to_string(RCU_EXPEDITED).unwrap_or_default().trim().to_owned()
}

/// Thrown by [`Lab::skip`].
struct Skipped(String);

impl Lab {
    /// Enters the lab; only within a world.
    ///
    /// # Errors
    /// The world is not as [`world::init`] makes it.
    fn open(store_fd: &str) -> io::Result<Lab> {
        world::guard()?;
        let store = Path::new(DISK_STORE).join(store_fd);
        Ok(Lab {
            reaper: reaper::Client::connect(&store)?,
            store,
            troubles: RefCell::default(),
            count: Cell::new(0),
            rcu_expedited: rcu_expedited(),
        })
    }

    /// This fact cannot be examined here; the run says so and counts it as skipped.
    pub fn skip(&self, reason: &str) -> ! {
        std::panic::panic_any(Skipped(reason.to_owned()))
    }

    /// Notes something that fails the fact at its end.
    pub fn trouble(&self, what: impl Into<String>) {
        let what = what.into();
        eprintln!("trouble: {what}");
        self.troubles.borrow_mut().push(what);
    }

    /// A number not given before in this lab.
    fn next(&self) -> u32 {
        self.count.set(self.count.get() + 1);
        self.count.get()
    }

    /// A path on the machine's disk for a file called `name`; gone with the lab.
    pub fn store(&self, name: &str) -> PathBuf {
        self.store.join(name)
    }

    /// A directory in memory, private to this fact.
    pub fn memory_dir(&self, name: &str) -> PathBuf {
        let dir = PathBuf::from(format!("/run/lab-{}-{name}", self.next()));
        fs::create_dir_all(&dir).expect("/run is a tmpfs of this world");
        dir
    }

    /// The kernel's grace periods must be as they were when nothing is being frozen.
    pub fn assert_tunable_restored(&self) {
        let restored = || rcu_expedited() == self.rcu_expedited;
        assert!(until(Duration::from_secs(2), restored), "{RCU_EXPEDITED} is not what it was before the hold");
    }

    /// Lets the reaper thaw everything; answers how many file systems were frozen.
    pub fn reaper_thaws(&self) -> i32 {
        self.reaper.thaw_all().expect("the reaper answers")
    }

    /// What must be so at the end of any fact; called after it returned, when its daemons are dropped.
    fn close(self) -> Vec<String> {
        if rcu_expedited() != self.rcu_expedited {
            let _ = fs::write(RCU_EXPEDITED, &self.rcu_expedited);
            self.trouble(format!("{RCU_EXPEDITED} was left changed"));
        }
        let left = process::ours();
        if !left.is_empty() {
            self.trouble(format!("processes of ours were left: {left:?}"));
        }
        match self.reaper.thaw_all() {
            Ok(0) => {}
            Ok(n) => self.trouble(format!("{n} file systems were left frozen")),
            Err(e) => self.trouble(format!("the reaper does not answer: {e}")),
        }
        self.troubles.into_inner()
    }
}
