//! The plan: which file systems are frozen, in which order, what is left out and why. Pure: plain data in, plain data
//! out; nothing is touched.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use glob::{MatchOptions, Pattern};

use super::{Refusal, RefusalKind};
use crate::{
    config::{self, TransientPolicy},
    guest::{Dev, Kind, Superblock, order, superblock},
    proto::{self, Consistency, Durability, InSnapshot, Severity, StepKind, StepOutcome},
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
    pub used_bytes: u64,
    /// ext2/3/4: what its superblock said when it was read
    pub ext: Option<superblock::Ext>,
    /// the devices below it, and how each may be named by a caller's scope
    pub leaves: Vec<Leaf>,
    /// a file system that cannot be frozen is open for writing
    pub open_for_writing: bool,
}

/// A disk at the bottom of the block graph.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leaf {
    /// every kernel name that means this disk: its own and those of its partitions in use
    pub names: Vec<String>,
    pub serial: String,
    pub wwn: String,
    pub pci_address: String,
    pub nguid: String,
}

/// What the plan is made from.
pub struct Inputs<'a> {
    pub superblocks: &'a [Superblock],
    pub facts: &'a BTreeMap<Dev, Facts>,
    /// (inner, outer)
    pub lies_on: &'a [(Dev, Dev)],
    pub filesystems: &'a config::Filesystems,
    pub policy: TransientPolicy,
    pub spec: &'a proto::HoldSpec,
}

/// What a hold will do to file systems.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// indices into the superblocks: frozen, or (not freezable) flushed; the warden's targets in this order
    pub targets: Vec<Planned>,
    /// indices into `targets` to freeze, innermost level first
    pub levels: Vec<Vec<usize>>,
    /// one per file system, held or not, each with its reason
    pub steps: Vec<proto::Step>,
    pub coverage: Vec<proto::Coverage>,
    pub problems: Vec<proto::Problem>,
    /// every file system in scope will be frozen
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
    let mut plan = Plan { complete: true, ..Plan::default() };
    let mut fates: Vec<Fate> = inputs.superblocks.iter().map(|s| scope.fate(s)).collect();
    scope.hold_what_others_need(&mut fates);
    for (index, (superblock, fate)) in inputs.superblocks.iter().zip(&fates).enumerate() {
        let mut step = step_for(superblock, inputs.facts.get(&superblock.dev));
        match fate {
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
                if *lowers {
                    plan.lower(&step.name, reason, hint);
                }
            }
        }
        plan.steps.push(step);
        if superblock.kind != Kind::Pseudo {
            plan.coverage.push(scope.coverage(superblock));
        }
    }
    if !fates.iter().any(|f| matches!(f, Fate::Freeze)) {
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
        Err(refusal) => plan.refusals.push(refusal),
    }
    plan.order_steps(inputs);
    plan.at_risk(inputs, &scope);
    Ok(plan)
}

impl Plan {
    fn lower(&mut self, subject: &str, why: &str, hint: &str) {
        self.complete = false;
        self.problems.push(problem(Severity::Warning, "NOT_FROZEN", subject, &format!("{subject}: {why}"), hint));
    }

