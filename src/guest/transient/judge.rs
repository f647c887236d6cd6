//! From evidence to verdicts, and from what lies below to what lies above.

use std::{collections::BTreeMap, path::PathBuf};

use super::{Configured, Durability, Evidence, Knowledge, Leg, Verdict, Weight, is_named, rules::Rules, tidy};
use crate::guest::{
    Dev, Kind, Superblock,
    disks::{BlockGraph, Node, Role},
};

/// A machine with a hundred disks in one volume does not need a hundred reasons.
const MOST_EVIDENCE: usize = 32;

pub(super) struct Judge<'a> {
    by_dev: BTreeMap<Dev, &'a Superblock>,
    graph: &'a BlockGraph,
    knowledge: &'a Knowledge<'a>,
    /// tidy paths, and what is said of them
    configured: Vec<(PathBuf, Durability)>,
    rules: Rules<'a>,
    known: BTreeMap<Node, Verdict>,
}

impl<'a> Judge<'a> {
    pub(super) fn new(superblocks: &'a [Superblock], graph: &'a BlockGraph, knowledge: &'a Knowledge<'a>) -> Self {
        Self {
            by_dev: superblocks.iter().map(|s| (s.dev, s)).collect(),
            graph,
            knowledge,
            configured: {
                let of = |paths: &[PathBuf], says| paths.iter().map(|path| (tidy(path), says)).collect::<Vec<_>>();
                let Configured { transient, durable } = knowledge.configured;
                [of(transient, Durability::Transient), of(durable, Durability::Durable)].concat()
            },
            rules: Rules::new(superblocks, graph, knowledge),
            known: BTreeMap::new(),
        }
    }

    pub(super) fn verdict(&mut self, node: Node) -> Verdict {
        if let Some(verdict) = self.known.get(&node) {
            return verdict.clone();
        }
        // Should the graph run in a circle, this is what is found at its end.
        self.known.insert(node, Verdict::unknown());
        let own = match node {
            Node::Superblock(dev) => self.of_superblock(dev),
            Node::Block(dev) => {
                self.graph.devices.get(&dev).map(|device| self.rules.evidence(device)).unwrap_or_default()
            }
        };
        let parts = self.graph.parts(node);
        let parts = parts.into_iter().map(|(role, part)| (role, part, self.verdict(part))).collect();
        let verdict = decide(own, self.combine(node, parts));
        self.known.insert(node, verdict.clone());
        verdict
    }

    fn of_superblock(&self, dev: Dev) -> Vec<Evidence> {
        let Some(superblock) = self.by_dev.get(&dev) else { return Vec::new() };
        let say = |source, value, weight, says| Evidence { source, value, weight, says };
        let configured = self
            .configured
            .iter()
            .find(|(path, _)| is_named(superblock, path))
            .map(|(mount, says)| say("config", mount.display().to_string(), Weight::Configuration, *says));
        let on_disk = !self.graph.parts(Node::Superblock(dev)).is_empty();
        let memory = (superblock.kind == Kind::Memory && !on_disk)
            .then(|| say("type", superblock.fs_type.clone(), Weight::Identity, Durability::Transient));
        let marker =
            self.knowledge.markers.get(&dev).map(|found| say("file", found.file.clone(), Weight::Label, found.says));
        configured.into_iter().chain(memory).chain(marker).collect()
    }

