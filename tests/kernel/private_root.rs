//! Everything including `/` is held, inside a root of the laboratory.

use std::{fs, path::Path, time::Duration};

use crate::lab::{
    Lab, Type, command,
    daemon::{Running, step},
    private_root::PrivateRoot,
    until,
};

facts! {
    the_root_itself_is_held_and_let_go within 60,
    an_empty_include_means_every_local_writable_file_system within 60,
    the_deadline_lets_go_of_the_root_too within 60,
    a_killed_daemon_lets_go_of_the_root_too within 60,
    rescue_lets_go_of_the_root_from_within within 60,
    run_runs_a_command_that_writes_everywhere_while_the_root_is_held within 90,
    run_ends_a_command_when_the_hold_breaks within 60,
}

/// A daemon inside, holding the root and the second disk.
macro_rules! daemon_inside {
    ($lab:expr, $root:expr) => {
        $lab.daemon_at(&[Path::new("/"), Path::new("/mnt/ephemeral")]).inside(&$root)
    };
}

fn writers(lab: &Lab, root: &PrivateRoot) -> [crate::lab::Writer; 2] {
    [lab.writer(&root.root), lab.writer(&root.ephemeral)]
}

fn the_root_itself_is_held_and_let_go(lab: &Lab) {
    let root = lab.private_root();
    let daemon = daemon_inside!(lab, root).start();
    let writers = writers(lab, &root);
    for round in ["first", "second"] {
        let report = daemon.freeze(&["--id", round, "--for", "20s"]);
        assert_eq!(report["consistency"], "filesystem", "{report:#}");
        for writer in &writers {
            writer.assert_blocked();
        }
        assert_eq!(daemon.phase(), "held", "a client starts, asks and is answered on a frozen root");
        assert_eq!(daemon.thaw()["verdict"], "unbroken");
        for writer in &writers {
            writer.assert_writable_within(Duration::from_secs(2));
        }
    }
    drop((daemon, writers));
}

fn an_empty_include_means_every_local_writable_file_system(lab: &Lab) {
    let root = lab.private_root();
    let none: Vec<String> = Vec::new();
    // safe here alone: nothing but the laboratory's disks is mounted inside, which private_root() has made sure of
    let daemon = daemon_inside!(lab, root).set("filesystems.include", none).start();
    let writers = writers(lab, &root);
    let report = daemon.freeze(&["--for", "20s"]);
    for writer in &writers {
        writer.assert_blocked();
    }
    for name in ["fs:/", "fs:/mnt/ephemeral"] {
        assert_eq!(step(&report, name)["outcome"], "done", "{report:#}");
    }
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    drop((daemon, writers));
}

fn the_deadline_lets_go_of_the_root_too(lab: &Lab) {
    let root = lab.private_root();
    let daemon = daemon_inside!(lab, root).start();
    let writers = writers(lab, &root);
    daemon.freeze(&["--for", "1s"]);
    for writer in &writers {
        writer.assert_writable_within(Duration::from_secs(4));
    }
    daemon.cli(&["thaw"]).exits(3);
    drop((daemon, writers));
}

fn a_killed_daemon_lets_go_of_the_root_too(lab: &Lab) {
    let root = lab.private_root();
    let daemon = daemon_inside!(lab, root).start();
    let writers = writers(lab, &root);
    daemon.freeze(&["--for", "30s"]);
    daemon.kill();
    for writer in &writers {
        writer.assert_writable_within(Duration::from_secs(2));
    }
    let daemon = daemon.again();
    daemon.freeze(&["--for", "10s"]);
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    drop((daemon, writers));
}

