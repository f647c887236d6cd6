//! `hooks install-adapter`: puts what lets another agent drive us where that agent looks, or takes it away again.
//!
//! The texts are those in `packaging/usr/lib/holdstill/adapters`, compiled in: they fit the verb they call, and a program that
//! was copied onto a machine by hand has them, too. The files a package ships there are for people to read.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use clap::ValueEnum;
use serde_json::json;

use super::{Answer, adapter::name, words};
use crate::{
    cli::{Adapted, InstallAdapter},
    error::{Exit, Failure, reason},
    hold::RefusalKind,
};

macro_rules! shipped {
    ($name:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/usr/lib/holdstill/adapters/", $name))
    };
}

/// Where the texts think the program is.
const PROGRAM: &str = "/usr/bin/holdstill";

/// One file of an adapter.
struct Piece {
    to: &'static str,
    mode: u32,
    text: &'static str,
}

/// What there is for an agent.
struct Kit {
    /// who freezes the file systems
    freezes: &'static str,
    /// empty: nothing goes onto this machine
    pieces: Vec<Piece>,
    /// what somebody has to do besides
    then: String,
    /// printed instead of installed
    document: &'static str,
}

fn kit(agent: Adapted, root: &Path) -> Kit {
    let piece = |to, mode, text| Piece { to, mode, text };
    let theirs = "the agent";
    let kit = |freezes, pieces, then: &str| Kit { freezes, pieces, then: then.to_owned(), document: "" };
    match agent {
        Adapted::QemuGa => qemu_ga(root),
        Adapted::Vmware => kit(
            theirs,
            vec![piece("/etc/vmware-tools/backupScripts.d/50-holdstill", 0o755, shipped!("vmware"))],
            "nothing to switch on, unless tools.conf has `execScripts = false` under [vmbackup]",
        ),
        Adapted::Nutanix => kit(
            "nobody",
            vec![
                piece("/usr/local/sbin/pre_freeze", 0o700, shipped!("nutanix-pre_freeze")),
                piece("/usr/local/sbin/post_thaw", 0o700, shipped!("nutanix-post_thaw")),
            ],
            "switch on application-consistent snapshots (VSS) for this machine in Prism",
        ),
        Adapted::Google => kit(
            "holdstill",
            vec![
                piece("/etc/google/snapshots/pre.sh", 0o700, shipped!("google-pre.sh")),
                piece("/etc/google/snapshots/post.sh", 0o700, shipped!("google-post.sh")),
            ],
            "set `enabled = true` under [Snapshots] in /etc/default/instance_configs.cfg, restart google-guest-agent, and ask for \
             snapshots with --guest-flush",
        ),
        Adapted::Azure => kit(
            theirs,
            vec![
                piece("/etc/azure/holdstill-pre.sh", 0o700, shipped!("azure-pre.sh")),
                piece("/etc/azure/holdstill-post.sh", 0o700, shipped!("azure-post.sh")),
                piece(
                    "/etc/azure/VMSnapshotScriptPluginConfig.json",
                    0o600,
                    shipped!("azure-VMSnapshotScriptPluginConfig.json"),
                ),
            ],
            "nothing to switch on; `continueBackupOnFailure` there decides what a backup is worth that nothing was held for",
        ),
        Adapted::AwsDlm => Kit {
            document: shipped!("aws-dlm.json"),
            ..kit(
                "nobody",
                vec![],
                "nothing belongs on this machine. Save this as holdstill.json, then `aws ssm create-document --name holdstill \
                 --document-type Command --document-format JSON --tags Key=DLMScriptsAccess,Value=true --content \
                 file://holdstill.json`, and name it in the policy with a timeout of 120 s",
            )
        },
        Adapted::Velero => Kit {
            document: shipped!("velero-kubevirt.yaml"),
            ..kit(
                "holdstill",
                vec![],
                "nothing belongs on this machine: these annotations go to the virtual machine's manifest",
            )
        },
    }
}

