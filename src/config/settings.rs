//! Judging the merged values: every one typed, in range and possible, or an error that names its line.

use std::{
    net::SocketAddr,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use super::{
    Access, Databases, Effective, Error, Filesystems, GuestAgent, Hold, Hooks, Listen, Loaded, Paths, Principal,
    Receipt, Role, Settings, Source, Stance, Tcp, TcpClient, Transient, TransientMount, TransientPolicy,
    fragment::{Entry, Fragment, Row, Table, named},
    keys::{self, Default, Form, Key, Kind, SECTIONS, Section},
    names::Names,
};
use crate::{
    proto,
    step::{database, hook},
};

/// No duration of ours makes sense beyond this.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// Longest path a unix socket can have: sockaddr_un.sun_path less its final zero, see unix(7).
const SOCKET_PATH_LIMIT: usize = 107;

/// `root` is where files named by the configuration are looked at (is this socket a directory?), if they must be.
pub(super) fn build(merged: Fragment, names: &dyn Names, root: &Path) -> Result<Loaded, Error> {
    let mut notes = Vec::new();
    let of = |section: &'static str| View::new(section, merged.tables.get(section));
    let settings = Settings {
        hold: hold(&of("hold"))?,
        listen: listen(&merged, &of("listen"), &mut notes)?,
        access: access(&of("access"), names, &mut notes)?,
        filesystems: filesystems(&of("filesystems"))?,
        transient: transient(&merged, &of("transient"))?,
        hooks: hooks(&merged, &of("hooks"))?,
        paths: Paths { run: of("paths").path("run")?, state: of("paths").path("state")? },
        receipt: Receipt { enabled: of("receipt").bool("enabled")? },
        databases: databases(&merged, &of("databases"), root)?,
    };
    timeouts_that_cannot_both_be_met(&settings, &mut notes);
    Ok(Loaded { settings, effective: effective(&merged), notes })
}

/// One table with its defaults behind it.
struct View<'a> {
    section: &'static Section,
    table: Option<&'a Table>,
    /// where the table itself stands, for what is missing in it
    at: Source,
    /// dotted name for messages: "hold", or "database.orders"
    name: String,
}

