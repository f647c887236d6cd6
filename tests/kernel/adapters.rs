//! Other agents drive us: what `hooks install-adapter` installs, called as each agent calls it, and told the truth in its
//! own exit statuses. The real qemu-ga is here; the others are their calling conventions. Databases: tests/databases.

use std::{
    fs,
    time::{Duration, SystemTime},
};

use serde_json::json;

use crate::lab::{
    Daemon, Fs, Lab, Type,
    adapter::{Installed, ended},
    daemon::step,
    process::signal,
    qemu_ga::QemuGa,
    until,
};

facts! {
    where_the_caller_freezes_nothing_is_frozen_or_claimed_of_file_systems,
    a_log_on_a_disk_that_the_caller_froze_keeps_nobody_waiting,
    qemu_ga_goes_on_where_there_is_nothing_to_hold,
    a_refused_hold_makes_qemu_ga_answer_an_error_and_freeze_nothing,
    vmware_tools_are_answered_in_their_words,
    nutanix_is_answered_in_its_words,
    for_google_everything_is_held_and_nobody_elses_hold_is_let_go,
    a_call_to_let_go_that_overtakes_the_other_ends_what_that_prepares,
    azure_is_answered_in_its_words,
    the_data_lifecycle_manager_hears_each_of_its_six_statuses,
    an_agent_that_kills_its_script_leaves_nothing_held,
    what_a_crash_left_behind_stops_no_later_hold,
    an_adapter_among_the_scripts_that_our_own_hold_runs_is_in_nobodys_way,
}

const VMWARE: &str = "/etc/vmware-tools/backupScripts.d/50-holdstill";
const QEMU: &str = "/etc/qemu/holdstill-fsfreeze-hook";

/// A daemon with one disk and a hook that does nothing, and an adapter that asks it.
struct Driven<'lab> {
    daemon: Daemon<'lab>,
    adapter: Installed,
    disk: Fs<'lab>,
}

fn driven<'lab>(lab: &'lab Lab, agent: &str, max: &str) -> Driven<'lab> {
    let disk = lab.fs(Type::Ext4);
    let setup = lab.daemon(&[&disk]).set("hold.max", max);
    setup.hook("10-a", "exit 0");
    let daemon = setup.start();
    let adapter = lab.adapter(&daemon, agent);
    Driven { daemon, adapter, disk }
}

impl Driven<'_> {
    fn last(&self) -> serde_json::Value {
        self.daemon.cli(&["status"]).json["last"].clone()
    }
}

fn where_the_caller_freezes_nothing_is_frozen_or_claimed_of_file_systems(lab: &Lab) {
    let disk = lab.fs(Type::Ext4);
    let setup = lab.daemon(&[&disk]);
    let daemon = setup.start();
    // for itself the mode has nothing to hold here
    let answer = daemon.cli(&["freeze", "--caller-freezes"]);
    assert_eq!(answer.exits(4).reason(), "NOTHING_TO_HOLD");
    daemon.setup().hook("10-a", "exit 0");
    for level in ["application", "filesystem"] {
        let answer = daemon.cli(&["freeze", "--caller-freezes", "--require", level]);
        assert_eq!(answer.exits(4).reason(), "LEVEL_UNREACHABLE");
        answer.says("leave --require out");
    }
    let check = daemon.cli(&["check", "--caller-freezes"]);
    assert_eq!(check.exits(0).json["reachable"], "crash");

    let report = daemon.freeze(&["--caller-freezes", "--for", "10s"]);
    assert_eq!((&report["freeze_by"], &report["consistency"]), (&"caller".into(), &"crash".into()), "{report:#}");
    let fs = step(&report, &disk.step());
    assert_eq!((&fs["outcome"], &fs["required"]), (&"skipped".into(), &false.into()), "{fs:#}");
    assert!(report["problems"].to_string().contains("CALLER_FREEZES"), "{report:#}");
    assert_eq!(daemon.sentinel(), None, "nobody waits for a thaw of ours");
    assert!(!daemon.log().contains(" held"), "a line was written while somebody else may have frozen its disk");
    // theirs is no foreign freeze to us, and ours is in nobody's way
    disk.freeze_by_others();
    assert_eq!(daemon.phase(), "held");
    assert!(disk.thaw_by_others(), "we thawed what the caller froze");
    let report = daemon.thaw();
    assert_eq!((&report["verdict"], &report["consistency"]), (&"unbroken".into(), &"crash".into()), "{report:#}");
    assert_eq!(step(&report, &disk.step())["outcome"], "skipped");
    assert!(!disk.mount.join(".holdstill").exists(), "a receipt of a freeze that is not ours");
    assert!(until(Duration::from_secs(2), || daemon.log().contains("hold over")), "{}", daemon.log());

    // a command that freezes for itself writes to the real disk until it does
    let (file, at) = (disk.mount.join("cut"), disk.at());
    let cut = format!("echo before >{} && fsfreeze -f {at} && fsfreeze -u {at}", file.display());
    daemon.cli(&["run", "--caller-freezes", "--", "sh", "-c", &cut]).exits(0);
    assert_eq!(fs::read_to_string(&file).expect("it was written"), "before\n");
    assert_eq!(daemon.cli(&["rehearse", "--caller-freezes"]).exits(0).report()["freeze_by"], "caller");

    // held through our own deadline, their freeze stays theirs
    daemon.freeze(&["--caller-freezes", "--for", "500ms"]);
    disk.freeze_by_others();
    daemon.wait_for_phase("idle", Duration::from_secs(5));
    assert!(disk.thaw_by_others(), "at the deadline we thawed what the caller froze");
    assert_eq!(daemon.thaw()["verdict"], "broken");
}