/// Its packages keep a hook that runs a directory of others and answers 0 whatever they say; nothing of that is touched.
fn qemu_ga(root: &Path) -> Kit {
    let red_hat = below(root, "/etc/qemu-ga").is_dir() && !below(root, "/etc/qemu").is_dir();
    let (to, then) = match red_hat {
        true => (
            "/etc/qemu-ga/holdstill-fsfreeze-hook",
            "set `FSFREEZE_HOOK_PATHNAME=/etc/qemu-ga/holdstill-fsfreeze-hook` in /etc/sysconfig/qemu-ga, then \
             `systemctl restart qemu-guest-agent`. Where SELinux is on, the file needs the type of the hook beside it: \
             `chcon --reference=/etc/qemu-ga/fsfreeze-hook /etc/qemu-ga/holdstill-fsfreeze-hook`",
        ),
        false => (
            "/etc/qemu/holdstill-fsfreeze-hook",
            "set `fsfreeze-hook = /etc/qemu/holdstill-fsfreeze-hook` under [general] in /etc/qemu/qemu-ga.conf (make it), then \
             `systemctl restart qemu-guest-agent`",
        ),
    };
    let mut then = then.to_owned();
    let others = below(root, to).with_file_name("fsfreeze-hook.d");
    if fs::read_dir(&others).is_ok_and(|mut entries| entries.next().is_some()) {
        then += "; scripts in fsfreeze-hook.d do not run any more then: let holdstill run them, `holdstill hooks add --convention qemu`";
    }
    let pieces = vec![Piece { to, mode: 0o755, text: shipped!("qemu-ga") }];
    Kit { freezes: "the agent", pieces, then, document: "" }
}

/// What is where a piece belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum There {
    Nothing,
    Same,
    /// an adapter of ours, changed or of another version
    Changed,
    Foreign,
}

/// Does what `args` say.
///
/// # Errors
/// Something else is in the place, or a file operation failed.
pub(super) fn adapters(args: &InstallAdapter) -> Result<Answer, Failure> {
    match args.name {
        None => list(&args.root),
        Some(agent) if args.remove => remove(agent, args),
        Some(agent) => install(agent, args),
    }
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// As it has to be on this machine: it calls this very program.
fn text(piece: &Piece) -> String {
    let program = std::env::current_exe().ok().and_then(|path| path.to_str().map(str::to_owned));
    piece.text.replace(PROGRAM, program.as_deref().unwrap_or(PROGRAM))
}

fn there(path: &Path, piece: &Piece) -> io::Result<There> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(There::Nothing),
        Err(error) => return Err(error),
        Ok(found) if !found.is_file() => return Ok(There::Foreign),
        Ok(_) => {}
    }
    let found = fs::read(path)?;
    if found == text(piece).as_bytes() {
        return Ok(There::Same);
    }
    let found = String::from_utf8_lossy(&found);
    let ours = ["# holdstill for ", "/holdstill-pre.sh"].iter().any(|mark| found.contains(mark));
    Ok(if ours { There::Changed } else { There::Foreign })
}

/// Looks at every place before anything is touched.
fn look(kit: &Kit, root: &Path) -> Result<Vec<(PathBuf, There)>, Failure> {
    let one = |piece: &Piece| {
        let path = below(root, piece.to);
        let there = there(&path, piece).map_err(|e| Failure::io(format!("look at {}", path.display()), &e))?;
        Ok((path, there))
    };
    kit.pieces.iter().map(one).collect()
}

fn list(root: &Path) -> Result<Answer, Failure> {
    let mut rows = Vec::new();
    let mut documents = Vec::new();
    for agent in Adapted::value_variants() {
        let kit = kit(*agent, root);
        let found = look(&kit, root)?;
        let all = |wanted: &[There]| found.iter().all(|(_, there)| wanted.contains(there));
        let state = match found.as_slice() {
            [] => "not on this machine",
            _ if all(&[There::Same]) => "installed",
            _ if all(&[There::Same, There::Changed]) => "installed, changed",
            _ if found.iter().any(|(_, there)| *there == There::Foreign) => "something else is there",
            _ if all(&[There::Nothing]) => "no",
            _ => "in part",
        };
        let places: Vec<&str> = kit.pieces.iter().map(|piece| piece.to).collect();
        rows.push(vec![name(*agent), kit.freezes.to_owned(), state.to_owned(), places.join(" ")]);
        documents.push(json!({"name": name(*agent), "freezes": kit.freezes, "state": state, "places": places}));
    }
    let n = rows.len();
    Ok(Answer {
        document: json!({"adapters": documents}),
        table: words::table(&["AGENT", "FREEZES", "INSTALLED", "PLACES"], rows),
        sentence: format!("{n} adapters; docs/adapters.md says what each claims"),
        exit: Exit::Done,
    })
}

