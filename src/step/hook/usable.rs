//! Can the kernel start this file, and can nobody else change what it does?
//!
//! A hook runs as root, so everything on the way to it must belong to root (or to us) and be writable by nobody else: the
//! file, its directory and every directory above (a sticky one such as /tmp is fine), also where a link leads. One that
//! runs as a user may belong to that user.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, Metadata},
    io::{self, Read},
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, OpenOptionsExt},
    },
    path::Path,
    time::Duration,
};

use nix::sys::statvfs::{FsFlags, statvfs};

use super::{Error, User, run::PATH, unusable};
use crate::sys::process::{self, Start, Status};

/// How the file is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Started {
    /// by the kernel: it needs its `x`, and an interpreter
    ByKernel,
    /// by a shell that reads it
    ByShell,
}

/// # Errors
/// `Unusable`, with the cure.
pub fn usable(path: &Path, started: Started, user: Option<&User>) -> Result<(), Error> {
    let target = match fs::canonicalize(path) {
        Ok(target) => target,
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.is_symlink() => {
            return Err(unusable(path, "it is a link that leads nowhere", "remove it, or repair the link"));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(unusable(path, "there is no such file", "put it there, or correct the path"));
        }
        Err(error) => return Err(unusable(path, format!("it cannot be looked at: {error}"), "")),
    };
    let about =
        fs::metadata(&target).map_err(|error| unusable(path, format!("it cannot be looked at: {error}"), ""))?;
    if !about.is_file() {
        let why = if about.is_dir() { "it is a directory" } else { "it is not a regular file" };
        return Err(unusable(path, why, "only hooks, their .toml settings and documentation (.md) belong here"));
    }
    owned(path, &target, &about, user)?;
    guarded(path, target.parent().unwrap_or(Path::new("/")), user)?;
    if started == Started::ByShell {
        return reachable(path, &target, "test -r \"$0\"", user);
    }
    let needed = if user.is_some() { 0o111 } else { 0o100 };
    if about.mode() & needed == 0 {
        let hint = format!("chmod +x {}, or end its name in .sample to switch it off", target.display());
        return Err(unusable(path, "it is not executable", hint));
    }
    if statvfs(&target).is_ok_and(|fs| fs.flags().contains(FsFlags::ST_NOEXEC)) {
        return Err(unusable(path, "it lies on a file system mounted with noexec", "move it, or link to it elsewhere"));
    }
    let mut start = Vec::new();
    open_regular(&target)
        .and_then(|file| file.take(LONGEST_SHEBANG).read_to_end(&mut start))
        .map_err(|error| unusable(path, format!("it cannot be read: {error}"), ""))?;
    interpreter(path, &start)?;
    // the kernel reads a program, but the interpreter reads its script
    let needed = if start.starts_with(b"#!") { "test -r \"$0\" && test -x \"$0\"" } else { "test -x \"$0\"" };
    reachable(path, &target, needed, user)
}

/// How long it may take to ask.
const ASKING: Duration = Duration::from_secs(2);

/// May `user` do with `target` what `needed` asks? The kernel is asked as that user: modes of the file and of all above it,
/// lists of access and security modules say it together.
fn reachable(path: &Path, target: &Path, needed: &str, user: Option<&User>) -> Result<(), Error> {
    let Some(user) = user.filter(|_| nix::unistd::geteuid().is_root()) else { return Ok(()) };
    let arguments = ["-c".into(), needed.into(), target.as_os_str().to_owned()];
    let environment = BTreeMap::from([("PATH".to_owned(), PATH.to_owned())]);
    let start = Start {
        program: Path::new("/bin/sh"),
        arguments: &arguments,
        environment: &environment,
        input: None,
        user: Some(&user.ids),
    };
    let asked = process::run(start, ASKING, None)
        .map_err(|error| unusable(path, format!("nothing can be started as {}: {error}", user.name), ""))?;
    if asked.status == Status::Exited(0) {
        return Ok(());
    }
    let why = format!("{} may not read and execute it", user.name);
    let hint = format!("chmod 0755 {}, and let {} through the directories above", target.display(), user.name);
    Err(unusable(path, why, hint))
}