impl<'a> View<'a> {
    fn new(section: &'static str, row: Option<&'a Row>) -> View<'a> {
        View {
            section: keys::section(section).expect("named in the table of keys"),
            table: row.map(|row| &row.table),
            at: row.map_or(Source::Default, |row| row.at.clone()),
            name: section.to_owned(),
        }
    }

    fn key(&self, name: &str) -> &'static Key {
        self.section.keys.iter().find(|k| k.name == name).expect("named in the table of keys")
    }

    /// The value and where it came from; `None`: not set, and without a default.
    fn entry(&self, name: &str) -> Option<Entry> {
        if let Some(entry) = self.table.and_then(|t| t.get(name)) {
            return Some(entry.clone());
        }
        match self.key(name).default {
            Default::Is(text) => Some(Entry { value: parsed(text), at: Source::Default }),
            Default::Unset(_) | Default::Required(_) => None,
        }
    }

    fn is_set(&self, name: &str) -> bool {
        self.table.is_some_and(|t| t.contains_key(name))
    }

    /// Set, and to something else than the default.
    fn is_changed(&self, name: &str) -> bool {
        let default = match self.key(name).default {
            Default::Is(text) => Some(parsed(text)),
            Default::Unset(_) | Default::Required(_) => None,
        };
        self.table.and_then(|t| t.get(name)).is_some_and(|entry| Some(&entry.value) != default.as_ref())
    }

    fn required(&self, name: &str) -> Result<Entry, Error> {
        self.entry(name).ok_or_else(|| Error::Invalid {
            key: format!("{}.{name}", self.name),
            at: self.at.clone(),
            why: "it is missing".to_owned(),
            hint: format!("set it there, e.g. {name} = {}", self.key(name).default.shown()),
        })
    }

    fn invalid(&self, name: &str, entry: &Entry, why: impl Into<String>) -> Error {
        self.invalid_with_hint(name, entry, why, "")
    }

    fn invalid_with_hint(&self, name: &str, entry: &Entry, why: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::Invalid {
            key: format!("{}.{name}", self.name),
            at: entry.at.clone(),
            why: why.into(),
            hint: hint.into(),
        }
    }

    fn wrong_type(&self, name: &str, entry: &Entry) -> Error {
        let key = self.key(name);
        let why = format!("it wants {}, not {}", key.kind.describe(), named(entry.value.type_str()));
        self.invalid_with_hint(name, entry, why, format!("write it like this: {name} = {}", key.default.shown()))
    }

    fn duration(&self, name: &str) -> Result<Duration, Error> {
        let entry = self.required(name)?;
        let hint = match &entry.value {
            toml::Value::Integer(n) => format!("a number has no unit; write it like this: {name} = \"{n}s\""),
            toml::Value::Float(n) => format!("a number has no unit; write it like this: {name} = \"{}ms\"", n * 1000.0),
            _ => format!("write it like this: {name} = \"90s\", or \"1m 30s\", or \"500ms\""),
        };
        let toml::Value::String(text) = &entry.value else {
            let why = format!("it wants a duration with its unit, not {}", named(entry.value.type_str()));
            return Err(self.invalid_with_hint(name, &entry, why, hint));
        };
        let value = humantime::parse_duration(text).map_err(|error| {
            let why = match text.trim().starts_with('-') {
                true => format!("a duration cannot be negative: \"{text}\""),
                false => format!("\"{text}\" is not a duration: {error}"),
            };
            self.invalid_with_hint(name, &entry, why, hint.clone())
        })?;
        if value.is_zero() && self.key(name).kind == Kind::Duration {
            return Err(self.invalid_with_hint(name, &entry, "it must be more than zero", hint));
        }
        if value > LONGEST {
            return Err(self.invalid(name, &entry, format!("\"{text}\" is more than 24h")));
        }
        Ok(value)
    }

    fn bool(&self, name: &str) -> Result<bool, Error> {
        let entry = self.required(name)?;
        entry.value.as_bool().ok_or_else(|| self.wrong_type(name, &entry))
    }

    fn text(&self, name: &str) -> Result<Option<String>, Error> {
        let Some(entry) = self.entry(name) else { return Ok(None) };
        let text = entry.value.as_str().ok_or_else(|| self.wrong_type(name, &entry))?;
        if text.is_empty() {
            return Err(self.invalid(name, &entry, "it is empty"));
        }
        Ok(Some(text.to_owned()))
    }

    /// One of the key's own choices.
    fn choice(&self, name: &str) -> Result<&'static str, Error> {
        let Kind::Choice(choices) = self.key(name).kind else { unreachable!("only asked for choices") };
        let entry = self.required(name)?;
        let text = entry.value.as_str().ok_or_else(|| self.wrong_type(name, &entry))?;
        let near = |c: &&&str| strsim::jaro_winkler(text, c);
        choices.iter().find(|c| **c == text).copied().ok_or_else(|| {
            let best = choices.iter().max_by(|a, b| near(a).total_cmp(&near(b))).filter(|c| near(c) > 0.82);
            let hint = best.map_or(String::new(), |c| format!("did you mean \"{c}\"?"));
            let one_of = if choices.len() == 1 { "only" } else { "one of" };
            self.invalid_with_hint(name, &entry, format!("\"{text}\" is not {one_of} {}", keys::quoted(choices)), hint)
        })
    }

    fn path(&self, name: &str) -> Result<PathBuf, Error> {
        self.required(name)?;
        self.optional_path(name).map(|path| path.expect("it is there"))
    }

    fn optional_path(&self, name: &str) -> Result<Option<PathBuf>, Error> {
        let Some(entry) = self.entry(name) else { return Ok(None) };
        let text = entry.value.as_str().ok_or_else(|| self.wrong_type(name, &entry))?;
        self.absolute(name, &entry, text).map(Some)
    }

    fn absolute(&self, name: &str, entry: &Entry, text: &str) -> Result<PathBuf, Error> {
        let path = PathBuf::from(text);
        if !path.is_absolute() {
            let hint = "the daemon has no current directory worth the name: begin with /";
            return Err(self.invalid_with_hint(name, entry, format!("\"{text}\" is not an absolute path"), hint));
        }
        if path.components().any(|c| c == Component::ParentDir) {
            return Err(self.invalid(name, entry, format!("\"{text}\" has .. in it")));
        }
        Ok(path)
    }

    /// The strings of a list.
    fn list(&self, name: &str) -> Result<(Entry, Vec<String>), Error> {
        let entry = self.required(name)?;
        let items = entry.value.as_array().ok_or_else(|| self.wrong_type(name, &entry))?;
        let texts = items.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
        let texts = texts.ok_or_else(|| self.invalid(name, &entry, "its items must be strings"))?;
        Ok((entry, texts))
    }

    fn paths(&self, name: &str) -> Result<Vec<PathBuf>, Error> {
        let (entry, texts) = self.list(name)?;
        texts.iter().map(|text| self.absolute(name, &entry, text)).collect()
    }

    fn globs(&self, name: &str) -> Result<Vec<glob::Pattern>, Error> {
        let (entry, texts) = self.list(name)?;
        let pattern = |text: &String| {
            if !text.starts_with('/') {
                let hint = "a mount point or glob begins with /";
                return Err(self.invalid_with_hint(name, &entry, format!("\"{text}\" is not absolute"), hint));
            }
            glob::Pattern::new(text).map_err(|error| {
                let hint = "* ? [a-z] and ** are special; put one in brackets to mean itself, e.g. [*]";
                self.invalid_with_hint(name, &entry, format!("\"{text}\" is not a glob: {}", error.msg), hint)
            })
        };
        texts.iter().map(pattern).collect()
    }

    fn number(&self, name: &str, most: u32) -> Result<Option<u32>, Error> {
        let Some(entry) = self.entry(name) else { return Ok(None) };
        let number = entry.value.as_integer().ok_or_else(|| self.wrong_type(name, &entry))?;
        match u32::try_from(number) {
            Ok(n) if n >= 1 && n <= most => Ok(Some(n)),
            _ => Err(self.invalid(name, &entry, format!("{number} is not from 1 to {most}"))),
        }
    }
}

