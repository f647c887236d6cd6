//! Verbs, flags and help text; no behaviour. `main` dispatches, `client` and `run` act.

pub mod endpoint;
mod hooks;

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum, error::ErrorKind};

use crate::{error, proto};
use endpoint::Endpoint;
pub use hooks::{Adapted, Adapter, AddHook, HookAction, Hooks, IfNotHeld, InstallAdapter};

/// Makes this machine hold still for the instant its disks are snapshotted
#[derive(Debug, Parser)]
#[command(
    name = "holdstill",
    version,
    propagate_version = false,
    max_term_width = 100,
    after_help = "Exit status: 0 done; 1 something had started and failed, everything is let go; 2 malformed input; 3 released, \
                  but the hold was broken; 4 refused before anything was touched; 5 daemon not reachable; 6 not permitted. \
                  `run` has its own, see `holdstill run --help`."
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: Verb,
}

/// Accepted before and after the verb.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// The daemon's socket, or HOLDSTILL_SOCKET [default: `[listen] unix` of the configuration]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// A daemon elsewhere, or HOLDSTILL_ENDPOINT: vsock:CID:PORT a guest of this host; vsock:/PATH:PORT a guest whose vsock
    /// device has this socket (firecracker, cloud-hypervisor, vhost-device-vsock); unix:/PATH
    #[arg(long, global = true, value_name = "ENDPOINT", value_parser = Endpoint::parse)]
    pub endpoint: Option<Endpoint>,

    /// Print exactly one JSON document on stdout; text for people goes to stderr
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Be the daemon
    Serve(ConfigFile),
    /// Say what a freeze would do, what it could claim and who can ask for one; touches nothing
    Check(Check),
    /// Hold the machine still, and return when it is
    Freeze(Spec),
    /// Let go, and say whether everything was held until now
    Thaw(Thaw),
    /// Move the deadline of the hold in progress
    Extend(Extend),
    /// Hold, run a command, let go
    Run(Run),
    /// Hold and let go at once, to see what it costs; leaves no receipt
    Rehearse(Spec),
    /// Say where things stand; exit 0 if holds are accepted
    Status,
    /// Print what happens, as it happens
    Watch,
    /// List finished and refused holds, or show one
    History(History),
    /// Print every configuration value in force and where it came from
    Config(ConfigFile),
    /// List, add, remove or test the scripts run around a hold
    Hooks(Hooks),
    /// Print the receipt a hold left on a file system
    Receipt(Receipt),
    /// Say what a copy of the disks can prove
    Verify(Verify),
    /// Let go of whatever a dead daemon left held
    Rescue(Rescue),
    /// Answer another agent as it expects to be answered; what `hooks install-adapter` installs calls it
    #[command(hide = true)]
    Adapter(Adapter),
    /// The process a command of `run` waits in; started by it
    #[command(hide = true)]
    Gate(Gate),
}

/// For verbs that need no daemon.
#[derive(Debug, Clone, Args)]
pub struct ConfigFile {
    /// Read this configuration file alone
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// What to hold, and for how long.
#[derive(Debug, Clone, Args)]
pub struct Spec {
    /// Name of the hold; asking again with the same name is safe [default: chosen by the daemon]
    #[arg(long, value_parser = id)]
    pub id: Option<String>,

    /// Longest time to hold, from the moment all is held, e.g. 30s [default: [hold] max]
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    pub max_hold: Option<Duration>,

    /// Longest time to prepare, while nobody waits [default: [hold] prepare]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub prepare: Option<Duration>,

    /// Longest time anyone waits before all is held [default: [hold] quiesce]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub quiesce: Option<Duration>,

    /// The least it must be worth [default: [hold] require]
    #[arg(long, value_name = "LEVEL")]
    pub require: Option<Level>,

    /// Hold only this mount point or glob (repeatable)
    #[arg(long, value_name = "MOUNT")]
    pub mount: Vec<String>,

