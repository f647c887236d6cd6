//! Promise: touches only its own.

use std::{thread, time::Duration};

use crate::lab::{Lab, Type, now};

facts! {
    a_file_system_frozen_by_others_is_refused_by_name_and_left_frozen,
    a_file_system_thawed_and_frozen_again_by_others_stays_theirs,
    what_is_not_included_goes_on_writing,
    rescue_with_nothing_of_ours_leaves_a_foreign_freeze_alone,
}

fn a_file_system_frozen_by_others_is_refused_by_name_and_left_frozen(lab: &Lab) {
    let (free, theirs) = (lab.fs(Type::Ext4), lab.fs(Type::Ext4));
    let daemon = lab.daemon(&[&free, &theirs]).start();
    let writer = lab.writer(&free);
    theirs.freeze_by_others();
    let answer = daemon.cli(&["freeze", "--for", "5s"]);
    answer.exits(4).says(theirs.at());
    assert_eq!(answer.reason(), "FOREIGN_FREEZE", "{answer:?}");
    writer.assert_writable_within(Duration::from_secs(2));
    assert!(writer.longest() < Duration::from_millis(500), "a refusal made a writer wait");
    assert!(!theirs.writable_within(Duration::from_millis(300)), "a foreign freeze was thawed");
    assert!(theirs.thaw_by_others(), "it was still frozen, once");
    daemon.freeze(&["--for", "5s"]);
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
}

fn a_file_system_thawed_and_frozen_again_by_others_stays_theirs(lab: &Lab) {
    let (ours, theirs) = (lab.fs(Type::Ext4), lab.fs(Type::Xfs));
    let daemon = lab.daemon(&[&ours, &theirs]).start();
    let writer = lab.writer(&theirs);
    daemon.freeze(&["--for", "20s"]);
    writer.assert_blocked();
    let at = now();
    assert!(theirs.thaw_by_others(), "we had frozen it");
    writer.resumed_after(at, Duration::from_secs(2));
    // give the sentinel a moment of the kernel's time to come back, as any real second freeze would
    thread::sleep(Duration::from_millis(50));
    theirs.freeze_by_others();
    let answer = daemon.cli(&["thaw"]);
    answer.exits(3).says(theirs.at());
    assert!(ours.writable_within(Duration::from_secs(2)));
    writer.assert_blocked();
    assert!(theirs.thaw_by_others(), "their freeze was stolen");
    writer.assert_writable_within(Duration::from_secs(2));
}

fn what_is_not_included_goes_on_writing(lab: &Lab) {
    let (inside, outside) = (lab.fs(Type::Ext4), lab.fs(Type::Ext4));
    let daemon = lab.daemon(&[&inside]).start();
    let (held, free) = (lab.writer(&inside), lab.writer(&outside));
    daemon.freeze(&["--for", "10s"]);
    held.assert_blocked();
    assert!(!free.is_blocked(), "a file system out of scope waits");
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    assert!(free.longest() < Duration::from_millis(500));
    let refused = daemon.cli(&["freeze", "--mount", outside.at()]);
    refused.exits(4);
}

fn rescue_with_nothing_of_ours_leaves_a_foreign_freeze_alone(lab: &Lab) {
    let fs = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&fs]).start();
    daemon.freeze(&["--for", "5s"]);
    daemon.thaw();
    daemon.kill();
    let config = daemon.setup().config_path();
    drop(daemon);
    fs.freeze_by_others();
    lab.holdstill(&["rescue", "--config", config.to_str().expect("ASCII")]).exits(0);
    assert!(!fs.writable_within(Duration::from_millis(300)), "rescue thawed what was not ours");
    assert!(fs.thaw_by_others(), "it was frozen");
}
