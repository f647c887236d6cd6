//! What this machine is, told by what its disks say and what it is now. Pure: plain data in, a finding out.
//!
//! A receipt speaks for the machine only if it is the machine's own: on `/`, or on another disk at the place where it was
//! held, written by this machine-id or by who this machine was last. Any other is of a disk somebody has attached.
//!
//! | what differs | this machine is |
//! |---|---|
//! | its product uuid or instance id; or, where neither can be compared, the serial number of a disk | a clone |
//! | a receipt says `frozen`, and a disk's serial number, or a disk that stood with it knows a later hold, or it is long ago | set back |
//! | a receipt says `frozen`, and nothing else | the machine that died while held |
//!
//! A machine that died while held and one that was set back as a whole look the same on the disk. What is left is the
//! clock: a machine that died comes back within minutes.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    hold::receipt::{Sector, State},
    proto::RestoredKind,
};

/// Who a machine is. What nobody could say is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// new at every boot
    pub boot_id: String,
    /// copied along with the disk
    pub machine_id: String,
    pub product_uuid: String,
    pub instance_id: String,
    /// serial numbers of the disks below `/`
    pub root_serials: BTreeSet<String>,
}

/// A receipt, and the place it was found in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paper {
    /// where its file system is mounted now
    pub mount: String,
    /// where it was mounted when it was held
    pub mount_then: String,
    pub sector: Sector,
    /// who wrote it
    pub was: Identity,
    /// serial numbers of the disks below it
    pub serials_then: BTreeSet<String>,
    pub serials: BTreeSet<String>,
    /// UUIDs of the file systems that were held together with it
    pub held: BTreeSet<String>,
    /// its file system is mounted for reading only: what it says stays true
    pub read_only: bool,
}

/// One receipt that was judged before, on a machine of this identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    pub hold_id: String,
    pub fs_uuid: String,
    /// it said `frozen`, and still does: it could not be rewritten
    pub stays_frozen: bool,
}

/// Everything the judgement rests on.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub now: Identity,
    /// when this boot began, in seconds since 1970
    pub booted: i64,
    /// who this machine was when its daemon ran last
    pub last: Option<Identity>,
    /// the newest hold its history knows, for when no receipt tells
    pub last_hold: String,
    pub papers: Vec<Paper>,
    pub known: Vec<Known>,
}

/// What was found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub kind: RestoredKind,
    pub hold_id: String,
    /// when that hold was prepared, in seconds since 1970; 0: nobody knows
    pub held: i64,
    pub differences: Vec<String>,
    /// the receipts it rests on, by their place in [`Seen::papers`]
    pub papers: Vec<usize>,
    /// those that still say `frozen` of a hold that is not of this boot
    pub stale: Vec<usize>,
}

/// A machine that died while held is back by then; if not, it was set back, or stood for long.
const BACK_WITHIN: Duration = Duration::from_secs(15 * 60);

/// `None`: this machine is what it was, and none of its disks testifies to what is no longer so.
pub fn judge(seen: &Seen) -> Option<Finding> {
    if seen.now.boot_id.is_empty() {
        return None; // which receipts are of this boot cannot be told
    }
    let earlier = |paper: &Paper| paper.sector.boot_id != seen.now.boot_id;
    let unknown = |paper: &Paper| !seen.known.iter().any(|known| is(known, paper));
    let fresh: Vec<usize> =
        (0..seen.papers.len()).filter(|&at| earlier(&seen.papers[at]) && unknown(&seen.papers[at])).collect();
    let stale: Vec<usize> = fresh.iter().copied().filter(|&at| seen.papers[at].sector.state == State::Frozen).collect();
    let own: Vec<usize> = fresh.iter().copied().filter(|&at| is_own(&seen.papers[at], seen)).collect();

    let (kind, papers, differences) = clone(seen, &own).or_else(|| same_machine(seen, &own, &stale)).or_else(|| {
        // looking at a copy is nothing to be said
        let written: Vec<usize> = stale.iter().copied().filter(|&at| !seen.papers[at].read_only).collect();
        (!written.is_empty()).then(|| (RestoredKind::Attached, written.clone(), attached(seen, &written)))
    })?;
    let newest = papers.iter().map(|&at| &seen.papers[at].sector).max_by_key(|sector| sector.prepared);
    Some(Finding {
        kind,
        hold_id: newest.map_or_else(|| seen.last_hold.clone(), |sector| sector.hold_id.clone()),
        held: newest.map_or(0, |sector| sector.prepared),
        differences,
        papers,
        stale,
    })
}

