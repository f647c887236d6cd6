//! The documented samples, whose servers Debian does not have, with stand-ins: what the scripts do when it goes well and when it
//! does not, not what a server makes of it.

use std::{fs, path::PathBuf, time::Duration};

use super::add;
use crate::lab::{Daemon, Fs, Lab, Type, until};

facts! {
    mongodb_is_locked_while_held_and_another_lock_stays,
    a_mongodb_whose_session_was_killed_is_unlocked_from_a_new_one,
    elasticsearch_has_a_snapshot_of_its_own_before_the_hold_and_old_ones_go,
}

struct Stand<'lab> {
    daemon: Daemon<'lab>,
    dir: PathBuf,
    _disk: Fs<'lab>,
}

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");

fn stand<'lab>(lab: &'lab Lab, name: &str, settings: &str, program: &str, replaces: &str) -> Stand<'lab> {
    let disk = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&disk]).start();
    let dir = lab.memory_dir("fake");
    let variable = if program.starts_with("mongodb") { "FAKE_MONGODB" } else { "FAKE_ELASTIC" };
    let stands_in = format!("'env {variable}={} {FIXTURES}/{program} ", dir.display());
    add(&daemon, name, settings, &[(replaces, &stands_in)]);
    Stand { daemon, dir, _disk: disk }
}

impl Stand<'_> {
    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join(name)).unwrap_or_default().trim().to_owned()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.join(name), text).expect("memory");
    }
}

fn mongodb(lab: &Lab) -> Stand<'_> {
    stand(lab, "20-mongodb", "timeout = \"20s\"\n", "mongodb/mongosh", "'mongosh --quiet")
}

fn mongodb_is_locked_while_held_and_another_lock_stays(lab: &Lab) {
    let it = mongodb(lab);
    it.write("locks", "1\n");
    it.daemon.freeze(&["--for", "20s"]);
    assert_eq!(it.read("locks"), "2");
    assert_eq!(it.daemon.thaw()["verdict"], "unbroken");
    assert_eq!(it.read("locks"), "1", "somebody else's lock stays");
    it.write("down", "");
    it.daemon.cli(&["freeze", "--id", "down"]).exits(1).says("20-mongodb");
    assert!(it.daemon.cli(&["history", "down"]).out.contains("ECONNREFUSED"));
    assert_eq!(it.read("locks"), "1");
}

fn a_mongodb_whose_session_was_killed_is_unlocked_from_a_new_one(lab: &Lab) {
    let it = mongodb(lab);
    it.daemon.freeze(&["--for", "20s"]);
    let session = fs::read_to_string("/run/holdstill-mongodb/pid").expect("it locked").trim().parse().expect("a pid");
    crate::lab::process::signal(session, nix::sys::signal::Signal::SIGKILL);
    assert_eq!(it.read("locks"), "1", "a lock outlives its session");
    assert_eq!(it.daemon.thaw()["verdict"], "unbroken");
    assert_eq!(it.read("locks"), "0");
    // and after the loss of the daemon
    it.daemon.freeze(&["--for", "20s"]);
    it.daemon.kill();
    assert!(until(Duration::from_secs(5), || it.read("locks") == "0"), "it stays locked");
}

fn elasticsearch_has_a_snapshot_of_its_own_before_the_hold_and_old_ones_go(lab: &Lab) {
    let settings = "prepare = true\ntimeout = \"20s\"\n";
    let it = stand(lab, "20-elasticsearch", settings, "elasticsearch/curl", "'curl -sS");
    it.write("snapshots", "theirs\n");
    it.write("state", "SUCCESS");
    for id in ["First", "second", "third"] {
        it.daemon.freeze(&["--id", id, "--for", "5s"]);
        assert_eq!(it.daemon.thaw()["verdict"], "unbroken");
    }
    assert_eq!(it.read("snapshots"), "theirs\nholdstill-second\nholdstill-third");
    it.write("state", "PARTIAL");
    it.daemon.cli(&["freeze", "--id", "partial"]).exits(1).says("20-elasticsearch");
    fs::remove_file(it.daemon.setup().hooks_dir().join("20-elasticsearch.toml")).expect("written above");
    it.daemon.cli(&["freeze", "--id", "unprepared"]).exits(1).says("20-elasticsearch");
}