fn a_log_on_a_disk_that_the_caller_froze_keeps_nobody_waiting(lab: &Lab) {
    let (disk, other) = (lab.fs(Type::Ext4), lab.fs(Type::Ext4));
    let setup = lab.daemon(&[&disk]);
    let log = setup.run_dir().with_file_name("log");
    std::os::unix::fs::symlink(other.mount.join("log"), log).expect("memory");
    setup.hook("10-a", "exit 0");
    let daemon = setup.start();
    daemon.freeze(&["--caller-freezes", "--for", "500ms"]);
    other.freeze_by_others();
    // what it has to say of the deadline waits, and nothing else does
    daemon.wait_for_phase("idle", Duration::from_secs(3));
    daemon.freeze(&["--caller-freezes", "--for", "10s"]);
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    assert!(!daemon.log().contains("hold over"));
    assert!(other.thaw_by_others());
    let told = || daemon.log().matches("hold over").count() == 2;
    assert!(until(Duration::from_secs(3), told), "{}", daemon.log());
}

fn qemu_ga_goes_on_where_there_is_nothing_to_hold(lab: &Lab) {
    let disk = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&disk]).start();
    let adapter = lab.adapter(&daemon, "qemu-ga");
    let mut qemu_ga = QemuGa::start(lab, Some(&adapter.path(QEMU)));
    // it runs the hook for a thaw without a freeze, too
    assert_eq!(qemu_ga.ask("guest-fsfreeze-thaw"), json!({"return": 0}));
    assert_eq!(qemu_ga.ask("guest-fsfreeze-freeze"), json!({"return": 1}));
    assert_eq!(daemon.phase(), "idle", "there is nothing to hold");
    assert_eq!(qemu_ga.ask("guest-fsfreeze-thaw"), json!({"return": 1}));
    let last = daemon.cli(&["history"]).json["reports"][0].clone();
    assert_eq!((&last["label"], &last["verdict"]), (&"qemu-ga".into(), &"never_held".into()), "it is in the history");
    assert!(daemon.log().contains("no database and no hook to hold"), "{}", daemon.log());
    // with something to hold it is held around the freeze
    daemon.setup().hook("10-a", "exit 0");
    assert_eq!(qemu_ga.ask("guest-fsfreeze-freeze"), json!({"return": 1}));
    assert_eq!(daemon.phase(), "held");
    assert_eq!(qemu_ga.ask("guest-fsfreeze-thaw"), json!({"return": 1}));
    assert_eq!(daemon.cli(&["status"]).json["last"]["verdict"], "unbroken");
}

