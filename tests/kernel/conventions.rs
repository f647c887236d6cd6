//! Scripts written for other agents run unmodified, as their authors expect, and are undone as ours are.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::lab::{
    Daemon, Fs, Lab, Type,
    daemon::{Answer, Setup, step},
    until,
};

facts! {
    scripts_of_several_agents_run_among_our_own_hooks_in_order_and_are_undone_in_reverse,
    a_failing_script_of_the_qemu_agent_lowers_the_level_and_is_said,
    vmware_scripts_are_told_freeze_fail_when_the_hold_never_was,
    a_vmware_script_whose_daemon_is_killed_is_told_how_far_the_hold_came,
    googles_scripts_are_told_the_disks,
    azures_configuration_is_followed,
    an_ssm_document_is_run_as_ssm_would_and_its_statuses_have_names,
    a_document_whose_daemon_is_killed_gets_its_post_script,
    a_hook_runs_as_the_user_it_names_also_when_rescued,
    what_a_convention_needs_and_does_not_find_refuses_the_freeze,
    a_hook_is_neither_removed_nor_tested_while_a_hold_needs_it,
}

/// A file system, and a place in memory for scripts and what they note.
struct Place<'lab> {
    lab: &'lab Lab,
    disk: Fs<'lab>,
    memory: PathBuf,
}

fn place(lab: &Lab) -> Place<'_> {
    Place { lab, disk: lab.fs(Type::Ext4), memory: lab.memory_dir("scripts") }
}

impl Place<'_> {
    /// A script that notes its name and arguments, and then does `then`.
    fn script(&self, path: &str, then: &str) -> PathBuf {
        let path = self.memory.join(path);
        fs::create_dir_all(path.parent().expect("it has one")).expect("memory");
        let log = self.memory.join("log");
        fs::write(&path, format!("#!/bin/sh\necho \"${{0##*/}} $*\" >> {}\n{then}\n", log.display())).expect("memory");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("memory");
        path
    }

    fn setup(&self) -> Setup<'_> {
        self.lab.daemon(&[&self.disk]).set("hooks.timeout", "2s")
    }

    /// A convention switched on in the configuration.
    fn configured(&self, convention: &str, path: &Path) -> Setup<'_> {
        self.setup().set("hooks.convention", vec![entry(convention, path)])
    }

    fn story(&self) -> String {
        let log = fs::read_to_string(self.memory.join("log")).unwrap_or_default();
        log.lines().map(str::trim).collect::<Vec<_>>().join(", ")
    }

    fn expect(&self, story: &str) {
        assert!(until(Duration::from_secs(5), || self.story() == story), "{:?} instead of {story:?}", self.story());
    }
}

/// `holdstill hooks …`, with the daemon's configuration.
fn hooks(daemon: &Daemon, args: &[&str]) -> Answer {
    let config = daemon.setup().config_path();
    let all = [&["hooks", "--config", config.to_str().expect("ASCII")], args].concat();
    daemon.cli(&all)
}

fn entry(convention: &str, path: &Path) -> toml::Value {
    let text = |text: &str| toml::Value::from(text);
    let pairs = [("convention", text(convention)), ("path", text(path.to_str().expect("ASCII")))];
    toml::Table::from_iter(pairs.map(|(key, value)| (key.to_owned(), value))).into()
}

/// After a SIGKILL of the daemon whoever is left undoes; as systemd does, rescue is run, too.
fn rescue(daemon: &Daemon, lab: &Lab) {
    let config = daemon.setup().config_path();
    lab.holdstill(&["rescue", "--config", config.to_str().expect("ASCII")]).exits(0);
}

