//! The hook people give to qemu-ga so that it does for a database what we do: checkpoint and flush PostgreSQL; for
//! MariaDB, FLUSH TABLES WITH READ LOCK in a client that stays until the thaw (as QEMU's own sample does it).

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::Duration,
};

use mysql_async::prelude::Queryable;

use crate::lab::{
    Lab,
    database::{Engine, Server},
};

/// What the bench calls itself with to hold the lock.
pub const LOCKER: &str = "--locker";

pub fn install(lab: &Lab, server: &Server<'_>) -> PathBuf {
    let dir = lab.memory_dir("hook");
    let script = match server.engine() {
        Engine::Postgresql => format!(
            "[ \"$1\" = freeze ] || exit 0\npsql -qXU postgres -h {} -c CHECKPOINT postgres\n",
            server.socket().parent().expect("a file").display()
        ),
        Engine::Mariadb | Engine::Mysql => format!(
            "cd {dir}\nif [ \"$1\" = freeze ]; then\n\
             rm -f locked unlock\n{exe} {LOCKER} {socket} {dir} >/dev/null 2>&1 &\n\
             while [ ! -e locked ]; do sleep 0.005; done\n\
             else\ntouch unlock\nwhile [ -e locked ]; do sleep 0.005; done\nfi\n",
            dir = dir.display(),
            exe = std::env::current_exe().expect("/proc is mounted").display(),
            socket = server.socket().display(),
        ),
    };
    let path = dir.join("hook");
    fs::write(&path, format!("#!/bin/sh\n{script}")).expect("memory");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("memory");
    path
}

/// Holds the lock until it is told to let go.
pub fn hold_lock(socket: &Path, dir: &Path) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let held = runtime.block_on(async {
        let options = mysql_async::OptsBuilder::default().socket(socket.to_str()).user(Some("root"));
        let mut session = mysql_async::Conn::new(options).await?;
        session.query_drop("FLUSH TABLES WITH READ LOCK").await?;
        session.query_drop("FLUSH LOCAL ENGINE LOGS").await?;
        fs::write(dir.join("locked"), "").expect("memory");
        while !dir.join("unlock").exists() {
            thread::sleep(Duration::from_millis(5));
        }
        session.query_drop("UNLOCK TABLES").await
    });
    let _ = fs::remove_file(dir.join("locked"));
    if held.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
