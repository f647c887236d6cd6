//! Configuration in three stages: fragments (one file each, unknown keys refused) → merged → [`Settings`] (validated, typed).
//!
//! ```text
//!   holdstill.toml ─┐
//!   drop-in a.toml ─┼─ fragment ──▶ merge ──▶ settings ──▶ Loaded { settings, effective, notes }
//!   drop-in b.toml ─┘      ▲                      ▲
//!                          └──────── keys ────────┘   the one table of keys, defaults and what they are for
//! ```
//!
//! The main file is the first of `/etc/holdstill/holdstill.toml`, `/run/…`, `/usr/lib/…`; drop-ins are
//! `holdstill.toml.d/*.toml` beside each, applied in file-name order, same-named ones masked in the same precedence.
//! Called by `daemon`, `rescue`, `client` and `main`.

mod fragment;
pub mod keys;
mod merge;
mod names;
pub mod pages;
mod settings;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    proto,
    step::{database, hook},
};

/// What loading yields.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub settings: Settings,
    /// every value in force and where it came from, in the order of the documentation
    pub effective: Vec<Effective>,
    /// one sentence each: nothing wrong, but worth saying at start
    pub notes: Vec<String>,
}

/// One value in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// dotted, e.g. "hold.max" or "database.orders.engine"
    pub key: String,
    /// as TOML; `None`: not set
    pub value: Option<String>,
    pub source: Source,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Default,
    File { path: PathBuf, line: usize },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            Source::File { path, line } => write!(f, "{}:{line}", path.display()),
        }
    }
}

/// Why a configuration cannot be used. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("failed to read {at}: {why}")]
    Syntax { at: Source, why: String },
    #[error("unknown key `{key}` {place} ({at}){}", meant.as_ref().map_or(String::new(), |m| format!("; did you mean {m}?")))]
    UnknownKey { key: String, place: Box<str>, at: Source, meant: Option<String>, known: Box<str> },
    #[error("cannot use `{key}` ({at}): {why}")]
    Invalid { key: String, at: Source, why: String, hint: String },
}

impl Error {
    /// What to do about it; empty if the sentence says it all.
    pub fn hint(&self) -> String {
        match self {
            Error::Read { .. } | Error::Syntax { .. } | Error::UnknownKey { meant: Some(_), .. } => String::new(),
            Error::UnknownKey { meant: None, known, .. } => format!("known there: {known}"),
            Error::Invalid { hint, .. } => hint.clone(),
        }
    }
}

impl Settings {
    /// Reads the main file and the drop-ins below `root` ("/" on a real machine). No file at all is the defaults.
    ///
    /// # Errors
    /// A file that cannot be read or parsed, an unknown key, a value that cannot be used.
    pub fn load(root: &Path) -> Result<Loaded, Error> {
        let fragments = merge::files(root)?.iter().map(|path| fragment::read(path)).collect::<Result<_, _>>()?;
        settings::build(merge::merge(fragments), &names::System { root }, root)
    }

    /// Reads this file alone; names of users and groups are the running system's.
    ///
    /// # Errors
    /// As for [`Settings::load`]; also if the file does not exist.
    pub fn load_file(path: &Path) -> Result<Loaded, Error> {
        let root = Path::new("/");
        settings::build(merge::merge(vec![fragment::read(path)?]), &names::System { root }, root)
    }
}

impl Default for Settings {
    /// The documented defaults, on a machine without a group `holdstill`.
    fn default() -> Settings {
        settings::build(merge::merge(Vec::new()), &names::OnlyRoot, Path::new("/"))
            .expect("a test loads the defaults")
            .settings
    }
}

/// Everything the daemon runs by, validated.
#[derive(Debug, Clone)]
pub struct Settings {
    pub hold: Hold,
    pub listen: Listen,
    pub access: Access,
    pub filesystems: Filesystems,
    pub transient: Transient,
    pub hooks: Hooks,
    pub paths: Paths,
    pub receipt: Receipt,
    pub databases: Databases,
}

