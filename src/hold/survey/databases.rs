//! The databases of a hold: found and configured ones, connected to, and where their files are.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::future::join_all;

use super::{DISCONNECT_LIMIT, READ_LIMIT, Surroundings, Survey, TOUCH_LIMIT, in_a_thread};
use crate::{
    config::Settings,
    guest::{self, Dev, databases},
    hold::{Refusal, RefusalKind, plan::problem},
    proto::{self, Claim, Severity, StepKind, StepOutcome},
    step::database::{self, Logs, Place, Session, Target},
};

/// A database that takes longer to let us in would make us wait later, too.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// One database that can be held.
pub struct Instance {
    pub target: Target,
    pub session: Session,
    /// the server's process, if it is known
    pid: Option<i32>,
    /// every directory it needs is on a file system that is frozen
    pub covered: bool,
}

impl Survey {
    pub(super) async fn find_databases(
        &mut self,
        settings: &Settings,
        surroundings: &Surroundings,
        spec: &proto::HoldSpec,
    ) {
        let mut targets = settings.databases.configured.clone();
        let mut running = Vec::new();
        let mut listeners = Vec::new();
        if settings.databases.discover {
            let (root, processes) = (surroundings.root.clone(), self.guest.processes.clone());
            let found =
                in_a_thread(READ_LIMIT, move || databases::read(&root, &processes)).await.unwrap_or_else(|| {
                    // nothing found is not nothing there
                    self.expected.capped = true;
                    self.unread("DISCOVERY_INCOMPLETE", "look for databases");
                    databases::Found::default()
                });
            for socket in found.sockets {
                let Some(engine) = spoken(socket.engine) else { continue };
                let target = Target::discovered(engine, socket.path);
                if !targets.iter().any(|t| database::same_instance(t, &target)) {
                    targets.push(target.clone());
                }
                listeners.push((target, socket.pid));
            }
            running = found.engines;
        }
        let logs = match spec.capture_mode() {
            proto::CaptureMode::LogsAfterThaw => Logs::AfterThaw,
            proto::CaptureMode::Unspecified | proto::CaptureMode::WhileHeld => Logs::WhileHeld,
        };
        let connections = join_all(targets.iter().map(|t| Session::connect(t, logs, CONNECT_LIMIT))).await;
        for (target, connection) in targets.into_iter().zip(connections) {
            let session = match connection {
                Ok(session) => session,
                Err(error) => {
                    self.cannot_hold(&target, &error);
                    continue;
                }
            };
            let listener = listeners.iter().find(|(found, _)| database::same_instance(found, &target));
            let pid = server(session.server_pid(), listener.and_then(|(_, pid)| *pid), &running);
            // two sockets of one server: the first one, a configured one if there is any, holds it
            if pid.is_some_and(|pid| self.is_connected(pid)) {
                let _ = session.release(DISCONNECT_LIMIT).await;
            } else {
                self.add_database(target, session, pid, surroundings).await;
            }
        }
        for engine in running {
            if self.is_connected(engine.pid) {
                continue;
            }
            self.expected.capped = true;
            let subject = format!("db:{}", engine.engine);
            let message = format!(
                "{} runs (pid {}) and is not held: its files are as after a power cut",
                engine.engine, engine.pid
            );
            let hint = "configure it as a [[database]], or bring it to a consistent point with a hook";
            self.problems.push(problem(Severity::Warning, "DATABASE_NOT_HELD", &subject, &message, hint));
        }
    }

    fn is_connected(&self, pid: i32) -> bool {
        self.databases.iter().any(|db| db.pid == Some(pid))
    }

    async fn add_database(&mut self, target: Target, session: Session, pid: Option<i32>, surroundings: &Surroundings) {
        let mut step = database_step(&target);
        step.set_outcome(StepOutcome::Planned);
        let mut described = session.describe();
        described.paths = self.paths(&session, pid, surroundings).await;
        let outside = outside(&described.paths, &session.places());
        let covered = outside.is_none();
        if let Some((why, hint)) = outside {
            described.set_claim(Claim::Uncovered);
            let message = format!("{}: {why}", target.name);
            self.problems.push(problem(Severity::Warning, "DATABASE_UNCOVERED", &step.name, &message, hint));
            step.reason = message;
        }
        self.problems.extend(session.remarks());
        self.expected.claims.push(described.claim());
        step.detail = Some(proto::step::Detail::Database(described));
        self.steps.push(step);
        self.databases.push(Instance { target, session, pid, covered });
    }

    fn cannot_hold(&mut self, target: &Target, error: &database::Error) {
        let mut step = database_step(target);
        step.set_outcome(StepOutcome::Failed);
        step.reason = error.to_string();
        step.hint.clone_from(&error.hint);
        if target.configured && target.required {
            let refusal = Refusal::new(RefusalKind::FailedPrecondition, "DATABASE_UNREACHABLE", error.to_string());
            self.refusals.push(refusal.hint(error.hint.clone()));
        } else {
            self.expected.capped = true;
            let message = error.to_string();
            self.problems.push(problem(Severity::Warning, "DATABASE_UNREACHABLE", &step.name, &message, &error.hint));
        }
        self.steps.push(step);
    }