    /// Leave this mount point or glob alone (repeatable)
    #[arg(long, value_name = "MOUNT")]
    pub exclude: Vec<String>,

    /// A disk that will be in the snapshot: /dev/NAME, serial=…, wwn=…, pci=… or nguid=… (repeatable)
    #[arg(long, value_name = "DISK", value_parser = disk)]
    pub disk: Vec<proto::DiskSelector>,

    /// The caller freezes the file systems itself, once this has returned, and thaws them before it lets go: hold databases
    /// and hooks only, and claim no more
    #[arg(long)]
    pub caller_freezes: bool,

    /// When the copy of database logs is taken
    #[arg(long, value_name = "WHEN")]
    pub capture: Option<Capture>,

    /// A few words for reports and history
    #[arg(long, value_name = "TEXT")]
    pub label: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Level {
    Application,
    Filesystem,
    Crash,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Capture {
    WhileHeld,
    LogsAfterThaw,
}

#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    pub spec: Spec,
    /// Exit 4 also when there are reservations
    #[arg(long)]
    pub strict: bool,
    /// Print the least role each database here needs, as SQL to paste, and nothing else
    #[arg(long, conflicts_with = "strict")]
    pub sql: bool,
}

#[derive(Debug, Args)]
pub struct Thaw {
    /// Which hold [default: the one in progress, else the last one]
    pub id: Option<String>,
    /// What the snapshot is called; kept in the history
    #[arg(long, value_name = "REF")]
    pub snapshot_ref: Option<String>,
}

#[derive(Debug, Args)]
pub struct Extend {
    /// Which hold [default: the one in progress]
    pub id: Option<String>,
    /// The new total, counted from the moment all was held
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    pub max_hold: Duration,
}

#[derive(Debug, Args)]
#[command(
    after_help = "The command sees every held file system through a private overlay in memory, so it cannot block on what is \
                  held; what it writes there vanishes, except what --keep names. Its input is empty; what it prints appears \
                  after the release. HOLDSTILL_ID is set to the id of the hold.\n\n\
                  With --endpoint the guest is held and the command runs on this host, without an overlay: nothing here is held.\n\n\
                  Exit status: the command's own if the hold was unbroken (128+N if signal N ended it); 124 the hold was \
                  broken; 125 anything that kept holdstill from holding, or a --keep file that could not be kept; 126 the \
                  command is not executable; 127 it was not found."
)]
pub struct Run {
    #[command(flatten)]
    pub spec: Spec,

    /// After the release, keep this file or directory if the command wrote it (repeatable)
    #[arg(long, value_name = "PATH", conflicts_with = "no_overlay")]
    pub keep: Vec<PathBuf>,

    /// Let the command write to the held file systems themselves: it will block if it does
    #[arg(long)]
    pub no_overlay: bool,