fn is(known: &Known, paper: &Paper) -> bool {
    let same = known.hold_id == paper.sector.hold_id && known.fs_uuid == paper.sector.fs_uuid;
    same && (paper.sector.state != State::Frozen || known.stays_frozen)
}

/// Does it speak for this machine, or only for a disk?
fn is_own(paper: &Paper, seen: &Seen) -> bool {
    if paper.mount == "/" {
        return true;
    }
    let was_here = |last: &Identity| comparable(last, &paper.was) && moved(last, &paper.was).is_empty();
    let same_line = (!seen.now.machine_id.is_empty() && paper.was.machine_id == seen.now.machine_id)
        || seen.last.as_ref().is_some_and(was_here);
    same_line && paper.mount == paper.mount_then
}

type Judged = (RestoredKind, Vec<usize>, Vec<String>);

fn clone(seen: &Seen, own: &[usize]) -> Option<Judged> {
    // who this machine was last is known better by its own note than by a disk that may have come from elsewhere
    let (moved, papers) = match seen.last.as_ref().filter(|last| comparable(last, &seen.now)) {
        Some(last) => (moved(last, &seen.now), own.to_vec()),
        None => {
            let of_another = |at: &usize| !moved(&seen.papers[*at].was, &seen.now).is_empty();
            let papers: Vec<usize> = own.iter().copied().filter(of_another).collect();
            (once(papers.iter().flat_map(|&at| moved(&seen.papers[at].was, &seen.now))), papers)
        }
    };
    if !moved.is_empty() {
        return Some((RestoredKind::Clone, papers.clone(), with_serials(moved, seen, &papers)));
    }
    let nothing_tells = |at: &usize| !comparable(&seen.papers[*at].was, &seen.now);
    let on_another_disk: Vec<usize> = own
        .iter()
        .copied()
        .filter(|at| nothing_tells(at) && seen.last.as_ref().is_none_or(|last| !comparable(last, &seen.now)))
        .filter(|&at| serial(&seen.papers[at]).is_some())
        .collect();
    if let Some(last) = seen.last.as_ref().filter(|last| !comparable(last, &seen.now))
        && let Some(line) = other("serial of the disk of /", &last.root_serials, &seen.now.root_serials)
    {
        return Some((RestoredKind::Clone, on_another_disk, vec![line]));
    }
    (!on_another_disk.is_empty())
        .then(|| (RestoredKind::Clone, on_another_disk.clone(), with_serials(Vec::new(), seen, &on_another_disk)))
}

/// Set back, or died while held: only what says `frozen` can tell, and what is older than a disk that stood beside it.
fn same_machine(seen: &Seen, own: &[usize], stale: &[usize]) -> Option<Judged> {
    let own: Vec<usize> = own.iter().copied().filter(|&at| moved(&seen.papers[at].was, &seen.now).is_empty()).collect();
    let frozen: Vec<usize> = own.iter().copied().filter(|at| stale.contains(at)).collect();
    let behind: Vec<usize> =
        own.iter().copied().filter(|&at| overtaken(&seen.papers[at], &seen.papers).is_some()).collect();
    let mut why = with_serials(Vec::new(), seen, &frozen);
    why.extend(behind.iter().filter_map(|&at| {
        let paper = &seen.papers[at];
        let later = overtaken(paper, &seen.papers)?;
        Some(format!(
            "{}: it knows of the hold {}, but {} was held together with it in {} since",
            paper.mount, paper.sector.hold_id, later.mount, later.sector.hold_id
        ))
    }));
    let newest = frozen.iter().map(|&at| seen.papers[at].sector.prepared).max();
    let away = newest.and_then(|held| u64::try_from(seen.booted.saturating_sub(held)).ok()).map(Duration::from_secs);
    if let Some(away) = away.filter(|away| *away > BACK_WITHIN) {
        why.push(format!(
            "this boot began {} after that hold: set back to its copy, or switched off since; the disks cannot tell which",
            span(away)
        ));
    }
    let papers: Vec<usize> = once(frozen.iter().chain(&behind).copied());
    match (why.is_empty(), frozen.is_empty()) {
        (false, _) => Some((RestoredKind::Reverted, papers, why)),
        (true, false) => Some((RestoredKind::Crashed, papers, why)),
        (true, true) => None,
    }
}

