//! The one table of truth: every key with its kind, default and reason. Fragments are checked against it, defaults are
//! read from it, and the shipped file, the man page and `holdstill config` are printed from it.

/// What a value must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// a string such as "60s", more than zero
    Duration,
    /// a string such as "60s" or "0s"
    DurationOrZero,
    /// a string, one of these
    Choice(&'static [&'static str]),
    Bool,
    /// an absolute path
    Path,
    /// a list of absolute paths
    Paths,
    /// a list of absolute paths or globs
    Globs,
    /// a list of "NAME" or "group:NAME"
    Principals,
    /// "auto", "off", an absolute path or "vsock:PORT"
    GuestAgent,
    /// a number from 1 to 65535
    Port,
    /// a number from 1 to 4294967294
    VsockPort,
    /// a string "ADDRESS:PORT"
    SocketAddress,
    /// a string that is not empty
    Text,
}

impl Kind {
    /// For people: what the value is, with its unit.
    pub fn describe(self) -> String {
        match self {
            Kind::Duration => "duration with its unit, more than zero, at most 24h".to_owned(),
            Kind::DurationOrZero => "duration with its unit, \"0s\" allowed, at most 24h".to_owned(),
            Kind::Choice(choices) => format!("one of {}", quoted(choices)),
            Kind::Bool => "true or false".to_owned(),
            Kind::Path => "absolute path".to_owned(),
            Kind::Paths => "list of absolute paths".to_owned(),
            Kind::Globs => "list of mount points or globs, absolute".to_owned(),
            Kind::Principals => "list of users (\"NAME\") and groups (\"group:NAME\")".to_owned(),
            Kind::GuestAgent => "\"auto\", \"off\", an absolute path or \"vsock:PORT\"".to_owned(),
            Kind::Port => "TCP port number, 1 to 65535".to_owned(),
            Kind::VsockPort => "vsock port number, 1 to 4294967294".to_owned(),
            Kind::SocketAddress => "string \"ADDRESS:PORT\"".to_owned(),
            Kind::Text => "string".to_owned(),
        }
    }
}

pub(super) fn quoted(words: &[&str]) -> String {
    words.iter().map(|w| format!("\"{w}\"")).collect::<Vec<_>>().join(", ")
}

/// How a table appears in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `[name]`
    Table,
    /// `[name]`, and leaving it out means something: nothing in it has a default
    OptionalTable,
    /// `[[name]]`, any number
    Rows,
}

/// A table of the file.
#[derive(Debug)]
pub struct Section {
    /// dotted, e.g. "listen.tcp"
    pub name: &'static str,
    pub form: Form,
    pub about: &'static str,
    pub keys: &'static [Key],
}

/// One key of a section.
#[derive(Debug)]
pub struct Key {
    pub name: &'static str,
    pub kind: Kind,
    pub default: Default,
    /// what it is for, and why this default
    pub about: &'static str,
    /// words people try instead
    pub also: &'static [&'static str],
}

/// What holds if a key is not set. All texts are TOML values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Default {
    Is(&'static str),
    /// nothing; with an example
    Unset(&'static str),
    /// it must be set wherever its section is; with an example
    Required(&'static str),
}

impl Default {
    /// The value shown in documentation.
    pub fn shown(self) -> &'static str {
        match self {
            Default::Is(text) | Default::Unset(text) | Default::Required(text) => text,
        }
    }
}

/// Finds a section by its dotted name.
pub fn section(name: &str) -> Option<&'static Section> {
    SECTIONS.iter().find(|s| s.name == name)
}