    /// After the release, write the hold's record to this file
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,

    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct History {
    /// Show the whole report of this hold
    pub id: Option<String>,
    /// How many to list
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(i32).range(1..=128))]
    pub limit: i32,
    /// Draw that hold as SVG, into FILE or to stdout
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-", requires = "id")]
    pub svg: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Receipt {
    #[command(flatten)]
    pub config: ConfigFile,
    /// Root of a file system, live or a mounted copy
    #[arg(default_value = "/")]
    pub dir: PathBuf,
    /// Draw the hold as SVG, into FILE or to stdout
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub svg: Option<PathBuf>,
    /// Show a report that was saved in place of a receipt: what `thaw --json`, `history ID --json` or `run --report` wrote
    #[arg(long, value_name = "FILE", conflicts_with = "dir")]
    pub report: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Verify {
    #[command(flatten)]
    pub config: ConfigFile,
    /// The caller's record of the hold: what `freeze --json`, `thaw --json` or `run --report` wrote
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// The copy: roots of mounted file systems, block devices, raw images [default: this machine, restored from it]
    #[arg(value_name = "DIR|DEVICE|IMAGE")]
    pub paths: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Rescue {
    #[command(flatten)]
    pub config: ConfigFile,
    /// The run directory of the dead daemon [default: [paths] run]
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Gate {
    /// Where to stage the overlay; without it there is none
    #[arg(long, value_name = "DIR")]
    pub stage: Option<PathBuf>,
    /// What is held, as MAJOR:MINOR
    #[arg(long, value_name = "DEV")]
    pub held: Vec<String>,
    /// The resolved program, then its own name and arguments
    #[arg(last = true, required = true)]
    pub command: Vec<OsString>,
}

impl Spec {
    /// The request this asks for.
    pub fn to_proto(&self) -> proto::HoldSpec {
        let duration = |d: Option<Duration>| d.map(|d| d.try_into().expect("parsed within 24h"));
        proto::HoldSpec {
            max_hold: duration(self.max_hold),
            prepare_timeout: duration(self.prepare),
            require: match self.require {
                None => proto::Consistency::Unspecified,
                Some(Level::Application) => proto::Consistency::Application,
                Some(Level::Filesystem) => proto::Consistency::Filesystem,
                Some(Level::Crash) => proto::Consistency::Crash,
            }
            .into(),
            scope: (!self.disk.is_empty()).then(|| proto::SnapshotScope { disks: self.disk.clone() }),
            include_mounts: self.mount.clone(),
            exclude_mounts: self.exclude.clone(),
            capture_mode: match self.capture {
                None => proto::CaptureMode::Unspecified,
                Some(Capture::WhileHeld) => proto::CaptureMode::WhileHeld,
                Some(Capture::LogsAfterThaw) => proto::CaptureMode::LogsAfterThaw,
            }
            .into(),
            rehearsal: false,
            label: self.label.clone().unwrap_or_default(),
            quiesce_timeout: duration(self.quiesce),
            freeze_by: match self.caller_freezes {
                false => proto::FreezeBy::Unspecified,
                true => proto::FreezeBy::Caller,
            }
            .into(),
        }
    }
}

/// What to say instead of acting.
#[derive(Debug)]
pub enum Usage {
    /// help or version, asked for: print on stdout and exit 0
    Shown(String),
    /// wrong flags
    Wrong { failure: error::Failure, json: bool, exit: u8 },
}

/// Parses the command line; `env` is what the environment says. Afterwards `endpoint` is the place that was named, wherever
/// that was done.
///
/// # Errors
/// [`Usage`]: help was asked for, or the flags are wrong (exit 2; 125 for `run`).
pub fn parse(args: impl IntoIterator<Item = OsString>, env: impl Fn(&str) -> Option<OsString>) -> Result<Cli, Usage> {
    let args: Vec<OsString> = args.into_iter().collect();
    let mut cli = Cli::try_parse_from(&args).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Usage::Shown(error.render().to_string()),
        // its rendering is the whole help text
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            wrong(&args, "what is to be done? see `holdstill --help`".to_owned())
        }
        _ => wrong(&args, error.render().to_string()),
    })?;
    settle(&mut cli, env).map_err(|text| wrong(&args, text))?;
    Ok(cli)
}

/// Which daemon is meant, and whether that makes sense for the verb.
fn settle(cli: &mut Cli, env: impl Fn(&str) -> Option<OsString>) -> Result<(), String> {
    if let Some(verb) = cli.verb.acts_here() {
        return match cli.global.endpoint {
            Some(_) => {
                Err(format!("`{verb}` asks no daemon, it acts on this machine: run it there, without --endpoint"))
            }
            None => Ok(()),
        };
    }
    let env = |name| env(name).filter(|value| !value.is_empty());
    let Global { socket, endpoint, .. } = &mut cli.global;
    // clap compares only flags on the same side of the verb
    if let (Some(socket), Some(endpoint)) = (&socket, &endpoint) {
        return Err(format!("--socket {} and --endpoint {endpoint} name two daemons: keep one", socket.display()));
    }
    if endpoint.is_none() {
        *endpoint =
            match (socket.take().or_else(|| env("HOLDSTILL_SOCKET").map(PathBuf::from)), env("HOLDSTILL_ENDPOINT")) {
                (Some(path), _) => Some(Endpoint::Unix(path)),
                (None, Some(text)) => {
                    let parsed = text.to_str().ok_or_else(|| "it is not UTF-8".to_owned()).and_then(Endpoint::parse);
                    Some(parsed.map_err(|why| format!("HOLDSTILL_ENDPOINT cannot be used: {why}"))?)
                }
                (None, None) => None,
            };
    }
    match (&cli.verb, &cli.global.endpoint) {
        (Verb::Run(run), Some(endpoint)) if endpoint.is_remote() && !run.keep.is_empty() => Err(format!(
            "--keep has nothing to keep: the command runs here, where nothing is held ({endpoint} is); what it writes stays"
        )),
        _ => Ok(()),
    }
}

