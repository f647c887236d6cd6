//! A PostgreSQL whose volumes are copied at different instants, and what the label is for. Copied with the log last and
//! the label put back, they are whole. With a log that was copied too early the label makes the server refuse to start.
//! Without it, it starts as if all were well, and only `pg_amcheck` sees the damage.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::lab::{
    Fs, Lab, Type, Writer, command,
    daemon::step,
    database::{
        Edition, Engine, Server, ServerOptions,
        session::{Session, runtime},
    },
    process::tool,
    until,
};

facts! {
    data_and_a_log_copied_later_are_whole_with_the_label within 120,
    a_log_copied_too_early_is_refused_with_the_label within 120,
    volumes_copied_at_different_instants_are_whole_only_with_the_label within 120,
    a_log_copied_too_early_without_a_label_starts_and_is_damaged within 120,
}

/// Whether `freeze --capture logs-after-thaw` is part of this version. As long as it is not, backup mode is entered by hand.
pub const LOGS_AFTER_THAW: bool = true;

/// The label says where the log has to begin, the map which tablespaces there are.
struct Label {
    label: String,
    map: String,
}

struct Volumes<T> {
    data: T,
    spaces: T,
    log: T,
}

/// A server on three volumes, with so little memory that it writes its data all the time.
struct Busy<'lab> {
    lab: &'lab Lab,
    ledger: Writer,
    /// changes rows on pages all over
    hot: Writer,
    server: Server<'lab>,
    on: &'lab Volumes<Fs<'lab>>,
}

fn edition() -> Edition {
    Edition::find(Engine::Postgresql, "17")
}

fn volumes(lab: &Lab) -> Volumes<Fs<'_>> {
    let disk = |at: &str| lab.fs_at(Type::Ext4, at.as_ref(), 320);
    Volumes { data: disk("/mnt/data"), spaces: disk("/mnt/spaces"), log: disk("/mnt/log") }
}

/// Little memory; and the log is kept until its volume is copied, checkpoints or not.
const SETTINGS: [&str; 4] = ["shared_buffers=1MB", "bgwriter_delay=10ms", "wal_keep_size=128MB", "autovacuum=off"];

impl<'lab> Busy<'lab> {
    fn start(lab: &'lab Lab, on: &'lab Volumes<Fs<'lab>>) -> Busy<'lab> {
        let options = ServerOptions { log: Some(&on.log), spaces: Some(&on.spaces), ..ServerOptions::on(&on.data) };
        let server = lab.server_of(&edition(), SETTINGS.into_iter().fold(options, ServerOptions::setting));
        let ledger = server.ledger();
        server.query("CREATE TABLESPACE far LOCATION '/mnt/spaces/spaces'");
        server.query("CREATE TABLE lab.hot (id INT PRIMARY KEY, n BIGINT, t TEXT) TABLESPACE far");
        server.query("INSERT INTO lab.hot SELECT i, 0, repeat('x', 200) FROM generate_series(1, 20000) i");
        server.query("CREATE INDEX ON lab.hot (n)");
        let update = "UPDATE lab.hot SET n = n + 1 WHERE id % 499 = {n} % 499";
        let hot = server.repeats(update);
        Busy { lab, ledger, hot, server, on }
    }

    /// Some more is written.
    fn goes_on(&self) {
        let counts = || [&self.ledger, &self.hot].map(|writer| writer.progress().count);
        let some = counts().map(|count| count + 50);
        let both = || counts().iter().zip(&some).all(|(now, some)| now > some);
        assert!(until(Duration::from_secs(20), both), "nobody goes on");
    }

    /// Copies of data and tablespaces, and what backup mode says at its end.
    fn copy_data(&self) -> (PathBuf, PathBuf, Label) {
        let copies = || (self.on.data.copy(), self.on.spaces.copy());
        if !LOGS_AFTER_THAW {
            let mode = BackupMode::start(&self.server);
            self.goes_on();
            self.on.data.freeze_by_others();
            self.on.spaces.freeze_by_others();
            let (data, spaces) = copies();
            assert!(self.on.spaces.thaw_by_others() && self.on.data.thaw_by_others(), "they were frozen");
            return (data, spaces, mode.stop());
        }
        let daemon = self.lab.daemon(&[&self.on.data, &self.on.spaces, &self.on.log]).set("hold.max", "60s");
        let daemon = daemon.database(self.server.entry("orders")).start();
        daemon.freeze(&["--capture", "logs-after-thaw", "--for", "40s", "--require", "application"]);
        let (data, spaces) = copies();
        let report = daemon.thaw();
        assert_eq!(
            (&report["verdict"], &report["consistency"]),
            (&"unbroken".into(), &"application".into()),
            "{report:#}"
        );
        let database = &step(&report, "db:orders")["database"];
        let text = |key: &str| database[key].as_str().unwrap_or_default().to_owned();
        (data, spaces, Label { label: text("backup_label"), map: text("tablespace_map") })
    }
}

/// What `pg_backup_start` began; it ends with its session.
struct BackupMode {
    runtime: tokio::runtime::Runtime,
    session: Session,
}

impl BackupMode {
    fn start(server: &Server) -> BackupMode {
        let runtime = runtime();
        let session = runtime.block_on(async {
            let mut session = Session::open(Engine::Postgresql, &server.address).await?;
            session.rows("SELECT pg_backup_start('lab', true)").await?;
            Ok::<_, String>(session)
        });
        BackupMode { session: session.expect("a superuser may"), runtime }
    }