fn hold(view: &View<'_>) -> Result<Hold, Error> {
    Ok(Hold {
        max: view.duration("max")?,
        quiesce: view.duration("quiesce")?,
        prepare: view.duration("prepare")?,
        max_stall: view.duration("max_stall")?,
        require: match view.choice("require")? {
            "application" => proto::Consistency::Application,
            "crash" => proto::Consistency::Crash,
            _ => proto::Consistency::Filesystem,
        },
        unclaimed: view.duration("unclaimed")?,
        interval: view.duration("interval")?,
        hourly: view.duration("hourly")?,
    })
}

fn listen(merged: &Fragment, view: &View<'_>, notes: &mut Vec<String>) -> Result<Listen, Error> {
    let unix = view.path("unix")?;
    if unix.as_os_str().len() > SOCKET_PATH_LIMIT {
        let entry = view.required("unix")?;
        return Err(view.invalid("unix", &entry, format!("a socket's path has at most {SOCKET_PATH_LIMIT} bytes")));
    }
    let guest_agent = match view.text("guest_agent")?.as_deref() {
        None | Some("auto") => GuestAgent::Auto,
        Some("off") => GuestAgent::Off,
        Some(text) => named_agent(view, text)?,
    };
    Ok(Listen {
        unix,
        guest_agent,
        relay: view.bool("relay")?,
        vsock: view.number("vsock", u32::MAX - 1)?,
        tcp: tcp(merged, notes)?,
    })
}

fn named_agent(view: &View<'_>, text: &str) -> Result<GuestAgent, Error> {
    let entry = view.required("guest_agent")?;
    if let Some(port) = text.strip_prefix("vsock:") {
        return port.parse::<u32>().ok().filter(|port| (1..u32::MAX).contains(port)).map(GuestAgent::Vsock).ok_or_else(
            || {
                view.invalid(
                    "guest_agent",
                    &entry,
                    format!("\"{port}\" is not a vsock port from 1 to {}", u32::MAX - 1),
                )
            },
        );
    }
    if !text.starts_with('/') {
        let why = format!("\"{text}\" is not \"auto\", \"off\", an absolute path or \"vsock:PORT\"");
        return Err(view.invalid("guest_agent", &entry, why));
    }
    let path = view.absolute("guest_agent", &entry, text)?;
    if path.as_os_str().len() > SOCKET_PATH_LIMIT {
        return Err(view.invalid("guest_agent", &entry, format!("its path has more than {SOCKET_PATH_LIMIT} bytes")));
    }
    Ok(GuestAgent::Path(path))
}