#[derive(Debug, Clone)]
pub struct Hold {
    pub max: Duration,
    pub quiesce: Duration,
    pub prepare: Duration,
    pub max_stall: Duration,
    pub require: proto::Consistency,
    /// for holds asked for on the guest-agent channel
    pub unclaimed: Duration,
    /// between the end of one hold and the first stall of the next
    pub interval: Duration,
    /// how long writers may wait within an hour
    pub hourly: Duration,
}

#[derive(Debug, Clone)]
pub struct Listen {
    pub unix: PathBuf,
    pub guest_agent: GuestAgent,
    pub relay: bool,
    pub vsock: Option<u32>,
    pub tcp: Option<Tcp>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestAgent {
    Auto,
    Off,
    Path(PathBuf),
    Vsock(u32),
}

#[derive(Debug, Clone)]
pub struct Tcp {
    pub address: std::net::SocketAddr,
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub client_ca: PathBuf,
    pub clients: Vec<TcpClient>,
}

#[derive(Debug, Clone)]
pub struct TcpClient {
    pub san: String,
    pub role: Role,
}

/// What a caller may do: look (read), or operate (everything).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Look,
    Operate,
}

#[derive(Debug, Clone, Default)]
pub struct Access {
    pub operate: Vec<Principal>,
    pub look: Vec<Principal>,
}

/// Who may ask, resolved to numbers when the configuration is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    User { name: String, uid: u32 },
    Group { name: String, gid: u32 },
}

#[derive(Debug, Clone)]
pub struct Filesystems {
    /// mount points or globs; empty: every local writable file system
    pub include: Vec<glob::Pattern>,
    pub exclude: Vec<glob::Pattern>,
    pub expedite_rcu: bool,
}

#[derive(Debug, Clone)]
pub struct Transient {
    pub policy: TransientPolicy,
    pub mounts: Vec<PathBuf>,
    /// the opposite
    pub durable: Vec<PathBuf>,
    /// what differs for single file systems
    pub exceptions: Vec<TransientMount>,
}

/// One `[[transient.mount]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransientMount {
    pub path: PathBuf,
    pub stance: Stance,
}