fn a_refused_hold_makes_qemu_ga_answer_an_error_and_freeze_nothing(lab: &Lab) {
    let it = driven(lab, "qemu-ga", "1s");
    it.daemon.setup().hook("20-b", "echo no >&2; [ $1 = thaw ]");
    let mut qemu_ga = QemuGa::start(lab, Some(&it.adapter.path(QEMU)));
    let refused = qemu_ga.ask("guest-fsfreeze-freeze");
    assert!(refused["error"]["desc"].as_str().is_some_and(|desc| desc.contains("status 1")), "{refused}");
    assert_eq!(qemu_ga.ask("guest-fsfreeze-status"), json!({"return": "thawed"}));
    assert!(it.disk.writable_within(Duration::from_secs(1)));
    assert_eq!(it.daemon.phase(), "idle");
    // the administrator may want a snapshot in any case
    it.adapter.edit(QEMU, "adapter ", "adapter --if-not-held go-on ");
    assert_eq!(qemu_ga.ask("guest-fsfreeze-freeze"), json!({"return": 1}));
    assert_eq!(qemu_ga.ask("guest-fsfreeze-thaw"), json!({"return": 1}));
    // and where all was held, but not until the thaw, that is said
    fs::remove_file(it.daemon.setup().hooks_dir().join("20-b")).expect("it was there");
    assert_eq!(qemu_ga.ask("guest-fsfreeze-freeze"), json!({"return": 1}));
    it.daemon.wait_for_phase("idle", Duration::from_secs(5));
    let late = qemu_ga.ask("guest-fsfreeze-thaw");
    assert!(late["error"]["desc"].as_str().is_some_and(|desc| desc.contains("status 1")), "{late}");
    assert!(it.disk.writable_within(Duration::from_secs(1)), "all is thawed all the same");
}

fn vmware_tools_are_answered_in_their_words(lab: &Lab) {
    let it = driven(lab, "vmware", "2s");
    let call = |word: &str| it.adapter.call(VMWARE, &[word, "an argument of the host's"]);
    assert_eq!(call("thaw"), Some(0), "nothing is held");
    assert_eq!(call("freeze"), Some(0));
    assert_eq!((it.daemon.phase().as_str(), it.disk.writable_within(Duration::from_secs(1))), ("held", true));
    assert_eq!(call("freeze"), Some(1), "again, before the first is over");
    assert_eq!(it.daemon.phase(), "held", "and that one went on");
    assert_eq!(call("thaw"), Some(0));
    assert_eq!((it.last()["verdict"].as_str(), it.last()["label"].as_str()), (Some("unbroken"), Some("vmware")));
    assert_eq!(call("thaw"), Some(0), "again");
    for word in ["freezeFail", "freezefail"] {
        assert_eq!((call("freeze"), call(word)), (Some(0), Some(0)));
        assert_eq!(it.daemon.phase(), "idle", "{word}");
    }
    assert_eq!(call("freeze"), Some(0));
    it.daemon.wait_for_phase("idle", Duration::from_secs(5));
    assert_eq!(call("thaw"), Some(1), "let go by the deadline");
    assert_eq!(call("thaw"), Some(0), "which was said once");
    assert_eq!(call("nonsense"), Some(2));
}

fn nutanix_is_answered_in_its_words(lab: &Lab) {
    let it = driven(lab, "nutanix", "20s");
    assert_eq!(it.adapter.call("/usr/local/sbin/pre_freeze", &[]), Some(0));
    assert_eq!(it.daemon.phase(), "held");
    assert_eq!(it.adapter.call("/usr/local/sbin/post_thaw", &[]), Some(0));
    assert_eq!(it.last()["verdict"], "unbroken");
    // a hook that nobody may run refuses the hold
    let hook = it.daemon.setup().hooks_dir().join("10-a");
    fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("ours");
    assert_eq!(it.adapter.call("/usr/local/sbin/pre_freeze", &[]), Some(1));
    assert_eq!(it.adapter.call("/usr/local/sbin/post_thaw", &[]), Some(0));
}