fn scripts_of_several_agents_run_among_our_own_hooks_in_order_and_are_undone_in_reverse(lab: &Lab) {
    let it = place(lab);
    it.script("qemu/10-q", "");
    it.script("qemu/20-old.sample", "exit 1");
    fs::write(it.memory.join("qemu/README"), "not executable").expect("memory");
    it.script("vmware/10-v", "");
    it.script("vmware/20-w", "");
    it.script("legacy/pre-freeze-script", "");
    it.script("legacy/post-thaw-script", "");
    it.script("nutanix/pre_freeze", "");
    it.script("nutanix/post_thaw", "");
    let own = it.script("30-own", "");
    let rows = vec![entry("qemu", &it.memory.join("qemu")), entry("nutanix", &it.memory.join("nutanix"))];
    let daemon = it.setup().set("hooks.convention", rows).start();
    let at = |name: &str| it.memory.join(name).display().to_string();
    hooks(&daemon, &["add", own.to_str().expect("ASCII")]).exits(0);
    let vmware = ["add", "--convention", "vmware", &at("vmware"), "--argument", "two words", "--order", "20"];
    hooks(&daemon, &vmware).exits(0).says("20-vmware/10-v");
    hooks(&daemon, &["add", "--convention", "vmware-legacy", &at("legacy"), "--order", "5"]).exits(0);
    let report = daemon.freeze(&["--for", "5s"]);
    assert_eq!(report["consistency"], "application", "{report:#}");
    assert!(report.to_string().contains("50-qemu/README"), "what is passed over is said: {report:#}");
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    it.expect(
        "pre-freeze-script, 10-v freeze two words, 20-w freeze two words, 30-own freeze, pre_freeze, 10-q freeze, \
         10-q thaw, post_thaw, 30-own thaw, 20-w thaw two words, 10-v thaw two words, post-thaw-script",
    );
    let listed = hooks(&daemon, &["list"]).json.clone();
    let names: Vec<&str> =
        listed["hooks"].as_array().expect("a list").iter().filter_map(|h| h["name"].as_str()).collect();
    assert_eq!(names, ["05-vmware-legacy", "20-vmware/10-v", "20-vmware/20-w", "30-own", "50-nutanix", "50-qemu/10-q"]);
    assert_eq!(listed["hooks"][1]["last_run"]["step"]["outcome"], "undone", "{listed:#}");
}

fn a_failing_script_of_the_qemu_agent_lowers_the_level_and_is_said(lab: &Lab) {
    let it = place(lab);
    it.script("qemu/10-a", "");
    it.script("qemu/20-b", "echo 'no license' >&2; [ $1 = thaw ]");
    let daemon = it.configured("qemu", &it.memory.join("qemu")).start();
    let report = daemon.freeze(&["--for", "5s"]);
    assert_eq!(report["consistency"], "filesystem", "its own agent would have logged it and said nothing: {report:#}");
    assert!(report["problems"].to_string().contains("HOOK_FAILED"), "{report:#}");
    assert!(step(&report, "hook:50-qemu/20-b").to_string().contains("no license"), "{report:#}");
    daemon.thaw();
    it.expect("10-a freeze, 20-b freeze, 20-b thaw, 10-a thaw");
}

fn vmware_scripts_are_told_freeze_fail_when_the_hold_never_was(lab: &Lab) {
    let it = place(lab);
    it.script("vmware/10-a", "");
    it.script("vmware/20-b", "[ $1 != freeze ]");
    it.script("vmware/30-c", "");
    let daemon = it.configured("vmware", &it.memory.join("vmware")).start();
    let answer = daemon.cli(&["freeze"]);
    answer.exits(1).says("50-vmware/20-b");
    // VMware leaves the one that failed half-way without a word; here it is told as well
    it.expect("10-a freeze, 20-b freeze, 20-b freezeFail, 10-a freezeFail");
}

fn a_vmware_script_whose_daemon_is_killed_is_told_how_far_the_hold_came(lab: &Lab) {
    let it = place(lab);
    it.script("vmware/10-a", "");
    let daemon = it.configured("vmware", &it.memory.join("vmware")).start();
    daemon.freeze(&["--for", "20s"]);
    daemon.kill();
    assert!(it.disk.writable_within(Duration::from_secs(2)));
    rescue(&daemon, lab);
    it.expect("10-a freeze, 10-a thaw");

    fs::remove_file(it.memory.join("log")).expect("written above");
    it.script("vmware/20-b", "[ $1 != freeze ] || sleep 30");
    let daemon = daemon.again();
    let mut asking = daemon.start_cli(&["freeze"]);
    it.expect("10-a freeze, 20-b freeze");
    daemon.kill();
    rescue(&daemon, lab);
    it.expect("10-a freeze, 20-b freeze, 20-b freezeFail, 10-a freezeFail");
    assert!(until(Duration::from_secs(5), || asking.has_ended()));
}

