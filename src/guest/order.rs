//! The order of freezing, from what lies on what. Called by `plan`.
//!
//! A file system on a loop device must freeze before the one its file is on: the other way round, its freeze waits for
//! writes nobody can finish, and no signal ends that.

use std::collections::{BTreeMap, BTreeSet};

use super::Dev;

/// File systems that lie on each other in a circle, so that none can be frozen first.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("these file systems lie on each other: {}", members.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
pub struct Cycle {
    /// each lies on the next, the last on the first
    pub members: Vec<Dev>,
}

/// Sorts `set` into levels, inner first; what is in one level may freeze in parallel. Thaw is the exact reverse.
///
/// `edges` are (inner, outer) and may lead through file systems that are not in `set`. `last` comes after everything but
/// what it lies on itself.
///
/// # Errors
/// A circle through a member of `set`.
pub fn levels(set: &[Dev], edges: &[(Dev, Dev)], last: Option<Dev>) -> Result<Vec<Vec<Dev>>, Cycle> {
    let held: BTreeSet<Dev> = set.iter().copied().collect();
    let mut outer_of: BTreeMap<Dev, Vec<Dev>> = BTreeMap::new();
    for (inner, outer) in edges {
        outer_of.entry(*inner).or_default().push(*outer);
    }
    let mut outer: BTreeMap<Dev, BTreeSet<Dev>> =
        held.iter().map(|dev| (*dev, next_held(*dev, &outer_of, &held))).collect();
    if let Some(last) = last.filter(|last| held.contains(last)) {
        let beneath = reachable(last, &outer);
        for dev in held.iter().filter(|dev| **dev != last && !beneath.contains(dev)) {
            outer.entry(*dev).or_default().insert(last);
        }
    }
    layer(outer)
}

/// The held file systems met first on every way outwards.
fn next_held(from: Dev, outer_of: &BTreeMap<Dev, Vec<Dev>>, held: &BTreeSet<Dev>) -> BTreeSet<Dev> {
    let (mut met, mut seen) = (BTreeSet::new(), BTreeSet::new());
    let mut left = vec![from];
    while let Some(dev) = left.pop() {
        for next in outer_of.get(&dev).into_iter().flatten() {
            if held.contains(next) {
                met.insert(*next);
            } else if seen.insert(*next) {
                left.push(*next);
            }
        }
    }
    met
}

fn reachable(from: Dev, outer: &BTreeMap<Dev, BTreeSet<Dev>>) -> BTreeSet<Dev> {
    let mut seen = BTreeSet::new();
    let mut left = vec![from];
    while let Some(dev) = left.pop() {
        left.extend(outer.get(&dev).into_iter().flatten().filter(|next| seen.insert(**next)));
    }
    seen
}

fn layer(mut outer: BTreeMap<Dev, BTreeSet<Dev>>) -> Result<Vec<Vec<Dev>>, Cycle> {
    let mut inner_left: BTreeMap<Dev, usize> = outer.keys().map(|dev| (*dev, 0)).collect();
    for next in outer.values().flatten() {
        *inner_left.entry(*next).or_default() += 1;
    }
    let mut levels = Vec::new();
    let mut level: Vec<Dev> = inner_left.iter().filter(|(_, left)| **left == 0).map(|(dev, _)| *dev).collect();
    while !level.is_empty() {
        let mut following = Vec::new();
        for next in level.iter().flat_map(|dev| outer.remove(dev).unwrap_or_default()) {
            let left = inner_left.get_mut(&next).expect("counted above");
            *left -= 1;
            if *left == 0 {
                following.push(next);
            }
        }
        following.sort();
        levels.push(std::mem::replace(&mut level, following));
    }
    match circle(&outer) {
        None => Ok(levels),
        Some(members) => Err(Cycle { members }),
    }
}

/// A circle among what could not be layered; every node of it is either in one or has one behind it.
fn circle(left: &BTreeMap<Dev, BTreeSet<Dev>>) -> Option<Vec<Dev>> {
    let inner_of =
        |dev: Dev| left.iter().find(|(_, outer)| outer.contains(&dev)).map(|(inner, _)| *inner).expect("not layered");
    let mut way = vec![*left.keys().next()?];
    loop {
        let inner = inner_of(*way.last().expect("starts with one"));
        if let Some(start) = way.iter().position(|dev| *dev == inner) {
            return Some(way.split_off(start).into_iter().rev().collect());
        }
        way.push(inner);
    }
}
