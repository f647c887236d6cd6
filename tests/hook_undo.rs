//! Everybody was lost: what the marker says was started and not undone, rescue undoes. Reversed, once, all of it, whatever
//! fails. What a daemon writes into the marker, and when, is examined with real ones in tests/kernel/hooks.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use holdstill::{
    rescue,
    warden::marker::{Marker, Phase, StartedHook},
};
use proptest::prelude::*;

/// How a hook's thaw ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Ends,
    Fails,
    Dies,
    /// it is not there any more
    Gone,
    Hangs,
}

fn ways() -> impl Strategy<Value = Vec<Way>> {
    let way = prop_oneof![
        12 => Just(Way::Ends),
        3 => Just(Way::Fails),
        3 => Just(Way::Dies),
        3 => Just(Way::Gone),
        1 => Just(Way::Hangs),
    ];
    prop::collection::vec(way, 0..7)
}

/// Writes `name` and its reason down, and ends in its way.
fn write_hook(dir: &Path, index: usize, way: Way) -> PathBuf {
    let path = dir.join(format!("{index}-hook"));
    let end = match way {
        Way::Ends => "exit 0",
        Way::Fails => "exit 7",
        Way::Dies => "kill -KILL $$",
        Way::Gone => return path,
        Way::Hangs => "sleep 60",
    };
    let told = dir.join("told");
    fs::write(&path, format!("#!/bin/sh\necho {index} $1 $HOLDSTILL_REASON >>{}\n{end}\n", told.display())).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn started(index: usize, program: PathBuf) -> StartedHook {
    let limit = Duration::from_millis(150);
    let [thaw, failed] = ["thaw", "failed"].map(|word| vec![word.into()]);
    StartedHook { name: format!("{index}-hook"), program, thaw, failed, limit, fine: None, user: None }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 96,
        max_shrink_iters: 32,
        failure_persistence: None, // the smallest case is printed
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_fails_rescue_undoes_what_is_left_newest_first_and_once(
        ways in ways(),
        // as many of the newest as the daemon had undone when it was lost
        undone in 0usize..7,
        phase in prop::sample::select(vec![Phase::Preparing, Phase::Quiescing, Phase::Held, Phase::Releasing]),
        was_held in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let marker = Marker::create(dir.path()).unwrap();
        marker.begin("lost").unwrap();
        for (index, way) in ways.iter().enumerate() {
            let path = write_hook(dir.path(), index, *way);
            marker.hook_started(&started(index, path)).unwrap();
        }
        let left = ways.len().saturating_sub(undone);
        for index in (left..ways.len()).rev() {
            marker.hook_undone(&format!("{index}-hook"));
        }
        if was_held {
            marker.note_held();
        }
        marker.set_phase(phase);
        let word = if was_held { "thaw" } else { "failed" };
        drop(marker);

        let rescued = rescue::run(dir.path(), &BTreeMap::new()).unwrap();
        let again = rescue::run(dir.path(), &BTreeMap::new()).unwrap();

        let expected: Vec<String> = (0..left).rev().map(|index| format!("{index}-hook")).collect();
        prop_assert_eq!(rescued.hold_id.as_deref(), Some("lost"));
        prop_assert_eq!(&rescued.hooks, &expected);
        let ran = (0..left).rev().filter(|index| ways[*index] != Way::Gone);
        let ran: String = ran.map(|index| format!("{index} {word} daemon_lost\n")).collect();
        prop_assert_eq!(fs::read_to_string(dir.path().join("told")).unwrap_or_default(), ran);
        let failed = ways[..left].iter().filter(|way| **way != Way::Ends).count();
        prop_assert_eq!(rescued.problems.len(), failed, "{}", rescued);
        prop_assert!(again.hold_id.is_none() && again.hooks.is_empty(), "{}", again);
    }
}
