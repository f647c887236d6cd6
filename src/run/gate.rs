//! The hidden `gate` verb: the process a command of `run` waits in. It makes the command's own root, says it is ready,
//! waits to be let through, and becomes the command.
//!
//! ```text
//!   gate ──"staged"──▶ run      the stage is mounted and is the gate's current directory; run keeps a descriptor of it
//!   gate ◀──"build"─── run
//!   gate ──"ready"───▶ run      everything slow is done
//!   gate ◀──"go ID"─── run      all is held
//!   gate ──(closed)──▶ run      it has become the command;  or "failed …"
//! ```

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    io::{self, BufRead, BufReader, Write},
    os::unix::{ffi::OsStrExt, net::UnixStream},
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    unistd::{chdir, pivot_root},
};

use super::overlay::{self, How, Piece};
use crate::{cli, sys::run_child};

/// Words said at the gate.
pub const STAGED: &str = "staged";
pub const BUILD: &str = "build";
pub const READY: &str = "ready";
pub const GO: &str = "go ";
pub const FAILED: &str = "failed ";

/// Runs the verb. Returns only if it did not become the command; by then it has said why, if anybody listens.
pub fn gate(args: &cli::Gate) -> u8 {
    let Ok(stdin) = std::os::fd::AsFd::as_fd(&io::stdin()).try_clone_to_owned() else { return 1 };
    let mut socket = UnixStream::from(stdin);
    let Err(failure) = wait_and_become(args, &mut socket) else { return 0 };
    // nobody listens if `run` is gone
    let _ = writeln!(socket, "{FAILED}{} {}", failure.errno, failure.what.replace('\n', " "));
    1
}

/// What the gate could not do.
#[derive(Debug)]
struct Failure {
    what: String,
    errno: i32,
}

fn failed(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> Failure {
    move |error| Failure { what: format!("{what}: {error}"), errno: error.raw_os_error().unwrap_or(0) }
}

fn wait_and_become(args: &cli::Gate, socket: &mut UnixStream) -> Result<(), Failure> {
    let said = |error| failed("talk to holdstill run")(error);
    run_child::end_with_parent().map_err(failed("be told when holdstill run ends"))?;
    let mut words = BufReader::new(socket.try_clone().map_err(said)?).lines();
    let mut next = || words.next().transpose();
    if let Some(stage) = &args.stage {
        let home = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        let held = args.held.iter().filter_map(|text| overlay::parse_dev(text)).collect();
        prepare_stage(stage)?;
        writeln!(socket, "{STAGED}").map_err(said)?;
        if next().map_err(said)?.as_deref() != Some(BUILD) {
            return Ok(());
        }
        build(stage, &held)?;
        if chdir(&home).is_err() {
            chdir("/").map_err(|e| failed("enter the new root")(e.into()))?;
        }
    }
    writeln!(socket, "{READY}").map_err(said)?;
    // end of file: there will be no hold
    let Some(word) = next().map_err(said)? else { return Ok(()) };
    let Some(id) = word.strip_prefix(GO) else { return Ok(()) };
    let [program, name, rest @ ..] = args.command.as_slice() else { return Ok(()) };
    let error = run_child::become_command(program, name, rest, id);
    Err(failed(format!("start {}", program.display()))(error))
}

/// A private mount namespace, a tmpfs of limited size on `stage`, and that as current directory.
fn prepare_stage(stage: &Path) -> Result<(), Failure> {
    let step = |what: &str, done: nix::Result<()>| done.map_err(|e| failed(what)(e.into()));
    step("make a private mount namespace", unshare(CloneFlags::CLONE_NEWNS))?;
    step(
        "keep mounts private",
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>),
    )?;
    let options = format!("mode=0700,size={}", upper_size(&fs::read_to_string("/proc/meminfo").unwrap_or_default()));
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    step("mount a tmpfs", mount(Some("holdstill-run"), stage, Some("tmpfs"), flags, Some(options.as_str())))?;
    step("enter the tmpfs", chdir(stage))
}

