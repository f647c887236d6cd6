use super::*;

fn asked(name: Adapted, root: &Path) -> InstallAdapter {
    InstallAdapter { name: Some(name), list: false, remove: false, force: false, root: root.to_owned() }
}

/// Every file below a directory, with its mode.
fn files(root: &Path) -> Vec<(String, u32)> {
    let mut found = Vec::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).expect("readable").flatten() {
            let path = entry.path();
            match path.is_dir() {
                true => dirs.push(path),
                false => {
                    let mode = path.metadata().expect("it is there").permissions().mode() & 0o7777;
                    found.push((path.strip_prefix(root).expect("below").display().to_string(), mode));
                }
            }
        }
    }
    found.sort();
    found
}

#[test]
fn each_goes_where_its_agent_looks_with_the_mode_that_agent_insists_on_and_away_again() {
    let expected: [(Adapted, &[(&str, u32)]); 5] = [
        (Adapted::QemuGa, &[("etc/qemu/holdstill-fsfreeze-hook", 0o755)]),
        (Adapted::Vmware, &[("etc/vmware-tools/backupScripts.d/50-holdstill", 0o755)]),
        (Adapted::Nutanix, &[("usr/local/sbin/post_thaw", 0o700), ("usr/local/sbin/pre_freeze", 0o700)]),
        (Adapted::Google, &[("etc/google/snapshots/post.sh", 0o700), ("etc/google/snapshots/pre.sh", 0o700)]),
        (
            Adapted::Azure,
            &[
                ("etc/azure/VMSnapshotScriptPluginConfig.json", 0o600),
                ("etc/azure/holdstill-post.sh", 0o700),
                ("etc/azure/holdstill-pre.sh", 0o700),
            ],
        ),
    ];
    for (agent, wanted) in expected {
        let root = tempfile::tempdir().expect("a temporary directory");
        let args = asked(agent, root.path());
        let answer = adapters(&args).expect("installed");
        assert_eq!(answer.document["already"], false);
        let wanted: Vec<(String, u32)> = wanted.iter().map(|(path, mode)| ((*path).to_owned(), *mode)).collect();
        assert_eq!(files(root.path()), wanted, "{agent:?}");
        assert_eq!(adapters(&args).expect("again").document["already"], true);
        adapters(&InstallAdapter { remove: true, ..args }).expect("removed");
        assert_eq!(files(root.path()), [], "{agent:?}");
    }
}

#[test]
fn what_somebody_else_put_there_stays_unless_forced_and_is_never_removed() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let args = asked(Adapted::Nutanix, root.path());
    let theirs = root.path().join("usr/local/sbin/post_thaw");
    fs::create_dir_all(theirs.parent().expect("below the root")).expect("made");
    fs::write(&theirs, "#!/bin/sh\necho somebody else's\n").expect("written");
    let failure = adapters(&args).expect_err("it is somebody else's");
    assert_eq!((failure.exit.code(), failure.reason.as_str()), (4, "ALREADY_EXISTS"));
    assert!(failure.message.contains("post_thaw: something else is there") && failure.hint.contains("--force"));
    assert_eq!(files(root.path()).len(), 1, "and nothing was put beside it");
    let removing = InstallAdapter { remove: true, ..args.clone() };
    assert_eq!(
        adapters(&removing).expect_err("not ours").message,
        format!("failed to remove {}: it is not ours", theirs.display())
    );
    adapters(&InstallAdapter { force: true, ..args.clone() }).expect("forced");
    assert_eq!(adapters(&removing).expect("ours now").document["removed"].as_array().map(Vec::len), Some(2));
}

#[test]
fn one_that_an_administrator_changed_is_not_written_over_unasked() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let args = asked(Adapted::QemuGa, root.path());
    adapters(&args).expect("installed");
    let hook = root.path().join("etc/qemu/holdstill-fsfreeze-hook");
    let changed = fs::read_to_string(&hook).expect("it is there").replace("adapter ", "adapter --if-not-held go-on ");
    fs::write(&hook, &changed).expect("written");
    assert!(adapters(&args).expect_err("changed").message.contains("somebody has changed"));
    assert_eq!(fs::read_to_string(&hook).expect("it is there"), changed);
    let listed = adapters(&InstallAdapter { name: None, list: true, ..args.clone() }).expect("listed");
    assert_eq!(listed.document["adapters"][0]["state"], "installed, changed");
    assert_eq!(listed.document["adapters"].as_array().map(Vec::len), Some(7));
    adapters(&InstallAdapter { remove: true, ..args }).expect("it is ours all the same");
}

#[test]
fn beside_red_hats_hook_it_lies_in_red_hats_directory_and_says_what_else_runs_there() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let others = root.path().join("etc/qemu-ga/fsfreeze-hook.d");
    fs::create_dir_all(&others).expect("made");
    fs::write(others.join("mysql.sh"), "").expect("written");
    let answer = adapters(&asked(Adapted::QemuGa, root.path())).expect("installed");
    assert!(root.path().join("etc/qemu-ga/holdstill-fsfreeze-hook").is_file());
    assert!(answer.sentence.contains("FSFREEZE_HOOK_PATHNAME=") && answer.sentence.contains("do not run any more"));
}

