//! The stock qemu-ga beside us: its program, and what its fsfreeze-hook runs around a freeze. Called by `agent_channel`.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

/// Where distributions put it.
const PROGRAMS: [&str; 6] = [
    "/usr/sbin/qemu-ga",
    "/usr/bin/qemu-ga",
    "/usr/local/sbin/qemu-ga",
    "/usr/local/bin/qemu-ga",
    "/sbin/qemu-ga",
    "/bin/qemu-ga",
];

/// The program, if it is installed.
pub(super) fn program(root: &Path) -> Option<PathBuf> {
    PROGRAMS.iter().map(PathBuf::from).find(|program| is_executable(&below(root, program)))
}

/// What it is configured to run around a freeze: its fsfreeze-hook, or, if that is the one QEMU ships, the scripts it would
/// run.
pub(super) fn hooks(root: &Path) -> Vec<PathBuf> {
    let Some(hook) = configured_hook(root).filter(|hook| is_executable(&below(root, hook))) else {
        return Vec::new();
    };
    let text = fs::read(below(root, &hook)).unwrap_or_default();
    let directory = hook.with_file_name("fsfreeze-hook.d");
    // QEMU's own hook does nothing but run what lies in that directory
    if !String::from_utf8_lossy(&text).contains("fsfreeze-hook.d") {
        return vec![hook];
    }
    let mut scripts: Vec<PathBuf> = fs::read_dir(below(root, &directory))
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| is_executable(&entry.path()) && !entry.file_name().to_str().is_some_and(is_ignored))
        .map(|entry| directory.join(entry.file_name()))
        .collect();
    scripts.sort();
    scripts
}

/// By the patterns of QEMU's scripts/qemu-guest-agent/fsfreeze-hook.
fn is_ignored(name: &str) -> bool {
    let endings = ["~", ".bak", ".orig", ".rpmnew", ".rpmorig", ".rpmsave", ".sample"];
    endings.iter().any(|ending| name.ends_with(ending)) || name.contains(".dpkg-")
}

/// On the command line first, as qemu-ga reads it; /dev/null switches a hook off, and nothing means QEMU's default.
fn configured_hook(root: &Path) -> Option<PathBuf> {
    let text = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let unit = |dir: &str| text(&root.join(dir).join("qemu-guest-agent.service"));
    let mut drop_ins: Vec<PathBuf> = fs::read_dir(root.join("etc/systemd/system/qemu-guest-agent.service.d"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "conf"))
        .collect();
    drop_ins.sort();
    let arguments = drop_ins
        .iter()
        .rev()
        .map(|path| text(path))
        .chain([unit("etc/systemd/system"), unit("usr/lib/systemd/system"), unit("lib/systemd/system")])
        .chain([text(&root.join("etc/default/qemu-guest-agent"))])
        .find_map(|text| of_arguments(&text));
    let hook = arguments
        .or_else(|| setting(&text(&root.join("etc/sysconfig/qemu-ga")), "FSFREEZE_HOOK_PATHNAME"))
        .or_else(|| setting(&text(&root.join("etc/qemu/qemu-ga.conf")), "fsfreeze-hook"))?;
    match hook.as_str() {
        "/dev/null" => None,
        "" => Some("/etc/qemu/fsfreeze-hook".into()),
        path => Some(path.into()),
    }
}

/// `-F`, `-FPATH`, `--fsfreeze-hook` or `--fsfreeze-hook=PATH` of a command line in a unit or an environment file.
fn of_arguments(text: &str) -> Option<String> {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with(['#', ';']));
    let words = lines.flat_map(|line| line.split(|c: char| c.is_whitespace() || matches!(c, '"' | '\'')));
    words
        // as in DAEMON_ARGS=-F
        .map(|word| word.find("=-").map_or(word, |at| &word[at + 1..]))
        .filter_map(|word| match word.strip_prefix("--fsfreeze-hook") {
            Some("") => Some(""),
            Some(rest) => rest.strip_prefix('='),
            None => word.strip_prefix("-F"),
        })
        // a variable is set in another file, which is read as well
        .find(|path| !path.contains('$'))
        .map(str::to_owned)
}