    /// Where each of the database's places lies, those that are not held first.
    async fn paths(&self, session: &Session, pid: Option<i32>, surroundings: &Surroundings) -> Vec<proto::DataPath> {
        let frozen = self.frozen();
        let (places, root) = (session.places(), surroundings.root.clone());
        let told = places.clone();
        let located = in_a_thread(TOUCH_LIMIT, move || {
            places.iter().map(|place| locate(&root, &place.path, pid)).collect::<Vec<_>>()
        })
        .await
        .unwrap_or_else(|| vec![None; told.len()]);
        let mut paths: Vec<proto::DataPath> = told
            .into_iter()
            .zip(located)
            .map(|(place, dev)| proto::DataPath {
                purpose: place.purpose.into(),
                path: place.path.display().to_string(),
                filesystem: dev.and_then(|dev| self.step_of(dev)).unwrap_or_default(),
                held: dev.is_some_and(|dev| frozen.contains(&dev)),
            })
            .collect();
        paths.sort_by_key(|path| path.held);
        paths.truncate(MOST_PATHS);
        paths
    }

    /// The name of a file system's step.
    fn step_of(&self, dev: Dev) -> Option<String> {
        let is = |step: &&proto::Step| match &step.detail {
            Some(proto::step::Detail::Filesystem(fs)) => fs.major == dev.major && fs.minor == dev.minor,
            Some(proto::step::Detail::Database(_) | proto::step::Detail::Hook(_)) | None => false,
        };
        self.plan.steps.iter().find(is).map(|step| step.name.clone())
    }
}

/// More places than this are counted as covered or not, and not listed.
const MOST_PATHS: usize = 64;

/// Why the copy will lack something the server needs, with the cure; `None`: it has everything.
fn outside(paths: &[proto::DataPath], places: &[Place]) -> Option<(String, &'static str)> {
    let later = |path: &&proto::DataPath| {
        places.iter().any(|place| place.after_thaw && place.path.as_os_str() == path.path.as_str())
    };
    let missing: Vec<&str> = paths.iter().filter(|p| !p.held && !later(p)).map(|p| p.path.as_str()).collect();
    if !missing.is_empty() {
        let why = format!("{} is on no file system that is held", missing.join(", "));
        return Some((why, "bring that file system into scope, or move the files"));
    }
    // its log is copied after the thaw; what it shares a file system with was copied before
    let shared = paths.iter().filter(later).find(|log| {
        let same = |path: &&proto::DataPath| !later(path) && path.filesystem == log.filesystem;
        log.filesystem.is_empty() || paths.iter().any(|path| same(&path))
    })?;
    let why = format!("{} lies where the data does, so it cannot be copied after the thaw", shared.path);
    Some((why, "copy everything while held: leave --capture out"))
}

/// Which process the server at the other end of a socket is. The kernel names the one that called listen(2), and under socket
/// activation (Debian's mariadb.socket) that is systemd, for every server it listens for: then it is whoever has the socket
/// open now, and never process 1.
fn server(peer: Option<i32>, listener: Option<i32>, running: &[databases::RunningEngine]) -> Option<i32> {
    let runs = |pid: &i32| running.iter().any(|engine| engine.pid == *pid);
    peer.filter(runs).or(listener).or(peer.filter(|pid| *pid != 1))
}

/// The protocol an engine speaks, if it is one we hold.
fn spoken(engine: databases::Engine) -> Option<database::Engine> {
    use databases::Engine;
    match engine {
        Engine::Postgresql => Some(database::Engine::Postgresql),
        Engine::Mysql | Engine::Mariadb => Some(database::Engine::Mysql),
        Engine::Redis
        | Engine::Valkey
        | Engine::Mongodb
        | Engine::Etcd
        | Engine::Clickhouse
        | Engine::Cassandra
        | Engine::Elasticsearch => None,
    }
}

fn database_step(target: &Target) -> proto::Step {
    let mut step = proto::Step { name: format!("db:{}", target.name), ..Default::default() };
    step.set_kind(StepKind::Database);
    step.required = target.required;
    step
}

/// The superblock a path lies on, as `pid` sees it.
fn locate(root: &Path, path: &Path, pid: Option<i32>) -> Option<Dev> {
    let below = |base: PathBuf| base.join(path.strip_prefix("/").unwrap_or(path));
    let (seen, table) = match pid {
        Some(pid) => {
            let process = root.join("proc").join(pid.to_string());
            (below(process.join("root")), process.join("mountinfo"))
        }
        None => (below(root.to_owned()), root.join("proc/self/mountinfo")),
    };
    let id = mount_id(&seen).ok()?;
    let lines = guest::mounts::parse_bytes(&fs::read(table).ok()?);
    guest::mounts::by_mount_id(&lines, id).map(|line| line.dev)
}

fn mount_id(path: &Path) -> io::Result<u64> {
    use std::os::{fd::AsRawFd, unix::fs::OpenOptionsExt};
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(path)?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    info.lines()
        .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
        .ok_or_else(|| io::Error::other("no mnt_id in fdinfo"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_systemd_listens_for_is_the_process_that_has_the_socket() {
        let engine = |pid| databases::RunningEngine {
            engine: databases::Engine::Mariadb,
            pid,
            datadir: None,
            sockets: Vec::new(),
            elsewhere: false,
        };
        let running = [engine(225), engine(300)];
        assert_eq!(server(Some(300), Some(225), &running), Some(300), "in containers one path is two servers");
        assert_eq!(server(Some(1), Some(225), &running), Some(225));
        assert_eq!(server(Some(800), Some(225), &running), Some(225), "a user's own systemd listens");
        assert_eq!(server(Some(1), None, &running), None, "two of these are not one server");
        assert_eq!(server(Some(400), None, &[]), Some(400), "a binary of another name");
        assert_eq!(server(None, None, &running), None, "over TCP");
    }
}