/// A receipt of a later hold that says it held this file system, too: then this one has been set back since.
fn overtaken<'a>(paper: &Paper, all: &'a [Paper]) -> Option<&'a Paper> {
    let complete = |state: State| match state {
        State::Frozen | State::Released | State::Restored => true,
        State::Prepared | State::Aborted => false,
    };
    let uuid = &paper.sector.fs_uuid;
    all.iter().find(|other| {
        !uuid.is_empty()
            && other.sector.fs_uuid != *uuid
            && complete(other.sector.state)
            && other.sector.prepared > paper.sector.prepared
            && moved(&other.was, &paper.was).is_empty()
            && other.held.contains(uuid)
    })
}

fn attached(seen: &Seen, stale: &[usize]) -> Vec<String> {
    let line = |&at: &usize| {
        let paper = &seen.papers[at];
        let other = moved(&paper.was, &seen.now);
        let whose = match (other.is_empty(), paper.mount == paper.mount_then) {
            (false, _) => format!("of another machine ({})", other.join("; ")),
            (true, false) => format!("of {}", paper.mount_then),
            (true, true) => "of a machine that cannot be told".to_owned(),
        };
        format!("{}: a copy {whose}", paper.mount)
    };
    stale.iter().map(line).collect()
}

/// Is there anything by which two machines can be told apart?
pub(super) fn comparable(a: &Identity, b: &Identity) -> bool {
    let both = |a: &str, b: &str| !a.is_empty() && !b.is_empty();
    both(&a.instance_id, &b.instance_id) || both(told(&a.product_uuid), told(&b.product_uuid))
}

/// How `was` and `now` differ in what no two machines share.
pub(super) fn moved(was: &Identity, now: &Identity) -> Vec<String> {
    let mut lines = Vec::new();
    let (before, after) = (told(&was.product_uuid), told(&now.product_uuid));
    if !before.is_empty() && !after.is_empty() && before != after && swapped(before) != after {
        lines.push(format!("product_uuid: {before}, now {after}"));
    }
    if !was.instance_id.is_empty() && !now.instance_id.is_empty() && was.instance_id != now.instance_id {
        lines.push(format!("instance_id: {}, now {}", was.instance_id, now.instance_id));
    }
    lines
}

/// Firmware that nobody gave a number has all zeroes, all ones, or the example of its manual.
fn told(product_uuid: &str) -> &str {
    let same = |digit| product_uuid.chars().all(|c| c == '-' || c == digit);
    let nobodys = same('0') || same('f') || product_uuid == "03000200-0400-0500-0006-000700080009";
    if nobodys { "" } else { product_uuid }
}

/// Kernels before 4.15 and some firmware print the first three groups in the other byte order: the same machine.
fn swapped(uuid: &str) -> String {
    let turn = |group: &str| {
        let pairs: Vec<&str> = (0..group.len()).step_by(2).filter_map(|at| group.get(at..at + 2)).collect();
        pairs.into_iter().rev().collect::<String>()
    };
    let groups = uuid.split('-').enumerate().map(|(n, group)| if n < 3 { turn(group) } else { group.to_owned() });
    groups.collect::<Vec<_>>().join("-")
}

fn with_serials(mut lines: Vec<String>, seen: &Seen, papers: &[usize]) -> Vec<String> {
    lines.extend(papers.iter().filter_map(|&at| serial(&seen.papers[at])));
    lines
}

fn serial(paper: &Paper) -> Option<String> {
    other(&format!("serial of the disk of {}", paper.mount), &paper.serials_then, &paper.serials)
}

fn other(what: &str, then: &BTreeSet<String>, now: &BTreeSet<String>) -> Option<String> {
    let text = |serials: &BTreeSet<String>| serials.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
    let differ = !then.is_empty() && !now.is_empty() && then != now;
    differ.then(|| format!("{what}: {}, now {}", text(then), text(now)))
}

fn once<T: Ord + Clone>(all: impl Iterator<Item = T>) -> Vec<T> {
    all.collect::<BTreeSet<T>>().into_iter().collect()
}

