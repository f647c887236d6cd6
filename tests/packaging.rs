//! What is shipped is what the program has: the configuration file, the manual pages and the completions in `packaging/`
//! are printed from the code. Refresh them with `UPDATE=1 cargo test --test packaging`.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command as Program,
};

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use holdstill::{cli::Cli, config::pages};

fn is_shipped(path: &str, wanted: &[u8]) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(path);
    if std::env::var("UPDATE").is_ok_and(|v| v == "1") {
        fs::create_dir_all(file.parent().expect("below packaging/")).expect("mkdir");
        fs::write(&file, wanted).expect("write");
    }
    let shipped = fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    assert!(shipped == wanted, "packaging/{path} is stale: UPDATE=1 cargo test --test packaging");
}

/// Without the version: a page need not change because a number did. Hidden verbs are not for people.
fn command() -> Command {
    Cli::command().version(None::<&str>)
}

#[test]
fn the_configuration_file_is_printed_from_the_table_of_keys() {
    is_shipped("etc/holdstill/holdstill.toml", pages::shipped_file().as_bytes());
}

#[test]
fn the_configuration_manual_is_printed_from_the_table_of_keys() {
    is_shipped("usr/share/man/man5/holdstill.toml.5", pages::man_page().as_bytes());
}

#[test]
fn there_is_a_manual_page_for_the_program_and_for_each_verb() {
    let mut command = command().disable_help_subcommand(true);
    command.build();
    pages(&command, "holdstill");
}

/// Also of what is below: its page is named in the one above.
fn pages(command: &Command, name: &str) {
    page(command, name);
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        pages(verb, &format!("{name}-{}", verb.get_name()));
    }
}

fn page(command: &Command, name: &str) {
    let mut text = Vec::new();
    let man = clap_mangen::Man::new(command.clone()).manual("holdstill").date("");
    man.render(&mut text).expect("into memory");
    is_shipped(&format!("usr/share/man/man1/{name}.1"), &text);
}

#[test]
fn completions_are_those_of_this_command_line() {
    let files = [
        (Shell::Bash, "usr/share/bash-completion/completions/holdstill"),
        (Shell::Zsh, "usr/share/zsh/vendor-completions/_holdstill"),
        (Shell::Fish, "usr/share/fish/vendor_completions.d/holdstill.fish"),
    ];
    for (shell, path) in files {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command(), "holdstill", &mut text);
        is_shipped(path, &text);
    }
}

/// Settings of a unit: lines of "key=value".
fn unit_of(name: &str) -> Vec<String> {
    let file = shipped(&format!("usr/lib/systemd/system/{name}"));
    let text = fs::read_to_string(file).expect("the unit is shipped");
    text.lines().filter(|l| !l.starts_with(['#', '[']) && !l.is_empty()).map(str::to_owned).collect()
}

fn unit() -> Vec<String> {
    unit_of("holdstill.service")
}

fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(path)
}

#[test]
fn the_unit_lets_the_guardians_live_and_lets_go_after_the_daemon() {
    let unit = unit();
    for line in [
        "Type=notify",
        "KillMode=process",
        "SendSIGKILL=no",
        "OOMPolicy=continue",
        "ExecStart=/usr/bin/holdstill serve",
        "ExecStopPost=+/usr/bin/holdstill rescue",
    ] {
        assert!(unit.iter().any(|l| l == line), "{line}");
    }
}

#[test]
fn the_unit_never_races_a_stock_agent_for_the_channel() {
    let after = unit().into_iter().filter(|l| l.starts_with("After=")).collect::<Vec<_>>().join(" ");
    assert!(after.contains("qemu-guest-agent.service"), "{after}");
}

