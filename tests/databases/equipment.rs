//! The servers of the lab are what the other facts take them for.

use std::{fs, path::Path};

use crate::lab::{
    Fs, Lab, Type,
    database::{
        Durability, Edition, Engine, Server, ServerOptions,
        options::{Listens, Network, Place, Root},
    },
    process, until,
};

facts! {
    a_contained_server_is_only_reached_through_its_process within 90,
    a_server_is_set_up_as_asked within 90,
    logs_and_tablespaces_can_lie_elsewhere_and_their_copies_be_put_back within 120,
    root_can_come_into_mysql_by_its_socket within 60,
}

/// One server of each engine, from a tree.
fn one_of_each() -> [Edition; 3] {
    [(Engine::Postgresql, "17"), (Engine::Mysql, "8.4"), (Engine::Mariadb, "11.8")]
        .map(|(engine, version)| Edition::find(engine, version))
}

fn disk<'lab>(lab: &'lab Lab, name: &str) -> Fs<'lab> {
    lab.fs_at(Type::Ext4, &Path::new("/mnt").join(name), 640)
}

fn namespace(pid: i32, kind: &str) -> String {
    let link = fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("the process lives");
    link.display().to_string()
}

fn a_contained_server_is_only_reached_through_its_process(lab: &Lab) {
    let me = std::process::id().cast_signed();
    for (edition, network) in one_of_each().iter().zip([Network::Own, Network::Shared, Network::Own]) {
        let disk = disk(lab, edition.engine.name());
        let options = ServerOptions { place: Place::Container(network), ..ServerOptions::on(&disk) };
        let server = lab.server_of(edition, options);
        assert!(edition.is_of(&server.version()), "{}", server.version());
        let socket = server.socket();
        assert!(socket.starts_with("/proc") && !Path::new("/run/server").exists(), "{}", socket.display());
        assert_ne!(namespace(server.pid(), "mnt"), namespace(me, "mnt"));
        assert_ne!(namespace(server.pid(), "pid"), namespace(me, "pid"));
        assert_eq!(namespace(server.pid(), "net") != namespace(me, "net"), network == Network::Own);
        assert!(!server.dirs.data.exists(), "its data have a name of their own there");
        server.kill();
        assert!(until(std::time::Duration::from_secs(5), || !process::alive(server.pid())), "it survives its death");
    }
}

fn a_server_is_set_up_as_asked(lab: &Lab) {
    for edition in one_of_each() {
        let disk = disk(lab, edition.engine.name());
        let listens = if edition.engine == Engine::Mysql { Listens::Socket } else { Listens::Port };
        let options = ServerOptions { listens, durability: Durability::Relaxed, ..ServerOptions::on(&disk) };
        let server = lab.server_of(&edition, options);
        let entry = server.entry("orders");
        assert_eq!(entry.contains_key("port"), listens == Listens::Port, "{entry}");
        let (where_data, durable) = match edition.engine {
            Engine::Postgresql => ("SHOW data_directory", "SHOW synchronous_commit"),
            Engine::Mysql | Engine::Mariadb => ("SELECT @@datadir", "SELECT @@innodb_flush_log_at_trx_commit"),
        };
        // of another release, and yet its paths mean what they mean for everybody
        assert_eq!(Path::new(&server.query(where_data)[0]), server.data.as_path());
        assert!(["off", "0"].contains(&server.query(durable)[0].as_str()), "it is careful");
    }
}

/// Where the log really goes, and a table with a place of its own.
fn spread(server: &Server, log: &Fs, spaces: &Fs) {
    let within = |dir: &Path, name: &str| {
        let entries = fs::read_dir(dir).expect("it is there").flatten();
        entries.map(|e| e.file_name().to_string_lossy().into_owned()).any(|file| file.starts_with(name))
    };
    let space = server.dirs.spaces.as_deref().expect("asked for").display().to_string();
    if server.engine().speaks_mysql() {
        assert!(within(&log.mount.join("log"), "binlog.0"), "the binary log is elsewhere");
        server.query("CREATE SCHEMA lab");
        server.query(&format!("CREATE TABLE lab.far (n INT PRIMARY KEY) DATA DIRECTORY = '{space}'"));
    } else {
        assert!(within(&log.mount.join("log/wal"), "00000001"), "the WAL is elsewhere");
        server.query(&format!("CREATE TABLESPACE far LOCATION '{space}'"));
        server.query("CREATE SCHEMA lab");
        server.query("CREATE TABLE lab.far (n INT PRIMARY KEY) TABLESPACE far");
    }
    server.query("INSERT INTO lab.far VALUES (1), (2), (3)");
    assert!(fs::read_dir(spaces.mount.join("spaces")).expect("it is there").count() > 0, "the table is elsewhere");
}

fn logs_and_tablespaces_can_lie_elsewhere_and_their_copies_be_put_back(lab: &Lab) {
    for edition in one_of_each() {
        let of = |what: &str| disk(lab, &format!("{}-{what}", edition.engine.name()));
        let (data, log, spaces) = (of("data"), of("log"), of("spaces"));
        let options = ServerOptions { log: Some(&log), spaces: Some(&spaces), ..ServerOptions::on(&data) };
        let server = lab.server_of(&edition, options.clone());
        spread(&server, &log, &spaces);
        // all at one instant: before the first is copied all are frozen
        for fs in [&data, &log, &spaces] {
            fs.freeze_by_others();
        }
        let copies = [&data, &log, &spaces].map(Fs::copy);
        for fs in [&data, &log, &spaces] {
            assert!(fs.thaw_by_others());
        }
        server.query("DELETE FROM lab.far");
        drop(server);
        let copies = copies.map(|copy| lab.mount_copy(Type::Ext4, &copy));
        let originals = [&data, &log, &spaces].into_iter().zip(&copies);
        let back = originals.fold(ServerOptions { data: None, ..options }, |o, (fs, copy)| o.instead_of(fs, copy));
        let recovered = lab.serve_of(&edition, &copies[0].mount.join("data"), back);
        assert_eq!(recovered.number("SELECT count(*) FROM lab.far"), 3, "{}", edition.title());
    }
}

fn root_can_come_into_mysql_by_its_socket(lab: &Lab) {
    let disk = disk(lab, "mysql");
    let options = ServerOptions { root: Root::AuthSocket, ..ServerOptions::on(&disk) };
    let server = lab.server_of(&Edition::find(Engine::Mysql, "8.4"), options);
    assert_eq!(server.query("SELECT plugin FROM mysql.user WHERE user = 'root'"), ["auth_socket"]);
}
