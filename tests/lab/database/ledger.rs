//! Ledgers: clients that note, in memory, what a server has acknowledged.

use std::{ffi::OsString, fs, path::Path, process::ExitCode};

use super::{
    Server,
    edition::Engine,
    session::{Address, Session, runtime},
};
use crate::lab::{Writer, now, writer::Progress};

pub const LEDGER: &str = "lab.ledger";
const ROLE: &str = "--lab-ledger";

impl Server<'_> {
    /// Starts committing rows one by one; the progress counts those the server has acknowledged.
    pub fn ledger(&self) -> Writer {
        self.query("CREATE SCHEMA lab"); // a schema in one, a database in the others
        self.query(&format!("CREATE TABLE {LEDGER} (n BIGINT PRIMARY KEY)"));
        self.repeats(&format!("INSERT INTO {LEDGER} VALUES ({{n}})"))
    }

    /// Starts a client that sends `sql` again and again, with `{n}` counted up from 0, and notes what was acknowledged.
    pub fn repeats(&self, sql: &str) -> Writer {
        let (engine, address) = (self.engine().name(), self.address.to_string());
        self.lab.background(engine, |progress| {
            vec![OsString::from(ROLE), engine.into(), address.into(), progress.into(), sql.into()]
        })
    }

    /// How many of the ledger's rows this server has.
    pub fn ledger_rows(&self) -> u64 {
        self.number(&format!("SELECT count(*) FROM {LEDGER}"))
    }
}

/// The client: one statement after another, until killed or refused.
pub fn repeat_forever(engine: &str, address: &str, progress: &Path, sql: &str) -> ExitCode {
    let engine = Engine::named(engine).expect("the lab names one of its engines");
    let address: Address = address.parse().expect("anything is an address");
    let published = fs::File::create(progress).expect("memory");
    let mut so_far = Progress::default();
    let ended: Result<(), String> = runtime().block_on(async {
        let mut session = Session::open(engine, &address).await?;
        loop {
            let begun = now();
            session.rows(&sql.replace("{n}", &so_far.count.to_string())).await?;
            so_far = so_far.one_more(begun);
            so_far.publish(&published);
        }
    });
    eprintln!("{sql} ended: {ended:?}");
    ExitCode::FAILURE
}
