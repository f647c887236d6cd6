//! The plan: which file systems are frozen, in which order, what is left out and why. Pure: plain data in, plain data
//! out; nothing is touched.

mod achieved;
mod captured;
pub mod policy;
mod scope;

use std::{collections::BTreeMap, path::Path};

pub use self::achieved::{Achieved, Filesystems, Required, caller_freezes, level_text};
use self::scope::Scope;
use super::{Refusal, RefusalKind, receipt::Room};
use crate::{
    config,
    guest::{Dev, Kind, Superblock, order, superblock},
    proto::{self, Durability, Severity, StepKind, StepOutcome},
};

/// What is known of one superblock beyond its mounts.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// empty if nobody knows
    pub uuid: String,
    /// the block device as the kernel names it ("vda1", "dm-0"), or "tmpfs:/run"
    pub disk: String,
    pub durability: Durability,
    pub evidence: Vec<proto::Evidence>,
    /// of a mixed one: what is transient, and what that is to the whole, "sdb (a leg of md0)"
    pub legs: Vec<String>,
    /// 0: nobody could say
    pub used_bytes: u64,
    pub size_bytes: u64,
    pub receipt_room: Room,
    /// ext2/3/4: what its superblock said when it was read
    pub ext: Option<superblock::Ext>,
    /// the devices below it, and how each may be named by a caller's scope
    pub leaves: Vec<Leaf>,
    /// a file system that cannot be frozen is open for writing
    pub open_for_writing: bool,
}

/// A disk at the bottom of the block graph.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Leaf {
    /// every kernel name that means this disk: its own and those of its partitions in use
    pub names: Vec<String>,
    pub disk: proto::Disk,
}

/// What the plan is made from.
pub struct Inputs<'a> {
    pub superblocks: &'a [Superblock],
    pub facts: &'a BTreeMap<Dev, Facts>,
    /// (inner, outer)
    pub lies_on: &'a [(Dev, Dev)],
    pub filesystems: &'a config::Filesystems,
    pub spec: &'a proto::HoldSpec,
}

/// What a hold will do to file systems.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// indices into the superblocks: frozen (by the caller, if that is how it is), or, not freezable, flushed; the warden's
    /// targets in this order
    pub targets: Vec<Planned>,
    /// indices into `targets` to freeze, innermost level first
    pub levels: Vec<Vec<usize>>,
    /// one per file system, held or not, each with its reason
    pub steps: Vec<proto::Step>,
    pub coverage: Vec<proto::Coverage>,
    /// what of it will be missed
    pub lost: Vec<Lost>,
    pub problems: Vec<proto::Problem>,
    /// every file system in scope will be frozen, by whomever
    pub complete: bool,
    /// why a hold with this plan must not begin; the first is what the caller is told
    pub refusals: Vec<Refusal>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// index into the superblocks
    pub superblock: usize,
    pub freeze: bool,
}

/// A file system that will be missed: not in the snapshot, or transient and nobody said that it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// index into the superblocks
    pub superblock: usize,
    /// index into the coverage
    pub coverage: usize,
    /// excluded by name: nobody wants to hear of it
    pub excluded: bool,
    /// called transient by the configuration
    pub named: bool,
    /// of several disks below it, those that the caller does not capture, while it does capture others
    pub uncaptured: Vec<String>,
}

/// What happens to one file system.
enum Fate {
    Freeze,
    Flush {
        lowers: bool,
    },
    /// left alone; `lowers` if it should have been held
    Skip {
        reason: String,
        lowers: bool,
        hint: &'static str,
    },
}

/// Works out the plan.
///
/// # Errors
/// A mount point or disk that does not exist, or is out of scope. Everything else is in the plan's `refusals`.
pub fn plan(inputs: &Inputs<'_>) -> Result<Plan, Refusal> {
    let scope = Scope::new(inputs)?;
    let callers = caller_freezes(inputs.spec);
    let mut plan = Plan { complete: true, ..Plan::default() };
    let mut fates: Vec<Fate> = inputs.superblocks.iter().map(|s| scope.fate(s)).collect();
    scope.hold_what_others_need(&mut fates);
    for (index, (superblock, fate)) in inputs.superblocks.iter().zip(&fates).enumerate() {
        let mut step = step_for(superblock, inputs.facts.get(&superblock.dev));
        match fate {
            // its dirty pages are written back, so that the caller's freeze is short
            Fate::Freeze | Fate::Flush { .. } if callers => {
                step.set_outcome(StepOutcome::Skipped);
                step.reason = "left to the caller; written back, but not proven here".into();
                plan.targets.push(Planned { superblock: index, freeze: matches!(fate, Fate::Freeze) });
            }
            Fate::Freeze => {
                step.set_outcome(StepOutcome::Planned);
                step.required = true;
                plan.targets.push(Planned { superblock: index, freeze: true });
            }
            Fate::Flush { lowers } => {
                step.set_outcome(StepOutcome::Planned);
                step.reason = format!("{} has no freeze operation: flushed, not frozen", superblock.fs_type);
                plan.targets.push(Planned { superblock: index, freeze: false });
                if *lowers {
                    plan.lower(&step.name, &step.reason, "exclude it in [filesystems] if it does not matter");
                }
            }
            Fate::Skip { reason, lowers, hint } => {
                step.set_outcome(StepOutcome::Skipped);
                step.reason.clone_from(reason);
                step.hint = (*hint).into();
                // what the caller freezes of it is not known
                if *lowers && !callers {
                    plan.lower(&step.name, reason, hint);
                }
            }
        }
        plan.steps.push(step);
        if superblock.kind != Kind::Pseudo {
            plan.coverage.push(scope.coverage(superblock));
            plan.lost.extend(scope.lost(index, superblock, plan.coverage.len() - 1, &plan.coverage));
        }
    }
    if callers {
        let message = "file systems are left to the caller: whether it freezes them is not proven here, and no receipt is written";
        plan.problems.push(problem(Severity::Note, "CALLER_FREEZES", "", message, ""));
    } else if !fates.iter().any(|f| matches!(f, Fate::Freeze)) {
        plan.refusals.push(
            Refusal::new(
                RefusalKind::FailedPrecondition,
                "NOTHING_TO_HOLD",
                "hold: no file system in scope can be frozen",
            )
            .hint("`holdstill check` lists every file system with the reason it is left out"),
        );
    }
    match levels(inputs, &plan.targets) {
        Ok(levels) => plan.levels = levels,
        Err(_) if callers => {}
        Err(refusal) => plan.refusals.push(refusal),
    }
    plan.order_steps(inputs);
    Ok(plan)
}

