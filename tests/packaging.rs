//! What is shipped is what the program has: the configuration file, the manual pages and the completions in `packaging/`
//! are printed from the code. Refresh them with `UPDATE=1 cargo test --test packaging`.

use std::{fs, path::Path};

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
    page(&command, "holdstill");
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        page(verb, &format!("holdstill-{}", verb.get_name()));
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
fn unit() -> Vec<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/usr/lib/systemd/system/holdstill.service");
    let text = fs::read_to_string(file).expect("the unit is shipped");
    text.lines().filter(|l| !l.starts_with(['#', '[']) && !l.is_empty()).map(str::to_owned).collect()
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
    for line in unit() {
        assert!(!never.iter().any(|word| line.starts_with(word)), "{line}");
    }
}