fn tcp(merged: &Fragment, notes: &mut Vec<String>) -> Result<Option<Tcp>, Error> {
    let clients = rows(merged, "listen.tcp.client");
    let Some(table) = merged.tables.get("listen.tcp") else { return Ok(None) };
    let view = View::new("listen.tcp", Some(table));
    let address = view.required("address")?;
    let text = address.value.as_str().ok_or_else(|| view.wrong_type("address", &address))?;
    let address: SocketAddr = text.parse().map_err(|_| {
        let hint = "an IP address and a port, e.g. \"192.0.2.7:7411\" or \"[::]:7411\"; names are not looked up";
        view.invalid_with_hint("address", &address, format!("\"{text}\" is not ADDRESS:PORT"), hint)
    })?;
    notes.push("[listen.tcp] has no effect in this version".to_owned());
    Ok(Some(Tcp {
        address,
        certificate: view.path("certificate")?,
        key: view.path("key")?,
        client_ca: view.path("client_ca")?,
        clients: clients
            .iter()
            .map(|row| {
                row.required("san")?;
                Ok(TcpClient {
                    san: row.text("san")?.expect("required above"),
                    role: if row.choice("role")? == "operate" { Role::Operate } else { Role::Look },
                })
            })
            .collect::<Result<_, Error>>()?,
    }))
}

fn rows<'a>(merged: &'a Fragment, section: &'static str) -> Vec<View<'a>> {
    merged.rows.get(section).into_iter().flatten().map(|row| View::new(section, Some(row))).collect()
}

fn access(view: &View<'_>, names: &dyn Names, notes: &mut Vec<String>) -> Result<Access, Error> {
    Ok(Access { operate: principals(view, "operate", names, notes)?, look: principals(view, "look", names, notes)? })
}

fn principals(view: &View<'_>, key: &str, names: &dyn Names, notes: &mut Vec<String>) -> Result<Vec<Principal>, Error> {
    let (entry, texts) = view.list(key)?;
    let mut found = Vec::new();
    for text in texts {
        let principal = match text.strip_prefix("group:") {
            Some(name) => names.gid(name).map(|gid| Principal::Group { name: name.to_owned(), gid }),
            None => names.uid(&text).map(|uid| Principal::User { name: text.clone(), uid }),
        };
        match principal {
            Some(principal) => found.push(principal),
            None if !view.is_changed(key) => {
                notes.push(format!(
                    "access.{key}: {text} does not exist on this machine, so the default lets root alone in"
                ));
            }
            None => {
                let (what, name) = text.strip_prefix("group:").map_or(("user", text.as_str()), |name| ("group", name));
                let hint = match what {
                    "user" if names.gid(name).is_some() => format!("there is a group of that name: \"group:{name}\""),
                    _ => format!("create it, or take it out of access.{key}"),
                };
                return Err(view.invalid_with_hint(key, &entry, format!("there is no {what} `{name}`"), hint));
            }
        }
    }
    Ok(found)
}

fn filesystems(view: &View<'_>) -> Result<Filesystems, Error> {
    Ok(Filesystems {
        include: view.globs("include")?,
        exclude: view.globs("exclude")?,
        expedite_rcu: view.bool("expedite_rcu")?,
    })
}

fn transient(merged: &Fragment, view: &View<'_>) -> Result<Transient, Error> {
    let policy = if view.choice("policy")? == "refuse" { TransientPolicy::Refuse } else { TransientPolicy::Warn };
    let mut exceptions = Vec::<TransientMount>::new();
    for row in rows(merged, "transient.mount") {
        let path: PathBuf = row.path("path")?.components().collect();
        if exceptions.iter().any(|other| other.path == path) {
            return Err(row.invalid("path", &row.required("path")?, "another entry has this path"));
        }
        exceptions.push(TransientMount { path, stance: stance(&row)? });
    }
    let (mounts, durable) = (view.paths("mounts")?, view.paths("durable")?);
    if let Some(both) = durable.iter().find(|path| mounts.iter().any(|other| other.components().eq(path.components())))
    {
        let why = format!("\"{}\" is in `mounts`, too: it cannot be both", both.display());
        return Err(view.invalid("durable", &view.required("durable")?, why));
    }
    Ok(Transient { policy, mounts, durable, exceptions })
}