/// How much the command may write, in bytes: a quarter of what is free, at most 256 MiB. From experience a cloud's CLI
/// writes a few MiB of caches and logs.
fn upper_size(meminfo: &str) -> u64 {
    let field = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: u64 = field.and_then(|f| f.trim().strip_suffix("kB")?.trim().parse().ok()).unwrap_or(0);
    (kib * 1024 / 4).clamp(1 << 20, 256 << 20)
}

/// Puts the new root together below the stage and moves into it.
fn build(stage: &Path, held: &BTreeSet<crate::guest::Dev>) -> Result<(), Failure> {
    let mountinfo = fs::read("/proc/self/mountinfo").map_err(failed("read /proc/self/mountinfo"))?;
    let pieces = overlay::plan(&overlay::parse(&mountinfo), held, stage);
    let root = stage.join("root");
    fs::create_dir(&root).map_err(failed("make the new root"))?;
    for (i, piece) in pieces.iter().enumerate() {
        place(stage, &root, i, piece)?;
    }
    let step = |what: &str, done: nix::Result<()>| done.map_err(|e| failed(what)(e.into()));
    step("enter the new root", chdir(&root))?;
    // pivot_root(2), "pivot_root(".", ".")": the old root ends up on top of the new one, and is then let go
    step("change the root", pivot_root(".", "."))?;
    step("let go of the old root", umount2(".", MntFlags::MNT_DETACH))
}

fn place(stage: &Path, root: &Path, i: usize, piece: &Piece) -> Result<(), Failure> {
    let target = root.join(piece.at.strip_prefix("/").unwrap_or(&piece.at));
    let step = |what: &str, done: nix::Result<()>| {
        done.map_err(|e| failed(format!("{what} {}", piece.at.display()))(e.into()))
    };
    let bind = |more: MsFlags| mount(Some(&piece.at), &target, None::<&str>, MsFlags::MS_BIND | more, None::<&str>);
    match piece.how {
        How::Bind => step("bind", bind(MsFlags::empty())),
        How::BindAll => step("bind", bind(MsFlags::MS_REC)),
        How::Overlay if piece.at.is_dir() => cover(stage, &target, i, piece),
        How::Overlay => {
            step("bind", bind(MsFlags::empty()))?;
            let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | flags(&piece.options);
            step("make read-only", mount(None::<&str>, &target, None::<&str>, read_only, None::<&str>))
        }
    }
}

fn cover(stage: &Path, target: &Path, i: usize, piece: &Piece) -> Result<(), Failure> {
    let own = stage.join(i.to_string());
    let what = |e| failed(format!("cover {}", piece.at.display()))(e);
    for name in ["upper", "work"] {
        fs::create_dir_all(own.join(name)).map_err(what)?;
    }
    // which path this covers, for whoever looks for what was written
    fs::write(own.join("at"), piece.at.as_os_str().as_bytes()).map_err(what)?;
    same_owner(&piece.at, &own.join("upper")).map_err(what)?;
    let mut options = OsString::from("lowerdir=");
    options.push(overlay::escape(&piece.at));
    for (key, name) in [(",upperdir=", "upper"), (",workdir=", "work")] {
        options.push(key);
        options.push(overlay::escape(&own.join(name)));
    }
    mount(Some("holdstill-run"), target, Some("overlay"), flags(&piece.options), Some(options.as_os_str()))
        .map_err(|e| what(e.into()))
}

/// The root of an overlay shows the upper directory's owner and mode.
fn same_owner(from: &Path, to: &Path) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    let metadata = fs::metadata(from)?;
    chown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777))
}

fn flags(options: &[String]) -> MsFlags {
    options.iter().fold(MsFlags::empty(), |flags, option| match option.as_str() {
        "nosuid" => flags | MsFlags::MS_NOSUID,
        "nodev" => flags | MsFlags::MS_NODEV,
        "noexec" => flags | MsFlags::MS_NOEXEC,
        _ => flags,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_may_write_a_quarter_of_what_is_free_and_never_much() {
        assert_eq!(upper_size("MemTotal: 9 kB\nMemAvailable:     409600 kB\n"), 100 << 20);
        assert_eq!(upper_size("MemAvailable: 99999999 kB\n"), 256 << 20);
        assert_eq!(upper_size(""), 1 << 20);
    }
}