impl Verb {
    /// The name of a verb that asks no daemon.
    fn acts_here(&self) -> Option<&'static str> {
        match self {
            Verb::Serve(_) => Some("serve"),
            Verb::Config(_) => Some("config"),
            Verb::Hooks(_) => Some("hooks"),
            Verb::Receipt(_) => Some("receipt"),
            Verb::Verify(_) => Some("verify"),
            Verb::Rescue(_) => Some("rescue"),
            Verb::Gate(_) => Some("gate"),
            Verb::Adapter(_)
            | Verb::Check(_)
            | Verb::Freeze(_)
            | Verb::Thaw(_)
            | Verb::Extend(_)
            | Verb::Run(_)
            | Verb::Rehearse(_)
            | Verb::Status
            | Verb::Watch
            | Verb::History(_) => None,
        }
    }
}

fn wrong(args: &[OsString], text: String) -> Usage {
    let run = verb(args) == Some("run");
    let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end().to_owned();
    Usage::Wrong {
        failure: error::Failure::local(crate::hold::RefusalKind::InvalidArgument, error::reason::MALFORMED, text),
        json: !run && args.iter().take_while(|a| *a != "--").any(|a| a == "--json"),
        exit: if run { error::RUN_NOT_HELD } else { error::Exit::Malformed.code() },
    }
}

/// The verb, when the rest may make no sense: the first word that is neither a flag nor a flag's value.
fn verb(args: &[OsString]) -> Option<&str> {
    let mut words = args.iter().skip(1).map(|a| a.to_str().unwrap_or_default());
    while let Some(word) = words.next() {
        match word {
            "--socket" | "--endpoint" => {
                words.next();
            }
            flag if flag.starts_with('-') => {}
            verb => return Some(verb),
        }
    }
    None
}

fn duration(text: &str) -> Result<Duration, String> {
    if text.parse::<f64>().is_ok() {
        return Err(format!("a number has no unit; write {text}s"));
    }
    let value =
        humantime::parse_duration(text).map_err(|error| format!("{error}; write it like 90s, \"1m 30s\" or 500ms"))?;
    match value {
        Duration::ZERO => Err("it must be more than zero".to_owned()),
        v if v > Duration::from_secs(24 * 60 * 60) => Err("it is more than 24h".to_owned()),
        v => Ok(v),
    }
}

fn id(text: &str) -> Result<String, String> {
    let fits = (1..=64).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    match fits {
        true => Ok(text.to_owned()),
        false => {
            Err("an id is a letter or digit, then up to 63 letters, digits, dots, underscores or hyphens".to_owned())
        }
    }
}

