//! Which servers there are: the machine's own, and those that `tests/servers/build.sh` unpacks.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::unistd::User;

use crate::lab::{command, process::tool};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Postgresql,
    Mysql,
    Mariadb,
}

impl Engine {
    pub fn name(self) -> &'static str {
        match self {
            Engine::Postgresql => "postgresql",
            Engine::Mysql => "mysql",
            Engine::Mariadb => "mariadb",
        }
    }

    pub fn named(name: &str) -> Option<Engine> {
        [Engine::Postgresql, Engine::Mysql, Engine::Mariadb].into_iter().find(|engine| engine.name() == name)
    }

    /// As people write it.
    pub fn title(self) -> &'static str {
        match self {
            Engine::Postgresql => "PostgreSQL",
            Engine::Mysql => "MySQL",
            Engine::Mariadb => "MariaDB",
        }
    }

    pub fn speaks_mysql(self) -> bool {
        match self {
            Engine::Postgresql => false,
            Engine::Mysql | Engine::Mariadb => true,
        }
    }

    fn program(self) -> &'static str {
        match self {
            Engine::Postgresql => "postgres",
            Engine::Mysql => "mysqld",
            Engine::Mariadb => "mariadbd",
        }
    }
}

/// Where an edition's programs come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Home {
    /// installed on this machine
    Host,
    /// this tree of `tests/servers/build.sh`
    Tree(&'static str),
    /// known to be in use, and in no registry we reach
    Nowhere,
}

/// A server of one version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edition {
    pub engine: Engine,
    /// as people name it: "15", "10.11", "9.x"; empty for whichever this machine has
    pub version: &'static str,
    pub home: Home,
}

const fn edition(engine: Engine, version: &'static str, home: Home) -> Edition {
    Edition { engine, version, home }
}

/// Every version that holdstill says something about, oldest first.
pub const EDITIONS: &[Edition] = &[
    edition(Engine::Postgresql, "12", Home::Tree("focal")),
    edition(Engine::Postgresql, "13", Home::Tree("bullseye")),
    edition(Engine::Postgresql, "14", Home::Tree("jammy")),
    edition(Engine::Postgresql, "15", Home::Host),
    edition(Engine::Postgresql, "16", Home::Tree("noble")),
    edition(Engine::Postgresql, "17", Home::Tree("trixie")),
    edition(Engine::Postgresql, "18", Home::Tree("resolute")),
    edition(Engine::Mysql, "5.7", Home::Tree("bionic")),
    edition(Engine::Mysql, "8.0", Home::Tree("noble")),
    edition(Engine::Mysql, "8.4", Home::Tree("resolute")),
    edition(Engine::Mysql, "9.x", Home::Tree("sid")),
    edition(Engine::Mariadb, "10.4", Home::Nowhere),
    edition(Engine::Mariadb, "10.5", Home::Tree("bullseye")),
    edition(Engine::Mariadb, "10.6", Home::Tree("jammy")),
    edition(Engine::Mariadb, "10.11", Home::Host),
    edition(Engine::Mariadb, "11.4", Home::Nowhere),
    edition(Engine::Mariadb, "11.8", Home::Tree("trixie")),
];

/// Programs that were found, and the account that runs them.
#[derive(Debug, Clone)]
pub struct Programs {
    /// the directory that is `/` for them
    pub root: PathBuf,
    /// below that
    pub server: PathBuf,
    pub uid: u32,
    pub gid: u32,
}

impl Programs {
    /// Another program from where the server is.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.server.with_file_name(name)
    }

    /// A path below `/` for them, as the fact sees it.
    pub fn seen(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

impl Edition {
    /// Whichever version this machine has installed.
    pub fn of_host(engine: Engine) -> Edition {
        edition(engine, "", Home::Host)
    }

    pub fn find(engine: Engine, version: &str) -> Edition {
        let known = EDITIONS.iter().find(|e| e.engine == engine && e.version == version);
        *known.unwrap_or_else(|| panic!("no edition {} {version}", engine.name()))
    }

    /// "PostgreSQL 15"
    pub fn title(&self) -> String {
        format!("{} {}", self.engine.title(), self.version).trim_end().to_owned()
    }

    /// Whether a server that says it is `said` is of this edition.
    pub fn is_of(&self, said: &str) -> bool {
        let named = self.version.trim_end_matches(".x");
        said == named
            || said.strip_prefix(named).is_some_and(|rest| named.is_empty() || !rest.starts_with(char::is_numeric))
    }

    /// # Errors
    /// It is not here, and why.
    pub fn programs(&self) -> Result<Programs, String> {
        match self.home {
            Home::Host => self.on_host(),
            Home::Tree(name) => {
                let root = servers().join(name);
                let Ok(root) = fs::canonicalize(&root) else {
                    let why = fs::read_to_string(root.with_extension("missing"));
                    return Err(why.map_or_else(
                        |_| format!("no {}: run tests/servers/build.sh", root.display()),
                        |why| format!("no {}: {}", self.title(), why.trim()),
                    ));
                };
                let server = match self.engine {
                    Engine::Postgresql => format!("/usr/lib/postgresql/{}/bin/postgres", self.version),
                    Engine::Mysql | Engine::Mariadb => format!("/usr/sbin/{}", self.engine.program()),
                };
                let account = account(self.engine)?;
                Ok(Programs { root, server: server.into(), uid: account.uid.as_raw(), gid: account.gid.as_raw() })
            }
            Home::Nowhere => Err(format!("no {}: in no registry that was looked at", self.title())),
        }
    }

    fn on_host(&self) -> Result<Programs, String> {
        let dirs: Vec<PathBuf> = match self.engine {
            Engine::Postgresql if self.version.is_empty() => {
                let versions = fs::read_dir("/usr/lib/postgresql");
                versions.map(|d| d.flatten().map(|v| v.path().join("bin")).collect()).unwrap_or_default()
            }
            Engine::Postgresql => vec![format!("/usr/lib/postgresql/{}/bin", self.version).into()],
            Engine::Mysql | Engine::Mariadb => vec!["/usr/sbin".into()],
        };
        let server = dirs.iter().map(|d| d.join(self.engine.program())).filter(|p| p.is_file()).max();
        let server = server.ok_or_else(|| format!("no {} server on this machine", self.title()))?;
        if self.engine.speaks_mysql() && !self.version.is_empty() {
            let said = tool(command(text(&server)).arg("--version"));
            if !said.contains(&format!(" {}.", self.version)) {
                return Err(format!("this machine's is no {}: {}", self.title(), said.trim()));
            }
        }
        let account = account(self.engine)?;
        Ok(Programs { root: "/".into(), server, uid: account.uid.as_raw(), gid: account.gid.as_raw() })
    }
}

/// What `tests/servers/build.sh` makes.
fn servers() -> PathBuf {
    let ours = || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/servers");
    std::env::var_os("HOLDSTILL_SERVERS").map_or_else(ours, PathBuf::from)
}

/// Not root: PostgreSQL refuses that, and nobody runs the others so.
fn account(engine: Engine) -> Result<User, String> {
    let names: &[&str] = match engine {
        Engine::Postgresql => &["postgres", "nobody"],
        Engine::Mysql | Engine::Mariadb => &["nobody"],
    };
    let found = names.iter().find_map(|name| User::from_name(name).ok().flatten());
    found.ok_or_else(|| format!("no account {}", names.join(", ")))
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("the lab's names are ASCII")
}
