//! A hold that was really held, as a picture: from the copy's receipt, from the daemon, and from a saved report.

use std::fs;

use crate::lab::{Lab, Type, command, process::tool};

facts! {
    a_hold_is_drawn_from_its_copy_from_its_daemon_and_from_a_saved_report within 60,
}

fn a_hold_is_drawn_from_its_copy_from_its_daemon_and_from_a_saved_report(lab: &Lab) {
    let fs = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&fs]).start();
    daemon.setup().hook("10-orders", "sleep 0.02");
    daemon.freeze(&["--id", "drawn", "--for", "20s"]);
    let copy = fs.copy();
    let record = daemon.cli(&["thaw"]).exits(0).out.clone();
    let dir = lab.memory_dir("drawn");
    let path = |name: &str| dir.join(name).display().to_string();
    fs::write(dir.join("record.json"), record).expect("memory");

    let copied = lab.mount_copy(Type::Ext4, &copy);
    lab.holdstill(&["receipt", copied.at(), "--svg", &path("copy.svg")]).exits(0).says("drew the hold drawn");
    daemon.cli(&["history", "drawn", "--svg", &path("history.svg")]).exits(0);
    let saved = lab.holdstill(&["receipt", "--report", &path("record.json"), "--svg"]);
    saved.exits(0);
    assert!(saved.out.starts_with("<svg "), "{saved:?}");
    let drawn = |name: &str| fs::read_to_string(dir.join(name)).expect("it was drawn");
    assert_eq!(saved.out.trim(), drawn("history.svg").trim(), "one hold, one picture");
    for svg in [drawn("copy.svg"), drawn("history.svg")] {
        assert!(svg.contains(&fs.step()) && svg.contains("hook:10-orders") && svg.contains(">quiesce<"), "{svg}");
    }
    assert!(drawn("history.svg").contains(">release<") && drawn("history.svg").contains("frozen "));
    // the same for a terminal, from the history and from the disk
    let table =
        tool(command(crate::lab::daemon::BINARY).args(["--socket"]).arg(daemon.socket()).args(["history", "drawn"]));
    assert!(table.contains("|prepare") && table.contains("#") && table.contains("frozen, locked or paused"), "{table}");
    lab.holdstill(&["receipt", fs.at()]).exits(0).says("|quiesce");
}