fn disk(text: &str) -> Result<proto::DiskSelector, String> {
    use proto::disk_selector::By;
    let some = |value: &str, by: fn(String) -> By| match value {
        "" => Err("it has nothing after the =".to_owned()),
        value => Ok(by(value.to_owned())),
    };
    let by = match text.split_once('=') {
        _ if text.starts_with("/dev/") => By::Device(text.to_owned()),
        Some(("serial", value)) => some(value, By::Serial)?,
        Some(("wwn", value)) => some(value, By::Wwn)?,
        Some(("pci", value)) => some(value, By::PciAddress)?,
        Some(("nguid", value)) => some(value, By::Nguid)?,
        _ => return Err("a disk is /dev/NAME, serial=…, wwn=…, pci=… or nguid=…".to_owned()),
    };
    Ok(proto::DiskSelector { by: Some(by) })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn args(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    fn parsed(line: &str) -> Cli {
        parse(args(line), |_| None).unwrap_or_else(|usage| panic!("{usage:?}"))
    }

    fn refused(line: &str) -> (String, bool, u8) {
        refused_in(line, &[])
    }

    fn refused_in(line: &str, env: &[(&str, &str)]) -> (String, bool, u8) {
        match parse(args(line), in_it(env)).expect_err("wrong") {
            Usage::Wrong { failure, json, exit } => (failure.message, json, exit),
            Usage::Shown(text) => panic!("{text}"),
        }
    }

    fn in_it(env: &[(&str, &str)]) -> impl Fn(&str) -> Option<OsString> {
        |name| env.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_flags_stand_before_or_after_the_verb() {
        for line in ["holdstill --json --socket /s status", "holdstill status --json --socket /s"] {
            let global = parsed(line).global;
            assert!(global.json && global.endpoint == Some(Endpoint::Unix("/s".into())), "{line}");
        }
    }

    #[test]
    fn a_flag_is_stronger_than_the_environment_and_there_the_socket_is_stronger() {
        let place = |line: &str, env: &[(&str, &str)]| {
            let cli = parse(args(line), in_it(env)).unwrap_or_else(|usage| panic!("{usage:?}"));
            cli.global.endpoint.map(|e| e.to_string()).unwrap_or_default()
        };
        let both = [("HOLDSTILL_SOCKET", "/env"), ("HOLDSTILL_ENDPOINT", "vsock:9:9")];
        assert_eq!(place("holdstill status", &[]), "");
        assert_eq!(place("holdstill status", &both[1..]), "vsock:9:9");
        assert_eq!(place("holdstill status", &both), "/env");
        assert_eq!(place("holdstill status --endpoint vsock:3:1", &both), "vsock:3:1");
        assert_eq!(place("holdstill --socket /s status", &both), "/s");
        assert_eq!(place("holdstill status", &[("HOLDSTILL_SOCKET", ""), both[1]]), "vsock:9:9");
        assert_eq!(place("holdstill verify", &[("HOLDSTILL_ENDPOINT", "nonsense")]), "", "it asks nobody");
        let (message, _, exit) = refused_in("holdstill thaw", &[("HOLDSTILL_ENDPOINT", "nonsense")]);
        assert!(message.contains("HOLDSTILL_ENDPOINT cannot be used: an endpoint is vsock:") && exit == 2, "{message}");
    }

    #[test]
    fn verbs_that_ask_no_daemon_refuse_an_endpoint() {
        for verb in ["serve", "config", "hooks list", "receipt", "verify /a", "rescue"] {
            let (message, _, exit) = refused(&format!("holdstill {verb} --endpoint vsock:3:7411"));
            let name = verb.split(' ').next().unwrap_or_default();
            assert!(message.starts_with(&format!("`{name}` asks no daemon")) && exit == 2, "{verb}: {message}");
        }
    }

    #[test]
    fn run_has_nothing_to_keep_when_it_is_the_guest_that_is_held() {
        for flags in ["--endpoint vsock:3:7411 --keep /a", "--keep /a --endpoint vsock:/v:7411"] {
            let (message, _, exit) = refused(&format!("holdstill run {flags} -- true"));
            assert!(message.starts_with("--keep has nothing to keep") && exit == 125, "{message}");
        }
        parsed("holdstill run --endpoint unix:/s --keep /a -- true");
    }

    #[test]
    fn freeze_run_rehearse_and_check_take_the_same_flags() {
        let flags = "--id a --for 30s --prepare 20s --quiesce 5s --require application --mount /a --mount /b --exclude /c \
                     --disk /dev/vda --disk serial=x --capture logs-after-thaw --label l";
        let specs = ["freeze", "run", "rehearse", "check"].map(|verb| {
            let tail = if verb == "run" { " -- true" } else { "" };
            match parsed(&format!("holdstill {verb} {flags}{tail}")).verb {
                Verb::Freeze(spec) | Verb::Rehearse(spec) => spec.to_proto(),
                Verb::Run(run) => run.spec.to_proto(),
                Verb::Check(check) => check.spec.to_proto(),
                other => panic!("{other:?}"),
            }
        });
        assert!(specs.iter().all(|spec| *spec == specs[0]));
        let spec = &specs[0];
        assert_eq!(spec.max_hold, Some(prost_types::Duration { seconds: 30, nanos: 0 }));
        assert_eq!(spec.require(), proto::Consistency::Application);
        assert_eq!(spec.capture_mode(), proto::CaptureMode::LogsAfterThaw);
        assert_eq!(spec.include_mounts, ["/a", "/b"]);
        assert_eq!(spec.scope.as_ref().map(|s| s.disks.len()), Some(2));
    }

    #[test]
    fn nothing_said_is_nothing_asked() {
        let Verb::Freeze(spec) = parsed("holdstill freeze").verb else { panic!("freeze") };
        assert_eq!(spec.to_proto(), proto::HoldSpec::default());
    }

    #[test]
    fn flags_after_the_dashes_belong_to_the_command() {
        let cli = parsed("holdstill run --for 5s -- aws --json --for 9");
        let Verb::Run(run) = cli.verb else { panic!("run") };
        assert_eq!(run.command, ["aws", "--json", "--for", "9"]);
        assert!(!cli.global.json);
    }

    #[test]
    fn wrong_flags_exit_2_and_for_run_125() {
        assert_eq!(refused("holdstill freeze --forr 3s").2, 2);
        assert_eq!(refused("holdstill run --forr 3s -- true").2, 125);
        assert_eq!(refused("holdstill --socket run run --forr 3s -- true").2, 125);
        assert_eq!(refused("holdstill run").2, 125);
        assert_eq!(refused("holdstill").2, 2);
        assert_eq!(refused("holdstill frobnicate").2, 2);
    }

    #[test]
    fn wrong_flags_are_a_json_document_if_json_was_asked_for_but_never_for_run() {
        assert!(refused("holdstill --json freeze --forr 3s").1);
        assert!(!refused("holdstill run --json --forr 3s -- true").1);
        assert!(!refused("holdstill freeze --forr 3s -- --json").1);
    }

    #[test]
    fn values_that_are_none_are_said_with_the_cure() {
        let cases = [
            ("freeze --for 60", "a number has no unit; write 60s"),
            ("freeze --for 0s", "it must be more than zero"),
            ("freeze --for soon", "write it like 90s"),
            ("freeze --id -x", "unexpected argument '-x'"),
            ("freeze --id=a/b", "an id is a letter or digit"),
            ("freeze --disk vda", "a disk is /dev/NAME, serial="),
            ("freeze --disk serial=", "it has nothing after the ="),
            ("freeze --require none", "possible values: application, filesystem, crash"),
            ("status --endpoint tcp:3:7411", "tcp endpoints are not in this version"),
            ("status --endpoint unix:relative", "the path must be absolute"),
            ("status --endpoint vsock:3:7411 --socket /s", "name two daemons"),
            ("--socket /s status --endpoint vsock:3:7411", "name two daemons"),
            ("extend", "--for <DURATION>"),
        ];
        for (line, why) in cases {
            let (message, _, exit) = refused(&format!("holdstill {line}"));
            assert!(message.contains(why) && exit == 2, "{line}: {message}");
        }
    }

    #[test]
    fn help_and_version_are_no_errors() {
        for line in ["holdstill --help", "holdstill run --help", "holdstill --version"] {
            assert!(matches!(parse(args(line), |_| None), Err(Usage::Shown(_))), "{line}");
        }
    }
}