    fn stop(mut self) -> Label {
        let sql = "SELECT labelfile, spcmapfile FROM pg_backup_stop(false)";
        let mut rows = self.runtime.block_on(self.session.rows(sql)).expect("it was started");
        let [label, map] = rows.remove(0).try_into().expect("two columns");
        Label { label, map }
    }
}

/// The copies where the originals were, with or without what backup mode said.
fn restored<'lab>(
    lab: &'lab Lab,
    on: &Volumes<Fs>,
    copies: &Volumes<Fs>,
    label: Option<&Label>,
) -> Result<Server<'lab>, String> {
    let data = copies.data.mount.join("data");
    let owner = fs::metadata(&data).expect("it was copied");
    for (name, text) in label.iter().flat_map(|l| [("backup_label", &l.label), ("tablespace_map", &l.map)]) {
        let file = data.join(name);
        assert!(!file.exists(), "nobody wrote one into the original");
        fs::write(&file, text).expect("there is room");
        chown(&file, Some(owner.uid()), Some(owner.gid())).expect("root may");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("root may");
    }
    let options = ServerOptions::existing()
        .instead_of(&on.data, &copies.data)
        .instead_of(&on.spaces, &copies.spaces)
        .instead_of(&on.log, &copies.log);
    lab.try_serve(&edition(), &data, options)
}

fn mounted<'lab>(lab: &'lab Lab, copies: &Volumes<PathBuf>) -> Volumes<Fs<'lab>> {
    let mount = |copy: &PathBuf| lab.mount_copy(Type::Ext4, copy);
    Volumes { data: mount(&copies.data), spaces: mount(&copies.spaces), log: mount(&copies.log) }
}

/// Every table against its indexes; `pg_checksums` and sums see nothing of what this sees.
fn checked(server: &Server) -> Result<String, String> {
    server.run("pg_amcheck", &["--install-missing", "--heapallindexed", "-d", "postgres"])
}

fn data_and_a_log_copied_later_are_whole_with_the_label(lab: &Lab) {
    let on = volumes(lab);
    let busy = Busy::start(lab, &on);
    busy.goes_on();
    let before = busy.ledger.progress().count;
    let (data, spaces, label) = busy.copy_data();
    assert!(label.label.contains("START WAL LOCATION"), "{}", label.label);
    assert!(label.map.contains("/mnt/spaces/spaces"), "{}", label.map);
    busy.goes_on();
    busy.server.query("CHECKPOINT");
    let log = copy_alone(&on.log);
    let at_most = busy.ledger.progress().count + 1;
    drop(busy);
    let copies = mounted(lab, &Volumes { data, spaces, log });
    let server = restored(lab, &on, &copies, Some(&label)).unwrap_or_else(|e| panic!("{e}"));
    let log = server.log();
    assert!(log.contains("starting backup recovery") && log.contains("completed backup recovery"), "{log}");
    checked(&server).unwrap_or_else(|e| panic!("{e}"));
    let rows = server.ledger_rows();
    assert!((before..=at_most).contains(&rows), "{before} before, {at_most} in the end, {rows} in the copy");
}

