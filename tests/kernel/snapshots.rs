//! Promise: a machine whose host has no channel takes its own snapshots with its cloud's command line, and every one of them
//! says what it is worth. The script and its samples are those of `packaging/`; the cloud is `tests/fixtures/cloud/aws`,
//! which writes into $HOME and /var, on the root that is held.

use std::{fs, path::Path, path::PathBuf, time::Duration};

use crate::lab::{
    Daemon, Lab, command,
    daemon::{Answer, Running},
    disk::needs_recovery,
    private_root::PrivateRoot,
};

facts! {
    a_snapshot_is_cut_while_held_tagged_noted_and_old_ones_go within 60,
    a_lightsail_snapshot_is_called_after_its_hold within 60,
    a_command_line_that_fails_fails_the_unit_and_is_mailed within 60,
    a_command_line_that_hangs_is_ended_before_the_deadline within 60,
    a_snapshot_that_came_after_the_deadline_is_tagged_broken_or_deleted within 60,
    nothing_is_cut_when_nothing_can_be_held within 60,
    a_name_that_comes_later_stays_with_its_hold,
}

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging");
const AWS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/cloud/aws");

struct Cloud<'lab> {
    lab: &'lab Lab,
    daemon: Daemon<'lab>,
    root: PrivateRoot<'lab>,
    /// what the cloud remembers
    dir: PathBuf,
}

fn cloud<'lab>(lab: &'lab Lab, shape: &str, more: &str) -> Cloud<'lab> {
    let root = lab.private_root();
    let daemon = lab.daemon_at(&[Path::new("/"), Path::new("/mnt/ephemeral")]).inside(&root).start();
    let dir = lab.memory_dir("cloud");
    fs::create_dir_all(root.outside("/etc/holdstill/snapshot")).expect("it has room");
    fs::create_dir_all(root.outside("/var/log")).expect("it has room");
    fs::copy(Path::new(SHIPPED).join("usr/lib/holdstill/snapshot"), root.outside("/opt/snapshot"))
        .expect("it is shipped");
    fs::copy(AWS, root.outside("/opt/aws")).expect("it is there");
    // Debian's /usr/bin/awk is a link that leads through /etc/alternatives
    std::os::unix::fs::symlink("/usr/bin/mawk", root.outside("/opt/awk")).expect("it has room");
    let mail = format!("#!/bin/sh\ncat >> {}/mail\n", dir.display());
    fs::write(root.outside("/opt/sendmail"), mail).expect("it has room");
    command("chmod").args(["755"]).arg(root.outside("/opt/sendmail")).status().expect("coreutils");
    let sample = fs::read_to_string(format!("{SHIPPED}/etc/holdstill/snapshot/{shape}.conf.sample")).expect("shipped");
    let here = format!(
        "PATH=/opt:$PATH; export FAKE_CLOUD={} FAKE_DISK={} HOLDSTILL_SOCKET={}\n\
         SENDMAIL=/opt/sendmail MAIL_TO=dba@example.com LINGER=0 SETTLE=0.1 KEEP=2\n{more}\n",
        dir.display(),
        root.ephemeral.disk.image.display(),
        daemon.socket().display()
    );
    fs::write(root.outside("/etc/holdstill/snapshot/nightly.conf"), sample + &here).expect("it has room");
    let cloud = Cloud { lab, daemon, root, dir };
    cloud.mode("well");
    cloud
}

impl Cloud<'_> {
    fn mode(&self, mode: &str) {
        fs::write(self.dir.join("mode"), mode).expect("memory");
    }

    /// As the unit runs it.
    fn snapshot(&self) -> Answer {
        let wrapper = self.root.wrapper();
        let mut snapshot = command(&wrapper[0]);
        snapshot.args(&wrapper[1..]).args(["/opt/snapshot", "nightly"]).env_remove("HOME");
        Running::start(self.lab, &mut snapshot).finish_within(Duration::from_secs(30))
    }

    /// The lines the cloud remembers, oldest first, each as its words: TIME NAME ID VERDICT SET LEVEL.
    fn remembers(&self) -> Vec<Vec<String>> {
        let text = fs::read_to_string(self.dir.join("snapshots")).unwrap_or_default();
        text.lines().map(|line| line.split(' ').map(str::to_owned).collect()).collect()
    }

    fn mail(&self) -> String {
        fs::read_to_string(self.dir.join("mail")).unwrap_or_default()
    }

    fn last_hold(&self) -> serde_json::Value {
        self.daemon.cli(&["history"]).json["reports"][0].clone()
    }
}