fn googles_scripts_are_told_the_disks(lab: &Lab) {
    let it = place(lab);
    it.script("google/pre.sh", "");
    it.script("google/post.sh", "");
    let daemon = it.configured("google", &it.memory.join("google")).start();
    daemon.freeze(&["--for", "5s"]);
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    let story = it.story();
    let disk = story.strip_prefix("pre.sh ").and_then(|rest| rest.split(',').next()).expect("it ran").to_owned();
    assert!(disk.starts_with("loop"), "{story}");
    it.expect(&format!("pre.sh {disk}, post.sh {disk}"));
}

fn azures_configuration_is_followed(lab: &Lab) {
    let it = place(lab);
    let pre = it.script("azure/pre.sh", "[ $(grep -c ^pre $(dirname $0)/../log) -lt 2 ] && exit 1; exit 2");
    let post = it.script("azure/post.sh", "");
    // run by sh: its mode may be the 0600 that Azure asks for
    fs::set_permissions(&post, fs::Permissions::from_mode(0o600)).expect("memory");
    let config = it.memory.join("azure/VMSnapshotScriptPluginConfig.json");
    let write = |keep_on: bool| {
        let text = format!(
            r#"{{"pluginName": "ScriptRunner", "appName": "", "preScriptLocation": "{}", "postScriptLocation": "{}",
                "preScriptParams": ["a b", 7], "postScriptParams": [], "preScriptNoOfRetries": 1,
                "postScriptNoOfRetries": 0, "timeoutInSeconds": 3, "continueBackupOnFailure": {keep_on},
                "fsFreezeEnabled": false}}"#,
            pre.display(),
            post.display()
        );
        fs::write(&config, text).expect("memory");
    };
    write(true);
    let daemon = it.configured("azure", &config).start();
    let report = daemon.freeze(&["--for", "5s"]);
    assert!(report["problems"].to_string().contains("HOOK_WARNED"), "2 is a warning: {report:#}");
    assert!(report["problems"].to_string().contains("fsFreezeEnabled"), "{report:#}");
    daemon.thaw();
    it.expect("pre.sh a b 7, pre.sh a b 7, post.sh");
    let listed = hooks(&daemon, &["list"]).json.clone();
    assert_eq!((&listed["hooks"][0]["limit"], &listed["hooks"][0]["required"]), (&"3s".into(), &false.into()));

    write(false);
    it.script("azure/pre.sh", "exit 1");
    daemon.cli(&["freeze"]).exits(1).says("status 1");
}

/// As AWS's own sample does it: the parameters are put into the text, and the last line answers.
const DOCUMENT: &str = r##"{"schemaVersion": "2.2", "parameters": {
    "executionId": {"type": "String", "default": "None"},
    "command": {"type": "String", "default": "dry-run", "allowedValues": ["pre-script", "post-script", "dry-run"]},
    "log": {"type": "String", "default": "LOG"}},
  "mainSteps": [{"action": "aws:runShellScript", "precondition": {"StringEquals": ["platformType", "Linux"]},
    "name": "run_script", "inputs": {"runCommand": ["#!/bin/bash", "OPERATION={{ command }}", "EXECUTION_ID={{executionId}}",
      "[[ $OPERATION == *-script ]] && echo \"$OPERATION $EXECUTION_ID\" >> {{ log }}", "STATUS", "exit 0"]}}]}"##;

fn document(it: &Place<'_>, statuses: &str) -> PathBuf {
    let path = it.memory.join("document.json");
    let log = it.memory.join("log").display().to_string();
    fs::write(&path, DOCUMENT.replace("LOG", &log).replace("STATUS", statuses)).expect("memory");
    path
}

