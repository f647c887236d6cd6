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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn dev(minor: u32) -> Dev {
        Dev { major: 8, minor }
    }

    fn devs(minors: &[u32]) -> Vec<Dev> {
        minors.iter().copied().map(dev).collect()
    }

    fn edges(pairs: &[(u32, u32)]) -> Vec<(Dev, Dev)> {
        pairs.iter().map(|&(inner, outer)| (dev(inner), dev(outer))).collect()
    }

    fn order(set: &[u32], pairs: &[(u32, u32)], last: Option<u32>) -> Vec<Vec<u32>> {
        let levels = levels(&devs(set), &edges(pairs), last.map(dev)).unwrap();
        levels.iter().map(|level| level.iter().map(|dev| dev.minor).collect()).collect()
    }

    #[test]
    fn independent_file_systems_freeze_together_and_the_root_alone_at_the_end() {
        assert_eq!(order(&[1, 2, 3], &[], None), [vec![1, 2, 3]]);
        assert_eq!(order(&[1, 2, 3], &[], Some(1)), [vec![2, 3], vec![1]]);
        assert_eq!(order(&[], &[], Some(1)), Vec::<Vec<u32>>::new());
        assert_eq!(order(&[1, 1], &[], Some(1)), [vec![1]]);
    }

    #[test]
    fn what_lies_on_another_freezes_first() {
        assert_eq!(order(&[1, 2, 3, 4], &[(2, 3), (3, 1)], Some(1)), [vec![2, 4], vec![3], vec![1]]);
    }

    #[test]
    fn the_way_may_lead_through_one_that_is_not_held() {
        assert_eq!(order(&[1, 2], &[(2, 9), (9, 8), (8, 1)], None), [vec![2], vec![1]]);
    }

    #[test]
    fn what_the_root_itself_lies_on_comes_even_after_the_root() {
        assert_eq!(order(&[1, 2, 3], &[(1, 3)], Some(1)), [vec![2], vec![1], vec![3]]);
    }

    #[test]
    fn a_circle_is_an_error_that_names_its_members() {
        let cycle = levels(&devs(&[1, 2, 3, 4]), &edges(&[(1, 2), (2, 9), (9, 1), (2, 3)]), None).unwrap_err();
        let mut members = cycle.members.clone();
        members.sort();
        assert_eq!(members, devs(&[1, 2]));
        assert!(cycle.to_string().contains("8:1") && cycle.to_string().contains("8:2"));
    }

    #[test]
    fn a_circle_nobody_holds_is_no_matter() {
        assert_eq!(order(&[1], &[(8, 9), (9, 8), (9, 1)], None), [vec![1]]);
    }

    proptest! {
        #[test]
        fn every_order_is_complete_and_inner_comes_before_outer(
            set in proptest::collection::btree_set(0u32..12, 0..12),
            pairs in proptest::collection::vec((0u32..12, 0u32..12), 0..20),
            last in proptest::option::of(0u32..12),
        ) {
            let set = devs(&set.into_iter().collect::<Vec<_>>());
            // Upwards only, so that there is no circle.
            let edges: Vec<_> = pairs.iter().filter(|(a, b)| a < b).map(|(a, b)| (dev(*a), dev(*b))).collect();
            let levels = levels(&set, &edges, last.map(dev)).unwrap();
            let level_of = |dev: &Dev| levels.iter().position(|level| level.contains(dev));
            prop_assert_eq!(levels.iter().flatten().count(), set.len());
            prop_assert!(set.iter().all(|dev| level_of(dev).is_some()));
            for (inner, outer) in &edges {
                if let (Some(inner), Some(outer)) = (level_of(inner), level_of(outer)) {
                    prop_assert!(inner < outer);
                }
            }
        }
    }
}