fn a_snapshot_is_cut_while_held_tagged_noted_and_old_ones_go(lab: &Lab) {
    let cloud = cloud(lab, "ebs", "");
    cloud.snapshot().exits(0).says("cut inside an unbroken hold, filesystem");
    let first = cloud.remembers();
    assert_eq!(first.len(), 2, "both volumes: {first:?}");
    let hold = cloud.last_hold();
    let id = hold["id"].as_str().expect("it has one");
    assert!(id.starts_with("nightly-"), "{id}");
    for line in &first {
        assert_eq!(line[2..], [id, "unbroken", "nightly", "filesystem"], "{first:?}");
        assert!(!needs_recovery(&cloud.dir.join(format!("{}.img", line[1]))), "it was not cut while held");
    }
    let refs = format!("{} {}", first[0][1], first[1][1]);
    assert_eq!(hold["snapshot_ref"], refs.as_str());
    let table = crate::lab::process::tool(
        command(crate::lab::daemon::BINARY).arg("--socket").arg(cloud.daemon.socket()).arg("history"),
    );
    assert!(table.contains(&refs), "{table}");
    // the cuts left nothing on the disk; what was asked outside the hold may
    let log = fs::read_to_string(cloud.root.outside("/var/log/aws/history.log")).expect("it was written");
    assert!(!log.contains("create-snapshots") && log.contains("create-tags"), "{log}");

    cloud.snapshot().exits(0);
    cloud.snapshot().exits(0).says(&format!("deleted {}", first[0][1]));
    let left = cloud.remembers();
    assert!(left.len() == 4 && left.iter().all(|line| line[2] != first[0][2]), "{left:?}");
    assert_eq!(cloud.mail(), "", "nobody is told that all is well");
}

fn a_lightsail_snapshot_is_called_after_its_hold(lab: &Lab) {
    let cloud = cloud(lab, "lightsail", "LINGER=0.2 KEEP=1");
    cloud.snapshot().exits(0);
    let hold = cloud.last_hold();
    let id = hold["id"].as_str().expect("it has one").to_owned();
    assert_eq!(cloud.remembers()[0][1..], [&*id, &*id, "unbroken", "nightly", "filesystem"]);
    assert_eq!(hold["snapshot_ref"], id.as_str());
    cloud.snapshot().exits(0).says(&format!("deleted {id}"));
    assert_eq!(cloud.remembers().len(), 1);
}

fn a_command_line_that_fails_fails_the_unit_and_is_mailed(lab: &Lab) {
    let cloud = cloud(lab, "ebs", "");
    cloud.mode("fails");
    cloud.snapshot().exits(1);
    let mail = cloud.mail();
    for said in
        ["To: dba@example.com", "the hold was fine, the snapshot failed", "RequestLimitExceeded", "snapshot:  none"]
    {
        assert!(mail.contains(said), "the mail does not say {said:?}:\n{mail}");
    }
    assert_eq!(cloud.last_hold()["verdict"], "unbroken");
    // the cloud has cut, and the answer was lost: nobody knows whether in time
    cloud.mode("fails-after");
    cloud.snapshot().exits(1).says("stays tagged unproven");
    assert!(cloud.remembers().iter().all(|line| line[3] == "unproven"), "{:?}", cloud.remembers());
}