fn span(time: Duration) -> String {
    match time.as_secs() / 60 {
        minutes @ 0..=119 => format!("{minutes} minutes"),
        minutes @ 120..=2879 => format!("{} hours", minutes / 60),
        minutes => format!("{} days", minutes / 60 / 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaa-1111-2222-3333-444444444444";
    const B: &str = "bbbbbbbb-1111-2222-3333-444444444444";

    fn machine(boot: &str, uuid: &str, instance: &str) -> Identity {
        Identity {
            boot_id: boot.into(),
            machine_id: "m".into(),
            product_uuid: uuid.into(),
            instance_id: instance.into(),
            root_serials: BTreeSet::new(),
        }
    }

    fn paper(mount: &str, state: State, hold: &str, prepared: i64, was: Identity) -> Paper {
        let boot_id = was.boot_id.clone();
        Paper {
            mount: mount.into(),
            mount_then: mount.into(),
            sector: Sector { state, hold_id: hold.into(), fs_uuid: format!("u{mount}"), boot_id, prepared },
            was,
            serials_then: BTreeSet::new(),
            serials: BTreeSet::new(),
            held: BTreeSet::new(),
            read_only: false,
        }
    }

    fn on_disks(paper: Paper, then: &str, now: &str) -> Paper {
        Paper { serials_then: [then.to_owned()].into(), serials: [now.to_owned()].into(), ..paper }
    }

    fn seen(now: Identity, papers: Vec<Paper>) -> Seen {
        Seen { now, booted: 1060, papers, ..Seen::default() }
    }

    fn kind(seen: &Seen) -> Option<RestoredKind> {
        judge(seen).map(|found| found.kind)
    }

    use RestoredKind::{Attached, Clone as Cloned, Crashed, Reverted};
    use State::{Aborted, Frozen, Prepared, Released, Restored};

    #[test]
    fn a_machine_is_told_by_what_its_disks_say_and_what_it_is() {
        let was = || machine("b1", A, "i-1");
        let root = |state| paper("/", state, "h", 1000, was());
        let data = |state, was| paper("/srv", state, "h", 1000, was);
        let another = |boot, uuid, instance| Identity { machine_id: "n".into(), ..machine(boot, uuid, instance) };
        let table: Vec<(&str, Identity, Vec<Paper>, Option<RestoredKind>)> = vec![
            ("nothing was ever held", machine("b2", A, "i-1"), vec![], None),
            ("the daemon was started again", machine("b1", A, "i-1"), vec![root(Frozen)], None),
            ("a reboot like any other", machine("b2", A, "i-1"), vec![root(Released)], None),
            ("died while preparing", machine("b2", A, "i-1"), vec![root(Prepared)], None),
            ("died while held", machine("b2", A, "i-1"), vec![root(Frozen)], Some(Crashed)),
            ("no identity at all", machine("b2", "", ""), vec![root(Frozen)], Some(Crashed)),
            ("another machine", machine("b2", B, "i-1"), vec![root(Frozen)], Some(Cloned)),
            ("another machine, by its cloud", machine("b2", A, "i-2"), vec![root(Frozen)], Some(Cloned)),
            ("a clone cut after a hold", machine("b2", B, ""), vec![root(Released)], Some(Cloned)),
            ("a clone cut before a hold", machine("b2", B, ""), vec![root(Prepared)], Some(Cloned)),
            ("a clone of a clone", machine("b2", B, ""), vec![root(Restored)], Some(Cloned)),
            ("a clone, data disks alone", machine("b2", B, ""), vec![data(Aborted, was())], Some(Cloned)),
            ("a uuid nobody gave", machine("b2", &A.replace(|c| c != '-', "0"), ""), vec![root(Released)], None),
            (
                "the same uuid in another byte order",
                machine("b2", "78563412-3412-7856-9abc-def012345678", ""),
                vec![paper("/", Released, "h", 1000, machine("b1", "12345678-1234-5678-9abc-def012345678", ""))],
                None,
            ),
            ("a disk of another machine, attached", another("b2", B, ""), vec![data(Frozen, was())], Some(Attached)),
            (
                "a copy that is only looked at",
                another("b2", B, ""),
                vec![Paper { read_only: true, ..data(Frozen, was()) }],
                None,
            ),
            ("the same, not held", another("b2", B, ""), vec![data(Released, was())], None),
            (
                "a copy of our own disk, mounted aside",
                machine("b2", A, ""),
                vec![Paper { mount: "/mnt/copy".into(), ..data(Frozen, was()) }],
                Some(Attached),
            ),
            (
                "the same machine with another disk",
                machine("b2", A, ""),
                vec![on_disks(root(Frozen), "vol-1", "vol-2")],
                Some(Reverted),
            ),
            (
                "a disk moved by hand is no revert",
                machine("b2", A, ""),
                vec![on_disks(root(Released), "vol-1", "vol-2")],
                None,
            ),
            (
                "no numbers but those of disks",
                machine("b2", "", ""),
                vec![on_disks(root(Released), "vol-1", "vol-2")],
                Some(Cloned),
            ),
        ];
        for (case, now, papers, expected) in table {
            assert_eq!(kind(&seen(now, papers)), expected, "{case}");
        }
    }

    #[test]
    fn what_was_long_ago_was_set_back_and_a_wrong_clock_says_nothing() {
        let mut long = seen(machine("b2", A, ""), vec![paper("/", Frozen, "h", 1000, machine("b1", A, ""))]);
        long.booted = 1000 + 3 * 3600;
        let found = judge(&long).expect("it says frozen");
        assert_eq!(found.kind, Reverted);
        assert!(found.differences[0].contains("3 hours"), "{:?}", found.differences);
        long.booted = 10;
        assert_eq!(kind(&long), Some(Crashed));
    }

    #[test]
    fn a_disk_that_is_behind_the_one_it_stood_with_was_set_back() {
        let was = || machine("b1", A, "");
        let later = Paper { held: ["u/".to_owned()].into(), ..paper("/srv", Released, "h2", 2000, was()) };
        let mut both = seen(machine("b1", A, ""), vec![paper("/", Released, "h1", 1000, was()), later]);
        both.booted = 900;
        assert_eq!(kind(&both), None, "receipts of this boot are no sign of anything");
        both.now.boot_id = "b2".into();
        let found = judge(&both).expect("/ is behind");
        assert_eq!((found.kind, found.hold_id.as_str(), found.papers.clone()), (Reverted, "h1", vec![0]));
        assert!(found.stale.is_empty(), "nothing says frozen");
    }

    #[test]
    fn who_this_machine_was_last_is_enough_without_receipts() {
        let mut without = seen(machine("b2", B, ""), vec![]);
        without.last = Some(machine("b1", A, ""));
        without.last_hold = "h9".into();
        let found = judge(&without).expect("it is another machine");
        assert_eq!((found.kind, found.hold_id.as_str()), (Cloned, "h9"));
        assert_eq!(found.differences, [format!("product_uuid: {A}, now {B}")]);
        without.last = Some(machine("b1", B, ""));
        assert_eq!(kind(&without), None);
    }

    #[test]
    fn a_machine_that_has_not_changed_is_no_clone_whatever_disk_is_attached() {
        let foreign = paper("/srv", Frozen, "h", 1000, machine("b0", A, ""));
        let mut same = seen(machine("b2", B, ""), vec![foreign]);
        same.last = Some(machine("b1", B, ""));
        assert_eq!(kind(&same), Some(Attached), "its machine-id is that of a sloppy template");
    }

    #[test]
    fn what_was_noticed_is_not_noticed_again_unless_it_is_frozen_anew() {
        let known = |stays_frozen| Known { hold_id: "h".into(), fs_uuid: "u/".into(), stays_frozen };
        let was = || machine("b1", A, "");
        let mut again = seen(machine("b2", B, ""), vec![paper("/", Restored, "h", 1000, was())]);
        again.known = vec![known(false)];
        assert_eq!(kind(&again), None);
        again.papers[0].sector.state = Frozen;
        assert_eq!(kind(&again), Some(Cloned), "it was rewritten then, so this is another copy");
        again.known = vec![known(true)];
        assert_eq!(kind(&again), None, "read-only, so nobody could rewrite it");
    }

    #[test]
    fn of_several_holds_the_newest_is_named_and_all_that_say_frozen_are_stale() {
        let was = || machine("b1", A, "");
        let papers = vec![
            paper("/", Released, "old", 1000, was()),
            paper("/srv", Frozen, "new", 1030, was()),
            paper("/var", Frozen, "mid", 1010, was()),
        ];
        let found = judge(&seen(machine("b2", B, ""), papers)).expect("a clone");
        assert_eq!((found.hold_id.as_str(), found.papers, found.stale), ("new", vec![0, 1, 2], vec![1, 2]));
    }
}