#[test]
fn the_unit_has_nothing_that_makes_a_mount_namespace_or_blocks_on_a_frozen_root() {
    // systemd.exec(5): each of these implies a mount namespace, or touches /var or /tmp when the unit starts or stops
    let never = [
        "Private",
        "Protect",
        "ReadOnlyPaths",
        "ReadWritePaths",
        "InaccessiblePaths",
        "ExecPaths",
        "NoExecPaths",
        "TemporaryFileSystem",
        "BindPaths",
        "BindReadOnlyPaths",
        "MountFlags",
        "RootDirectory",
        "RootImage",
        "DynamicUser",
        "StateDirectory",
        "CacheDirectory",
        "LogsDirectory",
        "ConfigurationDirectory",
        "RuntimeDirectory",
        "MountAPIVFS",
        "ProcSubset",
        "WatchdogSec",
        "ExtensionImages",
        "MountImages",
        "LoadCredential",
        "SetCredential",
        "LogNamespace",
        "PIDFile",
        "ImportCredential",
    ];
    for line in unit().into_iter().chain(unit_of("holdstill-snapshot@.service")) {
        assert!(!never.iter().any(|word| line.starts_with(word)), "{line}");
    }
}

#[test]
fn the_unit_of_a_snapshot_starts_what_is_shipped_and_its_timer_starts_it() {
    let unit = unit_of("holdstill-snapshot@.service");
    let script = unit.iter().find_map(|l| l.strip_prefix("ExecStart=/")?.strip_suffix(" %i")).expect("with its name");
    let mode = fs::metadata(shipped(script)).expect("it is shipped").permissions().mode();
    assert_eq!(mode & 0o111, 0o111, "/{script} is not executable");
    assert!(unit.iter().any(|l| l == "AssertPathExists=/etc/holdstill/snapshot/%i.conf"), "{unit:?}");
    // a timer starts the service of its own name; only one that can be enabled is of use
    assert!(unit_of("holdstill-snapshot@.timer").iter().any(|l| l == "WantedBy=timers.target"));
}

#[test]
fn the_samples_of_a_snapshot_set_what_the_script_knows() {
    let script = fs::read_to_string(shipped("usr/lib/holdstill/snapshot")).expect("it is shipped");
    for name in ["ebs", "lightsail"] {
        let sample = shipped(&format!("etc/holdstill/snapshot/{name}.conf.sample"));
        assert!(Program::new("sh").arg("-n").arg(&sample).status().expect("sh").success(), "{name}");
        let text = fs::read_to_string(sample).expect("it is shipped");
        assert!(text.contains(&format!("\nCLOUD={name}\n")), "{name}");
        let settings = text.lines().map(|l| l.trim_start_matches('#')).filter_map(|l| l.split_once('='));
        for (key, _) in settings.filter(|(key, _)| key.chars().all(|c| c.is_ascii_uppercase() || c == '_')) {
            assert!(
                script.contains(&format!("\n{key}=")),
                "{name}.conf.sample sets {key}, which the script does not know"
            );
        }
    }
}

/// Hooks and reporters that are shipped ready-made, below `hooks/`.
fn samples() -> Vec<PathBuf> {
    let below = |dir: &str| fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(dir)).expect("it is there");
    let files = below("hooks")
        .chain(below("hooks/report.d"))
        .chain(below("hooks/restored.d"))
        .map(|entry| entry.expect("readable").path());
    files.filter(|path| path.extension().is_some_and(|e| e == "sample")).collect()
}

#[test]
fn every_ready_made_script_is_plain_sh_says_what_it_is_worth_and_stands_in_the_guide() {
    let guide = include_str!("../hooks/README.md");
    assert!(samples().len() >= 8);
    for path in samples() {
        let name = path.display();
        let text = fs::read_to_string(&path).expect("it is shipped");
        assert!(text.starts_with("#!/bin/sh\n"), "{name}");
        assert!(Program::new("sh").arg("-n").arg(&path).status().expect("sh").success(), "{name}");
        let head: String =
            text.lines().take_while(|line| line.starts_with('#')).map(|line| format!("{line}\n")).collect();
        let dir = path.parent().and_then(Path::file_name).and_then(|dir| dir.to_str());
        let wanted: &[&str] = match dir {
            Some("report.d") => &["What it does", "What it does not", "settings", "undo"],
            Some("restored.d") => &["What it does", "What it does not", "On anything but a clone it does nothing"],
            _ => &["What it does", "What the copy has", "What it does not", "Settings beside it", "Undo:"],
        };
        for words in wanted {
            assert!(head.contains(words), "{name} does not say: {words}");
        }
        let file = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("hooks")).expect("below hooks/");
        assert!(guide.contains(&format!("({})", file.display())), "{name} is not in hooks/README.md");
    }
}
