//! Throw-away database servers of many versions, whose data directories lie on file systems that really freeze.
//!
//! An [`Edition`] says which server: the machine's own, or one in a tree that `tests/servers/build.sh` unpacked.
//! [`ServerOptions`] say how it is set up. Every server is a descendant of the fact's process and dies with its world.

pub mod edition;
pub mod enter;
pub mod ledger;
pub mod options;
pub mod session;
mod setup;
pub mod template;

use std::{
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::Child,
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;

pub use edition::{Edition, Engine};
pub use options::{Durability, ServerOptions};

use super::{
    Fs, Lab, finish,
    process::{self, until},
};
use edition::Programs;
use options::{Bind, Place, Root};
use session::{Address, Session, limited};
use setup::Dirs;

/// A running server; stopped when dropped.
pub struct Server<'lab> {
    lab: &'lab Lab,
    pub edition: Edition,
    child: Child,
    /// its own process, as the fact sees it
    pid: i32,
    pub address: Address,
    /// as the fact sees it
    pub data: PathBuf,
    /// as the server sees it
    pub dirs: Dirs,
    log: PathBuf,
}

impl Lab {
    /// Initialises a data directory on `fs` and starts this machine's own server. Skips the fact where none is installed.
    pub fn server(&self, engine: Engine, fs: &Fs, durability: Durability) -> Server<'_> {
        self.server_of(&Edition::of_host(engine), ServerOptions { durability, ..ServerOptions::on(fs) })
    }

    /// Starts this machine's own server on a data directory that exists: a copy, a recovered one.
    pub fn serve(&self, engine: Engine, data: &Path, durability: Durability) -> Server<'_> {
        self.serve_of(&Edition::of_host(engine), data, ServerOptions { durability, ..ServerOptions::existing() })
    }

    /// Initialises a data directory and starts a server. Skips the fact where that edition is not to be had.
    pub fn server_of(&self, edition: &Edition, options: ServerOptions) -> Server<'_> {
        let fs = options.data.expect("made by `on`");
        self.server_in(edition, &fs.mount.join("data"), options)
    }

    /// As [`Lab::server_of`], in a directory of the fact's choice; made if missing.
    pub fn server_in(&self, edition: &Edition, data: &Path, mut options: ServerOptions) -> Server<'_> {
        self.try_initialise(edition, data, &mut options).unwrap_or_else(|e| panic!("{e}"));
        let root = options.root;
        let server = self.serve_of(edition, data, options);
        // not while initialising: MySQL loads no plugins then
        if root == Root::AuthSocket && edition.engine == Engine::Mysql {
            server.query("ALTER USER root@localhost IDENTIFIED WITH auth_socket");
        }
        server
    }

    /// Only initialises: for data directories that an engine may refuse.
    ///
    /// # Errors
    /// What its program said.
    pub fn try_initialise(&self, edition: &Edition, data: &Path, options: &mut ServerOptions) -> Result<(), String> {
        let programs = self.programs(edition);
        let dirs = self.dirs(edition, &programs, data, options);
        template::filled(self, edition, data, options, || setup::initialise(self, edition, &programs, &dirs, options))
    }

    /// Starts a server on a data directory that exists.
    ///
    /// # Panics
    /// It does not come up.
    pub fn serve_of(&self, edition: &Edition, data: &Path, options: ServerOptions) -> Server<'_> {
        self.try_serve(edition, data, options).unwrap_or_else(|e| panic!("{e}"))
    }

    /// # Errors
    /// It does not come up: its log.
    pub fn try_serve(&self, edition: &Edition, data: &Path, mut options: ServerOptions) -> Result<Server<'_>, String> {
        let programs = self.programs(edition);
        let dirs = self.dirs(edition, &programs, data, &mut options);
        let _ = fs::remove_file(data.join("postmaster.pid"));
        let (args, address) = setup::arguments(edition, &dirs, &options);
        let log = self.memory_dir(edition.engine.name()).join("log");
        let file = fs::File::create(&log).expect("memory");
        let mut command = enter::command(&programs, &programs.server, &options);
        command.args(args).stdout(file.try_clone().expect("a descriptor")).stderr(file);
        let child = command.spawn().expect("it is there");
        let pid = child.id().cast_signed();
        let mut server = Server { lab: self, edition: *edition, child, pid, address, data: data.to_owned(), dirs, log };
        let inside = server.address.clone();
        let mut ended = false;
        let answers = until(Duration::from_secs(40), || {
            server.find(&options, &inside);
            ended = server.child.try_wait().is_ok_and(|status| status.is_some());
            // each refused connection is a process, and a line in its log
            ended || server.try_query("SELECT 1").is_ok() || {
                thread::sleep(Duration::from_millis(20));
                false
            }
        });
        if answers && !ended {
            return Ok(server);
        }
        Err(format!("{} did not come up on {}:\n{}", edition.title(), data.display(), server.log_tail()))
    }

    fn programs(&self, edition: &Edition) -> Programs {
        edition.programs().unwrap_or_else(|why| self.skip(&why))
    }

    /// Makes what is missing, and says where the server sees it.
    fn dirs(&self, edition: &Edition, programs: &Programs, data: &Path, options: &mut ServerOptions) -> Dirs {
        let own = |dir: &Path| {
            fs::create_dir_all(dir).expect("there is room");
            chown(dir, Some(programs.uid), Some(programs.gid)).expect("root may");
        };
        let (log, spaces) =
            (options.log.map(|fs| fs.mount.join("log")), options.spaces.map(|fs| fs.mount.join("spaces")));
        own(data);
        log.iter().chain(&spaces).for_each(|dir| own(dir));
        if programs.root != Path::new("/") {
            let accounts = format!(
                "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\nserver:x:{}:{}::/:/bin/sh\n",
                programs.uid, programs.gid
            );
            let unless_nobody = accounts.lines().filter(|l| programs.uid != 65534 || !l.starts_with("server"));
            let text: String = unless_nobody.map(|line| format!("{line}\n")).collect();
            fs::create_dir_all(programs.seen("/etc")).expect("the world's root is writable");
            fs::write(programs.seen("/etc/passwd"), text).expect("the world's root is writable");
        }
        let run = match options.place {
            Place::Beside => {
                let dir = self.memory_dir(edition.engine.name());
                own(&dir);
                dir
            }
            Place::Container(_) => {
                if options.binds.is_empty() {
                    let home =
                        if edition.engine.speaks_mysql() { "/var/lib/mysql" } else { "/var/lib/postgresql/data" };
                    let mut bind =
                        |from: &Path, to: &str| options.binds.push(Bind { from: from.into(), to: to.into() });
                    bind(data, home);
                    log.iter().for_each(|dir| bind(dir, "/srv/log"));
                    spaces.iter().for_each(|dir| bind(dir, "/srv/spaces"));
                }
                enter::CONTAINER_RUN.into()
            }
        };
        let inside = |dir: &Path| options.inside(dir);
        Dirs { data: inside(data), run, log: log.as_deref().map(inside), spaces: spaces.as_deref().map(inside) }
    }
}