fn for_google_everything_is_held_and_nobody_elses_hold_is_let_go(lab: &Lab) {
    let it = driven(lab, "google", "20s");
    let (pre, post) = ("/etc/google/snapshots/pre.sh", "/etc/google/snapshots/post.sh");
    let writer = lab.writer(&it.disk);
    // a disk that is not here: nothing is left out
    assert_eq!(it.adapter.call(pre, &["9/9"]), Some(0));
    writer.assert_blocked();
    assert_eq!(it.daemon.cli(&["status"]).json["current"]["consistency"], "application");
    assert_eq!(it.adapter.call(post, &["9/9"]), Some(0));
    writer.assert_writable_within(Duration::from_secs(2));
    assert_eq!(it.last()["verdict"], "unbroken");

    // a disk that is here, and that no file system is known to lie on, is no reason to hold nothing
    let disks = fs::read_dir("/sys/class/block").expect("sysfs").flatten();
    let disk = disks.filter_map(|entry| entry.file_name().into_string().ok()).next().expect("ours, at least");
    assert_eq!(it.adapter.call(pre, &[&disk]), Some(0), "{disk}");
    writer.assert_blocked();
    assert_eq!(it.adapter.call(post, &[&disk]), Some(0), "{disk}");

    it.daemon.freeze(&["--id", "by-hand", "--for", "20s"]);
    assert_eq!(it.adapter.call(pre, &[""]), Some(1));
    assert_eq!(it.adapter.call(post, &[""]), Some(0), "nothing of its own");
    assert_eq!(it.daemon.phase(), "held", "another's hold was let go");
    assert_eq!(it.daemon.cli(&["thaw", "by-hand"]).exits(0).report()["verdict"], "unbroken");
}

fn a_call_to_let_go_that_overtakes_the_other_ends_what_that_prepares(lab: &Lab) {
    let it = driven(lab, "google", "20s");
    let hooks = it.daemon.setup().hooks_dir();
    fs::write(hooks.join("10-a.toml"), "prepare = true\n").expect("memory");
    it.daemon.setup().hook("10-a", "[ $1 = prepare ] && sleep 3; exit 0");
    let pre = it.adapter.start("/etc/google/snapshots/pre.sh", &[""]);
    it.daemon.wait_for_phase("preparing", Duration::from_secs(5));
    assert_eq!(it.adapter.call("/etc/google/snapshots/pre.sh", &[""]), Some(1), "one at a time");
    assert_eq!(it.adapter.call("/etc/google/snapshots/post.sh", &[""]), Some(0));
    assert_eq!(ended(pre), Some(1), "it was not held");
    it.daemon.wait_for_phase("idle", Duration::from_secs(5));
}

fn azure_is_answered_in_its_words(lab: &Lab) {
    let it = driven(lab, "azure", "20s");
    let config = it.adapter.path("/etc/azure/VMSnapshotScriptPluginConfig.json");
    let config: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(config).expect("installed")).expect("JSON, as the extension reads it");
    let script = |key: &str| config[key].as_str().expect("a path").to_owned();
    let (pre, post) = (script("preScriptLocation"), script("postScriptLocation"));
    assert_eq!(it.adapter.shell(&pre, &[]), Some(0));
    assert_eq!(it.daemon.phase(), "held");
    assert!(it.disk.writable_within(Duration::from_secs(1)), "the extension freezes by itself, and would fail");
    assert_eq!(it.adapter.shell(&post, &[]), Some(0));
    assert_eq!(it.last()["verdict"], "unbroken");
    it.daemon.setup().hook("20-b", "exit 7");
    assert_eq!(it.adapter.shell(&pre, &[]), Some(1));
    assert_eq!(it.adapter.shell(&post, &[]), Some(0), "it runs that in any case");
    it.adapter.edit(&pre, "adapter ", "adapter --if-not-held go-on ");
    assert_eq!(it.adapter.shell(&pre, &[]), Some(2), "a warning");
    assert_eq!(it.adapter.shell(&post, &[]), Some(0));
}

