//! The truth test: copies at random instants around holds under load, and what `verify` makes of each.
//!
//! The disk of the file system under test is a file on an outer XFS, and a copy is a clone of that file, which the kernel
//! takes in one instant with no write in between. What we know of each from outside:
//!
//! ```text
//!   asked to freeze ── answered ───────────────── asked to thaw ── answered
//!        │  in between  │  inside: must be graded held  │  in between  │  outside: must not be
//! ```
//!
//! A copy graded as held has, besides, exactly what had been acknowledged when it was frozen: no line less, no line more.
//! How many: `HOLDSTILL_TRUTH`, or 300 of each file system.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    thread,
    time::Duration,
};

use holdstill::{
    hold::verify::{self, Grade, Host},
    sys::attach,
};

use crate::lab::{Lab, Type, accounts::Accounts, command, disk::needs_recovery, now, process::tool};

facts! {
    a_copy_of_ext4_is_graded_as_what_it_is within 170,
    a_copy_of_xfs_is_graded_as_what_it_is within 170,
    a_copy_of_btrfs_is_graded_as_what_it_is within 170,
}

fn a_copy_of_ext4_is_graded_as_what_it_is(lab: &Lab) {
    truth(lab, Type::Ext4);
}

fn a_copy_of_xfs_is_graded_as_what_it_is(lab: &Lab) {
    truth(lab, Type::Xfs);
}

fn a_copy_of_btrfs_is_graded_as_what_it_is(lab: &Lab) {
    truth(lab, Type::Btrfs);
}

/// When a hold was what, as seen from outside.
struct Hold {
    id: String,
    asked: Duration,
    answered: Duration,
    thaw_asked: Duration,
    thawed: Duration,
    /// what had been acknowledged while all was frozen
    accounts: Accounts,
}

struct Copy {
    path: PathBuf,
    before: Duration,
    after: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Inside,
    Outside,
    Freezing,
    Thawing,
}

fn when<'a>(copy: &Copy, holds: &'a [Hold]) -> (When, Option<&'a Hold>) {
    let Some(hold) = holds.iter().find(|hold| copy.before < hold.thawed && hold.asked < copy.after) else {
        return (When::Outside, None);
    };
    let when = if hold.answered <= copy.before && copy.after <= hold.thaw_asked {
        When::Inside
    } else if copy.before < hold.answered {
        When::Freezing
    } else {
        When::Thawing
    };
    (when, Some(hold))
}

/// Random enough, and printed so that a run can be told.
struct Dice(u64);

impl Dice {
    fn upto(&mut self, limit: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        limit.mul_f64((self.0 % 1000) as f64 / 1000.0)
    }
}

/// A new hold is begun this long after the last at most; a copy is cut this long after the last.
const PAUSE: Duration = Duration::from_millis(250);
const HELD: Duration = Duration::from_millis(250);
const BETWEEN_COPIES: Duration = Duration::from_millis(45);

fn truth(lab: &Lab, kind: Type) {
    let wanted: usize = std::env::var("HOLDSTILL_TRUTH").ok().and_then(|n| n.parse().ok()).unwrap_or(300);
    let outer = lab.fs_at(Type::Xfs, Path::new("/mnt/outer"), 8 << 10);
    let size = if kind == Type::Ext4 { 64 } else { 320 };
    let inner = lab.fs_on(kind, Path::new("/mnt/inner"), &outer.mount.join("disk.img"), size);
    let daemon = lab.daemon(&[&inner]).start();
    let mount = inner.mount.clone();
    let accounts =
        lab.background("the accounts", |progress| vec!["--lab-accounts".into(), mount.into(), progress.into()]);
    let load = lab.writer(&inner);
    let enough = AtomicBool::new(false);
    let seed = u64::from(std::process::id()) << 20 | u64::try_from(now().as_micros() % 1_000_000).expect("small") | 1;
    println!("{}: seed {seed}", kind.name());
    let mut dice = Dice(seed);
    let (copies, holds) = thread::scope(|scope| {
        let copies = scope.spawn(|| {
            let copies = take(&outer.mount, wanted, Dice(seed.rotate_left(17) | 1));
            enough.store(true, SeqCst);
            copies
        });
        let mut holds = Vec::new();
        while !enough.load(SeqCst) && !copies.is_finished() {
            thread::sleep(dice.upto(PAUSE));
            let id = format!("{}-{}", kind.name(), holds.len());
            let asked = now();
            daemon.freeze(&["--id", &id, "--for", "20s"]);
            let answered = now();
            thread::sleep(dice.upto(HELD));
            let acknowledged = Accounts::acknowledged(accounts.published_at());
            let thaw_asked = now();
            assert_eq!(daemon.thaw()["verdict"], "unbroken");
            holds.push(Hold { id, asked, answered, thaw_asked, thawed: now(), accounts: acknowledged });
        }
        (copies.join().expect("copies can be taken"), holds)
    });
    drop((accounts, load));
    drop(daemon);
    // a btrfs beside its own copies would be mixed up with them
    drop(inner);
    let took = now();
    let mut tally = Tally::default();
    for copy in &copies {
        tally.judge(kind, copy, &holds);
    }
    println!("{}", tally.table(kind, holds.len()));
    println!("{} copies verified in {:.1} s", copies.len(), (now() - took).as_secs_f64());
    assert!(tally.wrong.is_empty(), "{} wrong:\n{}", tally.wrong.len(), tally.wrong.join("\n"));
    assert!(tally.inside > 0 && tally.outside > 0, "nothing was compared");
}

