//! The holdstill this repository builds, spoken to as anybody would: its daemon with a configuration file, its command
//! line with `--json`. Nothing here knows more than the manual.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    Failure,
    command::{Background, output},
    ledger::now,
    stream::{Engine, Stream},
};

#[derive(Debug)]
pub struct Agent {
    program: PathBuf,
    socket: PathBuf,
    log: PathBuf,
    daemon: Background,
}

/// What a verb answered.
#[derive(Debug, Clone)]
pub struct Answer {
    pub code: i32,
    /// the one document on stdout; null if there was none
    pub json: Value,
    pub stderr: String,
}

/// Where the daemon's things lie, all on tmpfs.
#[derive(Debug, Clone)]
pub struct Places {
    pub run: PathBuf,
    pub state: PathBuf,
    pub hooks: PathBuf,
    pub config: PathBuf,
    pub log: PathBuf,
}

/// The configuration: only `held` is frozen, `transient` is known to be in no snapshot, and only these databases are
/// spoken to. Discovery is off: a database of this machine's own is none of the demo's business.
pub fn configuration(places: &Places, held: &Path, transient: &Path, databases: &[&Stream]) -> String {
    let mut text = format!(
        "\
[hold]
max = \"20s\"
interval = \"0s\"
[listen]
unix = {socket:?}
guest_agent = \"off\"
relay = false
[access]
look = [\"root\"]
[filesystems]
include = [{held:?}]
[transient]
mounts = [{transient:?}]
[hooks]
dir = {hooks:?}
[paths]
run = {run:?}
state = {state:?}
[databases]
discover = false
",
        socket = places.run.join("holdstill.sock"),
        hooks = places.hooks,
        run = places.run,
        state = places.state,
    );
    for stream in databases {
        let (engine, user, socket) = match stream.engine {
            Engine::Postgres => ("postgresql", "postgres", stream.at.clone()),
            Engine::Mariadb => ("mariadb", "root", stream.at.join("mariadb.sock")),
            Engine::Sqlite => continue, // nobody to speak to: its files are held by the freeze
        };
        let name = stream.name();
        let _ =
            write!(text, "[[database]]\nname = {name:?}\nengine = {engine:?}\nsocket = {socket:?}\nuser = {user:?}\n");
    }
    text
}

impl Agent {
    /// Starts `holdstill serve` with the configuration at `places.config` and waits until it accepts holds.
    ///
    /// # Errors
    /// It ended, or does not answer; the sentence carries what it said last.
    pub fn serve(program: &Path, places: &Places) -> Result<Agent, Failure> {
        let mut serve = Command::new(program);
        serve.args(["serve", "--config"]).arg(&places.config).current_dir("/");
        let daemon = Background::start(&mut serve, &places.log)?;
        let socket = places.run.join("holdstill.sock");
        let mut agent = Agent { program: program.to_owned(), socket, log: places.log.clone(), daemon };
        let until = now() + Duration::from_secs(10);
        loop {
            let status = agent.ask(&["status"])?;
            if status.code == 0 {
                return Ok(agent);
            }
            if let Some(ended) = agent.daemon.ended() {
                return Err(format!("start holdstill serve: {ended}\n{}", agent.said()).into());
            }
            if now() > until {
                return Err(format!("reach holdstill serve: {}\n{}", status.stderr.trim(), agent.said()).into());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs one verb with `--json`.
    ///
    /// # Errors
    /// It could not be started, did not end within 30 s, was killed, or printed something that is not one document.
    pub fn ask(&self, args: &[&str]) -> Result<Answer, Failure> {
        let mut verb = Command::new(&self.program);
        verb.args(args).arg("--json").env("HOLDSTILL_SOCKET", &self.socket).current_dir("/");
        let ran = output(&mut verb, Duration::from_secs(30))?;
        let code = ran.status.code().ok_or_else(|| format!("run holdstill {}: {}", args.join(" "), ran.status))?;
        let json = match ran.stdout.trim_ascii() {
            [] => Value::Null,
            document => serde_json::from_slice(document)
                .map_err(|e| format!("read what holdstill {} printed: {e}", args.join(" ")))?,
        };
        Ok(Answer { code, json, stderr: String::from_utf8_lossy(&ran.stderr).into_owned() })
    }

    /// The last lines the daemon logged, for when something went wrong.
    pub fn said(&self) -> String {
        let text = fs::read(&self.log).map(|t| String::from_utf8_lossy(&t).into_owned()).unwrap_or_default();
        let lines: Vec<_> = text.lines().map(|l| format!("    {l}")).collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Stops the daemon as a service manager would.
    ///
    /// # Errors
    /// It did not end within 10 s of SIGTERM.
    pub fn stop(self) -> Result<(), Failure> {
        self.daemon.end(Signal::SIGTERM, Duration::from_secs(10)).map(drop)
    }
}

impl Answer {
    /// What went wrong, in the words of the error document; else of stderr.
    pub fn complaint(&self) -> String {
        let error = &self.json["error"];
        let text = |key: &str| error[key].as_str().unwrap_or_default();
        match (text("message"), text("hint")) {
            ("", _) => self.stderr.trim().to_owned(),
            (message, "") => message.to_owned(),
            (message, hint) => format!("{message} (hint: {hint})"),
        }
    }
}

/// The names of the steps of `report` that were planned or done for file systems, with their device numbers.
pub fn filesystem_steps(report: &Value) -> Vec<(String, u64, u64)> {
    let acted = |s: &&Value| s["kind"] == "filesystem" && s["outcome"] != "skipped";
    let number = |s: &Value, key: &str| s["filesystem"][key].as_u64().unwrap_or(0);
    let steps = report["steps"].as_array().into_iter().flatten().filter(acted);
    steps.map(|s| (text(s, "name").to_owned(), number(s, "major"), number(s, "minor"))).collect()
}

/// The coverage entry of `report` for the disk mounted on `mount`.
pub fn coverage<'a>(report: &'a Value, mount: &str) -> Option<&'a Value> {
    let has = |c: &&Value| c["mounts"].as_array().into_iter().flatten().any(|m| m == mount);
    report["coverage"].as_array()?.iter().find(has)
}

/// A string field; "" where it is not there.
pub fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// A duration field ("1.234s").
pub fn duration(value: &Value, key: &str) -> Option<Duration> {
    let seconds = value[key].as_str()?.strip_suffix('s')?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::stream::Durability;

    #[test]
    fn the_configuration_is_toml_that_holds_one_mount_and_discovers_nothing() {
        let at = |p: &str| PathBuf::from("/w").join(p);
        let places = Places { run: at("run"), state: at("state"), hooks: at("hooks.d"), config: at("c"), log: at("l") };
        let stream = |engine, dir| Stream { engine, durability: Durability::Full, at: at(dir), ledger: at("ledger") };
        let (sqlite, postgres) = (stream(Engine::Sqlite, "s"), stream(Engine::Postgres, "p"));
        let text = configuration(&places, Path::new("/srv"), Path::new("/mnt"), &[&sqlite, &postgres]);
        let read: toml::Table = text.parse().expect("TOML");
        assert_eq!(read["filesystems"]["include"].as_array().expect("a list").len(), 1);
        assert_eq!(read["databases"]["discover"].as_bool(), Some(false));
        let databases = read["database"].as_array().expect("a list");
        assert_eq!(databases.len(), 1);
        assert_eq!(databases[0]["socket"].as_str(), Some("/w/p"));
    }

    #[test]
    fn a_skipped_file_system_is_not_one_that_would_be_frozen() {
        let report = json!({"steps": [
            {"name": "fs:/", "kind": "filesystem", "outcome": "skipped"},
            {"name": "fs:/srv", "kind": "filesystem", "outcome": "planned", "filesystem": {"major": 7, "minor": 3}},
            {"name": "db:orders", "kind": "database", "outcome": "planned"},
        ]});
        assert_eq!(filesystem_steps(&report), [("fs:/srv".to_owned(), 7, 3)]);
    }

    #[test]
    fn coverage_is_found_by_mount_and_durations_are_read() {
        let report = json!({"held_took": "0.250s", "coverage": [
            {"disk": "loop3", "mounts": ["/srv"]}, {"disk": "loop4", "mounts": ["/mnt"], "used_bytes": 12},
        ]});
        assert_eq!(coverage(&report, "/mnt").expect("listed")["used_bytes"], 12);
        assert!(coverage(&report, "/home").is_none());
        assert_eq!(duration(&report, "held_took"), Some(Duration::from_millis(250)));
        assert_eq!(duration(&report, "prepare_took"), None);
    }
}