fn the_data_lifecycle_manager_hears_each_of_its_six_statuses(lab: &Lab) {
    let it = driven(lab, "aws-dlm", "2s");
    let run = "0b6b4a4e-8c2c-4f53-a9f7-9d8a8a9b8d11";
    let call = |word: &str| it.adapter.shell("script", &[word, run]);
    assert_eq!(call("dry-run"), Some(0));
    assert_eq!(it.daemon.phase(), "idle");
    assert_eq!(call("post-script"), Some(205));
    assert_eq!(call("pre-script"), Some(0));
    assert_eq!(call("pre-script"), Some(204));
    assert_eq!(call("post-script"), Some(0));
    assert_eq!(it.last()["label"], format!("aws-dlm {run}"));
    assert_eq!(call("post-script"), Some(205));
    // whoever runs it by hand has no execution
    assert_eq!(it.adapter.shell("script", &["pre-script", "None"]), Some(0));
    it.daemon.wait_for_phase("idle", Duration::from_secs(5));
    assert_eq!(call("post-script"), Some(203));
    it.daemon.setup().hook("20-b", "[ $1 = thaw ]");
    assert_eq!(call("pre-script"), Some(201));
    fs::set_permissions(
        it.daemon.setup().hooks_dir().join("20-b"),
        std::os::unix::fs::PermissionsExt::from_mode(0o644),
    )
    .expect("ours");
    assert_eq!(call("dry-run"), Some(206));
    fs::remove_file(it.daemon.setup().hooks_dir().join("20-b")).expect("it was there");
    assert_eq!(call("pre-script"), Some(0));
    it.daemon.kill();
    assert_eq!(call("dry-run"), Some(206), "nobody is there to hold");
    assert!(
        until(Duration::from_secs(5), || call("post-script") == Some(202)),
        "nobody is there to say what came of it"
    );
    assert_eq!(call("pre-script"), Some(201));
}

fn an_agent_that_kills_its_script_leaves_nothing_held(lab: &Lab) {
    let it = driven(lab, "vmware", "20s");
    it.daemon.setup().hook("10-a", "[ $1 = freeze ] && sleep 2; exit 0");
    let script = it.adapter.start(VMWARE, &["freeze"]);
    it.daemon.wait_for_phase("quiescing", Duration::from_secs(5));
    signal(script.id().cast_signed(), nix::sys::signal::Signal::SIGKILL);
    it.daemon.wait_for_phase("idle", Duration::from_secs(5));
    assert_eq!((ended(script), it.last()["reason"].as_str()), (None, Some("caller_gone")));
    it.daemon.setup().hook("10-a", "exit 0");
    assert_eq!(it.adapter.call(VMWARE, &["freeze"]), Some(0), "and what it left is no obstacle");
    assert_eq!(it.adapter.call(VMWARE, &["thaw"]), Some(0));
}

fn what_a_crash_left_behind_stops_no_later_hold(lab: &Lab) {
    let it = driven(lab, "vmware", "20s");
    let ticket = it.daemon.setup().run_dir().join("adapter-vmware");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    fs::write(&ticket, format!("vmware-{now}-1")).expect("memory");
    assert_eq!(it.adapter.call(VMWARE, &["thaw"]), Some(1), "nobody knows what became of it");
    assert_eq!(it.adapter.call(VMWARE, &["thaw"]), Some(0));
    fs::write(&ticket, format!("vmware-{now}-1")).expect("memory");
    assert_eq!(it.adapter.call(VMWARE, &["freeze"]), Some(0));
    // nobody else can read it, and a link in its place is not followed
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&ticket).expect("it is there").permissions());
    assert_eq!(it.adapter.call(VMWARE, &["thaw"]), Some(0));
    fs::remove_file(&ticket).expect("ours");
    assert_eq!(it.adapter.call(VMWARE, &["freeze"]), Some(0));
    let fresh = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&ticket).expect("it is there").permissions());
    assert_eq!((mode & 0o022, fresh & 0o777), (0, 0o600));
    assert_eq!(it.adapter.call(VMWARE, &["thaw"]), Some(0));
}

fn an_adapter_among_the_scripts_that_our_own_hold_runs_is_in_nobodys_way(lab: &Lab) {
    let it = driven(lab, "vmware", "20s");
    it.daemon.setup().hook("50-holdstill", &format!("exec {} $1", it.adapter.path(VMWARE).display()));
    let report = it.daemon.freeze(&[]);
    assert!(step(&report, "hook:50-holdstill").to_string().contains("nothing to do"), "{report:#}");
    assert_eq!(it.daemon.thaw()["verdict"], "unbroken");
}