/// Clones the disk at random instants.
fn take(outer: &Path, wanted: usize, mut dice: Dice) -> Vec<Copy> {
    let mut copies = Vec::new();
    while copies.len() < wanted {
        thread::sleep(dice.upto(BETWEEN_COPIES));
        let path = outer.join(format!("copy-{}.img", copies.len()));
        let before = now();
        tool(command("cp").arg("--reflink=always").arg(outer.join("disk.img")).arg(&path));
        copies.push(Copy { path, before, after: now() });
    }
    copies
}

#[derive(Default)]
struct Tally {
    inside: usize,
    outside: usize,
    freezing: usize,
    thawing: usize,
    held: usize,
    held_at_the_edge: usize,
    /// graded as held, at the edge, and not what was frozen: the window that the grade says it leaves
    residual: usize,
    high: usize,
    low: usize,
    wrong: Vec<String>,
}

impl Tally {
    fn judge(&mut self, kind: Type, copy: &Copy, holds: &[Hold]) {
        let (when, hold) = when(copy, holds);
        let verified = verify::verify(std::slice::from_ref(&copy.path), None, Host::Elsewhere).expect("it is an image");
        let grade = verified.grade;
        let why = &verified.filesystems[0].why;
        let edge = matches!(when, When::Freezing | When::Thawing);
        match when {
            When::Inside => self.inside += 1,
            When::Outside => self.outside += 1,
            When::Freezing => self.freezing += 1,
            When::Thawing => self.thawing += 1,
        }
        let best = if kind == Type::Ext4 { Grade::CutInside } else { Grade::ConsistentWithHold };
        let about =
            || format!("{} ({when:?}, {:?} .. {:?}): {grade}: {why}", copy.path.display(), copy.before, copy.after);
        if !grade.is_held() {
            if when == When::Inside {
                self.low += 1;
                self.wrong.push(format!("too low: {}", about()));
            }
            return;
        }
        self.held += 1;
        self.held_at_the_edge += usize::from(edge);
        let Some(hold) = hold else {
            self.high += 1;
            self.wrong.push(format!("too high: {}", about()));
            return;
        };
        let mut fault = None;
        if verified.hold_id != hold.id {
            fault = Some(format!("it is of {}, not of {}", verified.hold_id, hold.id));
        } else if when == When::Inside && grade != best {
            fault = Some(format!("it should be {best}"));
        } else if grade == Grade::CutInside && needs_recovery(&copy.path) {
            fault = Some("its journal needs recovery".to_owned());
        }
        let found = contents(kind, &copy.path);
        let same = found.as_ref().is_ok_and(|found| *found == hold.accounts);
        if !same && (when == When::Inside || grade == Grade::CutInside) {
            fault = Some(format!("it has {found:?}, acknowledged was {:?}", hold.accounts));
        } else if !same {
            self.residual += 1;
        }
        if let Some(fault) = fault {
            self.high += usize::from(edge);
            self.low += usize::from(!edge);
            self.wrong.push(format!("{}: {fault}", about()));
        }
    }

    fn table(&self, kind: Type, holds: usize) -> String {
        let copies = self.inside + self.outside + self.freezing + self.thawing;
        format!(
            "file system  holds  copies  inside  outside  freezing  thawing  graded held  at the edge  residual  too high  too low\n\
             {:<11}  {holds:>5}  {copies:>6}  {:>6}  {:>7}  {:>8}  {:>7}  {:>11}  {:>11}  {:>8}  {:>8}  {:>7}",
            kind.name(),
            self.inside,
            self.outside,
            self.freezing,
            self.thawing,
            self.held,
            self.held_at_the_edge,
            self.residual,
            self.high,
            self.low
        )
    }
}

/// The accounts in a copy, read without replaying anything.
fn contents(kind: Type, image: &Path) -> Result<Accounts, String> {
    let file = std::fs::File::open(image).map_err(|e| e.to_string())?;
    let attached = attach::attach_read_only(&file, 0, 0).map_err(|e| e.to_string())?;
    let options: &[&str] = match kind {
        Type::Ext4 => &["noload"],
        Type::Xfs => &["norecovery", "nouuid"],
        Type::Btrfs => &["rescue=nologreplay"],
    };
    let mounted = attach::mount_detached(kind.name(), &attached.path, options).map_err(|e| e.to_string())?;
    Accounts::of_copy(&mounted.root())
}