/// Reads a file that says what to run, of at most `longest` bytes, and only if nobody else could have written it.
///
/// # Errors
/// `Unusable`, with the cure.
pub fn read_guarded(path: &Path, longest: u64) -> Result<String, Error> {
    let cannot = |error: io::Error| unusable(path, format!("it cannot be read: {error}"), "");
    let target = fs::canonicalize(path).map_err(cannot)?;
    let file = open_regular(&target).map_err(cannot)?;
    let about = file.metadata().map_err(cannot)?;
    if !about.is_file() {
        return Err(unusable(path, "it is not a regular file", ""));
    }
    if about.len() > longest {
        return Err(unusable(path, format!("it is longer than {longest} bytes"), ""));
    }
    owned(path, &target, &about, None)?;
    guarded(path, target.parent().unwrap_or(Path::new("/")), None)?;
    let mut text = String::new();
    file.take(longest).read_to_string(&mut text).map_err(cannot)?;
    Ok(text)
}

/// Without O_NONBLOCK a FIFO put in place of the file would keep us.
fn open_regular(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new().read(true).custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits()).open(path)
}

/// What the kernel reads of a file to find its interpreter (BINPRM_BUF_SIZE, include/uapi/linux/binfmts.h).
const LONGEST_SHEBANG: u64 = 256;

/// Can the kernel start a file that begins like this?
///
/// # Errors
/// `Unusable`, with the cure.
pub fn interpreter(path: &Path, start: &[u8]) -> Result<(), Error> {
    if start.starts_with(b"\x7fELF") {
        return Ok(());
    }
    let Some(rest) = start.strip_prefix(b"#!") else {
        let why = match start {
            [] => "it is empty",
            [0xef, 0xbb, 0xbf, ..] => "it starts with a byte order mark, which hides its first line from the kernel",
            [_, ..] => "it is neither a program nor a script that starts with #!",
        };
        return Err(unusable(path, why, "let its first line be #!/bin/sh, or whatever should run it"));
    };
    let line = rest.split(|&byte| byte == b'\n').next().unwrap_or(rest);
    if line.contains(&b'\r') {
        let hint = format!("sed -i 's/\\r$//' {}", path.display());
        return Err(unusable(path, "its lines end in CRLF, so that its interpreter cannot be found", hint));
    }
    let mut words = line.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty());
    let Some(interpreter) = words.next() else {
        return Err(unusable(path, "it names no interpreter after #!", "let its first line be #!/bin/sh"));
    };
    let interpreter = Path::new("/").join(OsStr::from_bytes(interpreter)); // hooks run with `/` as their directory
    let missing = |what: &Path| {
        let hint = "install it, or correct the first line";
        unusable(path, format!("its interpreter {} does not exist or is not executable", what.display()), hint)
    };
    if !executable(&interpreter) {
        return Err(missing(&interpreter));
    }
    // `#!/usr/bin/env NAME`: the same question one step further. Its options and assignments are left to env itself.
    if interpreter.file_name() == Some(OsStr::new("env"))
        && let Some(name) = words.next().filter(|word| !word.starts_with(b"-") && !word.contains(&b'='))
    {
        let name = Path::new(OsStr::from_bytes(name));
        if !PATH.split(':').any(|directory| executable(&Path::new(directory).join(name))) {
            return Err(missing(name));
        }
    }
    Ok(())
}

fn executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|about| about.is_file() && about.mode() & 0o111 != 0)
}

/// Is `directory`, with every directory above it, out of others' reach? `subject` is whom the answer is about.
///
/// # Errors
/// `Unusable`, with the cure.
pub fn guarded(subject: &Path, directory: &Path, user: Option<&User>) -> Result<(), Error> {
    for ancestor in directory.ancestors() {
        let about = fs::metadata(ancestor)
            .map_err(|error| unusable(subject, format!("{} cannot be looked at: {error}", ancestor.display()), ""))?;
        let sticky = about.mode() & 0o1000 != 0;
        if sticky && ancestor != directory && ours(&about, user) {
            continue;
        }
        owned(subject, ancestor, &about, user)?;
    }
    Ok(())
}

fn ours(about: &Metadata, user: Option<&User>) -> bool {
    let uid = about.uid();
    uid == 0 || uid == nix::unistd::geteuid().as_raw() || user.is_some_and(|user| uid == user.ids.uid)
}

fn owned(subject: &Path, path: &Path, about: &Metadata, user: Option<&User>) -> Result<(), Error> {
    let what = if subject == path { "it".to_owned() } else { path.display().to_string() };
    if !ours(about, user) {
        let whom = user.map_or("root", |user| &user.name);
        let why = format!("{what} belongs to uid {}, who could change what runs as {whom}", about.uid());
        return Err(unusable(subject, why, format!("chown {whom} {}", path.display())));
    }
    if about.mode() & 0o022 != 0 {
        let why = format!("{what} can be written by others (mode {:04o})", about.mode() & 0o7777);
        return Err(unusable(subject, why, format!("chmod go-w {}", path.display())));
    }
    Ok(())
}
