//! Throw-away database servers for `step_postgres`, `step_mariadb` and `step_mysql`: in a directory of their own on tmpfs, run by an
//! unprivileged user, ended with the test. Nothing is started that the machine would start by itself.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use holdstill::{
    proto,
    step::database::{Address, Engine, Session, Target},
    sys::clock::monotonic,
};

pub const LIMIT: Duration = Duration::from_secs(10);

/// A directory a server may use; removed when dropped.
pub struct Place {
    directory: tempfile::TempDir,
    pub user: nix::unistd::User,
}

impl Place {
    pub fn of(user: &str) -> Place {
        assert!(nix::unistd::geteuid().is_root(), "needs root: servers run as another user");
        let user = nix::unistd::User::from_name(user)
            .expect("the user database is readable")
            .unwrap_or_else(|| panic!("needs the user `{user}`, which comes with the server's package"));
        let directory =
            tempfile::Builder::new().prefix("holdstill-step-").tempdir_in("/dev/shm").expect("tmpfs has room");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("made enterable");
        chown(directory.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("root may");
        Place { directory, user }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A command run as the server's user; it ends when the thread that starts it does, however that happens.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--reuid", &self.user.name, "--regid", &self.user.gid.to_string()])
            .args(["--clear-groups", "--"])
            .arg(program)
            .current_dir(self.directory.path())
            .stdin(Stdio::null());
        command
    }

    /// Starts it, with its output in `log`.
    pub fn start(&self, program: &Path, args: &[String]) -> Running {
        self.run(self.command(program).args(args))
    }

    /// As `start`, for a command made otherwise.
    pub fn run(&self, command: &mut Command) -> Running {
        let log = fs::File::create(self.path("log")).expect("created");
        command.stdout(log.try_clone().expect("duplicated")).stderr(log);
        Running { child: command.spawn().expect("setpriv is part of util-linux"), log: self.path("log") }
    }
}

/// A server process; killed when dropped.
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Waits until `ready` says so, or says what the server said when it did not.
    pub fn wait_until(&mut self, mut ready: impl FnMut() -> bool) {
        let until = monotonic() + Duration::from_secs(60);
        while !ready() {
            let ended = self.child.try_wait().expect("our child");
            let told = || fs::read_to_string(&self.log).unwrap_or_default();
            assert!(ended.is_none(), "the server ended: {}", told());
            assert!(monotonic() < until, "the server did not get ready: {}", told());
            std::thread::sleep(Duration::from_millis(20)); // between two looks
        }
    }

    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The newest of the programs matching `pattern`.
pub fn program(pattern: &str, package: &str) -> PathBuf {
    let found = glob::glob(pattern).expect("a valid pattern").filter_map(Result::ok).max();
    found.unwrap_or_else(|| panic!("needs {pattern}: apt-get install --no-install-recommends {package}"))
}

pub fn on_socket(engine: Engine, socket: PathBuf) -> Target {
    Target { name: "orders".to_owned(), configured: true, required: true, ..Target::discovered(engine, socket) }
}

pub fn on_tcp(engine: Engine, port: u16) -> Target {
    let at = Address::Tcp { host: "127.0.0.1".to_owned(), port };
    Target { at, ..on_socket(engine, PathBuf::new()) }
}

/// A file as `password_file` wants it.
pub fn password_file(place: &Place, password: &str) -> PathBuf {
    let path = place.path("password");
    fs::write(&path, password).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("mode set");
    path
}

pub fn codes(problems: &[proto::Problem]) -> Vec<&str> {
    problems.iter().map(|problem| problem.code.as_str()).collect()
}

/// The value of a coordinate that must be there.
pub fn at<'a>(coordinates: &'a [proto::Coordinate], key: &str) -> &'a str {
    let found = coordinates.iter().find(|coordinate| coordinate.key == key);
    &found.unwrap_or_else(|| panic!("no `{key}` in {coordinates:?}")).value
}

/// Everything the server says it needs, in its order.
pub fn paths(session: &Session) -> Vec<PathBuf> {
    session.places().into_iter().map(|place| place.path).collect()
}
