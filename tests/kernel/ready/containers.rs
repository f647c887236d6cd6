//! `30-containers`, with a command line that stands for Docker's and Podman's: neither starts a container on every machine
//! that runs these tests (crun refuses a machine with both kinds of cgroups). What it pauses is a process that really stops.

use std::{fs, path::PathBuf, time::Duration};

use super::{Server, add};
use crate::lab::{Daemon, Fs, Lab, Type, command, until};

facts! {
    containers_stand_still_while_held_and_only_what_was_paused_goes_on,
    a_container_that_cannot_be_paused_fails_the_hook_and_the_others_go_on,
}

struct Host<'lab> {
    daemon: Daemon<'lab>,
    dir: PathBuf,
    servers: Vec<Server>,
    _disk: Fs<'lab>,
}

fn host<'lab>(lab: &'lab Lab, settings: &str) -> Host<'lab> {
    let disk = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&disk]).start();
    let dir = lab.memory_dir("containers");
    let docker = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/containers/docker");
    let cli = format!("cli='env FAKE_CONTAINERS={} {docker}' ", dir.display());
    add(&daemon, "30-containers", settings, &[("cli=docker ", &cli), ("containers='\n", "containers='\nnamed\n")]);
    let mut host = Host { daemon, dir, servers: Vec::new(), _disk: disk };
    for (name, labels) in [("named", ""), ("labelled", "holdstill.pause=yes\n"), ("other", "tier=web\n")] {
        host.container(name, labels);
    }
    host
}

impl Host<'_> {
    fn container(&mut self, name: &str, labels: &str) {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir).expect("memory");
        let counts = "echo $$ > pid; while :; do i=$((i+1)); echo $i > count; sleep 0.01; done";
        self.servers.push(Server::start(command("sh").args(["-c", counts]).current_dir(&dir)));
        fs::write(dir.join("labels"), labels).expect("memory");
        fs::write(dir.join("status"), "running\n").expect("memory");
        assert!(until(Duration::from_secs(5), || dir.join("pid").exists()), "it does not run");
    }

    fn status(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join(name).join("status")).expect("memory").trim().to_owned()
    }

    fn moves(&self, name: &str) -> bool {
        let count = || fs::read_to_string(self.dir.join(name).join("count")).unwrap_or_default();
        let before = count();
        until(Duration::from_millis(500), || !count().trim().is_empty() && count() != before)
    }
}

fn containers_stand_still_while_held_and_only_what_was_paused_goes_on(lab: &Lab) {
    let mut it = host(lab, "required = false\n");
    it.container("paused-before", "holdstill.pause=yes\n");
    fs::write(it.dir.join("paused-before/status"), "paused\n").expect("memory");
    let report = it.daemon.freeze(&["--for", "20s"]);
    assert_eq!(report["consistency"], "filesystem", "pausing proves nothing about an application: {report:#}");
    assert!(!it.moves("named") && !it.moves("labelled") && it.moves("other"));
    it.daemon.thaw();
    assert!(it.moves("named") && it.moves("labelled"));
    assert_eq!(it.status("paused-before"), "paused");

    it.daemon.freeze(&["--for", "20s"]);
    it.daemon.kill();
    assert!(until(Duration::from_secs(5), || it.moves("named") && it.moves("labelled")), "nobody goes on");
    assert_eq!(it.status("paused-before"), "paused");
}

fn a_container_that_cannot_be_paused_fails_the_hook_and_the_others_go_on(lab: &Lab) {
    let it = host(lab, "");
    for how in ["refuses", "half"] {
        fs::write(it.dir.join("labelled").join(how), "").expect("memory");
        it.daemon.cli(&["freeze"]).exits(1).says("30-containers");
        assert!(it.moves("named") && it.moves("labelled") && it.moves("other"), "{how}");
        fs::remove_file(it.dir.join("labelled").join(how)).expect("memory");
    }
    it.daemon.freeze(&["--for", "5s"]);
    assert_eq!(it.daemon.thaw()["verdict"], "unbroken");
}