fn install(agent: Adapted, args: &InstallAdapter) -> Result<Answer, Failure> {
    let kit = kit(agent, &args.root);
    if kit.pieces.is_empty() {
        return Ok(Answer {
            document: json!({"name": name(agent), "document": kit.document, "then": kit.then}),
            table: kit.document.to_owned(),
            sentence: kit.then,
            exit: Exit::Done,
        });
    }
    let found = look(&kit, &args.root)?;
    for (path, there) in &found {
        let what = match there {
            There::Nothing | There::Same => continue,
            There::Changed => "an adapter that somebody has changed, or of another version, is there",
            There::Foreign => "something else is there",
        };
        if !args.force {
            let message = format!("failed to install {}: {what}", path.display());
            let failure = Failure::local(RefusalKind::AlreadyExists, "ALREADY_EXISTS", message);
            return Err(failure.hint("--force takes its place; what it does is not done any more then"));
        }
    }
    let mut installed = Vec::new();
    for (piece, (path, there)) in kit.pieces.iter().zip(&found) {
        if *there != There::Same {
            place(piece, path).map_err(|e| Failure::io(format!("write {}", path.display()), &e))?;
        }
        // whoever changed only that
        fs::set_permissions(path, fs::Permissions::from_mode(piece.mode))
            .map_err(|e| Failure::io(format!("change the mode of {}", path.display()), &e))?;
        installed.push(path.clone());
    }
    let already = found.iter().all(|(_, there)| *there == There::Same);
    let verb = if already { "is there already" } else { "installed" };
    Ok(Answer {
        document: json!({"name": name(agent), "installed": installed, "already": already, "then": kit.then}),
        table: String::new(),
        sentence: format!("{} {verb}\nnow: {}", names(&installed), kit.then),
        exit: Exit::Done,
    })
}

fn remove(agent: Adapted, args: &InstallAdapter) -> Result<Answer, Failure> {
    let found = look(&kit(agent, &args.root), &args.root)?;
    if let Some((path, _)) = found.iter().find(|(_, there)| *there == There::Foreign) {
        let message = format!("failed to remove {}: it is not ours", path.display());
        return Err(Failure::local(RefusalKind::FailedPrecondition, reason::LOCAL, message).hint("nothing was removed"));
    }
    let mut removed = Vec::new();
    for (path, there) in found {
        if there != There::Nothing {
            fs::remove_file(&path).map_err(|e| Failure::io(format!("remove {}", path.display()), &e))?;
            removed.push(path);
        }
    }
    let sentence = match (removed.as_slice(), agent) {
        ([], _) => "it is not installed".to_owned(),
        (gone, Adapted::QemuGa) => {
            format!("removed {}\nnow: undo what was switched on for it, or qemu-ga fails to freeze", names(gone))
        }
        (gone, _) => format!("removed {}", names(gone)),
    };
    Ok(Answer {
        document: json!({"name": name(agent), "removed": removed}),
        table: String::new(),
        sentence,
        exit: Exit::Done,
    })
}

fn names(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Writes beside and renames, so that no agent ever runs half of it. Directories it makes are root's alone.
fn place(piece: &Piece, path: &Path) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mode = if piece.mode & 0o077 == 0 { 0o700 } else { 0o755 };
    fs::DirBuilder::new().recursive(true).mode(mode).create(dir)?;
    // no agent takes that name for a script
    let beside = dir.join(format!(".{}.new", path.file_name().unwrap_or_default().to_string_lossy()));
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(piece.mode).open(&beside)?;
    let written = (|| {
        io::Write::write_all(&mut file, text(piece).as_bytes())?;
        // whatever the umask was
        file.set_permissions(fs::Permissions::from_mode(piece.mode))?;
        file.sync_all()?;
        fs::rename(&beside, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

#[cfg(test)]
mod tests;
