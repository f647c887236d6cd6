//! What a hold of the database adds to a frozen file system, seen on copies of the same servers: what was acknowledged from
//! memory is there, and tables without transactions are closed.

use std::{path::PathBuf, time::Duration};

use crate::{
    editions::MYSQL_IS_HELD,
    lab::{
        Fs, Lab, Type, Writer,
        database::{Durability, Edition, Engine, Server, ServerOptions, options::Binlog},
        until,
    },
};

facts! {
    a_freeze_alone_loses_what_a_careless_postgresql_acknowledged_and_a_hold_does_not within 90,
    a_freeze_alone_loses_what_a_careless_mariadb_acknowledged_and_a_hold_does_not within 90,
    a_freeze_alone_loses_what_a_careless_mysql_acknowledged_and_a_hold_does_not within 90,
    a_freeze_alone_leaves_mariadb_tables_without_transactions_open_and_a_hold_does_not within 180,
    a_freeze_alone_leaves_mysql_tables_without_transactions_open_and_a_hold_does_not within 180,
}

/// How the copy is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// `fsfreeze`, and nobody asks the database
    FreezeAlone,
    Hold,
}

fn disk(lab: &Lab) -> Fs<'_> {
    lab.fs_at(Type::Ext4, "/mnt/db".as_ref(), 640)
}

/// A copy of the disk; for a hold with the daemon's word that it is one of an application.
fn copied(lab: &Lab, by: By, disk: &Fs, server: &Server) -> PathBuf {
    match by {
        By::FreezeAlone => {
            disk.freeze_by_others();
            let copy = disk.copy();
            assert!(disk.thaw_by_others(), "it was frozen");
            copy
        }
        By::Hold => {
            let daemon = lab.daemon(&[disk]).database(server.entry("orders")).set("hold.max", "60s").start();
            daemon.freeze(&["--for", "30s", "--require", "application"]);
            let copy = disk.copy();
            let report = daemon.thaw();
            assert_eq!(report["verdict"], "unbroken", "{report:#}");
            assert_eq!(report["consistency"], "application", "{report:#}");
            copy
        }
    }
}

/// Whether a hold of this engine can be asked for.
fn is_held(engine: Engine) -> bool {
    engine != Engine::Mysql || MYSQL_IS_HELD
}

/// (acknowledged before the copy was asked for, in the copy)
fn ledger(lab: &Lab, edition: &Edition, by: By) -> (u64, u64) {
    let disk = disk(lab);
    let options = ServerOptions { durability: Durability::Relaxed, binlog: Binlog::Off, ..ServerOptions::on(&disk) };
    // MySQL's own thread would write the log all the time, though nobody asked for that
    let server = lab.server_of(
        edition,
        if edition.engine == Engine::Mysql { options.setting("loose-innodb-log-writer-threads=OFF") } else { options },
    );
    let ledger = server.ledger();
    if edition.engine == Engine::Postgresql {
        // the table itself was acknowledged from memory
        server.query("CHECKPOINT");
    }
    let some = ledger.progress().count + 300;
    assert!(until(Duration::from_secs(20), || ledger.progress().count > some), "commits take too long");
    let before = ledger.progress().count;
    let copy = copied(lab, by, &disk, &server);
    drop(ledger);
    drop(server);
    let copied = lab.mount_copy(Type::Ext4, &copy);
    let options = ServerOptions::existing().instead_of(&disk, &copied);
    (before, lab.serve_of(edition, &copied.mount.join("data"), options).ledger_rows())
}

fn careless(lab: &Lab, edition: &Edition) {
    let (before, rows) = ledger(lab, edition, By::FreezeAlone);
    assert!(rows < before, "{} lost none of {before}: nothing is shown", edition.title());
    println!("{}: a freeze alone lost {} of {before}", edition.title(), before - rows);
    if is_held(edition.engine) {
        let (before, rows) = ledger(lab, edition, By::Hold);
        assert!(rows >= before, "{}: {before} were acknowledged, {rows} are in the copy", edition.title());
    }
}

fn a_freeze_alone_loses_what_a_careless_postgresql_acknowledged_and_a_hold_does_not(lab: &Lab) {
    careless(lab, &Edition::find(Engine::Postgresql, "17"));
}

fn a_freeze_alone_loses_what_a_careless_mariadb_acknowledged_and_a_hold_does_not(lab: &Lab) {
    careless(lab, &Edition::find(Engine::Mariadb, "11.8"));
}