/// The log of an instant before the data's: what whoever copies volumes in any order gets.
fn a_log_copied_too_early_is_refused_with_the_label(lab: &Lab) {
    let on = volumes(lab);
    let busy = Busy::start(lab, &on);
    busy.goes_on();
    let log = copy_alone(&on.log);
    busy.goes_on();
    let (data, spaces, label) = busy.copy_data();
    drop(busy);
    let copies = mounted(lab, &Volumes { data, spaces, log });
    let refused = restored(lab, &on, &copies, Some(&label)).map(drop).expect_err("its log ends before the backup does");
    println!("{}", fatal(&refused));
}

/// What the label is for: where recovery begins. A checkpoint between two copies says that all before it is on disk, which
/// is true for the later copy only.
fn volumes_copied_at_different_instants_are_whole_only_with_the_label(lab: &Lab) {
    let on = volumes(lab);
    let busy = Busy::start(lab, &on);
    let mode = BackupMode::start(&busy.server);
    busy.goes_on();
    let spaces = copy_alone(&on.spaces);
    busy.goes_on();
    busy.server.query("CHECKPOINT");
    let data = copy_alone(&on.data);
    let label = mode.stop();
    let log = copy_alone(&on.log);
    drop(busy);
    let copies = Volumes { data, spaces, log };
    let other = Volumes { data: twin(&copies.data), spaces: twin(&copies.spaces), log: twin(&copies.log) };

    let copies = mounted(lab, &copies);
    let server = restored(lab, &on, &copies, Some(&label)).unwrap_or_else(|e| panic!("{e}"));
    checked(&server).unwrap_or_else(|e| panic!("{e}"));
    drop(server);
    drop(copies);
    assert_damaged(lab, &on, &mounted(lab, &other));
}

/// Whoever copies the log before the data, or all volumes in any order.
fn a_log_copied_too_early_without_a_label_starts_and_is_damaged(lab: &Lab) {
    let on = volumes(lab);
    let busy = Busy::start(lab, &on);
    busy.goes_on();
    let log = copy_alone(&on.log);
    busy.goes_on();
    let (data, spaces) = (copy_alone(&on.data), copy_alone(&on.spaces));
    drop(busy);
    assert_damaged(lab, &on, &mounted(lab, &Volumes { data, spaces, log }));
}

fn assert_damaged(lab: &Lab, on: &Volumes<Fs>, copies: &Volumes<Fs>) {
    match restored(lab, on, copies, None) {
        Err(log) => println!("it does not start: {}", fatal(&log)),
        Ok(server) => {
            let damage = checked(&server).expect_err("whole, by chance: nothing is shown");
            let said: String = damage.chars().take(300).collect();
            println!("it starts, and pg_amcheck says: {said}");
            assert!(damage.contains("heap table") || damage.contains("btree index"), "that is no damage: {damage}");
        }
    }
}

/// A volume by itself, at an instant of its own.
fn copy_alone(volume: &Fs) -> PathBuf {
    volume.freeze_by_others();
    let copy = volume.copy();
    assert!(volume.thaw_by_others(), "it was frozen");
    copy
}

/// Recovery changes what it recovers.
fn twin(copy: &Path) -> PathBuf {
    let to = copy.with_extension("twin");
    tool(command("cp").arg("--sparse=always").arg(copy).arg(&to));
    to
}

fn fatal(log: &str) -> &str {
    log.lines().find(|l| l.contains("FATAL") && !l.contains("starting up") || l.contains("PANIC")).unwrap_or(log)
}