fn stance(row: &View<'_>) -> Result<Stance, Error> {
    let (policy, because) = (row.choice("policy")?, row.text("because")?);
    if policy != "accept"
        && let Some(entry) = row.entry("because")
    {
        return Err(row.invalid("because", &entry, "only \"accept\" has a reason"));
    }
    match (policy, because) {
        ("accept", Some(because)) => Ok(Stance::Accept { because }),
        ("accept", None) => {
            let hint = "write it down, e.g. because = \"scratch only\"";
            Err(row.invalid_with_hint(
                "policy",
                &row.required("policy")?,
                "nobody says why what is there may be lost",
                hint,
            ))
        }
        ("refuse", _) => Ok(Stance::Refuse),
        _ => Ok(Stance::Warn),
    }
}

fn hooks(merged: &Fragment, view: &View<'_>) -> Result<Hooks, Error> {
    let conventions = rows(merged, "hooks.convention").iter().map(convention).collect::<Result<_, Error>>()?;
    Ok(Hooks {
        dir: view.path("dir")?,
        timeout: view.duration("timeout")?,
        report_timeout: view.duration("report_timeout")?,
        conventions,
    })
}

fn convention(row: &View<'_>) -> Result<hook::SwitchedOn, Error> {
    let found = hook::convention::Convention::named(row.choice("convention")?).expect("the choices are its names");
    let name = row.text("name")?.unwrap_or_else(|| format!("50-{}", found.as_str()));
    if let Some(entry) = row.entry("name").filter(|_| name.contains('/')) {
        return Err(row.invalid("name", &entry, format!("\"{name}\" has a / in it")));
    }
    let argument = row.text("argument")?;
    if let Some(entry) = row.entry("argument").filter(|_| found != hook::convention::Convention::Vmware) {
        return Err(row.invalid("argument", &entry, "only the convention \"vmware\" takes one"));
    }
    let settings = hook::Settings {
        convention: Some(found),
        path: row.optional_path("path")?,
        timeout: row.is_set("timeout").then(|| row.duration("timeout")).transpose()?,
        required: row.is_set("required").then(|| row.bool("required")).transpose()?,
        user: row.text("user")?,
        argument,
        phases: None,
        holds: Vec::new(),
    };
    Ok(hook::SwitchedOn { name, settings, at: PathBuf::from(row.at.to_string()) })
}

fn databases(merged: &Fragment, view: &View<'_>, root: &Path) -> Result<Databases, Error> {
    let mut configured = Vec::<database::Target>::new();
    for mut row in rows(merged, "database") {
        let name = row.required("name")?;
        let text = row.text("name")?.expect("required above");
        if text.len() > database::NAME_LIMIT || !text.chars().all(database::may_be_in_a_name) {
            return Err(row.invalid(
                "name",
                &name,
                format!(
                    "\"{text}\" has other than letters, digits and . _ - : @ / or is over {} long",
                    database::NAME_LIMIT
                ),
            ));
        }
        row.name = format!("database.{text}");
        if configured.iter().any(|target| target.name == text) {
            let hint = "in one file each database stands once; another file's [[database]] of the same name is merged";
            return Err(row.invalid_with_hint("name", &name, "another database has this name", hint));
        }
        configured.push(target(&row, text, root)?);
    }
    Ok(Databases { discover: view.bool("discover")?, configured })
}

fn target(row: &View<'_>, name: String, root: &Path) -> Result<database::Target, Error> {
    let engine = match row.choice("engine")? {
        "postgresql" | "postgres" => database::Engine::Postgresql,
        _ => database::Engine::Mysql,
    };
    row.choice("tls")?;
    let port = row.number("port", u32::from(u16::MAX))?.map(|n| u16::try_from(n).expect("checked"));
    let port = port.unwrap_or(match engine {
        database::Engine::Postgresql => 5432,
        database::Engine::Mysql => 3306,
    });
    let mut place = database::Given::Told;
    let at = match (row.text("host")?, row.optional_path("socket")?) {
        (Some(_), Some(_)) => {
            let entry = row.required("host")?;
            return Err(row.invalid_with_hint(
                "host",
                &entry,
                "it has a socket too",
                "keep one: socket, or host and port",
            ));
        }
        (Some(host), None) => database::Address::Tcp { host, port },
        (None, Some(path)) => database::Address::Socket(socket_file(engine, &path, port, root)),
        (None, None) => {
            place = database::Given::Guessed;
            database::Address::Socket(match engine {
                database::Engine::Postgresql => PathBuf::from(format!("/run/postgresql/.s.PGSQL.{port}")),
                database::Engine::Mysql => PathBuf::from("/run/mysqld/mysqld.sock"),
            })
        }
    };
    Ok(database::Target {
        name,
        engine,
        at,
        place,
        seen_by: None,
        user: row.text("user")?,
        password_file: row.optional_path("password_file")?,
        password: None,
        configured: true,
        required: row.bool("required")?,
        drain: row.duration("drain")?,
        strategy: match row.choice("strategy")? {
            "freeze-only" => database::Strategy::FreezeOnly,
            "table-locks" => database::Strategy::TableLocks,
            "global-lock" => database::Strategy::GlobalLock,
            _ => database::Strategy::Auto,
        },
        guard: row.duration("guard")?,
        busy: if row.choice("busy")? == "refuse" { database::Busy::Refuse } else { database::Busy::Degrade },
        kill_queries: row.bool("kill_queries")?,
        defaults_file: row.optional_path("defaults_file")?,
        service: row.text("service")?,
    })
}