impl Plan {
    fn lower(&mut self, subject: &str, why: &str, hint: &str) {
        self.complete = false;
        self.problems.push(problem(Severity::Warning, "NOT_FROZEN", subject, &format!("{subject}: {why}"), hint));
    }

    /// Steps as they will run: frozen ones innermost first, then flushed ones, then what is left out and why, with
    /// what never holds data last.
    fn order_steps(&mut self, inputs: &Inputs<'_>) {
        let rank = |index: usize| {
            let target = self.targets.iter().position(|t| t.superblock == index);
            let level = target.and_then(|t| self.levels.iter().position(|level| level.contains(&t)));
            match (target, level) {
                (Some(_), Some(level)) => level,
                (Some(_), None) => usize::MAX - 2,
                (None, _) if inputs.superblocks[index].kind == Kind::Pseudo => usize::MAX,
                (None, _) => usize::MAX - 1,
            }
        };
        let mut order: Vec<usize> = (0..self.steps.len()).collect();
        order.sort_by_key(|index| rank(*index));
        self.steps = order.into_iter().map(|index| self.steps[index].clone()).collect();
    }
}

fn levels(inputs: &Inputs<'_>, targets: &[Planned]) -> Result<Vec<Vec<usize>>, Refusal> {
    let frozen: BTreeMap<Dev, usize> = targets
        .iter()
        .enumerate()
        .filter(|(_, t)| t.freeze)
        .map(|(index, t)| (inputs.superblocks[t.superblock].dev, index))
        .collect();
    let root = inputs
        .superblocks
        .iter()
        .find(|s| s.namespace.is_none() && s.mounts.iter().any(|m| m == Path::new("/")))
        .map(|s| s.dev)
        .filter(|dev| frozen.contains_key(dev));
    let devs: Vec<Dev> = frozen.keys().copied().collect();
    order::levels(&devs, inputs.lies_on, root)
        .map(|levels| levels.into_iter().map(|l| l.into_iter().map(|dev| frozen[&dev]).collect()).collect())
        .map_err(|cycle| {
            Refusal::new(
                RefusalKind::FailedPrecondition,
                "FILESYSTEM_CYCLE",
                format!("order the file systems: {cycle}"),
            )
            .hint("exclude one of them in [filesystems]")
        })
}

fn step_for(superblock: &Superblock, facts: Option<&Facts>) -> proto::Step {
    let mount = display(superblock);
    let name = match superblock.namespace {
        Some(pid) => format!("fs:{mount}@pid{pid}"),
        None => format!("fs:{mount}"),
    };
    proto::Step {
        name,
        kind: StepKind::Filesystem.into(),
        detail: Some(proto::step::Detail::Filesystem(proto::Filesystem {
            mount,
            r#type: superblock.fs_type.clone(),
            uuid: facts.map(|f| f.uuid.clone()).unwrap_or_default(),
            source: superblock.source.clone(),
            major: superblock.dev.major,
            minor: superblock.dev.minor,
            flushed_bytes: 0,
        })),
        ..Default::default()
    }
}

/// The mount point people know it by: where it is opened, else the first.
pub fn display(superblock: &Superblock) -> String {
    superblock
        .open_at
        .as_ref()
        .map(|m| &m.path)
        .or_else(|| superblock.mounts.first())
        .map_or_else(|| superblock.dev.to_string(), |m| m.display().to_string())
}

pub fn problem(severity: Severity, code: &str, subject: &str, message: &str, hint: &str) -> proto::Problem {
    proto::Problem {
        severity: severity.into(),
        code: code.into(),
        subject: subject.into(),
        message: message.into(),
        hint: hint.into(),
    }
}

/// "1.2 GiB", for people.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} bytes") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests;
