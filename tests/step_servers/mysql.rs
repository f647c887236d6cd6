//! MySQL servers of other releases, unpacked by tests/servers/build.sh. They run on the libraries they came with, by way of
//! their own dynamic loader: nothing is mounted, nothing is installed.

use std::{
    collections::BTreeSet,
    env, fs,
    io::Write,
    os::unix::{fs::chown, net::UnixStream},
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

use holdstill::step::database::{Engine, Target};
use mysql_async::{Conn, OptsBuilder, prelude::Queryable};

use crate::step_servers::{Place, Running, on_socket, program};

/// A release with a MySQL in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// 5.7
    Bionic,
    /// 8.0
    Noble,
    /// 8.4
    Resolute,
    /// 9.x
    Sid,
}

impl Release {
    pub const ALL: [Release; 4] = [Release::Bionic, Release::Noble, Release::Resolute, Release::Sid];

    fn name(self) -> &'static str {
        match self {
            Release::Bionic => "bionic",
            Release::Noble => "noble",
            Release::Resolute => "resolute",
            Release::Sid => "sid",
        }
    }

    /// The tree it was unpacked into, or why there is none.
    fn tree(self) -> Result<PathBuf, String> {
        let servers = env::var_os("HOLDSTILL_SERVERS").map(PathBuf::from);
        let servers = servers.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/servers"));
        let tree = servers.join(self.name());
        if !nix::unistd::geteuid().is_root() {
            return Err("needs root: servers run as another user".to_owned());
        }
        if tree.join("usr/sbin/mysqld").is_file() {
            return Ok(tree);
        }
        let missing = fs::read_to_string(servers.join(format!("{}.missing", self.name())));
        Err(missing
            .map_or_else(|_| format!("needs {}: tests/servers/build.sh", tree.display()), |why| why.trim().to_owned()))
    }

    pub fn instance_lock(self) -> bool {
        self != Release::Bionic
    }
}

/// Runs `fact` with such a server, or says why it cannot be run.
pub async fn with(release: Release, settings: &[&str], fact: impl AsyncFnOnce(Server)) {
    match release.tree() {
        Ok(tree) => fact(Server::start(release, tree, settings)).await,
        Err(why) => note_skip(&why),
    }
}

/// Once for each test, also for one that wanted several servers: the lines are counted as tests.
fn note_skip(why: &str) {
    static NOTED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let skips = env::var_os("HOLDSTILL_SKIPS").unwrap_or_else(|| panic!("{why}"));
    // The harness names the thread after the test.
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    if NOTED.lock().expect("nobody panics with it").insert(name.clone()) {
        let mut skips = fs::OpenOptions::new().append(true).create(true).open(skips).expect("writable");
        writeln!(skips, "{name}: {why}").expect("written");
    }
}

pub struct Server {
    pub release: Release,
    tree: PathBuf,
    pub running: Running,
    pub place: Place,
    pub port: u16,
}

impl Server {
    /// A new server with an empty `root@localhost` that needs no password.
    fn start(release: Release, tree: PathBuf, settings: &[&str]) -> Server {
        let place = Place::of("nobody");
        let data = place.path("data");
        copy(&template(release, &tree), &data);
        own(&data, &place);
        Server::start_on(release, tree, place, settings)
    }

    /// The same data with other settings, or after it was killed.
    pub fn restart(self, settings: &[&str]) -> Server {
        let Server { release, tree, running, place, .. } = self;
        drop(running);
        Server::start_on(release, tree, place, settings)
    }

    fn start_on(release: Release, tree: PathBuf, place: Place, settings: &[&str]) -> Server {
        let port = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback").local_addr().expect("bound").port();
        let socket = place.path("mysqld.sock");
        let _ = fs::remove_file(&socket);
        let mut args = loaded(&tree);
        args.extend([
            format!("--datadir={}", place.path("data").display()),
            format!("--tmpdir={}", place.path("").display()),
            format!("--socket={}", socket.display()),
            format!("--pid-file={}", place.path("pid").display()),
            format!("--port={port}"),
        ]);
        // The oldest and the newest must know all of these.
        let small = [
            "bind-address=127.0.0.1",
            "innodb-buffer-pool-size=16M",
            "loose-mysqlx=OFF",
            "server-id=7",
            "secure-file-priv=NULL",
        ];
        args.extend(small.iter().chain(settings).map(|setting| format!("--{setting}")));
        let mut running = place.start(&loader(&tree), &args);
        running.wait_until(|| UnixStream::connect(&socket).is_ok());
        Server { release, tree, running, place, port }
    }

