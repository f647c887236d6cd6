//! Who answered: the server that was meant, on the data it says, or another one.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use crate::{
    guest::{Dev, Superblock, databases::RunningEngine, tasks::Processes, whereabouts::Whereabouts},
    hold::receipt,
    step::postgres::system_identifier_of,
    sys::view::{FileId, Spot, View},
};

/// Which process the server at the other end of a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answered {
    /// `None`: nobody can say
    By(Option<i32>),
    /// not the process that was expected
    ByAnother(i32),
}

/// The kernel names the process that called listen(2), and under socket activation (Debian's mariadb.socket) that is
/// systemd, for every server it listens for: then it is whoever was found to have the socket open, and never process 1.
pub(super) fn who_answered(
    peer: Option<i32>,
    expected: Option<i32>,
    running: &[RunningEngine],
    processes: &Processes,
) -> Answered {
    let Some(peer) = peer else { return Answered::By(expected) };
    let listens_for_others =
        peer == 1 || processes.get(peer).is_some_and(|process| process.comm == "systemd" || process.comm == "init");
    let parent = |pid: i32| processes.get(pid).map(|process| process.parent);
    match expected {
        Some(expected) if expected == peer || listens_for_others => Answered::By(Some(expected)),
        // a supervisor that listens and hands down, or a child that took over
        Some(expected) if parent(expected) == Some(peer) || parent(peer) == Some(expected) => {
            Answered::By(Some(expected))
        }
        Some(_) => Answered::ByAnother(peer),
        None if running.iter().any(|engine| engine.pid == peer) => Answered::By(Some(peer)),
        None if listens_for_others => Answered::By(None),
        None => Answered::By(Some(peer)),
    }
}

/// What a server works on, compared with what it says it works on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Works {
    There,
    /// in another directory, so that it is not the server that answered
    Elsewhere(PathBuf),
    /// there, but the files are of another server
    OnOthersFiles,
    /// it cannot be looked at
    Unknown,
}

/// PostgreSQL, MySQL and MariaDB make the data directory their working directory. `told`: the identifier that a PostgreSQL
/// server says it has, and its files must say as well. May block.
pub(super) fn works_in(root: &Path, pid: i32, data: &Path, told: Option<u64>) -> Works {
    let cwd = root.join("proc").join(pid.to_string()).join("cwd");
    let said = Whereabouts::of(root, Some(pid)).and_then(|whereabouts| whereabouts.file_at(data));
    let Ok(works) = Spot::open(&cwd) else { return Works::Unknown };
    match (works.id(), said) {
        (Ok(works), Ok(said)) if works == said => match told.map(|told| (told, system_identifier_of(&cwd))) {
            Some((told, Ok(found))) if told != found => Works::OnOthersFiles,
            Some(_) | None => Works::There,
        },
        (Ok(_), Ok(_)) => Works::Elsewhere(works.name().unwrap_or(cwd)),
        // what it says is not there at all, in its own view: then it is not its own view
        (Ok(_), Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            Works::Elsewhere(works.name().unwrap_or(cwd))
        }
        (Ok(_) | Err(_), Err(_)) | (Err(_), Ok(_)) => Works::Unknown,
    }
}

/// Those file systems whose root is where one of these servers works, which is its data directory, and no receipt lies. May
/// block.
pub(super) fn roots_without_receipt(root: &Path, servers: &[i32], superblocks: &[Superblock]) -> Vec<Dev> {
    let works = |pid: &i32| Spot::open(&root.join("proc").join(pid.to_string()).join("cwd")).and_then(|spot| spot.id());
    let works: Vec<FileId> = servers.iter().filter_map(|pid| works(pid).ok()).collect();
    let is_one = |superblock: &&Superblock| {
        let Some(open_at) = &superblock.open_at else { return false };
        let below = superblock.namespace.map(|pid| root.join("proc").join(pid.to_string()).join("root"));
        let Ok(view) = View::below(below.as_deref().unwrap_or(root)) else { return false };
        let its_root = view.open(&open_at.path).and_then(|spot| spot.id());
        its_root.is_ok_and(|id| works.contains(&id)) && view.open(&open_at.path.join(receipt::DIRECTORY)).is_err()
    };
    superblocks.iter().filter(is_one).map(|superblock| superblock.dev).collect()
}

