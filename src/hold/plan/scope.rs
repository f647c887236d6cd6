//! What is in scope: decided for each file system from the configuration, the request, and what it is.

use std::collections::BTreeMap;

use glob::{MatchOptions, Pattern};

use super::{
    Fate, Inputs, Leaf, Lost,
    captured::{Captured, captured},
    display,
};
use crate::{
    guest::{Dev, Kind, Superblock},
    hold::{Refusal, RefusalKind},
    proto::{self, Durability, InSnapshot},
};

/// As the contract has it.
const MOST_DISKS: usize = 64;

/// What the configuration and the request put in scope.
pub(super) struct Scope<'a> {
    inputs: &'a Inputs<'a>,
    narrowed: Vec<Pattern>,
    excluded: Vec<Pattern>,
    /// told which disks are captured; `None`: not told
    captured: Option<Captured>,
}

impl<'a> Scope<'a> {
    pub(super) fn new(inputs: &'a Inputs<'a>) -> Result<Self, Refusal> {
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

    pub(super) fn is_excluded(&self, superblock: &Superblock) -> bool {
        any(&self.inputs.filesystems.exclude, superblock) || any(&self.excluded, superblock)
    }

    /// Named by hand, in the configuration or the request.
    fn is_named(&self, superblock: &Superblock) -> bool {
        self.means(&self.inputs.filesystems.include, superblock) || self.means(&self.narrowed, superblock)
    }

    pub(super) fn fate(&self, superblock: &Superblock) -> Fate {
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
        let captured = self.captured.as_ref().map(|captured| captured.whole.contains(&superblock.dev));
        if captured == Some(false) {
            return skip("its disk is not in the snapshot the caller takes".into());
        }
        let facts = self.inputs.facts.get(&superblock.dev);
        // told that it is captured, there is nothing left to suppose
        let told = captured == Some(true);
        if facts.is_some_and(|f| f.durability == Durability::Transient) && !told && !self.is_named(superblock) {
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
    pub(super) fn hold_what_others_need(&self, fates: &mut [Fate]) {
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

    /// Whether what is there will be missed.
    pub(super) fn lost(
        &self,
        index: usize,
        superblock: &Superblock,
        coverage: usize,
        all: &[proto::Coverage],
    ) -> Option<Lost> {
        let entry = &all[coverage];
        let gone = match entry.durability() {
            Durability::Transient | Durability::Mixed => entry.in_snapshot() != InSnapshot::Yes,
            Durability::Unspecified | Durability::Unknown | Durability::Durable => {
                entry.in_snapshot() == InSnapshot::No
            }
        };
        let partly = self.captured.as_ref().and_then(|captured| captured.missing.get(&superblock.dev));
        gone.then(|| Lost {
            superblock: index,
            coverage,
            excluded: self.is_excluded(superblock),
            named: entry.evidence.iter().any(|evidence| evidence.source == "config"),
            uncaptured: partly.cloned().unwrap_or_default(),
        })
    }

    pub(super) fn coverage(&self, superblock: &Superblock) -> proto::Coverage {
        let facts = self.inputs.facts.get(&superblock.dev).cloned().unwrap_or_default();
        let in_snapshot = match (&self.captured, superblock.kind) {
            (_, Kind::Memory | Kind::Remote) => InSnapshot::No,
            (None, _) => InSnapshot::NotTold,
            (Some(captured), _) if captured.whole.contains(&superblock.dev) => InSnapshot::Yes,
            (Some(_), _) => InSnapshot::No,
        };
        proto::Coverage {
            disk: facts.disk,
            mounts: superblock.mounts.iter().map(|m| m.display().to_string()).collect(),
            durability: facts.durability.into(),
            in_snapshot: in_snapshot.into(),
            evidence: facts.evidence,
            used_bytes: facts.used_bytes,
            size_bytes: facts.size_bytes,
            r#type: superblock.fs_type.clone(),
            uuid: facts.uuid,
            disks: disks(&facts.leaves),
            ..Default::default()
        }
    }
}

/// Each disk once, though a file system may lie on several partitions of it.
fn disks(leaves: &[Leaf]) -> Vec<proto::Disk> {
    let mut disks: Vec<proto::Disk> = Vec::new();
    for leaf in leaves {
        if !disks.contains(&leaf.disk) && disks.len() < MOST_DISKS {
            disks.push(leaf.disk.clone());
        }
    }
    disks
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
