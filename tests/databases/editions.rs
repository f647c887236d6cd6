//! Every version we can get hold of is held once, under a client that commits all the time, and its copy recovered.

use std::time::Duration;

use crate::{
    coordinates::recovered_as_claimed,
    lab::{
        Lab, Type,
        daemon::step,
        database::{Edition, Engine, ServerOptions, options::Binlog},
        until,
    },
    table::{self, Row},
};

/// Whether MySQL is held by this version of holdstill.
pub const MYSQL_IS_HELD: bool = true;

macro_rules! editions {
    ($($name:ident: $engine:ident $version:literal),* $(,)?) => {
        facts! { $($name within 120),* }
        $(fn $name(lab: &Lab) {
            held_once(lab, &Edition::find(Engine::$engine, $version));
        })*
    };
}

editions! {
    postgresql_12: Postgresql "12",
    postgresql_13: Postgresql "13",
    postgresql_14: Postgresql "14",
    postgresql_15: Postgresql "15",
    postgresql_16: Postgresql "16",
    postgresql_17: Postgresql "17",
    postgresql_18: Postgresql "18",
    mysql_5_7: Mysql "5.7",
    mysql_8_0: Mysql "8.0",
    mysql_8_4: Mysql "8.4",
    mysql_9: Mysql "9.x",
    mariadb_10_5: Mariadb "10.5",
    mariadb_10_6: Mariadb "10.6",
    mariadb_10_11: Mariadb "10.11",
    mariadb_11_8: Mariadb "11.8",
}

/// All that was acknowledged before the hold was asked for is in the copy, and nothing from after it was released.
fn held_once(lab: &Lab, edition: &Edition) {
    let disk = lab.fs_at(Type::Ext4, "/mnt/db".as_ref(), 640);
    let options = ServerOptions { binlog: Binlog::Gtids, ..ServerOptions::on(&disk) };
    let server = lab.server_of(edition, options.clone());
    let said = server.version();
    assert!(edition.is_of(&said), "a server that says it is {said} is no {}", edition.title());
    let ledger = server.ledger();
    let daemon = lab.daemon(&[&disk]).database(server.entry("orders")).set("hold.max", "60s").start();
    let row = |strategy: &str, claim: &str| Row {
        title: edition.title(),
        version: short(&said),
        strategy: strategy.to_owned(),
        claim: claim.to_owned(),
    };
    if edition.engine == Engine::Mysql && !MYSQL_IS_HELD {
        let refused = daemon.cli(&["freeze", "--for", "30s", "--require", "application"]);
        assert!(matches!(refused.code, Some(1 | 4)), "it is held: set MYSQL_IS_HELD. {refused:?}");
        refused.says("mysql");
        ledger.assert_writable_within(Duration::from_secs(3));
        table::note(lab, &row("", "not held yet"));
        return;
    }
    assert!(until(Duration::from_secs(20), || ledger.progress().count > 50), "commits take too long");
    let before = ledger.progress().count;
    let report = daemon.freeze(&["--for", "30s", "--require", "application"]);
    assert_eq!(report["consistency"], "application", "{report:#}");
    ledger.assert_blocked();
    let at_most = ledger.progress().count + 1;
    let copy = disk.copy();
    let report = daemon.thaw();
    assert_eq!((&report["verdict"], &report["consistency"]), (&"unbroken".into(), &"application".into()), "{report:#}");
    ledger.assert_writable_within(Duration::from_secs(3));
    assert!(until(Duration::from_secs(5), || ledger.progress().count > at_most + 5), "nobody goes on");
    let database = &step(&report, "db:orders")["database"];
    assert!(database["version"].as_str().is_some_and(|v| said.contains(&short(v))), "{said}: {database:#}");
    drop(ledger);
    drop(daemon);
    drop(server);

    let copied = lab.mount_copy(Type::Ext4, &copy);
    let options = ServerOptions { data: None, ..options }.instead_of(&disk, &copied);
    let recovered = lab.serve_of(edition, &copied.mount.join("data"), options);
    let rows = recovered.ledger_rows();
    assert!(rows >= before, "{before} were acknowledged before the hold was asked for, {rows} are in the copy");
    assert!(rows <= at_most, "{at_most} can have been attempted before the thaw, {rows} are in the copy");
    assert_eq!(recovered.number("SELECT max(n) + 1 FROM lab.ledger"), rows, "one in between is missing");
    recovered_as_claimed(&recovered, database);
    let text = |key: &str| database[key].as_str().unwrap_or_default().to_owned();
    table::note(lab, &row(&text("strategy"), &text("claim")));
}

/// "16.15 (Ubuntu 16.15-0ubuntu0.24.04.1)" → "16.15"
fn short(version: &str) -> String {
    version.split(|c: char| c != '.' && !c.is_numeric()).next().unwrap_or_default().to_owned()
}