/// `KEY=value` of an environment or key file.
fn setting(text: &str, key: &str) -> Option<String> {
    let value = |line: &str| {
        let (name, value) = line.split_once('=')?;
        (name.trim() == key).then(|| value.trim().trim_matches(['"', '\'']).to_owned())
    };
    text.lines().filter_map(value).next_back()
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is run around a freeze, with these files.
    fn run_with(files: &[(&str, &str)]) -> Vec<PathBuf> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let (path, executable) = (root.path().join(path), path.contains("hook"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(if executable { 0o755 } else { 0o644 })).unwrap();
        }
        hooks(root.path())
    }

    #[test]
    fn a_hook_is_found_wherever_it_can_be_configured() {
        let own = ("etc/my-hook", "#!/bin/sh\n");
        let stock = ("etc/qemu/fsfreeze-hook", "#!/bin/sh\necho\n");
        for (case, file, found) in [
            ("key file", ("etc/qemu/qemu-ga.conf", "[general]\nfsfreeze-hook = /etc/my-hook\n"), "/etc/my-hook"),
            ("Red Hat", ("etc/sysconfig/qemu-ga", "FSFREEZE_HOOK_PATHNAME=/etc/my-hook\n"), "/etc/my-hook"),
            ("Debian", ("etc/default/qemu-guest-agent", "DAEMON_ARGS=\"-v -F/etc/my-hook\"\n"), "/etc/my-hook"),
            ("default path", ("etc/default/qemu-guest-agent", "DAEMON_ARGS=-F\n"), "/etc/qemu/fsfreeze-hook"),
            (
                "drop-in",
                (
                    "etc/systemd/system/qemu-guest-agent.service.d/hook.conf",
                    "[Service]\n#ExecStart=qemu-ga -F/no\nExecStart=\nExecStart=/usr/sbin/qemu-ga --fsfreeze-hook=/etc/my-hook\n",
                ),
                "/etc/my-hook",
            ),
        ] {
            assert_eq!(run_with(&[own, stock, file]), [Path::new(found)], "{case}");
        }
        let red_hat = [
            own,
            (
                "usr/lib/systemd/system/qemu-guest-agent.service",
                "ExecStart=-/usr/bin/qemu-ga -F${FSFREEZE_HOOK_PATHNAME}",
            ),
        ];
        assert_eq!(run_with(&red_hat), [] as [&Path; 0], "nothing is set");
        let set = ("etc/sysconfig/qemu-ga", "#x\nFSFREEZE_HOOK_PATHNAME=\"/etc/my-hook\"\n");
        assert_eq!(run_with(&[red_hat[0], red_hat[1], set]), [Path::new("/etc/my-hook")]);
        let off = ("etc/sysconfig/qemu-ga", "FSFREEZE_HOOK_PATHNAME=/dev/null\n");
        assert_eq!(run_with(&[own, stock, off]), [] as [&Path; 0], "switched off");
        assert_eq!(run_with(&[own, stock]), [] as [&Path; 0], "there, and not configured");
    }

    #[test]
    fn of_qemus_own_hook_it_is_its_scripts_that_count() {
        let aggregate = ("etc/qemu/fsfreeze-hook", "#!/bin/sh\nFSFREEZE_D=$(dirname -- \"$0\")/fsfreeze-hook.d\n");
        let configured = ("etc/qemu/qemu-ga.conf", "[general]\nfsfreeze-hook=/etc/qemu/fsfreeze-hook\n");
        assert_eq!(run_with(&[aggregate, configured]), [] as [&Path; 0], "as installed: nothing to run");
        let script = |name: &'static str| (name, "#!/bin/sh\n");
        let files = [
            aggregate,
            configured,
            script("etc/qemu/fsfreeze-hook.d/mysql-flush.sh"),
            script("etc/qemu/fsfreeze-hook.d/10-a"),
            script("etc/qemu/fsfreeze-hook.d/old.sample"),
            script("etc/qemu/fsfreeze-hook.d/x.dpkg-dist"),
        ];
        let dir = Path::new("/etc/qemu/fsfreeze-hook.d");
        assert_eq!(run_with(&files), [dir.join("10-a"), dir.join("mysql-flush.sh")]);
    }

    proptest! {
        #[test]
        fn no_text_makes_decoding_panic(text in "(-F|--fsfreeze-hook|=|\\$|\"|'| |/x|\n|#|é){0,40}") {
            of_arguments(&text);
            setting(&text, "x");
        }
    }
}