    pub fn socket(&self) -> PathBuf {
        self.place.path("mysqld.sock")
    }

    pub fn target(&self) -> Target {
        on_socket(Engine::Mysql, self.socket())
    }

    /// An application's own connection.
    pub async fn client(&self) -> Conn {
        let socket = self.socket().display().to_string();
        Conn::new(OptsBuilder::default().user(Some("root")).socket(Some(socket))).await.expect("root may log in")
    }

    /// One with a table, `app.t`, and another one for those who only read.
    pub async fn with_table(&self) -> Conn {
        let mut client = self.client().await;
        run(&mut client, "CREATE DATABASE app").await;
        run(&mut client, "CREATE TABLE app.t (i int) ENGINE=InnoDB").await;
        run(&mut client, "CREATE TABLE app.report (i int) ENGINE=InnoDB").await;
        run(&mut client, "INSERT INTO app.report VALUES (1)").await;
        client
    }
}

pub async fn run(client: &mut Conn, sql: &str) {
    client.query_drop(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

pub async fn number(client: &mut Conn, sql: &str) -> u64 {
    client.query_first(sql).await.expect("answered").expect("one row")
}

pub async fn text(client: &mut Conn, sql: &str) -> String {
    client.query_first(sql).await.expect("answered").expect("one row")
}

fn loader(tree: &Path) -> PathBuf {
    let merged = tree.join("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2");
    let own = tree.join("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2");
    let found = if merged.exists() { merged } else { own };
    program(&found.display().to_string(), "nothing, but run tests/servers/build.sh:")
}

/// What the loader is told: the libraries, the program, and where the program finds its own files.
fn loaded(tree: &Path) -> Vec<String> {
    let within = |path: &str| tree.join(path).display().to_string();
    let libraries = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "usr/lib/mysql/private"].map(within).join(":");
    vec![
        "--library-path".to_owned(),
        libraries,
        within("usr/sbin/mysqld"),
        "--no-defaults".to_owned(),
        format!("--basedir={}", within("usr")),
        format!("--lc-messages-dir={}", within("usr/share/mysql")),
        format!("--plugin-dir={}", within("usr/lib/mysql/plugin")),
    ]
}

/// An initialised data directory, made once per release and copied for each server.
fn template(release: Release, tree: &Path) -> PathBuf {
    let made = fs::metadata(tree.join("usr/sbin/mysqld")).and_then(|about| about.modified()).expect("readable");
    let made = made.duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let name = format!("mysql-{}-{made}", release.name());
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(&name);
    if kept.is_dir() {
        return kept;
    }
    let place = Place::of("nobody");
    let mut args = loaded(tree);
    args.extend(["--initialize-insecure".to_owned(), format!("--datadir={}", place.path("data").display())]);
    args.push(format!("--tmpdir={}", place.path("").display()));
    let output = place.command(&loader(tree)).args(&args).output().expect("setpriv is part of util-linux");
    assert!(output.status.success(), "initialise: {}", String::from_utf8_lossy(&output.stderr));
    // else every copy is the same server
    let _ = fs::remove_file(place.path("data/auto.cnf"));
    let fresh = tempfile::Builder::new().prefix(&name).tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("created");
    copy(&place.path("data"), &fresh.path().join("data"));
    // Another test may have been faster: then that one's is taken.
    let _ = fs::rename(fresh.path().join("data"), &kept);
    kept
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").args(["-a", "--sparse=always"]).arg(from).arg(to).status().expect("cp is there");
    assert!(status.success(), "copy {}", from.display());
}

pub fn own(path: &Path, place: &Place) {
    let user = format!("{}:{}", place.user.uid, place.user.gid);
    assert!(Command::new("chown").args(["-R", &user]).arg(path).status().expect("chown is there").success());
}

/// A directory the server may use.
pub fn directory(place: &Place, name: &str) -> PathBuf {
    let path = place.path(name);
    fs::create_dir(&path).expect("created");
    chown(&path, Some(place.user.uid.as_raw()), Some(place.user.gid.as_raw())).expect("root may");
    path
}
