//! Connecting and logging in.

use std::{io, path::PathBuf};

use mysql_async::{Conn, Opts, OptsBuilder};
use tokio::{sync::Mutex, task::JoinSet};

use super::{
    explain::{CONNECT, explain},
    link::{Link, Trouble},
};
use crate::{
    step::database::{Address, Deadline, Door, Error, Failed, Target, look},
    sys::sockets,
};

/// Connects and logs in, one at a time in this process: the driver shows nobody its socket, so it is found as the one
/// that was not there before.
///
/// # Errors
/// Nobody there, not let in, no answer; with the cure.
pub(super) async fn open(target: &Target, user: &str, deadline: Deadline) -> Result<Link, Error> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
    let problem = |why, hint| Error { name: target.name.clone(), what: CONNECT, why, hint };
    let failed_io = |failed| explain(target, user, CONNECT, of_io(failed));
    let mut options = OptsBuilder::default()
        .user(Some(user))
        .prefer_socket(false) // else it would go on through a path that means another server in our view
        .max_allowed_packet(Some(16 << 20)) // set, so that it does not ask
        .wait_timeout(Some(86_400))
        .connect_attribute("program_name", "holdstill");
    if let Some(password) = &target.password {
        options = options.pass(Some(password.reveal()));
    }
    let (door, full) = match &target.at {
        Address::Socket(_) => {
            let target = target.clone();
            let door = look(deadline, move || Door::find(&target)).await.map_err(failed_io)?;
            options = options.socket(Some(door.path().display().to_string()));
            let name = door.name().to_owned();
            (Some(door), name)
        }
        Address::Tcp { host, port } => {
            options = options.ip_or_hostname(host).tcp_port(*port);
            (None, PathBuf::new())
        }
    };
    let peer = match &target.at {
        Address::Socket(_) => sockets::Peer::Unix { path: &full },
        Address::Tcp { port, .. } => sockets::Peer::Tcp { port: *port },
    };

    let turn = deadline.run(async { Ok::<_, io::Error>(ONE_AT_A_TIME.lock().await) }).await;
    let _turn = turn.map_err(failed_io)?;
    let before = sockets::open().map_err(|error| failed_io(Failed::Refused(error)))?;
    // Its own task, because the driver panics on some things a server may say; the set aborts it when dropped.
    let mut connecting = JoinSet::new();
    connecting.spawn(Conn::new(Opts::from(options)));
    let joined = deadline
        .run(async {
            match connecting.join_next().await {
                Some(Ok(answer)) => answer,
                Some(Err(_)) | None => Err(io::Error::other("the driver gave up on what the server said").into()),
            }
        })
        .await;
    drop(door);
    match joined {
        Ok(conn) => match sockets::connected_since(&before, peer) {
            Ok(socket) => Ok(Link::new(conn, socket)),
            Err(error) => Err(problem(format!("its connection cannot be guarded: {error}"), "try again".to_owned())),
        },
        Err(failed) => {
            // Nothing is held yet, but a connection half open would linger in the driver.
            if let Ok(socket) = sockets::connected_since(&before, peer) {
                sockets::cut(&socket);
            }
            Err(explain(target, user, CONNECT, failed))
        }
    }
}

fn of_io(failed: Failed<io::Error>) -> Trouble {
    match failed {
        Failed::TimedOut(limit) => Failed::TimedOut(limit),
        Failed::Refused(error) => Failed::Refused(mysql_async::Error::from(error)),
    }
}