fn rescue_lets_go_of_the_root_from_within(lab: &Lab) {
    use crate::lab::process::{ours, signal};
    use nix::sys::signal::Signal;
    let root = lab.private_root();
    let daemon = daemon_inside!(lab, root).start();
    let writers = writers(lab, &root);
    daemon.freeze(&["--for", "40s"]);
    let all = ours();
    for kind in [Signal::SIGSTOP, Signal::SIGKILL] {
        all.iter().for_each(|p| signal(p.pid, kind));
    }
    writers[0].assert_blocked();
    let config = daemon.setup().config_path();
    let setup = daemon.forsake();
    // from the frozen root itself: the program, its libraries and its configuration are read, nothing is written
    let wrapper = root.wrapper();
    let mut rescue = command(&wrapper[0]);
    rescue.args(&wrapper[1..]).arg(crate::lab::private_root::PROGRAM).arg("rescue").arg("--config").arg(config);
    Running::start(lab, &mut rescue).finish_within(Duration::from_secs(10)).exits(0);
    for writer in &writers {
        writer.assert_writable_within(Duration::from_secs(2));
    }
    let daemon = setup.start();
    daemon.freeze(&["--for", "10s"]);
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    drop((daemon, writers));
}

fn run_runs_a_command_that_writes_everywhere_while_the_root_is_held(lab: &Lab) {
    let root = lab.private_root();
    let daemon = daemon_inside!(lab, root).start();
    let writers = writers(lab, &root);
    root.tool(
        "sqlite3",
        &["/root/history.db", "PRAGMA journal_mode=WAL; CREATE TABLE h (n); INSERT INTO h VALUES (1);"],
    );
    let held = lab.memory_dir("run").join("phase");
    let script = format!(
        "set -e
         sqlite3 /root/history.db 'INSERT INTO h VALUES (2); SELECT count(*) FROM h;'
         echo cache > /tmp/cache
         mkdir -p /root/.config/cli && echo session > /root/.config/cli/session
         echo photographed > /mnt/ephemeral/note
         {} --socket {} --json status > {}
         sleep 0.5 # as long as asking a cloud takes, and enough for a writer to be seen waiting
         echo done",
        crate::lab::private_root::PROGRAM,
        daemon.socket().display(),
        held.display()
    );
    // stdout of `run` itself lies on the frozen root
    let wrapper = root.wrapper();
    let mut run = command(&wrapper[0]);
    let shell =
        "exec \"$0\" --socket \"$1\" run --for 30s --keep /root/.config/cli -- env HOME=/root sh -c \"$2\" > /root/out";
    run.args(&wrapper[1..]).args(["sh", "-c", shell, crate::lab::private_root::PROGRAM]);
    run.arg(daemon.socket()).arg(script);
    let answer = Running::start(lab, &mut run).finish_within(Duration::from_secs(40));
    let out = fs::read_to_string(root.outside("/root/out")).expect("it was redirected there");
    assert_eq!(answer.code, Some(0), "the command said {out:?}; {answer:?}");
    let status = fs::read_to_string(held).expect("the command got that far");
    assert!(status.contains("\"held\""), "it did not run while all was held: {status}");
    assert_eq!(out.trim(), "2\ndone", "what the command printed appears after the release");
    assert!(writers[0].longest() >= Duration::from_millis(30), "nobody waited: was anything held?");
    // what it wrote has vanished, except what was to be kept
    assert_eq!(root.tool("sqlite3", &["/root/history.db", "SELECT count(*) FROM h"]).trim(), "1");
    assert!(!root.outside("/tmp/cache").exists() && !root.ephemeral.mount.join("note").exists());
    let kept = fs::read_to_string(root.outside("/root/.config/cli/session"));
    assert_eq!(kept.expect("--keep").trim(), "session");
    drop((daemon, writers));
}

fn run_ends_a_command_when_the_hold_breaks(lab: &Lab) {
    let fs = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&fs]).start();
    let writer = lab.writer(&fs);
    let pid = lab.memory_dir("run").join("pid");
    let script = format!("echo $$ > {}; exec sleep 50", pid.display());
    let mut running = daemon.start_cli(&["run", "--for", "1s", "--", "sh", "-c", &script]);
    assert!(until(Duration::from_secs(15), || running.has_ended()), "the deadline passed, and the command still runs");
    running.finish().exits(124);
    let pid: i32 = std::fs::read_to_string(pid).expect("it was started").trim().parse().expect("a pid");
    assert!(!crate::lab::process::alive(pid), "the command outlived the hold");
    writer.assert_writable_within(Duration::from_secs(2));
}