    /// Says what the snapshot will not contain, or refuses if the policy wants that.
    fn at_risk(&mut self, inputs: &Inputs<'_>, scope: &Scope<'_>) {
        let mut refused = Vec::new();
        for superblock in inputs.superblocks {
            // memory file systems are never in a disk snapshot and nobody expects them to be, nor a container's own
            // disks; configured ones are named
            let Some(facts) = inputs.facts.get(&superblock.dev) else { continue };
            let named = facts.evidence.iter().any(|e| e.source == "config");
            let lost = match facts.durability {
                Durability::Transient | Durability::Mixed => match superblock.kind {
                    Kind::Freezable | Kind::FlushOnly | Kind::Unknown => superblock.namespace.is_none() || named,
                    Kind::Memory => named,
                    Kind::Remote | Kind::Stacked | Kind::Image | Kind::Pseudo => false,
                },
                Durability::Unspecified | Durability::Unknown | Durability::Durable => false,
            };
            if !lost || scope.is_excluded(superblock) {
                continue;
            }
            let mount = display(superblock);
            let message = format!(
                "{mount} is on a transient disk ({}): {} there will not be in the snapshot",
                facts.disk,
                // zero is "nobody could say": no file system is that empty
                if facts.used_bytes == 0 { "what lies".into() } else { bytes(facts.used_bytes) }
            );
            let hint = "move what must survive to a durable disk, or copy it before the snapshot";
            if inputs.policy == TransientPolicy::Refuse {
                refused.push(message);
                continue;
            }
            self.problems.push(problem(Severity::Warning, "TRANSIENT_DATA", &mount, &message, hint));
        }
        if !refused.is_empty() {
            self.refusals.push(
                Refusal::new(RefusalKind::FailedPrecondition, "TRANSIENT_DATA", refused.join("; "))
                    .hint("move it, exclude it in [filesystems], or set `policy = \"warn\"` in [transient]"),
            );
        }
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

/// What the configuration and the request put in scope.
struct Scope<'a> {
    inputs: &'a Inputs<'a>,
    narrowed: Vec<Pattern>,
    excluded: Vec<Pattern>,
    /// told which disks are captured; `None`: not told
    captured: Option<BTreeSet<Dev>>,
}

impl<'a> Scope<'a> {
    fn new(inputs: &'a Inputs<'a>) -> Result<Self, Refusal> {
        let scope = Scope {
            inputs,
            narrowed: patterns(&inputs.spec.include_mounts)?,
            excluded: patterns(&inputs.spec.exclude_mounts)?,
            captured: captured(inputs)?,
        };
        let configured = &inputs.filesystems.include;
        for pattern in configured.iter().chain(&scope.narrowed).chain(&scope.excluded) {
            if is_literal(pattern) && !inputs.superblocks.iter().any(|s| matches(pattern, s)) {
                return Err(Refusal::new(
                    RefusalKind::NotFound,
                    "MOUNT_NOT_FOUND",
                    format!("hold {pattern}: it is not a mount point"),
                )
                .hint("`findmnt` lists mount points; give the mount point itself, not a directory below it"));
            }
        }
        for pattern in &scope.narrowed {
            let outside = |s: &&Superblock| scope.means(std::slice::from_ref(pattern), s) && !scope.is_configured(s);
            if let Some(superblock) = inputs.superblocks.iter().find(outside) {
                return Err(Refusal::new(
                    RefusalKind::FailedPrecondition,
                    "MOUNT_OUT_OF_SCOPE",
                    format!(
                        "hold {}: the configuration leaves it out, and a request only narrows",
                        display(superblock)
                    ),
                )
                .hint("add it to `include` in [filesystems], or remove it from `exclude`"));
            }
        }
        Ok(scope)
    }

    fn is_configured(&self, superblock: &Superblock) -> bool {
        let lists = self.inputs.filesystems;
        (lists.include.is_empty() || self.means(&lists.include, superblock)) && !any(&lists.exclude, superblock)
    }

    /// Does one of the patterns mean this file system? Paths are those of the daemon's own mount namespace; a file
    /// system of another one is meant only by a pattern that means nothing here, or a container's /srv would be held
    /// because ours was asked for.
    fn means(&self, patterns: &[Pattern], superblock: &Superblock) -> bool {
        let ours =
            |pattern: &Pattern| self.inputs.superblocks.iter().any(|s| s.namespace.is_none() && matches(pattern, s));
        patterns.iter().any(|p| matches(p, superblock) && (superblock.namespace.is_none() || !ours(p)))
    }

    fn is_excluded(&self, superblock: &Superblock) -> bool {
        any(&self.inputs.filesystems.exclude, superblock) || any(&self.excluded, superblock)
    }