/// Why a PostgreSQL server takes no connections now, with the cure, if its `postmaster.pid` says so. May block.
pub(super) fn not_ready(root: &Path, pid: i32) -> Option<(&'static str, &'static str)> {
    let directory = View::below(&root.join("proc").join(pid.to_string()).join("cwd")).ok()?;
    let mut text = String::new();
    directory.read(Path::new("postmaster.pid")).ok()?.take(4096).read_to_string(&mut text).ok()?;
    of_status(&text)
}

/// The eighth line (miscadmin.h: LOCK_FILE_LINE_PM_STATUS).
fn of_status(text: &str) -> Option<(&'static str, &'static str)> {
    match text.lines().nth(7)?.trim() {
        "starting" => Some(("it is starting up", "ask again when it has started")),
        "stopping" => Some(("it is shutting down", "ask again when it has stopped or was started again")),
        "standby" => Some(("it is a standby that takes no connections", "set `hot_standby = on` in postgresql.conf")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::databases::Engine;

    fn running(pids: &[i32]) -> Vec<RunningEngine> {
        let engine = |pid: &i32| RunningEngine {
            engine: Engine::Mariadb,
            pid: *pid,
            datadir: None,
            sockets: Vec::new(),
            ports: Vec::new(),
            elsewhere: false,
            apart: false,
            container: None,
            open_to_us: true,
        };
        pids.iter().map(engine).collect()
    }

    #[test]
    fn a_server_that_systemd_listens_for_is_the_process_that_has_the_socket() {
        let (running, processes) = (running(&[225, 300]), Processes::default());
        let who = |peer, expected| who_answered(peer, expected, &running, &processes);
        assert_eq!(who(Some(1), Some(225)), Answered::By(Some(225)));
        assert_eq!(who(Some(1), None), Answered::By(None), "two of these are not one server");
        assert_eq!(who(Some(300), None), Answered::By(Some(300)));
        assert_eq!(who(Some(400), None), Answered::By(Some(400)), "a binary of another name");
        assert_eq!(who(None, None), Answered::By(None), "over TCP");
        assert_eq!(who(None, Some(225)), Answered::By(Some(225)), "over TCP, to its port");
    }

    #[test]
    fn somebody_else_at_the_socket_is_not_spoken_to_for_long() {
        let (running, processes) = (running(&[225, 300]), Processes::default());
        let who = |peer, expected| who_answered(peer, expected, &running, &processes);
        assert_eq!(who(Some(300), Some(225)), Answered::ByAnother(300), "one path, two servers");
        assert_eq!(who(Some(800), Some(225)), Answered::ByAnother(800));
    }

    #[test]
    fn a_server_works_in_its_data_directory_or_is_another_one() {
        let own = std::process::id().cast_signed();
        let root = Path::new("/");
        let cwd = std::env::current_dir().unwrap();
        assert_eq!(works_in(root, own, &cwd, None), Works::There);
        let other = tempfile::tempdir().unwrap();
        assert_eq!(works_in(root, own, other.path(), None), Works::Elsewhere(cwd.canonicalize().unwrap()));
        assert!(matches!(works_in(root, own, Path::new("/no/such/data"), None), Works::Elsewhere(_)));
        assert_eq!(works_in(root, i32::MAX, &cwd, None), Works::Unknown);
    }

    #[test]
    fn a_server_that_starts_or_stops_says_so_in_its_pid_file() {
        let file = |status: &str| format!("500\n/data\n1700000000\n5432\n/tmp\nlocalhost\n  1 2\n{status}\n");
        assert_eq!(of_status(&file("ready   ")), None);
        assert!(of_status(&file("starting")).is_some_and(|(why, _)| why.contains("starting")));
        assert!(of_status(&file("stopping")).is_some_and(|(why, _)| why.contains("shutting down")));
        assert!(of_status(&file("standby ")).is_some_and(|(_, cure)| cure.contains("hot_standby")));
        assert_eq!(of_status("500\n/data\n"), None, "written in steps");
    }
}
