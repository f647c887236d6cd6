//! A server that came up from a copy: does it stand where the hold's did? Asked of the copy's receipt and of the server.

use std::{fs, path::Path};

use serde_json::Value;

use crate::lab::{
    Fs, Lab, Type, command,
    daemon::{Answer, step},
    database::{Durability, Engine, Server},
    process::tool,
    until,
};

facts! {
    a_recovered_postgresql_stands_at_least_where_it_was_held within 120,
    a_recovered_mariadb_stands_where_it_was_held within 120,
    a_postgresql_that_lost_the_end_of_its_log_is_caught within 120,
    a_mariadb_older_than_its_receipt_is_caught within 120,
    another_cluster_is_not_taken_for_the_one_of_the_hold within 120,
}

/// Copies of one disk, each cut while held, and the report of the last hold. The original is gone.
fn copies(lab: &Lab, engine: Engine, how_many: usize) -> (Vec<std::path::PathBuf>, Value) {
    let disk = lab.fs_at(Type::Ext4, "/mnt/db".as_ref(), 512);
    let server = lab.server(engine, &disk, Durability::Full);
    let daemon = lab.daemon(&[&disk]).database(server.entry("orders")).set("hold.max", "60s").start();
    let ledger = server.ledger();
    let (mut copies, mut report) = (Vec::new(), Value::Null);
    for n in 0..how_many {
        let until_now = ledger.progress().count;
        assert!(until(std::time::Duration::from_secs(20), || ledger.progress().count > until_now + 20));
        report = daemon.freeze(&["--id", &format!("night-{n}"), "--for", "30s", "--require", "application"]);
        copies.push(disk.copy());
        assert_eq!(daemon.thaw()["verdict"], "unbroken");
    }
    (copies, report)
}

/// `verify` on a machine that has this server as "orders".
fn verify(lab: &Lab, server: &Server) -> Answer {
    let config = lab.memory_dir("config").join("holdstill.toml");
    let mut table = toml::Table::new();
    table.insert("database".into(), toml::Value::Array(vec![server.entry("orders").into()]));
    table.insert("databases".into(), toml::Table::from_iter([("discover".to_owned(), false.into())]).into());
    fs::write(&config, toml::to_string(&table).expect("plain values")).expect("memory");
    lab.holdstill(&["--json", "verify", "--config", config.to_str().expect("ASCII")])
}

fn comes_up<'lab>(lab: &'lab Lab, engine: Engine, copy: &Fs) -> Server<'lab> {
    lab.serve(engine, &copy.mount.join("data"), Durability::Full)
}

fn stands_where_it_was(lab: &Lab, engine: Engine, positions: &[&str], claims: &[&str]) {
    let (copies, _) = copies(lab, engine, 1);
    // the files alone
    let offline = lab.holdstill(&["--json", "verify", copies[0].to_str().expect("ASCII")]);
    offline.exits(0);
    assert_eq!(
        (&offline.json["grade"], &offline.json["level"]),
        (&"cut-inside".into(), &"application".into()),
        "{offline:?}"
    );
    let copied = lab.mount_copy(Type::Ext4, &copies[0]);
    let stopped = lab.holdstill(&["--json", "verify"]);
    stopped.exits(0);
    let server = comes_up(lab, engine, &copied);
    let answer = verify(lab, &server);
    answer.exits(0);
    let database = &answer.json["databases"][0];
    assert_eq!((&database["name"], &database["running"]), (&"db:orders".into(), &true.into()), "{answer:?}");
    let position = database["position"].as_str().unwrap_or_default();
    assert!(positions.contains(&position), "{answer:?}");
    let claim = answer.json["claims"][0]["claim"].as_str().unwrap_or_default();
    assert!(claims.contains(&claim), "{answer:?}");
    server.query(if engine == Engine::Postgresql { "CREATE TABLE new (a int)" } else { "CREATE DATABASE new" });
    let answer = verify(lab, &server);
    answer.exits(0);
    assert_eq!(answer.json["databases"][0]["position"], "further", "{answer:?}");
    drop(server);
}

fn a_recovered_postgresql_stands_at_least_where_it_was_held(lab: &Lab) {
    stands_where_it_was(lab, Engine::Postgresql, &["equal", "further"], &["bounded"]);
}

fn a_recovered_mariadb_stands_where_it_was_held(lab: &Lab) {
    stands_where_it_was(lab, Engine::Mariadb, &["equal"], &["exact", "bounded"]);
}

fn behind(answer: &Answer) {
    answer.exits(3).says("data was lost");
    assert_eq!(answer.json["databases"][0]["position"], "behind", "{answer:?}");
    assert!(answer.json["problems"].to_string().contains("POSITION_BEHIND"), "{answer:?}");
}

fn a_postgresql_that_lost_the_end_of_its_log_is_caught(lab: &Lab) {
    let (copies, report) = copies(lab, Engine::Postgresql, 1);
    let copied = lab.mount_copy(Type::Ext4, &copies[0]);
    let start = step(&report, "db:orders")["database"]["start"].clone();
    let of =
        |key: &str| start.as_array().expect("a list").iter().find(|c| c["key"] == key).expect("told")["value"].clone();
    let (segment, flushed) = (of("wal_file"), of("flush_lsn"));
    let low = u64::from_str_radix(flushed.as_str().and_then(|lsn| lsn.split('/').nth(1)).expect("an LSN"), 16);
    let at = low.expect("hexadecimal") % (16 << 20);
    // the last record is gone, as on a disk that confirmed what it had not written
    let log =
        fs::OpenOptions::new().write(true).open(copied.mount.join("data/pg_wal").join(segment.as_str().expect("text")));
    std::os::unix::fs::FileExt::write_all_at(&log.expect("it is there"), &vec![0; 8192], at.saturating_sub(32))
        .expect("written");
    // when a server was started is known to the second, and nobody restores within the one of the hold
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let server = comes_up(lab, Engine::Postgresql, &copied);
    // it writes on, over the numbers of what was lost
    server.query("CREATE TABLE new AS SELECT generate_series(1, 1000) AS a");
    behind(&verify(lab, &server));
}

/// The receipt of the second hold on the data of the first.
fn a_mariadb_older_than_its_receipt_is_caught(lab: &Lab) {
    let (copies, _) = copies(lab, Engine::Mariadb, 2);
    let newer = lab.mount_copy(Type::Ext4, &copies[1]);
    let kept = lab.memory_dir("receipt");
    let copy = |from: &Path, to: &Path| tool(command("cp").arg("-a").arg(from).arg(to));
    copy(&newer.mount.join(".holdstill"), &kept);
    drop(newer);
    let older = lab.mount_copy(Type::Ext4, &copies[0]);
    fs::remove_dir_all(older.mount.join(".holdstill")).expect("it is there");
    copy(&kept.join(".holdstill"), &older.mount);
    let server = comes_up(lab, Engine::Mariadb, &older);
    behind(&verify(lab, &server));
}

fn another_cluster_is_not_taken_for_the_one_of_the_hold(lab: &Lab) {
    let (copies, _) = copies(lab, Engine::Postgresql, 1);
    let copied = lab.mount_copy(Type::Ext4, &copies[0]);
    let other = lab.fs_at(Type::Ext4, "/mnt/other".as_ref(), 512);
    let server = lab.server(Engine::Postgresql, &other, Durability::Full);
    let answer = verify(lab, &server);
    assert_eq!(answer.json["databases"][0]["position"], "other_server", "{answer:?}");
    drop(server);
    drop(copied);
}
