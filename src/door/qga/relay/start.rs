//! What the stock agent is started with, and the first words with it. Called by `relay`.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs, io,
    os::{
        fd::AsRawFd,
        unix::fs::{DirBuilderExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::sleep,
};

use super::{
    super::policy::{Policy, Verb},
    Why,
};
use crate::sys::kept::Kept;

const INSTALLED: [&str; 2] = ["/usr/sbin/qemu-ga", "/usr/bin/qemu-ga"];

/// What it needs to be of use to us, whatever hosts may ask.
const OURS: [&str; 3] = ["guest-info", "guest-sync", "guest-sync-delimited"];

/// Freezing is ours alone.
pub(super) const FREEZING: [&str; 4] =
    ["guest-fsfreeze-freeze", "guest-fsfreeze-freeze-list", "guest-fsfreeze-status", "guest-fsfreeze-thaw"];

/// Who is started.
#[derive(Debug, Clone)]
pub(super) enum Program {
    /// `relay = false`
    None,
    /// whichever of these is there
    Installed,
    Given {
        path: PathBuf,
        args: Vec<OsString>,
    },
}

/// Writes what the program needs. Blocks: the program may lie on a slow disk.
pub(super) fn prepare(
    program: Program,
    directory: &Path,
    configuration: &str,
) -> Result<(PathBuf, Vec<OsString>), Why> {
    let (path, mut args) = match program {
        Program::None => return Err(Why::NotInstalled),
        Program::Installed => {
            let found = INSTALLED.iter().map(PathBuf::from).find(|path| path.is_file());
            (found.ok_or(Why::NotInstalled)?, Vec::new())
        }
        Program::Given { path, args } => (path, args),
    };
    let written = || -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
        fs::write(directory.join("conf"), configuration)
    };
    written().map_err(|source| Why::Start { program: path.clone(), source })?;
    let of = |name: &str| directory.join(name).into_os_string();
    args.extend(["-m".into(), "unix-listen".into(), "-p".into(), of("socket")]);
    args.extend(["-t".into(), directory.into(), "-f".into(), of("pid")]);
    Ok((path, args))
}

/// What systemd gives to a service, and the configuration of its own. Nothing of ours: what hosts execute inherits it.
pub(super) fn environment(directory: &Path) -> BTreeMap<String, OsString> {
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let mut environment = BTreeMap::from([
        ("PATH".to_owned(), path.into()),
        ("QGA_CONF".to_owned(), directory.join("conf").into_os_string()),
    ]);
    environment.extend(std::env::var_os("LANG").map(|language| ("LANG".to_owned(), language)));
    environment
}

/// The administrator's lists, and nothing else of what that program can be told. Old ones know `blacklist` alone, new ones
/// `block-rpcs`; some refuse `block-rpcs` beside `allow-rpcs`, so of an allowed list the blocked are taken away here. One too
/// old to know `allow-rpcs` says of more commands that they are enabled; asked for, they are refused before they come here.
pub(super) fn configuration(policy: &Policy) -> String {
    let named = |verb| {
        let lists = policy.rules().iter().filter(move |rule| rule.verb == verb);
        lists.flat_map(|rule| rule.commands.iter().map(String::as_str))
    };
    let plain = |name: &&str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let list = |names: BTreeSet<&str>| names.into_iter().collect::<Vec<_>>().join(",");
    let mut blocked: BTreeSet<&str> = named(Verb::Block).filter(plain).chain(FREEZING).collect();
    blocked.retain(|name| !OURS.contains(name));
    let rest = if policy.rules().iter().any(|rule| rule.verb == Verb::Allow) {
        let allowed = named(Verb::Allow).filter(plain).filter(|name| !blocked.contains(name)).chain(OURS);
        format!("allow-rpcs={}", list(allowed.collect()))
    } else {
        format!("block-rpcs={}", list(blocked.clone()))
    };
    format!("[general]\nblacklist={}\n{rest}\n", list(blocked))
}

/// Connects, as soon as its socket is open, which is a few milliseconds after it was started, and gets in step with it.
pub(super) async fn join(directory: &Path, child: &Kept, id: i64) -> Result<UnixStream, Why> {
    let joined = async {
        loop {
            if let Ok(mut stream) = UnixStream::connect(directory.join("socket")).await
                && get_in_step(&mut stream, id).await.is_ok()
            {
                return stream;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        () = child.ended() => Err(Why::Ended),
        stream = joined => Ok(stream),
    }
}

/// Whether there is nothing to read, not even its end: nobody asked for what is there. The kernel is asked, because what tokio
/// knows of a descriptor is as old as the last time it had nothing else to do.
pub(super) fn is_silent(stream: &UnixStream) -> bool {
    recv(stream.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) == Err(Errno::EAGAIN)
}

/// 0xFF makes its parser forget half a request of the connection before, and it puts 0xFF before the reply to this; whatever
/// else comes first is its complaint about ours.
async fn get_in_step(stream: &mut UnixStream, id: i64) -> io::Result<()> {
    let ask = format!("\n{{\"execute\": \"guest-sync-delimited\", \"arguments\": {{\"id\": {id}}}}}\n");
    stream.write_all(&[b"\xff", ask.as_bytes()].concat()).await?;
    let reply = format!("{{\"return\": {id}}}\n");
    let mut rest: &[u8] = &[];
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte).await?;
        rest = match (byte[0], rest.split_first()) {
            (0xff, _) => reply.as_bytes(),
            (b'\n', Some((b'\n', []))) => return Ok(()),
            (byte, Some((expected, later))) if byte == *expected => later,
            (_, _) => &[],
        };
    }
}