/// Every section, in the order of the documentation.
pub const SECTIONS: &[Section] = &[
    Section {
        name: "hold",
        form: Form::Table,
        about: "How long a hold may take, and what it must be worth.",
        keys: &[
            Key {
                name: "max",
                kind: Kind::Duration,
                default: Default::Is("\"60s\""),
                about: "Longest time held, counted from the moment all is held; no caller gets more. Clouds and \
                        hypervisors cut within seconds; journald's watchdog kills it after three minutes.",
                also: &["deadline", "max_hold", "timeout", "limit", "for", "duration"],
            },
            Key {
                name: "quiesce",
                kind: Kind::Duration,
                default: Default::Is("\"10s\""),
                about: "Longest time anyone waits before all is held; beyond it the hold fails and everything is let go. \
                        Most applications give up on a write only later.",
                also: &["quiesce_timeout", "freeze_timeout"],
            },
            Key {
                name: "prepare",
                kind: Kind::Duration,
                default: Default::Is("\"60s\""),
                about: "Longest time for everything that can be done while nobody waits: connecting, checkpointing, \
                        writing back dirty pages.",
                also: &["prepare_timeout", "flush_timeout"],
            },
            Key {
                name: "max_stall",
                kind: Kind::Duration,
                default: Default::Is("\"2s\""),
                about: "Refuse the hold when the last write-back while preparing predicts that freezing would make \
                        writers wait longer than this.",
                also: &["stall", "max_pause"],
            },
            Key {
                name: "require",
                kind: Kind::Choice(&["application", "filesystem", "crash"]),
                default: Default::Is("\"filesystem\""),
                about: "The least a hold must be worth; a caller may ask for more, never for less.",
                also: &["level", "consistency", "required"],
            },
            Key {
                name: "unclaimed",
                kind: Kind::Duration,
                default: Default::Is("\"20s\""),
                about: "A hold asked for on the guest-agent channel is let go this long after it is held, unless the host \
                        asked for the status or the thaw meanwhile: hosts that gave up waiting send neither.",
                also: &["unclaimed_limit", "claim"],
            },
            Key {
                name: "interval",
                kind: Kind::DurationOrZero,
                default: Default::Is("\"200ms\""),
                about: "Shortest time writers go on between two holds: a hold asked for sooner stays in preparing, where \
                        nobody waits, for the rest of it.",
                also: &["min_interval", "pause"],
            },
            Key {
                name: "hourly",
                kind: Kind::Duration,
                default: Default::Is("\"30m\""),
                about: "Longest time writers wait for holds within any hour, whoever asks; beyond it holds are refused. \
                        No sane schedule reaches half of the time; a host that has lost its mind does.",
                also: &["budget", "per_hour", "hourly_budget"],
            },
        ],
    },
    Section {
        name: "listen",
        form: Form::Table,
        about: "Where the daemon can be asked.",
        keys: &[
            Key {
                name: "unix",
                kind: Kind::Path,
                default: Default::Is("\"/run/holdstill/holdstill.sock\""),
                about: "The unix socket, always there: 0660 root:holdstill, or 0600 root:root without that group. At \
                        most 107 bytes.",
                also: &["socket", "path"],
            },
            Key {
                name: "guest_agent",
                kind: Kind::GuestAgent,
                default: Default::Is("\"auto\""),
                about: "The QEMU guest-agent channel. \"auto\" takes /dev/virtio-ports/org.qemu.guest_agent.0 if it is \
                        there and nobody owns it; what a stock qemu-ga owns stays its own, and `holdstill check` says so, \
                        with the command that changes it. A path is a virtio-serial port, an ISA serial port (/dev/ttyS1), or a \
                        unix socket to be made; \"vsock:PORT\" listens for the host (CID 2).",
                also: &["qga", "agent"],
            },
            Key {
                name: "relay",
                kind: Kind::Bool,
                default: Default::Is("true"),
                about: "Pass guest-agent commands that are not about freezing to a stock qemu-ga, when it is installed, \
                        so that nothing stops working.",
                also: &[],
            },
            Key {
                name: "vsock",
                kind: Kind::VsockPort,
                default: Default::Unset("7411"),
                about: "Listen on this vsock port for the host (CID 2) only. Off unless set: not every host is trusted.",
                also: &["port"],
            },
        ],
    },
    Section {
        name: "listen.tcp",
        form: Form::OptionalTable,
        about: "Listen on TCP, with mutual TLS only. Off unless this table is there.",
        keys: &[
            Key {
                name: "address",
                kind: Kind::SocketAddress,
                default: Default::Required("\"0.0.0.0:7411\""),
                about: "Address and port to listen on.",
                also: &["listen", "bind"],
            },
            Key {
                name: "certificate",
                kind: Kind::Path,
                default: Default::Required("\"/etc/holdstill/tls/server.pem\""),
                about: "This server's certificate chain, PEM.",
                also: &["cert"],
            },
            Key {
                name: "key",
                kind: Kind::Path,
                default: Default::Required("\"/etc/holdstill/tls/server.key\""),
                about: "Its private key, PEM.",
                also: &["private_key"],
            },
            Key {
                name: "client_ca",
                kind: Kind::Path,
                default: Default::Required("\"/etc/holdstill/tls/clients.pem\""),
                about: "The authorities that sign clients' certificates, PEM.",
                also: &["ca"],
            },
        ],
    },
    Section {
        name: "listen.tcp.client",
        form: Form::Rows,
        about: "One caller that may come in over TCP. Nobody may unless listed.",
        keys: &[
            Key {
                name: "san",
                kind: Kind::Text,
                default: Default::Required("\"backup.example.com\""),
                about: "A subject alternative name of its certificate, exactly.",
                also: &["name"],
            },
            Key {
                name: "role",
                kind: Kind::Choice(&["look", "operate"]),
                default: Default::Required("\"operate\""),
                about: "\"look\" may read, \"operate\" may do everything.",
                also: &[],
            },
        ],
    },
    Section {
        name: "access",
        form: Form::Table,
        about: "Who may ask on the unix socket. A name you configure that does not exist is an error.",
        keys: &[
            Key {
                name: "operate",
                kind: Kind::Principals,
                default: Default::Is("[\"root\"]"),
                about: "Who may freeze, thaw and extend.",
                also: &["admin", "users"],
            },
            Key {
                name: "look",
                kind: Kind::Principals,
                default: Default::Is("[\"group:holdstill\"]"),
                about: "Who may check, and read status, reports and events. Without the default group it is root alone.",
                also: &["read", "groups"],
            },
        ],
    },
    Section {
        name: "filesystems",
        form: Form::Table,
        about: "Which file systems are held.",
        keys: &[
            Key {
                name: "include",
                kind: Kind::Globs,
                default: Default::Is("[]"),
                about: "Mount points or globs to hold. Empty: every local writable file system, because what is left out \
                        is what is missed on restore.",
                also: &["mounts", "mount"],
            },
            Key {
                name: "exclude",
                kind: Kind::Globs,
                default: Default::Is("[]"),
                about: "Mount points or globs to leave alone.",
                also: &["skip", "ignore"],
            },
            Key {
                name: "expedite_rcu",
                kind: Kind::Bool,
                default: Default::Is("true"),
                about: "Shorten the kernel's grace periods (/sys/kernel/rcu_expedited) while file systems freeze: about \
                        2 ms instead of 35 ms. Never done on real-time kernels or with isolated CPUs.",
                also: &["rcu_expedited", "rcu"],
            },
        ],
    },
    Section {
        name: "transient",
        form: Form::Table,
        about: "Disks that do not survive a stop of the machine, and are in no snapshot of it.",
        keys: &[
            Key {
                name: "policy",
                kind: Kind::Choice(&["warn", "refuse"]),
                default: Default::Is("\"warn\""),
                about: "What to do when something is found on one that will be missed in the snapshot: say what, or refuse the \
                        hold. An empty file system, swap, caches and temporary files are neither warned about nor refused.",
                also: &[],
            },
            Key {
                name: "mounts",
                kind: Kind::Paths,
                default: Default::Is("[]"),
                about: "Mount points you know to be transient, e.g. [\"/mnt\"].",
                also: &["include", "disks"],
            },
            Key {
                name: "durable",
                kind: Kind::Paths,
                default: Default::Is("[]"),
                about: "Mount points you know to be durable, whatever their disk, its label or the cloud's metadata look like.",
                also: &["persistent"],
            },
        ],
    },
    Section {
        name: "transient.mount",
        form: Form::Rows,
        about: "What to do about one file system, if not what [transient] policy says. It does not make the file system \
                transient: `mounts` does, or what the disk says of itself.",
        keys: &[
            Key {
                name: "path",
                kind: Kind::Path,
                default: Default::Required("\"/mnt\""),
                about: "Its mount point.",
                also: &["mount", "name", "dir"],
            },
            Key {
                name: "policy",
                kind: Kind::Choice(&["warn", "refuse", "accept"]),
                default: Default::Required("\"accept\""),
                about: "\"warn\" and \"refuse\" as in [transient]. \"accept\": what is there may be lost, and is not warned about \
                        any more, unless something durable is worth nothing without it.",
                also: &[],
            },
            Key {
                name: "because",
                kind: Kind::Text,
                default: Default::Unset("\"scratch only\""),
                about: "Why it may be lost; \"accept\" demands it. It stands in every report and receipt, for whoever restores.",
                also: &["reason", "why", "comment"],
            },
        ],
    },
    Section {
        name: "hooks",
        form: Form::Table,
        about: "Scripts to run around a hold.",
        keys: &[
            Key {
                name: "dir",
                kind: Kind::Path,
                default: Default::Is("\"/etc/holdstill/hooks.d\""),
                about: "Where they are; report.d and restored.d are beside it.",
                also: &["directory", "path"],
            },
            Key {
                name: "timeout",
                kind: Kind::Duration,
                default: Default::Is("\"5s\""),
                about: "How long one phase of one hook may take, unless its own settings say otherwise. Writers wait for it.",
                also: &["limit", "deadline"],
            },
            Key {
                name: "report_timeout",
                kind: Kind::Duration,
                default: Default::Is("\"60s\""),
                about: "How long one reporter of report.d may take. Nobody waits for it, so a slow mail server or webhook \
                        gets a minute; then it is ended, and that is in the daemon's log.",
                also: &["reporter_timeout"],
            },
        ],
    },
    Section {
        name: "hooks.convention",
        form: Form::Rows,
        about: "Scripts written for another agent, run as it would run them. `holdstill hooks add --convention` does the \
                same with a file in hooks.d.",
        keys: &[
            Key {
                name: "convention",
                kind: Kind::Choice(&["qemu", "vmware", "vmware-legacy", "nutanix", "google", "azure", "aws-dlm"]),
                default: Default::Required("\"vmware\""),
                about: "Whose scripts they are: what they are called with, and what their exit status means.",
                also: &["kind", "type"],
            },
            Key {
                name: "name",
                kind: Kind::Text,
                default: Default::Unset("\"50-vmware\""),
                about: "Where they run among the other hooks. Without it: 50- and the convention.",
                also: &["order"],
            },
            Key {
                name: "path",
                kind: Kind::Path,
                default: Default::Unset("\"/etc/vmware-tools/backupScripts.d\""),
                about: "Where they are, if not where their agent keeps them. \"aws-dlm\" needs it.",
                also: &["dir", "directory"],
            },
            Key {
                name: "timeout",
                kind: Kind::Duration,
                default: Default::Unset("\"5s\""),
                about: "How long one phase of one script may take, if not what its own configuration or [hooks] says.",
                also: &["limit", "deadline"],
            },
            Key {
                name: "required",
                kind: Kind::Bool,
                default: Default::Unset("true"),
                about: "Does a failure fail the hold? If not set: as the convention has it.",
                also: &["optional"],
            },
            Key {
                name: "user",
                kind: Kind::Text,
                default: Default::Unset("\"postgres\""),
                about: "Whom they run as, if not root.",
                also: &["run_as"],
            },
            Key {
                name: "argument",
                kind: Kind::Text,
                default: Default::Unset("\"nightly\""),
                about: "\"vmware\" only: what tools.conf calls scriptArg.",
                also: &["script_arg", "scriptArg"],
            },
        ],
    },
    Section {
        name: "paths",
        form: Form::Table,
        about: "Where state lives. Both are created if missing, at start only.",
        keys: &[
            Key {
                name: "run",
                kind: Kind::Path,
                default: Default::Is("\"/run/holdstill\""),
                about: "Marker and sockets. Must be on tmpfs: it is written while everything else is frozen.",
                also: &["runtime"],
            },
            Key {
                name: "state",
                kind: Kind::Path,
                default: Default::Is("\"/var/lib/holdstill\""),
                about: "What outlives a reboot.",
                also: &["lib"],
            },
        ],
    },
    Section {
        name: "receipt",
        form: Form::Table,
        about: "The record of a hold, kept on the held disks themselves so that a copy can testify.",
        keys: &[Key {
            name: "enabled",
            kind: Kind::Bool,
            default: Default::Is("true"),
            about: "Write .holdstill/ at the root of each held file system. Without it a copy proves nothing.",
            also: &["enable"],
        }],
    },
    Section {
        name: "databases",
        form: Form::Table,
        about: "Databases in general.",
        keys: &[Key {
            name: "discover",
            kind: Kind::Bool,
            default: Default::Is("true"),
            about: "Look for running PostgreSQL, MariaDB and MySQL servers, wherever they listen, in containers too. One \
                    that is found and cannot be held lowers the level, and says why.",
            also: &["discovery", "auto"],
        }],
    },
    Section {
        name: "database",
        form: Form::Rows,
        about: "One database: what discovery cannot know, or settings for what it finds. Merged by name over several \
                files.",
        keys: &[
            Key {
                name: "name",
                kind: Kind::Text,
                default: Default::Required("\"orders\""),
                about: "Its step is db:NAME. Letters, digits and . _ - : @ / only, at most 128. Without socket and host, the name \
                        of one that is found (see `check`) means that one: these are its settings.",
                also: &["id"],
            },
            Key {
                name: "engine",
                kind: Kind::Choice(&["postgresql", "postgres", "mysql", "mariadb"]),
                default: Default::Required("\"postgresql\""),
                about: "What it is.",
                also: &["type", "kind"],
            },
            Key {
                name: "socket",
                kind: Kind::Path,
                default: Default::Unset("\"/run/postgresql\""),
                about: "Its unix socket: the file, or the directory it is in. Default, without host: the engine's own \
                        (/run/postgresql, /run/mysqld/mysqld.sock).",
                also: &["path", "unix_socket"],
            },
            Key {
                name: "host",
                kind: Kind::Text,
                default: Default::Unset("\"127.0.0.1\""),
                about: "Connect over TCP instead. Only to a server on this machine: another one's disks are not held.",
                also: &["address", "hostname"],
            },
            Key {
                name: "port",
                kind: Kind::Port,
                default: Default::Unset("5432"),
                about: "TCP port, or for PostgreSQL the number in the socket's name. Default: 5432 or 3306.",
                also: &[],
            },
            Key {
                name: "user",
                kind: Kind::Text,
                default: Default::Unset("\"holdstill\""),
                about: "Database user. Default: the engine's administrator for a local root.",
                also: &["username"],
            },
            Key {
                name: "password_file",
                kind: Kind::Path,
                default: Default::Unset("\"/etc/holdstill/orders.password\""),
                about: "A file with the password on its first line, owned by root and closed to others. Read when connecting.",
                also: &["password", "passfile"],
            },
            Key {
                name: "tls",
                kind: Kind::Choice(&["off"]),
                default: Default::Is("\"off\""),
                about: "Encryption of the connection. Only \"off\" in this version: the server is on this machine.",
                also: &["ssl", "sslmode"],
            },
            Key {
                name: "required",
                kind: Kind::Bool,
                default: Default::Is("true"),
                about: "If it cannot be held, refuse. false: the level drops, and says why.",
                also: &["require", "optional"],
            },
            Key {
                name: "drain",
                kind: Kind::DurationOrZero,
                default: Default::Is("\"0s\""),
                about: "Wait this long, while preparing, for open write transactions to end. Nobody else waits for it.",
                also: &["wait"],
            },
            Key {
                name: "strategy",
                kind: Kind::Choice(&["auto", "freeze-only", "table-locks", "global-lock"]),
                default: Default::Is("\"auto\""),
                about: "How it is held. auto chooses what holds least for the best claim, and `check` says why. freeze-only \
                        locks nothing. MySQL and MariaDB only: table-locks locks the tables without transactions one by \
                        one, global-lock (FLUSH TABLES WITH READ LOCK) everything, for exact coordinates.",
                also: &["method", "lock", "mode"],
            },
            Key {
                name: "guard",
                kind: Kind::DurationOrZero,
                default: Default::Is("\"5s\""),
                about: "Wait this long, while preparing, for what a lock would get stuck behind: long statements, DDL, \
                        another backup. Nobody else waits for it.",
                also: &["long_query_guard"],
            },
            Key {
                name: "busy",
                kind: Kind::Choice(&["degrade", "refuse"]),
                default: Default::Is("\"degrade\""),
                about: "If it is still in the way then: degrade holds with less (and says what is claimed instead), refuse \
                        refuses.",
                also: &["on_busy"],
            },
            Key {
                name: "kill_queries",
                kind: Kind::Bool,
                default: Default::Is("false"),
                about: "If it is still in the way then: end long SELECTs with KILL QUERY first. Never DDL, never writes.",
                also: &["kill_long_queries"],
            },
            Key {
                name: "defaults_file",
                kind: Kind::Path,
                default: Default::Unset("\"/etc/mysql/debian.cnf\""),
                about: "MySQL and MariaDB: an option file whose [client] group gives user, password, socket and port where \
                        they are not set here. Owned by root, closed to others. Default, for what is found or has no \
                        password: /root/.my.cnf, if there is one.",
                also: &["defaults_extra_file", "my_cnf"],
            },
            Key {
                name: "service",
                kind: Kind::Text,
                default: Default::Unset("\"orders\""),
                about: "PostgreSQL: a service of /root/.pg_service.conf or /etc/pg_service.conf that gives host, port, user \
                        and password where they are not set here. Passwords are also looked up in /root/.pgpass.",
                also: &["pgservice"],
            },
        ],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shown_value_is_toml() {
        for section in SECTIONS {
            for key in section.keys {
                let text = format!("v = {}", key.default.shown());
                assert!(text.parse::<toml::Table>().is_ok(), "{}.{}", section.name, key.name);
            }
        }
    }

    #[test]
    fn optional_and_repeated_sections_have_no_key_that_would_bring_them_to_life() {
        for section in SECTIONS.iter().filter(|s| s.form == Form::OptionalTable) {
            assert!(section.keys.iter().all(|k| !matches!(k.default, Default::Is(_))), "{}", section.name);
        }
    }
}
