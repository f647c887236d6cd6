//! The composition root: settings → rescue of what an earlier daemon left → warden → driver → doors; start and stop
//! order, signals, what systemd is told.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::statfs,
    unistd::geteuid,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{oneshot, watch},
    task::{JoinHandle, JoinSet, LocalSet},
};

use crate::{
    config::Settings,
    door::{
        entrance::{Entrance, Health},
        listen, qga,
    },
    hold::{
        Ask, Handle,
        driver::Driver,
        history::History,
        report::Publisher,
        survey::{self, Surroundings},
    },
    proto::Phase,
    rescue, sys,
    warden::client::Warden,
};

/// Why the daemon did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("serve: only root can freeze file systems")]
    NotRoot,
    #[error("use {} as the run directory: it is not on tmpfs, and what lies on a disk cannot be written while that disk is frozen", .0.display())]
    NotTmpfs(PathBuf),
    #[error("make the directory {}: {source}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("serve from {}: another daemon runs there", .0.display())]
    Busy(PathBuf),
    #[error("clean up after an earlier daemon: {0}")]
    Rescue(#[from] rescue::Error),
    #[error("read the history of holds: {0}")]
    History(io::Error),
    #[error("start the runtime: {0}")]
    Runtime(io::Error),
    #[error("start the warden: {0}")]
    Warden(io::Error),
    #[error("open the door: {0}")]
    Door(#[from] listen::Error),
    #[error("serve: {0}")]
    Serve(io::Error),
    #[error("serve: the task that acts ended unexpectedly; the warden has let go")]
    DriverLost,
}

/// Runs the daemon until it is told to stop. `config_file` is `--config`, for whoever has to rescue.
///
/// # Errors
/// It could not start; nothing was held. Or its driver was lost.
pub fn serve(settings: Settings, notes: &[String], config_file: Option<PathBuf>) -> Result<(), Error> {
    if !geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    make_directory(&settings.paths.run)?;
    if !is_tmpfs(&settings.paths.run) {
        return Err(Error::NotTmpfs(settings.paths.run));
    }
    let _only_one = lock(&settings.paths.run)?;
    for note in notes {
        tracing::warn!("{note}");
    }
    let rescued = rescue::run(&settings.paths.run, &BTreeMap::new())?;
    if rescued.hold_id.is_some() {
        tracing::warn!("an earlier daemon left a hold behind: {rescued}");
    }
    // only now: while the root is frozen even a directory that is there already is waited for
    make_directory(&settings.paths.state)?;
    let history = History::load(&settings.paths.run, &settings.paths.state).map_err(Error::History)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(64)
        .thread_keep_alive(std::time::Duration::from_secs(2))
        .build()
        .map_err(Error::Runtime)?;
    // the driver stays on this thread: its phases borrow from it
    let result = LocalSet::new().block_on(&runtime, run(settings, history, config_file));
    crate::telemetry::settle(std::time::Duration::from_secs(1));
    // a thread stuck on a dead device must not keep us from ending
    runtime.shutdown_background();
    result
}

async fn run(settings: Settings, history: History, config_file: Option<PathBuf>) -> Result<(), Error> {
    let settings = Arc::new(settings);
    let warden = Warden::spawn(&settings.paths.run, config_file.clone()).await.map_err(Error::Warden)?;
    let surroundings = Surroundings::read(Path::new("/"));
    let (driver, handle, serving) =
        Driver::new(Arc::clone(&settings), surroundings.clone(), Publisher::new(history), warden, config_file);
    let doors = Doors::open(&settings)?;
    let entrance = Entrance::new(handle.clone()).await.map_err(Error::Serve)?;
    let driving = tokio::task::spawn_local(driver.run());
    tokio::spawn(keep_health(entrance.health(), serving));
    tokio::spawn(keep_status(handle.clone()));
    let (stop, mut doors, guest_agent) = doors.serve(&entrance, &settings, &handle);
    tokio::spawn(Arc::clone(&surroundings.contents).keep(handle.published().clone()));
    let warmed = Arc::clone(&settings);
    tokio::task::spawn_blocking(move || survey::warm_up(&warmed, &surroundings));
    let _ = sys::notify::ready("idle: holds are accepted");
    tracing::info!(socket = %settings.listen.unix.display(), vsock = settings.listen.vsock, "ready");

    let result = tokio::select! {
        ended = driving => ended.map_err(|_| Error::DriverLost),
        () = asked_to_stop(&handle) => Ok(()),
    };
    let _ = sys::notify::stopping("stopping");
    drop(stop);
    // open calls get a moment to read their answer; a Watch without end does not keep us
    let closed = async { while doors.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(std::time::Duration::from_millis(500), closed).await;
    // the stock agent behind the relay gets what it takes to end well
    let _ = tokio::time::timeout(std::time::Duration::from_secs(4), guest_agent).await;
    result
}

/// Where callers come in.
struct Doors {
    unix: listen::unix::Connections,
    vsock: Option<listen::vsock::Connections>,
    guest_agent: qga::place::Place,
}

impl Doors {
    /// All that are configured, or none.
    fn open(settings: &Settings) -> Result<Doors, Error> {
        let unix = listen::unix::bind(&settings.listen.unix)?;
        let vsock = settings.listen.vsock.map(listen::vsock::bind).transpose()?;
        for note in unix.note.iter().chain(vsock.iter().filter_map(|bound| bound.note.as_ref())) {
            tracing::info!("{note}");
        }
        let unix = unix.socket.connections(Arc::new(settings.access.clone())).map_err(Error::Serve)?;
        let guest_agent = qga::place::Place::open(&settings.listen.guest_agent)?;
        Ok(Doors { unix, vsock: vsock.map(|bound| bound.listener.into()), guest_agent })
    }

    /// Serves them all until what is returned first is dropped.
    fn serve(
        self,
        entrance: &Entrance,
        settings: &Arc<Settings>,
        handle: &Handle,
    ) -> (watch::Sender<()>, JoinSet<Result<(), tonic::transport::Error>>, JoinHandle<()>) {
        let (stop, stopped) = watch::channel(());
        let stopped = || {
            let mut stopped = stopped.clone();
            async move { while stopped.changed().await.is_ok() {} }
        };
        let mut doors = JoinSet::new();
        doors.spawn(entrance.clone().serve(self.unix, stopped()));
        if let Some(vsock) = self.vsock {
            doors.spawn(entrance.clone().serve_remote(vsock, stopped()));
        }
        let hung_up = stop.subscribe();
        let guest_agent = qga::serve(self.guest_agent, Arc::clone(settings), handle.clone(), hung_up);
        (stop, doors, tokio::spawn(guest_agent))
    }
}

/// SIGTERM or SIGINT: let go of everything first.
async fn asked_to_stop(handle: &Handle) {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        // without handlers the default action ends us, and the warden lets go
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    let _ = sys::notify::stopping("letting go");
    let (reply, released) = oneshot::channel();
    if handle.asks.send(Ask::Shutdown { reply }).is_ok() {
        let _ = released.await;
    }
}

async fn keep_health(health: Health, mut serving: watch::Receiver<bool>) {
    while serving.changed().await.is_ok() {
        let serving = *serving.borrow_and_update();
        health.set_serving(serving).await;
    }
}

/// The line `systemctl status` shows is what is so.
async fn keep_status(handle: Handle) {
    let mut changes = handle.published().changes();
    let mut shown = None;
    while changes.changed().await.is_ok() {
        let standing = changes.borrow_and_update().clone();
        let id = standing.current.as_ref().map(|r| r.id.clone()).unwrap_or_default();
        if shown.replace((standing.phase, id.clone())) == Some((standing.phase, id.clone())) {
            continue;
        }
        let line = match standing.phase {
            Phase::Unspecified | Phase::Idle => "idle: holds are accepted".to_owned(),
            Phase::Preparing | Phase::Prepared => format!("preparing hold {id}: nobody waits"),
            Phase::Quiescing => format!("quiescing hold {id}"),
            Phase::Held => format!("HELD by {id}: writers wait"),
            Phase::Releasing => format!("releasing hold {id}"),
        };
        // a datagram to a socket: touches no disk
        let _ = sys::notify::status(&line);
    }
}

fn make_directory(path: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(|source| Error::Directory { path: path.to_owned(), source })
}

fn is_tmpfs(path: &Path) -> bool {
    statfs::statfs(path).is_ok_and(|found| found.filesystem_type() == statfs::TMPFS_MAGIC)
}

/// One daemon per run directory: two would rescue each other's holds.
fn lock(run: &Path) -> Result<Flock<File>, Error> {
    let path = run.join("lock");
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| Error::Directory { path, source })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| Error::Busy(run.to_owned()))
}