fn a_command_line_that_hangs_is_ended_before_the_deadline(lab: &Lab) {
    let cloud = cloud(lab, "ebs", "CUT_LIMIT=1");
    cloud.mode("hangs");
    let answer = cloud.snapshot();
    answer.exits(1).says("had not ended after 1 s");
    assert!(answer.took < Duration::from_secs(12), "{answer:?}");
    assert_eq!(cloud.last_hold()["verdict"], "unbroken", "let go long before its deadline");
    assert!(cloud.root.root.writable_within(Duration::from_secs(2)));
}

fn a_snapshot_that_came_after_the_deadline_is_tagged_broken_or_deleted(lab: &Lab) {
    let cloud = cloud(lab, "ebs", "FOR=300ms");
    cloud.mode("late");
    cloud.snapshot().exits(3).says("BROKEN").says("no better than a pulled plug");
    let cut = cloud.remembers();
    assert!(cut.len() == 2 && cut.iter().all(|line| line[3] == "broken"), "{cut:?}");
    assert!(cloud.mail().contains("the hold was BROKEN"), "{}", cloud.mail());
    let hold = cloud.last_hold();
    assert_eq!((&hold["verdict"], &hold["reason"]), (&"broken".into(), &"deadline".into()));
    assert!(hold["snapshot_ref"].as_str().is_some_and(|r| r.contains(&cut[0][1])), "{hold}");
    let conf = cloud.root.outside("/etc/holdstill/snapshot/nightly.conf");
    let text = fs::read_to_string(&conf).expect("written above");
    fs::write(&conf, text + "ON_BROKEN=delete\n").expect("it has room");
    cloud.snapshot().exits(3).says("deleting");
    assert_eq!(cloud.remembers(), cut, "what the second one cut is gone");
}

fn nothing_is_cut_when_nothing_can_be_held(lab: &Lab) {
    let cloud = cloud(lab, "ebs", "REQUIRE=application");
    cloud.snapshot().exits(4).says("nothing was cut");
    assert!(cloud.remembers().is_empty());
    assert!(cloud.mail().contains("nothing was held"), "{}", cloud.mail());
    cloud.daemon.kill();
    cloud.snapshot().exits(4);
    assert_eq!(fs::read_to_string(cloud.dir.join("asked")).unwrap_or_default(), "", "the cloud was never asked");
}

fn a_name_that_comes_later_stays_with_its_hold(lab: &Lab) {
    let disk = lab.fs(crate::lab::Type::Ext4);
    let daemon = lab.daemon(&[&disk]).start();
    for id in ["older", "newer"] {
        daemon.freeze(&["--id", id, "--for", "5s"]);
        daemon.thaw();
    }
    // also while another hold is in progress
    daemon.freeze(&["--id", "held", "--for", "10s"]);
    daemon.cli(&["thaw", "older", "--snapshot-ref", "snap-1"]).exits(0);
    daemon.cli(&["thaw", "held"]).exits(0);
    daemon.cli(&["thaw", "newer", "--snapshot-ref", "snap-2"]).exits(0);
    daemon.cli(&["thaw", "newer", "--snapshot-ref", "snap-3"]).exits(0);
    let told = |daemon: &Daemon| {
        let reports = daemon.cli(&["history"]).json["reports"].clone();
        let one = |r: &serde_json::Value| format!("{} {}", r["id"], r["snapshot_ref"]).replace('"', "");
        reports.as_array().expect("a list").iter().map(one).collect::<Vec<_>>()
    };
    let wanted = ["held ", "newer snap-2", "older snap-1"];
    assert_eq!(told(&daemon), wanted, "the first name stays, and the order too");
    // kept across a reboot, which empties what is in memory
    let kept = || {
        crate::lab::until(Duration::from_secs(3), || {
            let state = daemon.setup().run_dir().with_file_name("state").join("history");
            ["older", "newer"]
                .iter()
                .all(|id| fs::read(state.join(format!("{id}.pb"))).is_ok_and(|b| b.windows(5).any(|w| w == b"snap-")))
        })
    };
    assert!(kept(), "it was not kept on the disk");
    daemon.kill();
    fs::remove_dir_all(daemon.setup().run_dir().join("history")).expect("memory");
    assert_eq!(told(&daemon.again()), wanted);
}