impl Server<'_> {
    pub fn engine(&self) -> Engine {
        self.edition.engine
    }

    /// A container's server is the only child of the process we started, and its socket is found through it.
    fn find(&mut self, options: &ServerOptions, inside: &Address) {
        if let Place::Container(_) = options.place {
            let child = self.child.id().cast_signed();
            let Some(server) = process::all().into_iter().find(|p| p.parent == child) else { return };
            self.pid = server.pid;
            if let Address::Socket(path) = inside {
                let path = path.strip_prefix("/").expect("absolute");
                self.address = Address::Socket(PathBuf::from(format!("/proc/{}/root", self.pid)).join(path));
            }
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The end of its log, for people.
    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// The process whose death takes the whole server along.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its socket's file, as the fact reaches it.
    ///
    /// # Panics
    /// It listens on a port.
    pub fn socket(&self) -> &Path {
        match &self.address {
            Address::Socket(path) => path,
            Address::Port(port) => panic!("{} listens on port {port}", self.edition.title()),
        }
    }

    /// A `[[database]]` entry for it.
    pub fn entry(&self, name: &str) -> toml::Table {
        let user = if self.engine().speaks_mysql() { "root" } else { "postgres" };
        let mut entry = toml::Table::from_iter([
            ("name".to_owned(), name.into()),
            ("engine".to_owned(), self.engine().name().into()),
            ("user".to_owned(), user.into()),
        ]);
        match &self.address {
            Address::Socket(path) => drop(entry.insert("socket".to_owned(), path.display().to_string().into())),
            Address::Port(port) => {
                entry.insert("host".to_owned(), "127.0.0.1".into());
                entry.insert("port".to_owned(), i64::from(*port).into());
            }
        }
        entry
    }

    /// The first column of every row, as text.
    ///
    /// # Panics
    /// The server says no, or does not answer within 10 s.
    pub fn query(&self, sql: &str) -> Vec<String> {
        self.try_query(sql).unwrap_or_else(|e| panic!("{sql}: {e}\n{}", self.log_tail()))
    }

    pub fn try_query(&self, sql: &str) -> Result<Vec<String>, String> {
        Ok(self.rows(sql)?.into_iter().filter_map(|row| row.into_iter().next()).collect())
    }

    /// All columns of every row.
    ///
    /// # Errors
    /// The server says no, or does not answer within 10 s.
    pub fn rows(&self, sql: &str) -> Result<Vec<Vec<String>>, String> {
        limited(async { Session::open(self.engine(), &self.address).await?.rows(sql).await })
    }

    pub fn number(&self, sql: &str) -> u64 {
        self.query(sql).first().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{sql} is no number"))
    }

    /// Runs a program that came with the server, connected to it; answers what it said.
    ///
    /// # Errors
    /// It failed, or took longer than 60 s: what it said.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String, String> {
        let programs = self.edition.programs()?;
        let said = self.lab.memory_dir(program).join("said");
        let file = fs::File::create(&said).expect("memory");
        // of the binds only the socket matters to a client, and that is in /run
        let mut command = enter::command(&programs, &programs.beside(program), &ServerOptions::existing());
        command.arg("-h").arg(&self.dirs.run).args(["-U", "postgres"]).args(args);
        command.stdout(file.try_clone().expect("a descriptor")).stderr(file);
        let status = finish(&mut command.spawn().expect("it is there"), Duration::from_secs(60));
        let said = fs::read_to_string(said).unwrap_or_default();
        if status.is_some_and(|s| s.success()) { Ok(said) } else { Err(format!("{status:?}: {said}")) }
    }

    /// As the server says it.
    pub fn version(&self) -> String {
        let sql = if self.engine().speaks_mysql() { "SELECT @@version" } else { "SHOW server_version" };
        self.query(sql).remove(0)
    }

    /// Stops it at once, as a crash would.
    pub fn kill(&self) {
        process::signal(self.pid(), Signal::SIGKILL);
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- {}'s log ----\n{}----", self.edition.title(), self.log_tail());
        }
        process::signal(self.pid(), Signal::SIGCONT);
        // PostgreSQL: fast shutdown; the others: SIGTERM is their shutdown
        let end = if self.engine().speaks_mysql() { Signal::SIGTERM } else { Signal::SIGINT };
        process::signal(self.pid(), end);
        if finish(&mut self.child, Duration::from_secs(15)).is_none() {
            self.kill();
            self.lab.trouble(format!("{} had to be killed", self.edition.title()));
        }
        // backends of a killed postmaster end by themselves, soon; whoever unmounts waits for them
    }
}