/// What is done about what is on a transient file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stance {
    Warn,
    Refuse,
    /// it may be lost
    Accept {
        because: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransientPolicy {
    Warn,
    Refuse,
}

#[derive(Debug, Clone)]
pub struct Hooks {
    pub dir: PathBuf,
    pub timeout: Duration,
    /// other agents' scripts
    pub conventions: Vec<hook::SwitchedOn>,
    pub report_timeout: Duration,
}

#[derive(Debug, Clone)]
pub struct Paths {
    pub run: PathBuf,
    pub state: PathBuf,
}

#[derive(Debug, Clone)]
pub struct Receipt {
    pub enabled: bool,
}

#[derive(Debug, Clone)]
pub struct Databases {
    pub discover: bool,
    pub configured: Vec<database::Target>,
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{
        keys::{Form, SECTIONS},
        *,
    };

    /// A directory tree that stands for a machine.
    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new() -> Machine {
            let machine = Machine(tempfile::tempdir().expect("a temporary directory"));
            machine
                .file("etc/passwd", "root:x:0:0::/root:/bin/sh\nbackup:x:34:34::/:/bin/sh\n")
                .file("etc/group", "root:x:0:\ndba:x:500:\nholdstill:x:998:\n")
        }

        fn file(self, path: &str, text: &str) -> Machine {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().expect("below the root")).expect("mkdir");
            fs::write(path, text).expect("write");
            self
        }

        fn main(self, text: &str) -> Machine {
            self.file("etc/holdstill/holdstill.toml", text)
        }

        fn load(&self) -> Loaded {
            Settings::load(self.0.path()).unwrap_or_else(|error| panic!("{error}"))
        }

        fn error(&self) -> (String, String) {
            let error = Settings::load(self.0.path()).expect_err("it cannot be used");
            (error.to_string().replace(&format!("{}/", self.0.path().display()), "/"), error.hint())
        }
    }

    fn loaded(text: &str) -> Loaded {
        Machine::new().main(text).load()
    }

    fn refused(text: &str) -> (String, String) {
        Machine::new().main(text).error()
    }

    fn value(loaded: &Loaded, key: &str) -> (Option<String>, String) {
        let found = loaded.effective.iter().find(|e| e.key == key).unwrap_or_else(|| panic!("{key} is not listed"));
        (found.value.clone(), found.source.to_string())
    }

    fn shipped() -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/etc/holdstill/holdstill.toml");
        fs::read_to_string(path).expect("it is shipped")
    }

    /// The shipped file with every key that has a default switched on.
    fn switched_on(text: &str) -> String {
        let mut section = None;
        let mut out = String::new();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                section = keys::section(name);
            }
            let key = line.strip_prefix('#').and_then(|l| l.split_once(" = "));
            let is_default = key.is_some_and(|(name, _)| {
                let keys = section.filter(|s| s.form == Form::Table).map_or(&[] as &[_], |s| s.keys);
                keys.iter().any(|k| k.name == name && matches!(k.default, keys::Default::Is(_)))
            });
            if line.starts_with("#[") {
                section = None;
            }
            out.push_str(if is_default { &line[1..] } else { line });
            out.push('\n');
        }
        out
    }

    #[test]
    fn the_shipped_file_works_unedited_and_changes_nothing() {
        let nothing = Machine::new().load();
        let unedited = loaded(&shipped());
        assert_eq!(format!("{:?}", unedited.settings), format!("{:?}", nothing.settings));
        assert!(unedited.notes.is_empty(), "{:?}", unedited.notes);
        assert!(unedited.effective.iter().all(|e| e.source == Source::Default));
    }

    #[test]
    fn the_shipped_file_documents_the_defaults_the_code_has() {
        let text = switched_on(&shipped());
        let on = loaded(&text);
        assert_eq!(format!("{:?}", on.settings), format!("{:?}", Machine::new().load().settings));
        for section in SECTIONS.iter().filter(|s| s.form == Form::Table) {
            for key in section.keys.iter().filter(|k| matches!(k.default, keys::Default::Is(_))) {
                let (_, source) = value(&on, &format!("{}.{}", section.name, key.name));
                assert!(source != "default", "{}.{} is not in the shipped file", section.name, key.name);
            }
        }
    }

    #[test]
    fn every_key_is_in_the_shipped_file_and_every_example_in_it_works() {
        let uncommented =
            |line: &str| line.strip_prefix('#').filter(|l| !l.starts_with(' ')).unwrap_or(line).to_owned();
        let text = shipped().lines().map(uncommented).collect::<Vec<_>>().join("\n");
        // a database has a socket or a host, not both
        let all = loaded(&text.replace("host = \"127.0.0.1\"\n", ""));
        for section in SECTIONS {
            for key in section.keys {
                let line = format!("#{} = {}", key.name, key.default.shown());
                assert!(shipped().contains(&line), "{line}");
            }
        }
        assert_eq!(all.settings.listen.tcp.expect("switched on").clients.len(), 1);
        assert_eq!(all.settings.databases.configured.len(), 1);
    }

    #[test]
    fn the_defaults_are_those_of_the_documentation() {
        let settings = Settings::default();
        assert_eq!(settings.hold.max, Duration::from_secs(60));
        assert_eq!(settings.hold.quiesce, Duration::from_secs(10));
        assert_eq!(settings.hold.prepare, Duration::from_secs(60));
        assert_eq!(settings.hold.max_stall, Duration::from_secs(2));
        assert_eq!(settings.hold.require, proto::Consistency::Filesystem);
        assert_eq!(settings.hold.unclaimed, Duration::from_secs(20));
        assert_eq!(settings.hold.interval, Duration::from_millis(200));
        assert_eq!(settings.hold.hourly, Duration::from_secs(30 * 60));
        assert_eq!(settings.listen.unix, Path::new("/run/holdstill/holdstill.sock"));
        assert_eq!(settings.listen.guest_agent, GuestAgent::Auto);
        assert!(settings.listen.relay && settings.listen.vsock.is_none() && settings.listen.tcp.is_none());
        assert_eq!(settings.access.operate, [Principal::User { name: "root".into(), uid: 0 }]);
        assert!(settings.filesystems.include.is_empty() && settings.filesystems.expedite_rcu);
        assert_eq!(settings.transient.policy, TransientPolicy::Warn);
        assert!(settings.transient.mounts.is_empty() && settings.transient.exceptions.is_empty());
        assert_eq!(settings.hooks.dir, Path::new("/etc/holdstill/hooks.d"));
        assert_eq!(settings.hooks.timeout, Duration::from_secs(5));
        assert_eq!(settings.hooks.report_timeout, Duration::from_secs(60));
        assert_eq!(settings.paths.run, Path::new("/run/holdstill"));
        assert_eq!(settings.paths.state, Path::new("/var/lib/holdstill"));
        assert!(settings.receipt.enabled && settings.databases.discover && settings.databases.configured.is_empty());
    }

    #[test]
    fn the_first_main_file_counts_and_drop_ins_lie_over_it_in_name_order() {
        let loaded = Machine::new()
            .main("[hold]\nmax = \"10s\"\nquiesce = \"9s\"\nprepare = \"8s\"")
            .file("usr/lib/holdstill/holdstill.toml", "[hold]\nmax = \"1s\"\nmax_stall = \"1s\"")
            .file("usr/lib/holdstill/holdstill.toml.d/50-b.toml", "[hold]\nmax = \"50s\"")
            .file("etc/holdstill/holdstill.toml.d/10-a.toml", "[hold]\nmax = \"11s\"\nquiesce = \"7s\"")
            .load();
        let hold = &loaded.settings.hold;
        assert_eq!(hold.max, Duration::from_secs(50), "50-b after 10-a, wherever they are");
        assert_eq!(hold.quiesce, Duration::from_secs(7));
        assert_eq!(hold.prepare, Duration::from_secs(8));
        assert_eq!(hold.max_stall, Duration::from_secs(2), "the vendor's main file is masked whole");
        assert!(value(&loaded, "hold.max").1.ends_with("usr/lib/holdstill/holdstill.toml.d/50-b.toml:2"));
        assert_eq!(value(&loaded, "hold.max_stall"), (Some("\"2s\"".into()), "default".into()));
    }

    #[test]
    fn a_drop_in_masks_its_namesakes_in_run_and_usr_lib() {
        let machine = Machine::new()
            .file("usr/lib/holdstill/holdstill.toml.d/a.toml", "[hold]\nmax = \"1s\"\nquiesce = \"1s\"")
            .file("run/holdstill/holdstill.toml.d/a.toml", "[hold]\nmax = \"2s\"");
        assert_eq!(machine.load().settings.hold.max, Duration::from_secs(2));
        let machine = machine.file("etc/holdstill/holdstill.toml.d/a.toml", "");
        assert_eq!(machine.load().settings.hold.max, Duration::from_secs(60), "an empty file masks too");
        assert_eq!(machine.load().settings.hold.quiesce, Duration::from_secs(10));
    }

    #[test]
    fn other_files_in_the_drop_in_directory_are_not_read() {
        let machine = Machine::new()
            .file("etc/holdstill/holdstill.toml.d/a.toml.bak", "nonsense")
            .file("etc/holdstill/holdstill.toml.d/.a.toml", "nonsense")
            .file("etc/holdstill/holdstill.toml.d/README", "nonsense");
        machine.load();
    }

    #[test]
    fn lists_are_replaced_and_databases_merged_by_name() {
        let loaded = Machine::new()
            .main("[transient]\nmounts = [\"/a\"]\n[[database]]\nname = \"orders\"\nengine = \"postgres\"\nrequired = false")
            .file(
                "etc/holdstill/holdstill.toml.d/a.toml",
                "[transient]\nmounts = [\"/b\"]\n[[database]]\nname = \"orders\"\ndrain = \"3s\"\n[[database]]\nname = \"b\"\nengine = \"mariadb\"",
            )
            .load();
        assert_eq!(loaded.settings.transient.mounts, [Path::new("/b")]);
        let [orders, b] = &loaded.settings.databases.configured[..] else { panic!("two databases") };
        assert_eq!(
            (orders.name.as_str(), orders.engine, orders.required),
            ("orders", database::Engine::Postgresql, false)
        );
        assert_eq!(orders.drain, Duration::from_secs(3));
        assert_eq!((b.name.as_str(), b.engine), ("b", database::Engine::Mysql));
        assert!(value(&loaded, "database.orders.engine").1.ends_with("etc/holdstill/holdstill.toml:5"));
        assert!(value(&loaded, "database.orders.drain").1.ends_with("a.toml:5"));
    }

    #[test]
    fn an_unknown_key_stops_everything_wherever_it_is() {
        let (message, hint) = refused("[hold]\ndeadline_sec = 60\n");
        assert_eq!(
            message,
            "unknown key `deadline_sec` in [hold] (/etc/holdstill/holdstill.toml:2); did you mean `max`?"
        );
        assert_eq!(hint, "");
        assert!(
            refused("[[database]]\nname = \"a\"\nengine = \"mysql\"\nsokcet = \"/x\"")
                .0
                .ends_with("did you mean `socket`?")
        );
    }

    #[test]
    fn durations_that_are_none_are_told_apart() {
        let cases = [
            (
                "max = 60",
                "it wants a duration with its unit, not a number",
                "a number has no unit; write it like this: max = \"60s\"",
            ),
            (
                "max = 0.5",
                "it wants a duration with its unit, not a number with a fraction",
                "a number has no unit; write it like this: max = \"500ms\"",
            ),
            ("max = \"-5s\"", "a duration cannot be negative: \"-5s\"", ""),
            ("max = \"0s\"", "it must be more than zero", ""),
            ("max = \"25h\"", "\"25h\" is more than 24h", ""),
            (
                "max = \"soon\"",
                "\"soon\" is not a duration: ",
                "write it like this: max = \"90s\", or \"1m 30s\", or \"500ms\"",
            ),
            ("max = \"60\"", "\"60\" is not a duration: ", ""),
            ("max = true", "it wants a duration with its unit, not true or false", ""),
        ];
        for (line, why, next) in cases {
            let (message, hint) = refused(&format!("[hold]\n{line}\n"));
            let start = format!("cannot use `hold.max` (/etc/holdstill/holdstill.toml:2): {why}");
            assert!(message.starts_with(&start), "{message}");
            assert!(next.is_empty() || hint == next, "{hint}");
        }
        assert_eq!(loaded("[hold]\nmax = \"1m 30s\"").settings.hold.max, Duration::from_secs(90));
    }

    #[test]
    fn values_of_the_wrong_kind_or_out_of_range_are_refused_with_their_line() {
        let cases = [
            (
                "[hold]\nrequire = \"aplication\"",
                "\"aplication\" is not one of \"application\", \"filesystem\", \"crash\"",
            ),
            ("[hold]\nrequire = 3", "it wants one of \"application\", \"filesystem\", \"crash\", not a number"),
            ("[filesystems]\ninclude = [\"/srv/[\"]", "\"/srv/[\" is not a glob: "),
            ("[filesystems]\ninclude = [\"srv\"]", "\"srv\" is not absolute"),
            ("[filesystems]\ninclude = \"/srv\"", "it wants list of mount points or globs, absolute, not a string"),
            ("[filesystems]\ninclude = [3]", "its items must be strings"),
            ("[filesystems]\nexpedite_rcu = \"yes\"", "it wants true or false, not a string"),
            ("[paths]\nrun = \"run\"", "\"run\" is not an absolute path"),
            ("[paths]\nrun = \"/run/../tmp\"", "\"/run/../tmp\" has .. in it"),
            ("[transient]\nmounts = [\"mnt\"]", "\"mnt\" is not an absolute path"),
            ("[transient]\ndurable = [\"/mnt/\"]\nmounts = [\"/mnt\"]", "\"/mnt/\" is in `mounts`, too"),
            ("[listen]\nguest_agent = \"on\"", "\"on\" is not \"auto\", \"off\", an absolute path or \"vsock:PORT\""),
            ("[listen]\nvsock = 0", "0 is not from 1 to 4294967294"),
            ("[listen.tcp]\naddress = \"localhost\"", "\"localhost\" is not ADDRESS:PORT"),
            ("[listen.tcp]\naddress = \"0.0.0.0:1\"", "it is missing"),
            ("[[database]]\nengine = \"mysql\"", "it is missing"),
            ("[[database]]\nname = \"a\"", "it is missing"),
            ("[[database]]\nname = \"a b\"\nengine = \"mysql\"", "\"a b\" has other than letters"),
            ("[[database]]\nname = \"a\"\nengine = \"oracle\"", "\"oracle\" is not one of"),
            ("[[database]]\nname = \"a\"\nengine = \"mysql\"\nport = 70000", "70000 is not from 1 to 65535"),
            ("[[database]]\nname = \"a\"\nengine = \"mysql\"\ntls = \"require\"", "\"require\" is not only \"off\""),
            ("[[database]]\nname = \"a\"\nengine = \"mysql\"\nsocket = \"/x\"\nhost = \"h\"", "it has a socket too"),
            (
                "[[database]]\nname = \"a\"\nengine = \"mysql\"\n[[database]]\nname = \"a\"\nengine = \"mysql\"",
                "another database has this name",
            ),
        ];
        for (text, why) in cases {
            let (message, _) = refused(text);
            assert!(message.contains(&format!("): {why}")) && message.contains("holdstill.toml:"), "{text}: {message}");
        }
    }

    #[test]
    fn a_name_you_configure_must_exist_and_the_default_group_need_not() {
        let (message, hint) = refused("[access]\noperate = [\"root\", \"alice\"]");
        assert!(message.ends_with("there is no user `alice`"), "{message}");
        assert_eq!(hint, "create it, or take it out of access.operate");
        assert!(refused("[access]\nlook = [\"group:staff\"]").0.ends_with("there is no group `staff`"));
        assert_eq!(refused("[access]\nlook = [\"dba\"]").1, "there is a group of that name: \"group:dba\"");
        let settings = loaded("[access]\noperate = [\"backup\", \"group:dba\"]").settings;
        assert_eq!(
            settings.access.operate,
            [Principal::User { name: "backup".into(), uid: 34 }, Principal::Group { name: "dba".into(), gid: 500 }]
        );
        let bare = Machine::new().file("etc/group", "root:x:0:\n").load();
        assert!(bare.settings.access.look.is_empty());
        assert_eq!(
            bare.notes,
            ["access.look: group:holdstill does not exist on this machine, so the default lets root alone in"]
        );
    }

    #[test]
    fn a_database_socket_is_its_file_or_its_directory() {
        let at = |text: &str| {
            let machine = Machine::new().file("srv/here/x", "").file("srv/mysql.socket", "");
            let loaded = machine.main(&format!("[[database]]\nname = \"a\"\n{text}")).load();
            loaded.settings.databases.configured[0].at.clone()
        };
        let socket = |path: &str| database::Address::Socket(PathBuf::from(path));
        let postgres = "engine = \"postgres\"\n";
        assert_eq!(at(postgres), socket("/run/postgresql/.s.PGSQL.5432"));
        assert_eq!(at(&format!("{postgres}port = 5433")), socket("/run/postgresql/.s.PGSQL.5433"));
        assert_eq!(at(&format!("{postgres}socket = \"/srv/pg\"\nport = 5433")), socket("/srv/pg/.s.PGSQL.5433"));
        assert_eq!(at(&format!("{postgres}socket = \"/srv/pg/.s.PGSQL.6000\"")), socket("/srv/pg/.s.PGSQL.6000"));
        let mysql = "engine = \"mysql\"\n";
        assert_eq!(at(mysql), socket("/run/mysqld/mysqld.sock"));
        assert_eq!(at(&format!("{mysql}socket = \"/srv/here\"")), socket("/srv/here/mysqld.sock"));
        assert_eq!(at(&format!("{mysql}socket = \"/srv/mysql.socket\"")), socket("/srv/mysql.socket"));
        assert_eq!(at(&format!("{mysql}socket = \"/srv/gone.sock\"")), socket("/srv/gone.sock"));
        assert_eq!(
            at(&format!("{mysql}host = \"127.0.0.1\"")),
            database::Address::Tcp { host: "127.0.0.1".into(), port: 3306 }
        );
    }

    #[test]
    fn keys_whose_room_is_empty_are_accepted_and_said_to_do_nothing() {
        let loaded = loaded(
            "[listen]\nguest_agent = \"off\"\nrelay = false\nvsock = 7411\n[listen.tcp]\naddress = \"[::]:7411\"\n\
             certificate = \"/c\"\nkey = \"/k\"\nclient_ca = \"/ca\"\n[[listen.tcp.client]]\nsan = \"a\"\nrole = \"look\"",
        );
        assert_eq!(loaded.notes, ["[listen.tcp] has no effect in this version"]);
        assert_eq!((loaded.settings.listen.guest_agent, loaded.settings.listen.vsock), (GuestAgent::Off, Some(7411)));
        let tcp = loaded.settings.listen.tcp.expect("configured");
        assert_eq!((tcp.clients[0].san.as_str(), tcp.clients[0].role), ("a", Role::Look));
    }

    #[test]
    fn a_loss_is_accepted_in_writing_once_for_each_mount() {
        let row = |more: &str| format!("[[transient.mount]]\npath = \"/mnt\"\n{more}\n");
        let accepted = loaded(&row("policy = \"accept\"\nbecause = \"scratch only\"")).settings.transient;
        let stance = Stance::Accept { because: "scratch only".into() };
        assert_eq!(accepted.exceptions, [TransientMount { path: "/mnt".into(), stance }]);
        let (message, hint) = refused(&row("policy = \"accept\""));
        assert!(message.ends_with("nobody says why what is there may be lost"), "{message}");
        assert_eq!(hint, "write it down, e.g. because = \"scratch only\"");
        let (message, _) = refused(&row("policy = \"refuse\"\nbecause = \"x\""));
        assert!(message.ends_with("only \"accept\" has a reason"), "{message}");
        let twice = row("policy = \"warn\"") + &row("policy = \"refuse\"");
        assert!(refused(&twice).0.ends_with("another entry has this path"), "{:?}", refused(&twice));
        assert!(refused(&row("")).0.contains("it is missing"));
        assert!(refused(&row("policy = \"acept\"")).1.contains("did you mean \"accept\"?"));
    }

    #[test]
    fn the_guest_agent_channel_is_a_path_or_a_vsock_port() {
        let of = |text: &str| loaded(&format!("[listen]\nguest_agent = {text:?}")).settings.listen.guest_agent;
        assert_eq!(of("/dev/ttyS1"), GuestAgent::Path("/dev/ttyS1".into()));
        assert_eq!(of("vsock:1234"), GuestAgent::Vsock(1234));
        for wrong in ["vsock:0", "vsock:4294967295", "vsock:a", "virtio", "dev/ttyS1"] {
            let (message, _) = refused(&format!("[listen]\nguest_agent = {wrong:?}"));
            assert!(message.contains("listen.guest_agent"), "{message}");
        }
    }

    #[test]
    fn two_limits_that_cannot_both_be_met_are_said() {
        let notes = loaded("[hooks]\ntimeout = \"30s\"").notes;
        assert_eq!(notes, ["hooks.timeout (30s) can never be used up: hold.quiesce (10s) ends first"]);
    }

    #[test]
    fn a_socket_path_the_kernel_cannot_take_is_refused() {
        let (message, _) = refused(&format!("[listen]\nunix = \"/{}\"", "x".repeat(107)));
        assert!(message.ends_with("a socket's path has at most 107 bytes"), "{message}");
    }

    #[test]
    fn a_named_file_is_read_alone_and_must_exist() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("mine.toml");
        let error = Settings::load_file(&path).expect_err("it is not there").to_string();
        assert!(error.starts_with(&format!("failed to read {}: ", path.display())), "{error}");
        fs::write(&path, "[hold]\nmax = \"7s\"").expect("write");
        assert_eq!(Settings::load_file(&path).expect("fine").settings.hold.max, Duration::from_secs(7));
    }
}