#[test]
fn what_does_not_belong_on_the_machine_is_printed_and_nothing_is_written() {
    let root = tempfile::tempdir().expect("a temporary directory");
    for agent in [Adapted::AwsDlm, Adapted::Velero] {
        let answer = adapters(&asked(agent, root.path())).expect("printed");
        assert!(!answer.table.is_empty() && answer.sentence.contains("nothing belongs on this machine"));
    }
    assert_eq!(files(root.path()), []);
}

#[test]
fn azures_configuration_is_json_that_names_our_scripts_as_the_extension_reads_it() {
    let text = shipped!("azure-VMSnapshotScriptPluginConfig.json");
    let config: serde_json::Value = serde_json::from_str(text).expect("JSON");
    assert_eq!(config["preScriptLocation"], "/etc/azure/holdstill-pre.sh");
    assert_eq!(config["postScriptLocation"], "/etc/azure/holdstill-post.sh");
    for key in ["preScriptParams", "postScriptParams"] {
        assert!(config[key].is_array(), "{key}");
    }
    // a retry would look at the same finished script again
    for key in ["preScriptNoOfRetries", "postScriptNoOfRetries"] {
        assert_eq!(config[key], 0, "{key}");
    }
    // `prepare` of the script, quiesce, and time to answer
    assert!(config["timeoutInSeconds"].as_u64().is_some_and(|limit| (40 + 10..1800).contains(&limit)));
    assert!(config["continueBackupOnFailure"].is_boolean() && config["fsFreezeEnabled"] == true);
}

#[test]
fn the_ssm_document_has_what_the_lifecycle_manager_asks_for() {
    let document: serde_json::Value = serde_json::from_str(shipped!("aws-dlm.json")).expect("JSON");
    assert_eq!(document["schemaVersion"], "2.2");
    let parameters = document["parameters"].as_object().expect("parameters");
    assert_eq!(parameters.keys().collect::<Vec<_>>(), ["executionId", "command"]);
    assert_eq!(parameters["command"]["allowedValues"], json!(["pre-script", "post-script", "dry-run"]));
    // what ends up in a shell is one of three words, and a UUID or None
    assert!(
        parameters["executionId"]["allowedPattern"].as_str().is_some_and(|p| p.starts_with('^') && p.ends_with("$"))
    );
    let step = &document["mainSteps"][0];
    assert_eq!(step["action"], "aws:runShellScript");
    let command = step["inputs"]["runCommand"].as_array().and_then(|lines| lines.last()?.as_str()).expect("lines");
    assert!(
        command.starts_with("exec ") && command.ends_with("aws-dlm '{{ command }}' '{{ executionId }}'"),
        "{command}"
    );
    assert!(document["description"].as_str().is_some_and(|text| text.contains("DLMScriptsAccess=true")));
}

#[test]
fn the_example_for_velero_is_yaml_whose_hooks_are_commands_with_time_enough() {
    use yaml_rust2::{Yaml, YamlLoader};
    let documents = YamlLoader::load_from_str(shipped!("velero-kubevirt.yaml")).expect("YAML");
    let annotations = &documents[0]["spec"]["template"]["metadata"]["annotations"];
    for (hook, verb) in [("pre", "--freeze"), ("post", "--unfreeze")] {
        let of = |key: &str| annotations[format!("{hook}.hook.backup.velero.io/{key}").as_str()].as_str();
        let command: Vec<String> =
            serde_json::from_str(of("command").expect("set")).expect("a JSON list, as Velero reads it");
        assert!(command[0].starts_with('/') && command.iter().any(|word| word == verb), "{command:?}");
        assert_eq!((of("container"), of("on-error")), (Some("compute"), Some("Fail")));
        // by itself Velero gives a hook 30 s, less than a guest may prepare for
        assert!(humantime::parse_duration(of("timeout").expect("set")).expect("a duration").as_secs() >= 60);
    }
    assert!(matches!(documents[0]["kind"], Yaml::String(ref kind) if kind == "VirtualMachine"));
}

#[test]
fn each_script_says_where_it_goes_and_what_it_claims_and_ends_by_becoming_the_program() {
    for agent in Adapted::value_variants() {
        for piece in kit(*agent, Path::new("/nowhere")).pieces.iter().filter(|piece| !piece.to.ends_with(".json")) {
            assert!(piece.text.starts_with("#!/bin/sh\n"), "{}", piece.to);
            for head in ["# Where it goes", "# What it gets", "# What it says"] {
                assert!(piece.text.contains(head), "{}: {head}", piece.to);
            }
            let last = piece.text.lines().last().unwrap_or_default();
            // a shell in between would live on, and hold the agent's pipe, when the agent kills what it started
            assert!(last.starts_with("exec /usr/bin/holdstill adapter "), "{}: {last}", piece.to);
            assert_eq!(piece.text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).count(), 1);
        }
    }
}
