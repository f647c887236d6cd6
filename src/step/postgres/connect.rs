//! One login to a server, and the statements it is asked, each with a limit.
//!
//! On a unix socket we connect as the server's own operating system user, so that `peer` authentication needs no
//! password.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    task::JoinHandle,
};
use tokio_postgres::{
    Client, Config, NoTls, Row,
    config::SslMode,
    error::SqlState,
    types::{ToSql, Type},
};

use super::{
    super::database::{Address, Deadline, Door, Error, Failed, Target, look},
    explain::{CONNECT, explain, explain_io},
};
use crate::sys::sockets;

/// What a statement can fail with.
pub(super) type Refused = Failed<tokio_postgres::Error>;

/// Databases that every cluster has, unless somebody dropped the first.
const DATABASES: [&str; 2] = ["postgres", "template1"];

/// An authenticated connection. Dropping it cuts it.
pub(super) struct Login {
    client: Client,
    link: Link,
    pub user: String,
    /// as the server tells it, e.g. "17.2 (Debian 17.2-1)"
    pub version: String,
}

/// The connection below the client. Dropping it cuts it.
struct Link {
    /// moves bytes between client and socket; ends with either
    pump: JoinHandle<()>,
    socket: OwnedFd,
}

impl Drop for Link {
    fn drop(&mut self) {
        sockets::cut(&self.socket);
        self.pump.abort();
    }
}

impl Login {
    /// Runs statements whose answers do not matter.
    pub(super) async fn run(&self, deadline: Deadline, sql: &str) -> Result<(), Refused> {
        deadline.run(self.client.batch_execute(sql)).await
    }

    /// The one row of a query.
    pub(super) async fn row(&self, deadline: Deadline, sql: &str) -> Result<Row, Refused> {
        deadline.run(self.client.query_typed_one(sql, &[])).await
    }

    /// The one row of a query about `$1`.
    pub(super) async fn row_about(&self, deadline: Deadline, sql: &str, what: &str) -> Result<Row, Refused> {
        let what: &(dyn ToSql + Sync) = &what;
        deadline.run(self.client.query_typed_one(sql, &[(what, Type::TEXT)])).await
    }

    pub(super) async fn rows(&self, deadline: Deadline, sql: &str) -> Result<Vec<Row>, Refused> {
        deadline.run(self.client.query_typed(sql, &[])).await
    }

    pub(super) fn socket(&self) -> &OwnedFd {
        &self.link.socket
    }

    /// Says goodbye, waits a moment for it to be sent, and cuts the connection.
    pub(super) async fn leave(self, deadline: Deadline) {
        let Login { client, mut link, .. } = self;
        drop(client); // the pump says goodbye and ends
        let _ = deadline.at_most(Duration::from_secs(1)).run(&mut link.pump).await;
    }
}

/// A text column; what is NULL is empty. Every query here casts to text.
pub(super) fn text<'a>(row: &'a Row, column: &str) -> &'a str {
    row.try_get::<_, Option<&str>>(column).ok().flatten().unwrap_or("")
}

/// How to log in: everything but the database and the connection itself.
pub(super) fn credentials(target: &Target) -> Config {
    let mut config = Config::new();
    config.application_name("holdstill").ssl_mode(SslMode::Disable);
    // In the login itself: a limit set for this role or database would otherwise end our very first statement.
    config.options("-c statement_timeout=0");
    if let Some(password) = &target.password {
        config.password(password.reveal());
    }
    config
}

/// Logs in as the configured user, or as the first of our guesses that the server knows.
pub(super) async fn open(target: &Target, config: &Config, deadline: Deadline) -> Result<Login, Error> {
    let mut users = match (&target.user, &target.at) {
        (Some(user), _) => vec![user.clone()],
        (None, Address::Tcp { .. }) => vec!["postgres".to_owned()],
        (None, Address::Socket(_)) => {
            let found = target.clone();
            let owner = look(deadline, move || owner_names(&Door::find(&found)?)).await;
            owner.map_err(|failed| explain_io(target, "look at its socket", failed))?
        }
    }
    .into_iter();
    let mut databases = DATABASES.into_iter();
    let (mut user, mut database) = (users.next().expect("there is one"), databases.next().expect("there is one"));
    loop {
        match log_in(target, config, &user, database, deadline).await? {
            Ok(login) => return Ok(login),
            Err(Failed::Refused(error)) => match error.code() {
                // the next user is only tried if the first was our guess, and only the server's name for it was wrong
                Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION) if users.len() > 0 => {
                    user = users.next().expect("counted");
                }
                Some(&SqlState::INVALID_CATALOG_NAME) if databases.len() > 0 => {
                    database = databases.next().expect("counted");
                }
                Some(_) | None => return Err(explain(target, &user, CONNECT, Failed::Refused(error))),
            },
            Err(failed) => return Err(explain(target, &user, CONNECT, failed)),
        }
    }
}

/// One attempt. The outer error is the connection's, the inner one what the server said.
pub(super) async fn log_in(
    target: &Target,
    config: &Config,
    user: &str,
    database: &str,
    deadline: Deadline,
) -> Result<Result<Login, Refused>, Error> {
    let mut config = config.clone();
    config.user(user).dbname(database);
    let (stream, socket) = dial(target, deadline).await?;
    Ok(deadline.run(config.connect_raw(stream, NoTls)).await.map(|(client, connection)| {
        let version = connection.parameter("server_version").unwrap_or_default().to_owned();
        let pump = tokio::spawn(async move {
            let _ = connection.await; // its end shows as `closed`, its cause in the next statement
        });
        Login { client, link: Link { pump, socket }, user: user.to_owned(), version }
    }))
}

/// Whom to log in as by default: what the system calls the owner of the socket, then what everybody calls him (in a
/// container, a uid has another name than here).
fn owner_names(door: &Door) -> io::Result<Vec<String>> {
    let (uid, _) = door.owner()?;
    let known = nix::unistd::User::from_uid(uid.into()).ok().flatten().map(|user| user.name);
    let mut names: Vec<String> = known.into_iter().filter(|name| name != "root").collect();
    if !names.iter().any(|name| name == "postgres") {
        names.push("postgres".to_owned());
    }
    Ok(names)
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Opens the connection itself: on a unix socket as its owner, if we may be anybody.
async fn dial(target: &Target, deadline: Deadline) -> Result<(Box<dyn Stream>, OwnedFd), Error> {
    let opened: Result<(Box<dyn Stream>, OwnedFd), Failed<io::Error>> = match &target.at {
        Address::Socket(_) => {
            let (target, limit) = (target.clone(), deadline.left());
            let dialled = look(deadline, move || {
                let stream = Door::find(&target)?.connect_as_owner(limit)?;
                stream.set_nonblocking(true)?;
                Ok(stream)
            });
            dialled.await.and_then(|stream| {
                let socket = stream.as_fd().try_clone_to_owned().map_err(Failed::Refused)?;
                Ok((Box::new(UnixStream::from_std(stream).map_err(Failed::Refused)?) as Box<dyn Stream>, socket))
            })
        }
        Address::Tcp { host, port } => {
            deadline.run(TcpStream::connect((host.as_str(), *port))).await.and_then(|stream| {
                stream.set_nodelay(true).map_err(Failed::Refused)?;
                let socket = stream.as_fd().try_clone_to_owned().map_err(Failed::Refused)?;
                Ok((Box::new(stream) as Box<dyn Stream>, socket))
            })
        }
    };
    opened.map_err(|failed| explain_io(target, CONNECT, failed))
}
