//! Holding real MySQL servers, 5.7 to 9.x. What a frozen copy of their disks then contains is tested elsewhere.

#[path = "../step_servers/mysql.rs"]
mod mysql;
#[path = "../step_servers/mod.rs"]
mod step_servers;
#[path = "../step_servers/stop.rs"]
mod stop;

mod accounts;
mod guard;
mod lost;
mod told;
mod ways;

use std::time::Duration;

use holdstill::{
    proto::{self, Claim, Severity},
    step::database::{Busy, Engine, Error, Logs, Session, Strategy, Target},
    sys::{clock::monotonic, sockets},
};
use mysql::{Release, Server, directory, number, run, text, with};
use mysql_async::Conn;
use step_servers::{LIMIT, at, codes, on_tcp, password_file, paths};
use tokio::task::JoinHandle;

const A_MOMENT: Duration = Duration::from_millis(300);
/// Longer than any lock is waited for.
const SOON: Duration = Duration::from_secs(5);

async fn connect(target: &Target) -> Session {
    Session::connect(target, Logs::WhileHeld, LIMIT).await.unwrap_or_else(|error| panic!("{error}; {}", error.hint))
}

async fn refused(target: &Target) -> Error {
    match Session::connect(target, Logs::WhileHeld, LIMIT).await {
        Ok(_) => panic!("it let us in"),
        Err(error) => error,
    }
}

async fn hold(session: &mut Session) {
    session.soften(LIMIT).await.expect("softened");
    session.hold("h1", LIMIT).await.expect("held");
    session.barrier("h1", LIMIT).await.expect("flushed");
}

fn asking(server: &Server, strategy: Strategy) -> Target {
    Target { strategy, ..server.target() }
}

/// Does a statement go through within `limit`? It is left running if not.
async fn goes_through(mut client: Conn, sql: &'static str, limit: Duration) -> Result<Conn, JoinHandle<Conn>> {
    let mut running = tokio::spawn(async move {
        run(&mut client, sql).await;
        client
    });
    match tokio::time::timeout(limit, &mut running).await {
        Ok(client) => Ok(client.expect("it ran")),
        Err(_) => Err(running),
    }
}

const COMMIT: &str = "INSERT INTO app.t VALUES (1)";

async fn commits(client: Conn) -> Conn {
    goes_through(client, COMMIT, SOON).await.expect("nobody waits")
}

fn remark<'a>(session: &Session, code: &str, all: &'a mut Vec<proto::Problem>) -> &'a proto::Problem {
    *all = session.remarks();
    all.iter().find(|remark| remark.code == code).unwrap_or_else(|| panic!("no {code} in {all:?}"))
}

/// Statements that run until they are ended, in a session of their own.
async fn busy(server: &Server, sql: &'static str) -> (u64, JoinHandle<()>) {
    let mut client = server.client().await;
    let id = number(&mut client, "SELECT CONNECTION_ID()").await;
    let running = tokio::spawn(async move {
        let _ = mysql_async::prelude::Queryable::query_drop(&mut client, sql).await;
    });
    let mut dba = server.client().await;
    let begun = monotonic();
    let state = format!("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE ID = {id} AND COMMAND = 'Query'");
    while number(&mut dba, &state).await == 0 {
        assert!(monotonic() - begun < LIMIT, "it does not run");
        tokio::time::sleep(Duration::from_millis(20)).await; // between two looks
    }
    (id, running)
}

/// Until it has run for so long that nobody expects it to end soon.
async fn long(server: &Server, id: u64) {
    let mut dba = server.client().await;
    let seconds = format!("SELECT IFNULL(MAX(TIME), 0) FROM information_schema.PROCESSLIST WHERE ID = {id}");
    let begun = monotonic();
    while number(&mut dba, &seconds).await < 2 {
        assert!(monotonic() - begun < LIMIT, "it ended");
        tokio::time::sleep(Duration::from_millis(50)).await; // between two looks
    }
}

async fn end(server: &Server, id: u64, running: JoinHandle<()>) {
    run(&mut server.client().await, &format!("KILL {id}")).await;
    running.await.expect("it ended");
}

const LONG_SELECT: &str = "SELECT COUNT(*), SLEEP(30) FROM app.report WHERE i <> 4711";