    /// Named by hand, in the configuration or the request.
    fn is_named(&self, superblock: &Superblock) -> bool {
        self.means(&self.inputs.filesystems.include, superblock) || self.means(&self.narrowed, superblock)
    }

    fn fate(&self, superblock: &Superblock) -> Fate {
        let skip = |reason: String| Fate::Skip { reason, lowers: false, hint: "" };
        match superblock.kind {
            Kind::Pseudo => return skip(format!("{} holds no data", superblock.fs_type)),
            Kind::Memory => return skip("in memory: never in a disk snapshot".into()),
            Kind::Remote => {
                return skip(format!("{} is not on this machine's disks; never touched", superblock.fs_type));
            }
            Kind::Image => return skip(format!("{} is never written", superblock.fs_type)),
            Kind::Stacked => return skip("its writes land on another file system, which is held by itself".into()),
            Kind::Freezable | Kind::FlushOnly | Kind::Unknown => {}
        }
        if superblock.read_only {
            return skip("read-only".into());
        }
        if any(&self.inputs.filesystems.exclude, superblock) {
            return skip("excluded by the configuration".into());
        }
        if any(&self.excluded, superblock) {
            return skip("excluded by the request".into());
        }
        if !self.is_configured(superblock) {
            return skip("not in [filesystems] include".into());
        }
        if !self.narrowed.is_empty() && !self.means(&self.narrowed, superblock) {
            return skip("not among the mounts the request names".into());
        }
        if self.captured.as_ref().is_some_and(|c| !c.contains(&superblock.dev)) {
            return skip("its disk is not in the snapshot the caller takes".into());
        }
        let facts = self.inputs.facts.get(&superblock.dev);
        if facts.is_some_and(|f| f.durability == Durability::Transient) && !self.is_named(superblock) {
            return skip("on a transient disk: freezing it would add nothing to the snapshot".into());
        }
        if let Some(above) = &superblock.below {
            return Fate::Skip {
                reason: format!("cannot be reached safely: {above}"),
                lowers: true,
                hint: "mount it outside the network or FUSE file system, or exclude it",
            };
        }
        if superblock.open_at.is_none() {
            return Fate::Skip {
                reason: "no mount of it is visible as a directory, so it cannot be opened".into(),
                lowers: true,
                hint: "mount it once more where nothing covers it, or exclude it",
            };
        }
        match superblock.kind {
            Kind::Freezable => Fate::Freeze,
            Kind::FlushOnly => {
                Fate::Flush { lowers: self.is_named(superblock) || facts.is_some_and(|f| f.open_for_writing) }
            }
            Kind::Unknown => Fate::Skip {
                reason: format!("type {} is not known to this version", superblock.fs_type),
                lowers: true,
                hint: "exclude it if it does not matter",
            },
            Kind::Memory | Kind::Remote | Kind::Stacked | Kind::Image | Kind::Pseudo => {
                unreachable!("decided above")
            }
        }
    }

    /// A transient file system is frozen after all if something held lies on it: or the inner would write into it.
    fn hold_what_others_need(&self, fates: &mut [Fate]) {
        let index: BTreeMap<Dev, usize> = self.inputs.superblocks.iter().enumerate().map(|(i, s)| (s.dev, i)).collect();
        let transient = |i: usize| {
            let superblock = &self.inputs.superblocks[i];
            self.inputs.facts.get(&superblock.dev).is_some_and(|f| f.durability == Durability::Transient)
                && superblock.kind == Kind::Freezable
                && !superblock.read_only
                && !self.is_excluded(superblock)
                && self.is_configured(superblock)
                && superblock.open_at.is_some()
        };
        loop {
            let more = self.inputs.lies_on.iter().find_map(|(inner, outer)| {
                let (inner, outer) = (*index.get(inner)?, *index.get(outer)?);
                let needed = matches!(fates[inner], Fate::Freeze) && !matches!(fates[outer], Fate::Freeze);
                (needed && transient(outer)).then_some(outer)
            });
            match more {
                Some(outer) => fates[outer] = Fate::Freeze,
                None => return,
            }
        }
    }