/// A socket is configured as the file or as its directory. Its name tells which; a server that is down leaves neither.
fn socket_file(engine: database::Engine, path: &Path, port: u16, root: &Path) -> PathBuf {
    let (named_as_file, file) = match engine {
        database::Engine::Postgresql => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            (name.starts_with(".s.PGSQL."), format!(".s.PGSQL.{port}"))
        }
        database::Engine::Mysql => (path.extension().is_some_and(|e| e == "sock"), "mysqld.sock".to_owned()),
    };
    let below_root = root.join(path.strip_prefix("/").unwrap_or(path));
    let is_file = match below_root.metadata() {
        Ok(metadata) => !metadata.is_dir(),
        Err(_) => named_as_file,
    };
    if is_file { path.to_owned() } else { path.join(file) }
}

fn timeouts_that_cannot_both_be_met(settings: &Settings, notes: &mut Vec<String>) {
    let mut within = |inner: (&str, Duration), outer: (&str, Duration)| {
        if inner.1 > outer.1 {
            let (a, b) = (humantime::format_duration(inner.1), humantime::format_duration(outer.1));
            notes.push(format!("{} ({a}) can never be used up: {} ({b}) ends first", inner.0, outer.0));
        }
    };
    within(("hooks.timeout", settings.hooks.timeout), ("hold.quiesce", settings.hold.quiesce));
    within(("hold.max_stall", settings.hold.max_stall), ("hold.quiesce", settings.hold.quiesce));
    // a hold waits for it while preparing
    within(("hold.interval", settings.hold.interval), ("hold.prepare", settings.hold.prepare));
    for target in &settings.databases.configured {
        within((&format!("database.{}.drain", target.name), target.drain), ("hold.prepare", settings.hold.prepare));
    }
}

fn parsed(text: &str) -> toml::Value {
    let mut table: toml::Table = format!("v = {text}").parse().expect("a test parses every default");
    table.remove("v").expect("just written")
}

/// Every value in force, with its source.
fn effective(merged: &Fragment) -> Vec<Effective> {
    let mut all = Vec::new();
    for section in SECTIONS {
        match section.form {
            Form::Table => list_into(&mut all, &View::new(section.name, merged.tables.get(section.name))),
            Form::OptionalTable => {
                let table = merged.tables.get(section.name);
                table.into_iter().for_each(|row| list_into(&mut all, &View::new(section.name, Some(row))));
            }
            Form::Rows => {
                for (i, mut row) in rows(merged, section.name).into_iter().enumerate() {
                    let name = row.table.and_then(|t| t.get("name")?.value.as_str().map(str::to_owned));
                    row.name = format!("{}.{}", section.name, name.unwrap_or_else(|| (i + 1).to_string()));
                    list_into(&mut all, &row);
                }
            }
        }
    }
    all
}

fn list_into(all: &mut Vec<Effective>, view: &View<'_>) {
    for key in view.section.keys {
        let entry = view.entry(key.name);
        if entry.is_none() && view.section.form != Form::Table && !view.is_set(key.name) {
            continue;
        }
        all.push(Effective {
            key: format!("{}.{}", view.name, key.name),
            value: entry.as_ref().map(|e| e.value.to_string()),
            source: entry.map_or(Source::Default, |e| e.at),
        });
    }
}
