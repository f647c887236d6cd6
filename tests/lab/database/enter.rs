//! Entering where a server lives: a mount namespace in which a tree of `tests/servers/build.sh`, or the world's own root,
//! is `/`, and the fact's directories are bound where the server is to see them. Then the server's program is executed. A
//! server of this machine that needs nothing moved stays in the world's own namespace, like most people's.

use std::{
    fs, io,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    unistd::pivot_root,
};

use super::{
    edition::{Programs, text},
    options::{Network, Place, ServerOptions},
};

/// Where a container's server has its sockets.
pub const CONTAINER_RUN: &str = "/run/server";

const ROLE: &str = "--lab-enter";

/// A command that runs `program` of `programs` where the server lives; arguments are to be added.
pub fn command(programs: &Programs, program: &Path, options: &ServerOptions) -> Command {
    let this = std::env::current_exe().expect("/proc is mounted");
    let mut command = match options.place {
        Place::Beside => crate::lab::command(text(&this)),
        Place::Container(network) => {
            let mut command = crate::lab::command("unshare");
            command.args(["--pid", "--fork", "--kill-child"]);
            if network == Network::Own {
                command.arg("--net");
            }
            command.arg(this);
            command
        }
    };
    let place = if options.place == Place::Beside { "beside" } else { "container" };
    command.args([ROLE, place, text(&programs.root), &programs.uid.to_string(), &programs.gid.to_string()]);
    command.args(options.binds.iter().map(|b| format!("{}={}", b.from.display(), b.to.display())));
    command.arg("--").arg(program).current_dir("/");
    command
}

/// The role. Answers only if it fails.
pub fn enter(args: &[&str]) -> ExitCode {
    let error = match prepare(args) {
        Ok(mut command) => command.exec(),
        Err(e) => e,
    };
    eprintln!("failed to enter the server's place: {error}");
    ExitCode::FAILURE
}

fn prepare(args: &[&str]) -> io::Result<Command> {
    let wrong = || io::Error::other(format!("not as `command` writes it: {args:?}"));
    let [place, root, uid, gid, rest @ ..] = args else { return Err(wrong()) };
    let at = rest.iter().position(|word| *word == "--").ok_or_else(wrong)?;
    let (binds, program) = (&rest[..at], &rest[at + 1..]);
    let ids = [uid, gid].map(|id| id.parse::<u32>());
    let [Ok(uid), Ok(gid)] = ids else { return Err(wrong()) };
    let contained = *place == "container";
    if contained || *root != "/" || !binds.is_empty() {
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    }
    let root = if contained { container(Path::new(root), uid, gid)? } else { beside(Path::new(root))? };
    for each in binds {
        let (from, to) = each.split_once('=').ok_or_else(wrong)?;
        bind(Path::new(from), &below(&root, to))?;
    }
    if contained {
        std::env::set_current_dir(&root)?;
        // the old root lands on top of the new one, and is let go
        pivot_root(".", ".")?;
        umount2(".", MntFlags::MNT_DETACH)?;
    } else if root != Path::new("/") {
        std::os::unix::fs::chroot(&root)?;
    }
    std::env::set_current_dir("/")?;
    let (program, args) = program.split_first().ok_or_else(wrong)?;
    let mut command = Command::new(program);
    command.args(args).uid(uid).gid(gid);
    Ok(command)
}

/// What is under /mnt, /run … for the fact is there for the server.
fn beside(root: &Path) -> io::Result<PathBuf> {
    if root != Path::new("/") {
        for dir in ["mnt", "run", "proc", "dev", "tmp"] {
            bind(&Path::new("/").join(dir), &root.join(dir))?;
        }
    }
    Ok(root.to_owned())
}

/// A root of which nothing is shared with the fact but what is bound into it.
fn container(tree: &Path, uid: u32, gid: u32) -> io::Result<PathBuf> {
    let root = PathBuf::from(format!("/run/root-of-{}", std::process::id()));
    fs::create_dir_all(&root)?;
    mount(Some(tree), &root, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    for (kind, dir, options) in [("proc", "proc", ""), ("tmpfs", "run", "mode=755"), ("tmpfs", "tmp", "mode=1777")] {
        fs::create_dir_all(root.join(dir))?;
        mount(Some("lab"), &root.join(dir), Some(kind), MsFlags::empty(), Some(options))?;
    }
    bind(Path::new("/dev"), &root.join("dev"))?;
    let run = below(&root, CONTAINER_RUN);
    fs::create_dir_all(&run)?;
    chown(&run, Some(uid), Some(gid))?;
    Ok(root)
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn bind(from: &Path, at: &Path) -> io::Result<()> {
    fs::create_dir_all(at)?;
    mount(Some(from), at, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(|e| io::Error::other(format!("bind {} to {}: {e}", from.display(), at.display())))
}