fn an_ssm_document_is_run_as_ssm_would_and_its_statuses_have_names(lab: &Lab) {
    let it = place(lab);
    let daemon = it.configured("aws-dlm", &document(&it, "")).start();
    let id = "8b3a4f0c-2f5e-4a4c-9d3e-0a1b2c3d4e5f";
    assert_eq!(daemon.freeze(&["--for", "5s", "--id", id])["consistency"], "filesystem", "it is not required");
    daemon.thaw();
    it.expect(&format!("pre-script {id}, post-script {id}"));
    fs::remove_file(it.memory.join("log")).expect("written above");
    document(&it, "[ $OPERATION = pre-script ] && exit 206 || exit 205");
    let report = daemon.freeze(&["--for", "5s", "--id", "nightly"]);
    assert!(
        step(&report, "hook:50-aws-dlm")["reason"].to_string().contains("206 (the application is not ready)"),
        "{report:#}"
    );
    let report = daemon.thaw();
    assert_ne!(step(&report, "hook:50-aws-dlm")["outcome"], "undo_failed", "205: it had nothing to thaw: {report:#}");
    it.expect("pre-script None, post-script None");
}

fn a_document_whose_daemon_is_killed_gets_its_post_script(lab: &Lab) {
    let it = place(lab);
    let daemon = it.configured("aws-dlm", &document(&it, "")).start();
    daemon.freeze(&["--for", "20s", "--id", "nightly"]);
    daemon.kill();
    assert!(it.disk.writable_within(Duration::from_secs(2)));
    rescue(&daemon, lab);
    it.expect("pre-script None, post-script None");
}

fn a_hook_runs_as_the_user_it_names_also_when_rescued(lab: &Lab) {
    let it = place(lab);
    let daemon = it.setup().start();
    let said = it.memory.join("said");
    fs::write(&said, "").expect("memory");
    fs::set_permissions(&said, fs::Permissions::from_mode(0o666)).expect("memory");
    daemon.setup().hook("10-who", &format!("echo \"$1 $(id -un) $(id -Gn) $USER $HOME\" >> {}", said.display()));
    fs::write(daemon.setup().hooks_dir().join("10-who.toml"), "user = \"nobody\"\n").expect("memory");
    daemon.freeze(&["--for", "20s"]);
    daemon.kill();
    assert!(it.disk.writable_within(Duration::from_secs(2)));
    rescue(&daemon, lab);
    let expected = ["freeze", "thaw"].map(|phase| format!("{phase} nobody nogroup nobody /nonexistent\n")).concat();
    assert_eq!(fs::read_to_string(said).expect("memory"), expected);
}

fn what_a_convention_needs_and_does_not_find_refuses_the_freeze(lab: &Lab) {
    let it = place(lab);
    it.script("google/pre.sh", "");
    let daemon = it.configured("google", &it.memory.join("google")).start();
    let answer = daemon.cli(&["freeze"]);
    answer.exits(4).says("post.sh: there is no such file");
    assert_eq!(answer.reason(), "HOOK_UNUSABLE");
    it.script("google/post.sh", "");
    fs::set_permissions(it.memory.join("google/pre.sh"), fs::Permissions::from_mode(0o775)).expect("memory");
    daemon.cli(&["freeze"]).exits(4).says("can be written by others");
    assert_eq!(it.story(), "", "nothing ran");
}

fn a_hook_is_neither_removed_nor_tested_while_a_hold_needs_it(lab: &Lab) {
    let it = place(lab);
    let own = it.script("10-own", "");
    let daemon = it.setup().start();
    hooks(&daemon, &["add", own.to_str().expect("ASCII")]).exits(0);
    daemon.freeze(&["--id", "mine", "--for", "10s"]);
    for verb in ["remove", "test"] {
        let answer = hooks(&daemon, &[verb, "10-own"]);
        answer.exits(4).says("the hold mine is not over");
        assert_eq!(answer.reason(), "HOLD_IN_PROGRESS");
    }
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    it.expect("10-own freeze, 10-own thaw");
    hooks(&daemon, &["test", "10-own"]).exits(0);
    hooks(&daemon, &["remove", "10-own"]).exits(0);
}