    fn coverage(&self, superblock: &Superblock) -> proto::Coverage {
        let facts = self.inputs.facts.get(&superblock.dev).cloned().unwrap_or_default();
        let in_snapshot = match (&self.captured, superblock.kind) {
            (_, Kind::Memory | Kind::Remote) => InSnapshot::No,
            (None, _) => InSnapshot::NotTold,
            (Some(captured), _) if captured.contains(&superblock.dev) => InSnapshot::Yes,
            (Some(_), _) => InSnapshot::No,
        };
        proto::Coverage {
            disk: facts.disk,
            mounts: superblock.mounts.iter().map(|m| m.display().to_string()).collect(),
            durability: facts.durability.into(),
            in_snapshot: in_snapshot.into(),
            evidence: facts.evidence,
            used_bytes: facts.used_bytes,
            at_risk: Vec::new(),
        }
    }
}

fn captured(inputs: &Inputs<'_>) -> Result<Option<BTreeSet<Dev>>, Refusal> {
    use proto::disk_selector::By;
    let Some(scope) = &inputs.spec.scope else { return Ok(None) };
    let mut captured: BTreeMap<Dev, usize> = BTreeMap::new();
    for selector in &scope.disks {
        let is = |leaf: &Leaf| match &selector.by {
            Some(By::Device(name)) => {
                let name = name.strip_prefix("/dev/").unwrap_or(name);
                leaf.names.iter().any(|n| n == name)
            }
            Some(By::Serial(serial)) => !serial.is_empty() && leaf.serial == *serial,
            Some(By::Wwn(wwn)) => !wwn.is_empty() && same_hex(&leaf.wwn, wwn),
            Some(By::PciAddress(address)) => !address.is_empty() && leaf.pci_address == *address,
            Some(By::Nguid(nguid)) => !nguid.is_empty() && same_hex(&leaf.nguid, nguid),
            None => false,
        };
        let mut matched = false;
        for (dev, facts) in inputs.facts {
            let legs = facts.leaves.iter().filter(|l| is(l)).count();
            if legs > 0 {
                matched = true;
                *captured.entry(*dev).or_default() += legs;
            }
        }
        if !matched {
            return Err(Refusal::new(
                RefusalKind::FailedPrecondition,
                "DISK_NOT_FOUND",
                format!("hold the disk {}: no mounted file system lies on such a disk", selector_text(selector)),
            )
            .hint("`lsblk -o NAME,SERIAL,WWN` lists disks; a selector that matches nothing is never ignored"));
        }
    }
    // a file system is in the snapshot only with every disk it lies on
    let whole =
        |(dev, legs): (Dev, usize)| inputs.facts.get(&dev).is_some_and(|f| legs >= f.leaves.len()).then_some(dev);
    Ok(Some(captured.into_iter().filter_map(whole).collect()))
}

/// How the contract's command line writes this selector.
fn selector_text(selector: &proto::DiskSelector) -> String {
    use proto::disk_selector::By;
    match &selector.by {
        Some(By::Device(name)) => name.clone(),
        Some(By::Serial(serial)) => format!("serial={serial}"),
        Some(By::Wwn(wwn)) => format!("wwn={wwn}"),
        Some(By::PciAddress(address)) => format!("pci={address}"),
        Some(By::Nguid(nguid)) => format!("nguid={nguid}"),
        None => "(nothing)".into(),
    }
}

fn same_hex(a: &str, b: &str) -> bool {
    let plain = |s: &str| {
        let s = s.strip_prefix("0x").or_else(|| s.strip_prefix("naa.")).or_else(|| s.strip_prefix("eui.")).unwrap_or(s);
        s.replace('-', "").to_ascii_lowercase()
    };
    plain(a) == plain(b)
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

/// What a hold can claim, from what it did.
#[derive(Debug, Clone, Default)]
pub struct Achieved {
    /// every file system in scope is (will be) frozen
    pub filesystems_complete: bool,
    /// the claim of every database found or configured
    pub claims: Vec<proto::Claim>,
    /// required hooks that succeeded (will run); a failed one fails the hold
    pub required_hooks: usize,
    /// something that should be held is not: an unreachable optional database, a known engine nobody can hold
    pub capped: bool,
}

impl Achieved {
    pub fn level(&self) -> Consistency {
        let good = |claim: &proto::Claim| match claim {
            proto::Claim::Exact | proto::Claim::Bounded => true,
            proto::Claim::Unspecified | proto::Claim::Recoverable | proto::Claim::Uncovered => false,
        };
        if !self.filesystems_complete {
            return Consistency::Crash;
        }
        let somebody_asked = !self.claims.is_empty() || self.required_hooks > 0;
        if somebody_asked && !self.capped && self.claims.iter().all(good) {
            Consistency::Application
        } else {
            Consistency::Filesystem
        }
    }
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

fn patterns(texts: &[String]) -> Result<Vec<Pattern>, Refusal> {
    let normal = |t: &str| if t.len() > 1 { t.trim_end_matches('/').to_owned() } else { t.to_owned() };
    texts
        .iter()
        .map(|text| {
            if !text.starts_with('/') {
                return Err(Refusal::new(
                    RefusalKind::InvalidArgument,
                    "MALFORMED",
                    format!("hold the mount {text:?}: it is not an absolute path"),
                ));
            }
            Pattern::new(&normal(text)).map_err(|e| {
                Refusal::new(RefusalKind::InvalidArgument, "MALFORMED", format!("read the glob {text:?}: {e}"))
            })
        })
        .collect()
}

fn is_literal(pattern: &Pattern) -> bool {
    !pattern.as_str().contains(['*', '?', '['])
}

fn matches(pattern: &Pattern, superblock: &Superblock) -> bool {
    let options = MatchOptions { require_literal_separator: true, ..MatchOptions::new() };
    superblock.mounts.iter().any(|m| pattern.matches_path_with(m, options))
}

fn any(patterns: &[Pattern], superblock: &Superblock) -> bool {
    patterns.iter().any(|p| matches(p, superblock))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::guest::MountPoint;

    fn superblock(minor: u32, mount: &str, fs_type: &str, kind: Kind) -> Superblock {
        Superblock {
            dev: Dev { major: 8, minor },
            fs_type: fs_type.into(),
            source: format!("/dev/sd{minor}"),
            options: "rw".into(),
            kind,
            read_only: false,
            open_at: Some(MountPoint { path: mount.into(), mount_id: u64::from(minor), fs_root: "/".into() }),
            mounts: vec![PathBuf::from(mount)],
            namespace: None,
            below: None,
        }
    }

    struct World {
        superblocks: Vec<Superblock>,
        facts: BTreeMap<Dev, Facts>,
        lies_on: Vec<(Dev, Dev)>,
        filesystems: config::Filesystems,
        policy: TransientPolicy,
        spec: proto::HoldSpec,
    }

    impl World {
        fn new(superblocks: Vec<Superblock>) -> World {
            World {
                superblocks,
                facts: BTreeMap::new(),
                lies_on: Vec::new(),
                filesystems: config::Filesystems { include: vec![], exclude: vec![], expedite_rcu: true },
                policy: TransientPolicy::Warn,
                spec: proto::HoldSpec::default(),
            }
        }

        fn transient(mut self, minor: u32) -> World {
            let facts = Facts {
                disk: format!("sd{minor}"),
                durability: Durability::Transient,
                evidence: vec![proto::Evidence { source: "config".into(), value: "mounts".into() }],
                used_bytes: 3 << 30,
                ..Facts::default()
            };
            self.facts.insert(Dev { major: 8, minor }, facts);
            self
        }

        fn plan(&self) -> Result<Plan, Refusal> {
            plan(&Inputs {
                superblocks: &self.superblocks,
                facts: &self.facts,
                lies_on: &self.lies_on,
                filesystems: &self.filesystems,
                policy: self.policy,
                spec: &self.spec,
            })
        }

        fn frozen(&self) -> Vec<String> {
            let plan = self.plan().expect("a plan");
            let frozen = plan.targets.iter().filter(|t| t.freeze);
            frozen.map(|t| display(&self.superblocks[t.superblock])).collect()
        }
    }

    #[test]
    fn every_file_system_gets_an_outcome_and_a_reason() {
        let mut read_only = superblock(2, "/opt", "ext4", Kind::Freezable);
        read_only.read_only = true;
        let world = World::new(vec![
            superblock(1, "/", "ext4", Kind::Freezable),
            read_only,
            superblock(3, "/proc", "proc", Kind::Pseudo),
            superblock(4, "/net", "nfs4", Kind::Remote),
            superblock(5, "/boot/efi", "vfat", Kind::FlushOnly),
        ]);
        let plan = world.plan().unwrap();
        assert_eq!(plan.steps.len(), 5);
        assert!(plan.steps.iter().all(|s| s.outcome() != StepOutcome::Unspecified));
        assert!(plan.steps.iter().skip(1).all(|s| !s.reason.is_empty()));
        assert!(plan.complete, "an idle EFI partition lowers nothing");
    }

    #[test]
    fn a_flushed_file_system_lowers_the_level_if_it_is_open_for_writing() {
        let mut world = World::new(vec![
            superblock(1, "/", "ext4", Kind::Freezable),
            superblock(5, "/efi", "vfat", Kind::FlushOnly),
        ]);
        world.facts.insert(Dev { major: 8, minor: 5 }, Facts { open_for_writing: true, ..Facts::default() });
        assert!(!world.plan().unwrap().complete);
    }

    #[test]
    fn a_transient_disk_is_named_and_not_frozen_unless_something_durable_lies_on_it() {
        let mut world = World::new(vec![
            superblock(1, "/", "ext4", Kind::Freezable),
            superblock(2, "/mnt", "ext4", Kind::Freezable),
            superblock(3, "/srv", "ext4", Kind::Freezable),
        ])
        .transient(2);
        assert_eq!(world.frozen(), ["/", "/srv"]);
        let plan = world.plan().unwrap();
        let said = plan.problems.iter().find(|p| p.code == "TRANSIENT_DATA").expect("said");
        assert_eq!(said.message, "/mnt is on a transient disk (sd2): 3.0 GiB there will not be in the snapshot");
        world.lies_on.push((Dev { major: 8, minor: 3 }, Dev { major: 8, minor: 2 }));
        assert_eq!(world.frozen(), ["/", "/mnt", "/srv"]);
        let plan = world.plan().unwrap();
        assert_eq!(plan.levels, vec![vec![2], vec![1], vec![0]], "inner, outer, then the root");
        let steps: Vec<&str> = plan.steps.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(steps, ["fs:/srv", "fs:/mnt", "fs:/"], "steps stand in the order they run");
    }

    #[test]
    fn data_on_a_transient_disk_is_refused_where_the_policy_says_so() {
        let mut world = World::new(vec![
            superblock(1, "/", "ext4", Kind::Freezable),
            superblock(2, "/mnt", "ext4", Kind::Freezable),
        ])
        .transient(2);
        world.policy = TransientPolicy::Refuse;
        assert_eq!(world.plan().unwrap().refusals[0].reason, "TRANSIENT_DATA");
    }

    #[test]
    fn a_request_narrows_and_never_widens() {
        let mut world = World::new(vec![
            superblock(1, "/", "ext4", Kind::Freezable),
            superblock(2, "/srv/a", "ext4", Kind::Freezable),
            superblock(3, "/srv/b", "ext4", Kind::Freezable),
        ]);
        world.filesystems.include = vec![Pattern::new("/srv/*").unwrap()];
        assert_eq!(world.frozen(), ["/srv/a", "/srv/b"]);
        world.spec.include_mounts = vec!["/srv/b/".into()];
        assert_eq!(world.frozen(), ["/srv/b"]);
        world.spec.include_mounts = vec!["/".into()];
        assert_eq!(world.plan().unwrap_err().reason, "MOUNT_OUT_OF_SCOPE");
        world.spec.include_mounts = vec!["/srv".into()];
        let refusal = world.plan().unwrap_err();
        assert_eq!((refusal.kind, refusal.reason), (RefusalKind::NotFound, "MOUNT_NOT_FOUND"));
    }

    #[test]
    fn asking_for_our_srv_does_not_hold_a_containers() {
        let mut theirs = superblock(2, "/srv", "ext4", Kind::Freezable);
        theirs.namespace = Some(77);
        let mut world = World::new(vec![superblock(1, "/srv", "ext4", Kind::Freezable), theirs]);
        world.filesystems.include = vec![Pattern::new("/srv").unwrap()];
        let plan = world.plan().unwrap();
        assert_eq!(plan.targets, [Planned { superblock: 0, freeze: true }]);
        world.superblocks.remove(0);
        assert_eq!(world.frozen(), ["/srv"], "named, and only there");
    }

    #[test]
    fn nothing_to_hold_is_refused_not_a_success() {
        let world = World::new(vec![superblock(1, "/run", "tmpfs", Kind::Memory)]);
        assert_eq!(world.plan().unwrap().refusals[0].reason, "NOTHING_TO_HOLD");
    }

    #[test]
    fn a_disk_selector_that_matches_nothing_refuses_and_one_that_matches_decides_what_is_frozen() {
        let mut world = World::new(vec![
            superblock(1, "/", "ext4", Kind::Freezable),
            superblock(2, "/data", "ext4", Kind::Freezable),
        ]);
        for (minor, serial) in [(1, "root-1"), (2, "vol-2")] {
            let leaf = Leaf { names: vec![format!("sd{minor}")], serial: serial.into(), ..Leaf::default() };
            let facts = Facts { leaves: vec![leaf], ..Facts::default() };
            world.facts.insert(Dev { major: 8, minor }, facts);
        }
        let by = |s: &str| proto::DiskSelector { by: Some(proto::disk_selector::By::Serial(s.into())) };
        world.spec.scope = Some(proto::SnapshotScope { disks: vec![by("vol-2")] });
        assert_eq!(world.frozen(), ["/data"]);
        let plan = world.plan().unwrap();
        let told: Vec<_> = plan.coverage.iter().map(proto::Coverage::in_snapshot).collect();
        assert_eq!(told, [InSnapshot::No, InSnapshot::Yes]);
        world.spec.scope = Some(proto::SnapshotScope { disks: vec![by("vol-9")] });
        assert_eq!(world.plan().unwrap_err().reason, "DISK_NOT_FOUND");
    }

    #[test]
    fn a_level_is_claimed_only_when_everything_it_needs_is_there() {
        use proto::Claim;
        let full = Achieved { filesystems_complete: true, claims: vec![Claim::Bounded], ..Achieved::default() };
        assert_eq!(full.level(), Consistency::Application);
        let cases = [
            (Achieved { claims: vec![], ..full.clone() }, Consistency::Filesystem),
            (Achieved { claims: vec![], required_hooks: 1, ..full.clone() }, Consistency::Application),
            (Achieved { claims: vec![Claim::Exact, Claim::Uncovered], ..full.clone() }, Consistency::Filesystem),
            (Achieved { capped: true, ..full.clone() }, Consistency::Filesystem),
            (Achieved { filesystems_complete: false, ..full.clone() }, Consistency::Crash),
        ];
        for (achieved, level) in cases {
            assert_eq!(achieved.level(), level, "{achieved:?}");
        }
    }
}