    /// What several parts make of the whole.
    fn combine(&self, node: Node, parts: Vec<(Role, Node, Verdict)>) -> Verdict {
        // Only a lower layer that is missing in the copy changes anything: what is written goes to the upper one.
        let upper_is_lost =
            parts.iter().any(|(role, _, v)| *role == Role::Whole && v.durability == Durability::Transient);
        let parts: Vec<_> = parts
            .into_iter()
            .filter(|(role, _, v)| *role != Role::LowerLayer || (!upper_is_lost && is_at_risk(v.durability)))
            .collect();
        let all = |wanted| !parts.is_empty() && parts.iter().all(|(_, _, part)| part.durability == wanted);
        let durability = match () {
            () if all(Durability::Transient) => Durability::Transient,
            () if all(Durability::Durable) => Durability::Durable,
            () if parts.iter().any(|(_, _, part)| is_at_risk(part.durability)) => Durability::Mixed,
            () => Durability::Unknown,
        };
        let known = parts.iter().filter(|(_, _, part)| part.durability != Durability::Unknown);
        let weight = known.map(|(_, _, part)| part.weight).min().unwrap_or(Weight::Heuristic);
        let mut legs: Vec<Leg> = Vec::new();
        if durability == Durability::Mixed {
            for (role, part, verdict) in &parts {
                let found = match verdict.durability {
                    Durability::Transient => vec![Leg { name: self.name(*part), role: self.role(*role, node) }],
                    Durability::Mixed | Durability::Durable | Durability::Unknown => verdict.legs.clone(),
                };
                legs.extend(found);
            }
        }
        let mut evidence: Vec<Evidence> = Vec::new();
        for item in parts.into_iter().flat_map(|(_, _, part)| part.evidence) {
            if !evidence.contains(&item) {
                evidence.push(item);
            }
        }
        Verdict { durability, evidence, weight, legs }
    }

    fn name(&self, node: Node) -> String {
        match node {
            Node::Superblock(dev) => self
                .by_dev
                .get(&dev)
                .and_then(|superblock| superblock.mounts.first())
                .map_or_else(|| dev.to_string(), |mount| mount.display().to_string()),
            Node::Block(dev) => self.graph.devices.get(&dev).map_or_else(|| dev.to_string(), |d| d.name.clone()),
        }
    }

    fn role(&self, role: Role, whole: Node) -> String {
        let whole_name = || match whole {
            Node::Superblock(_) => self.name(whole),
            Node::Block(dev) => match self.graph.devices.get(&dev) {
                Some(device) => match (&device.md_level, &device.dm) {
                    (Some(level), _) => format!("{} ({level})", device.name),
                    (None, Some(dm)) => format!("{} ({})", device.name, dm.name),
                    (None, None) => device.name.clone(),
                },
                None => dev.to_string(),
            },
        };
        match role {
            Role::Whole => "all of it".into(),
            Role::Device => "one of its devices".into(),
            Role::Leg => format!("a leg of {}", whole_name()),
            Role::Journal => "its external journal".into(),
            Role::Log => "its log device".into(),
            Role::Realtime => "its realtime device".into(),
            Role::Cache => format!("the cache of {}", whole_name()),
            Role::LowerLayer => "a lower layer of it".into(),
        }
    }
}

fn is_at_risk(durability: Durability) -> bool {
    match durability {
        Durability::Transient | Durability::Mixed => true,
        Durability::Unknown | Durability::Durable => false,
    }
}

/// The strongest decides: what is said of the thing itself, or what is known of its parts. Of equals the parts, for they
/// are what is lost; only the administrator is believed against them.
fn decide(own: Vec<Evidence>, below: Verdict) -> Verdict {
    let deciding = |item: &&Evidence| item.weight > Weight::Heuristic && item.says != Durability::Unknown;
    let strongest = own.iter().filter(deciding).map(|item| item.weight).max();
    let says = |wanted| own.iter().filter(deciding).any(|i| Some(i.weight) == strongest && i.says == wanted);
    let own_wins = strongest.is_some_and(|weight| {
        below.durability == Durability::Unknown || weight > below.weight || weight == Weight::Configuration
    });
    let (durability, weight, legs) = match strongest {
        // of two that contradict each other the worse
        Some(weight) if own_wins && says(Durability::Transient) => (Durability::Transient, weight, Vec::new()),
        Some(weight) if own_wins => (Durability::Durable, weight, Vec::new()),
        Some(_) | None => (below.durability, below.weight, below.legs),
    };
    let mut evidence = own;
    evidence.extend(below.evidence);
    evidence.sort_by_key(|item| std::cmp::Reverse(item.weight));
    evidence.truncate(MOST_EVIDENCE);
    Verdict { durability, evidence, weight, legs }
}
