//! Ledgers in the guest with systemd: a client of each database commits one row after another, and what it was told is noted
//! in memory, where no freeze and no snapshot reaches.

use std::{thread, time::Duration};

use super::Machine;
use crate::lab::until;

/// A client of each that commits one row after another; /run/NAME.rows has those that were acknowledged. The servers
/// acknowledge what is not on disk yet, or any snapshot would do: what a crash loses is up to ten seconds of rows.
const LEDGERS: [(&str, &str, &str); 2] = [
    (
        "postgresql",
        "install -d -o postgres -g postgres /mnt/data/ledger && runuser -u postgres -- psql -q \
         -c \"CREATE TABLESPACE ledger LOCATION '/mnt/data/ledger'\" \
         -c 'CREATE TABLE ledger (n bigint PRIMARY KEY) TABLESPACE ledger' \
         -c 'ALTER SYSTEM SET synchronous_commit = off' -c \"ALTER SYSTEM SET wal_writer_delay = '10s'\" \
         -c \"ALTER SYSTEM SET wal_writer_flush_after = '64MB'\" -c 'SELECT pg_reload_conf()' >/dev/null",
        "runuser -u postgres -- psql -qAt",
    ),
    (
        "mariadb",
        "mariadb -e 'CREATE DATABASE lab; CREATE TABLE lab.ledger (n bigint PRIMARY KEY); \
         SET GLOBAL innodb_flush_log_at_trx_commit = 0; SET GLOBAL innodb_flush_log_at_timeout = 60'",
        "mariadb --batch --skip-column-names --unbuffered lab",
    ),
];

pub fn begin(guest: &Machine) {
    for (name, create, client) in LEDGERS {
        guest.sh(create);
        // the client says a number when the statement before it has been acknowledged
        let statements = "i=0; while :; do i=$((i+1)); echo \"INSERT INTO ledger VALUES ($i); SELECT $i;\"; done";
        guest.start(name, &format!("{statements} | {client} >/run/{name}.rows"));
    }
}

pub fn acknowledged(guest: &Machine) -> [u64; 2] {
    LEDGERS.map(|(name, _, _)| guest.run(&format!("tail -n 1 /run/{name}.rows")).1.trim().parse().unwrap_or(0))
}

/// Waits until each ledger has `more` rows than it had.
pub fn grow(guest: &Machine, than: [u64; 2], more: u64) {
    let grown = || acknowledged(guest).iter().zip(than).all(|(rows, before)| *rows >= before + more);
    assert!(until(Duration::from_secs(60), grown), "{:?} {}", acknowledged(guest), guest.output("mariadb"));
}

/// What was acknowledged by now; the clients note an answer a moment after it came.
pub fn noted(guest: &Machine) -> [u64; 2] {
    thread::sleep(Duration::from_secs(1));
    acknowledged(guest)
}

/// The highest row a copy has, of a ledger without gaps.
pub fn rows(guest: &Machine) -> [u64; 2] {
    let counts = [
        "runuser -u postgres -- psql -AtF ' ' -c 'SELECT count(*), max(n) FROM ledger'",
        "mariadb --batch --skip-column-names lab -e 'SELECT count(*), max(n) FROM ledger'",
    ];
    counts.map(|command| {
        let said = guest.sh(command);
        let numbers: Vec<u64> = said.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let [count, highest] = numbers[..] else { panic!("{said}") };
        assert_eq!(count, highest, "the ledger has gaps");
        highest
    })
}