fn a_freeze_alone_loses_what_a_careless_mysql_acknowledged_and_a_hold_does_not(lab: &Lab) {
    careless(lab, &Edition::find(Engine::Mysql, "8.4"));
}

/// A freeze can come when all are closed, or when what is not on disk does not matter; not every time.
const ROUNDS: usize = 6;
const HELD_ROUNDS: usize = 3;
const WRITERS: usize = 3;

/// Tables without transactions under hot writers.
struct Hot<'lab> {
    lab: &'lab Lab,
    edition: Edition,
    tables: &'static [(&'static str, &'static str)],
    disk: Fs<'lab>,
    server: Server<'lab>,
    writers: Vec<Writer>,
}

const MYISAM: (&str, &str) = ("lab.myisam", "ENGINE = MyISAM");
const ARIA: (&str, &str) = ("lab.aria", "ENGINE = Aria TRANSACTIONAL = 0");

impl<'lab> Hot<'lab> {
    fn start(lab: &'lab Lab, edition: Edition, tables: &'static [(&str, &str)]) -> Hot<'lab> {
        let disk = disk(lab);
        let server = lab.server_of(&edition, ServerOptions { binlog: Binlog::Off, ..ServerOptions::on(&disk) });
        server.query("CREATE SCHEMA lab");
        let mut writers = Vec::new();
        for (table, engine) in tables {
            let columns = "id INT AUTO_INCREMENT PRIMARY KEY, t VARCHAR(600), KEY (t(20))";
            server.query(&format!("CREATE TABLE {table} ({columns}) {engine}"));
            let insert = format!("INSERT INTO {table} (t) VALUES (REPEAT(CHAR(97 + {{n}} % 26), {{n}} % 500))");
            writers.extend((0..WRITERS).map(|_| server.repeats(&insert)));
        }
        Hot { lab, edition, tables, disk, server, writers }
    }

    /// What `CHECK TABLE` says of each table in a copy, on a server that repairs nothing; empty: all is well.
    fn complaints(&self, by: By) -> String {
        // small tables are checked in no time; writers that are not watched take time from those that are
        for (table, _) in self.tables {
            self.server.query(&format!("TRUNCATE TABLE {table}"));
        }
        self.writers.iter().for_each(Writer::go_on);
        let begun: Vec<u64> = self.writers.iter().map(|w| w.progress().count + 20).collect();
        let hot = || self.writers.iter().zip(&begun).all(|(writer, some)| writer.progress().count > *some);
        assert!(until(Duration::from_secs(20), hot), "the writers do not write");
        let copy = copied(self.lab, by, &self.disk, &self.server);
        self.writers.iter().for_each(Writer::pause);
        let copied = self.lab.mount_copy(Type::Ext4, &copy);
        let options = ServerOptions::existing()
            .setting("myisam-recover-options=OFF")
            .setting("loose-aria-recover-options=OFF")
            .instead_of(&self.disk, &copied);
        let server = self.lab.serve_of(&self.edition, &copied.mount.join("data"), options);
        let mut said = Vec::new();
        for (table, _) in self.tables {
            let rows = server.rows(&format!("CHECK TABLE {table} MEDIUM")).expect("it answers");
            said.extend(rows.iter().filter(|row| row[3] != "OK").map(|row| row.join(" ")));
        }
        drop(server);
        drop(copied);
        std::fs::remove_file(copy).expect("it is ours");
        said.join("; ")
    }

    fn shows_the_difference(&self) {
        let seen = (0..ROUNDS).map(|_| self.complaints(By::FreezeAlone)).find(|said| !said.is_empty());
        let seen = seen.unwrap_or_else(|| panic!("nothing was left open in {ROUNDS} rounds: nothing is shown"));
        println!("{}: after a freeze alone: {seen}", self.edition.title());
        if is_held(self.edition.engine) {
            for _ in 0..HELD_ROUNDS {
                assert_eq!(self.complaints(By::Hold), "", "{}", self.edition.title());
            }
        }
    }
}

fn a_freeze_alone_leaves_mariadb_tables_without_transactions_open_and_a_hold_does_not(lab: &Lab) {
    Hot::start(lab, Edition::find(Engine::Mariadb, "11.8"), &[MYISAM, ARIA]).shows_the_difference();
}

fn a_freeze_alone_leaves_mysql_tables_without_transactions_open_and_a_hold_does_not(lab: &Lab) {
    Hot::start(lab, Edition::find(Engine::Mysql, "8.4"), &[MYISAM]).shows_the_difference();
}
