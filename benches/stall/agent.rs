//! The two who are compared, each as its users run it: `holdstill serve` asked over gRPC, and qemu-ga asked over its
//! socket.

use std::{
    env, fmt,
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use holdstill::{
    proto::{
        CheckRequest, Consistency, FreezeRequest, HoldSpec, StepKind, StepOutcome, ThawRequest, Verdict,
        holdstill_service_client::HoldstillServiceClient,
    },
    sys::clock,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tonic::transport::{Channel, Endpoint};

use crate::{
    Result,
    guest::{Guest, ended_within},
};

/// How long either may take to start.
const START_MAX: Duration = Duration::from_secs(15);
/// How long either may take to answer: just less than a reaper waits.
const ANSWER_MAX: Duration = Duration::from_secs(50);

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Which {
    Holdstill,
    QemuGa,
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Which::Holdstill => "holdstill",
            Which::QemuGa => "qemu-ga",
        })
    }
}

impl Which {
    pub fn start(self, guest: &Guest) -> Result<Agent> {
        Ok(match self {
            Which::Holdstill => Agent::Holdstill(Box::new(Holdstill::start(guest)?)),
            Which::QemuGa => Agent::QemuGa(QemuGa::start(guest)?),
        })
    }
}

pub enum Agent {
    Holdstill(Box<Holdstill>),
    QemuGa(QemuGa),
}

impl Agent {
    pub fn which(&self) -> Which {
        match self {
            Agent::Holdstill(_) => Which::Holdstill,
            Agent::QemuGa(_) => Which::QemuGa,
        }
    }

    /// Freezes all of `guest`, and thaws it as soon as that is answered.
    pub fn freeze_and_thaw(&mut self, guest: &Guest) -> Result<()> {
        match self {
            Agent::Holdstill(holdstill) => holdstill.freeze_and_thaw(),
            Agent::QemuGa(agent) => agent.freeze_and_thaw(guest),
        }
    }
}

/// A program that ends with us, and is ended when dropped.
struct Process {
    child: Child,
    by: Signal,
}

impl Process {
    fn start(program: &str, arguments: &[&str], log: &Path, by: Signal) -> Result<Self> {
        let log = File::create(log)?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", by.as_str().trim_start_matches("SIG"), "--", program])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|e| format!("start {program}: {e}"))?;
        Ok(Process { child, by })
    }

    /// Calls `attempt` until it succeeds, the program ends, or it took too long to start.
    fn until_ready<T>(&mut self, log: &Path, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
        let begun = clock::monotonic();
        loop {
            let error = match attempt() {
                Ok(ready) => return Ok(ready),
                Err(e) => e,
            };
            let ended = self.child.try_wait()?.map(|status| format!("it ended: {status}"));
            if ended.is_some() || clock::monotonic() - begun > START_MAX {
                let said = fs::read_to_string(log).unwrap_or_default();
                let why = ended.unwrap_or_else(|| error.to_string());
                return Err(format!("not ready: {why}\n{}", said.trim_end()).into());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(Some(_)) = self.child.try_wait() {
            return;
        }
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), self.by);
        if ended_within(&mut self.child, Duration::from_secs(10)).is_none() {
            eprintln!("warning: process {} does not end", self.child.id());
        }
    }
}

/// The daemon with its defaults, told to leave everything but the targets alone, and not to wait between two holds.
pub struct Holdstill {
    runtime: tokio::runtime::Runtime,
    client: HoldstillServiceClient<Channel>,
    spec: HoldSpec,
    _daemon: Process,
}

impl Holdstill {
    fn start(guest: &Guest) -> Result<Self> {
        let run = guest.run.path().join("holdstill");
        fs::create_dir_all(run.join("hooks.d"))?;
        let targets: Vec<String> = guest.targets().map(|target| target.display().to_string()).collect();
        let socket = run.join("holdstill.sock");
        let config = run.join("holdstill.toml");
        let quoted = |path: &Path| format!("{:?}", path.display().to_string());
        fs::write(
            &config,
            format!(
                "[hold]\ninterval = \"0s\"\n\
                 [listen]\nunix = {}\nguest_agent = \"off\"\n\
                 [access]\noperate = [\"root\"]\nlook = []\n\
                 [filesystems]\ninclude = {targets:?}\n\
                 [hooks]\ndir = {}\n\
                 [paths]\nrun = {}\nstate = {}\n\
                 [databases]\ndiscover = false\n",
                quoted(&socket),
                quoted(&run.join("hooks.d")),
                quoted(&run.join("run")),
                quoted(&run.join("state")),
            ),
        )?;
        let program = env::var("HOLDSTILL_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_holdstill").to_owned());
        let log = run.join("log");
        let config = config.display().to_string();
        let mut daemon = Process::start(&program, &["serve", "--config", &config], &log, Signal::SIGTERM)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
        let spec = HoldSpec {
            include_mounts: targets,
            require: Consistency::Filesystem.into(),
            label: "bench stall".to_owned(),
            ..Default::default()
        };
        let mut client = daemon.until_ready(&log, || {
            Ok(runtime.block_on(async { endpoint.connect().await.map(HoldstillServiceClient::new) })?)
        })?;
        runtime.block_on(only_the_targets(&mut client, &spec))?;
        Ok(Holdstill { runtime, client, spec, _daemon: daemon })
    }

    fn freeze_and_thaw(&mut self) -> Result<()> {
        let client = &mut self.client;
        let freeze = FreezeRequest { id: String::new(), spec: Some(self.spec.clone()) };
        let thawed = self.runtime.block_on(async {
            tokio::time::timeout(ANSWER_MAX, async {
                let held = client.freeze(freeze).await?.into_inner().report.unwrap_or_default();
                client.thaw(ThawRequest { id: held.id, ..Default::default() }).await
            })
            .await
        });
        let report = thawed
            .map_err(|_| format!("holdstill: no answer within {ANSWER_MAX:?}"))?
            .map_err(|status| format!("holdstill: {}", status.message()))?
            .into_inner()
            .report
            .unwrap_or_default();
        if report.verdict() != Verdict::Unbroken {
            return Err(format!("holdstill: the hold was not unbroken: {:?}", report.breaches).into());
        }
        Ok(())
    }
}

/// Refuses unless the plan freezes exactly what `spec` includes.
async fn only_the_targets(client: &mut HoldstillServiceClient<Channel>, spec: &HoldSpec) -> Result<()> {
    let answer = client.check(CheckRequest { spec: Some(spec.clone()) }).await;
    let plan = answer.map_err(|status| format!("holdstill: {}", status.message()))?.into_inner().plan;
    let steps = plan.unwrap_or_default().steps;
    let mut planned: Vec<&str> = steps
        .iter()
        .filter(|step| step.kind() == StepKind::Filesystem && step.outcome() != StepOutcome::Skipped)
        .map(|step| step.name.strip_prefix("fs:").unwrap_or(&step.name))
        .collect();
    let mut wanted: Vec<&str> = spec.include_mounts.iter().map(String::as_str).collect();
    planned.sort_unstable();
    wanted.sort_unstable();
    if planned == wanted {
        return Ok(());
    }
    Err(format!("holdstill plans to freeze {planned:?}, which is not exactly {wanted:?}").into())
}

/// The QEMU guest agent, listening where the hypervisor's end of its channel would be.
pub struct QemuGa {
    stream: BufReader<UnixStream>,
    _agent: Process,
}

impl QemuGa {
    fn start(guest: &Guest) -> Result<Self> {
        let run = guest.run.path().join("qemu-ga");
        fs::create_dir_all(&run)?;
        let socket = run.join("qga.sock");
        let log = run.join("log");
        let (socket_text, run_text) = (socket.display().to_string(), run.display().to_string());
        let arguments = ["-m", "unix-listen", "-p", &socket_text, "-t", &run_text];
        let mut agent = Process::start("qemu-ga", &arguments, &log, Signal::SIGTERM)
            .map_err(|e| format!("{e}\nhint: apt-get install --no-install-recommends qemu-guest-agent"))?;
        let stream = agent
            .until_ready(&log, || Ok(UnixStream::connect(&socket)?))
            .map_err(|e| format!("qemu-ga {e}\nhint: apt-get install --no-install-recommends qemu-guest-agent"))?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        let mut agent = QemuGa { stream: BufReader::new(stream), _agent: agent };
        agent.ask(&json!({"execute": "guest-ping"}))?;
        Ok(agent)
    }

    fn freeze_and_thaw(&mut self, guest: &Guest) -> Result<()> {
        // Never guest-fsfreeze-freeze: that one freezes the machine's own root.
        let targets: Vec<String> = guest.targets().map(|target| target.display().to_string()).collect();
        let count = targets.len();
        let frozen = self.ask(&json!({"execute": "guest-fsfreeze-freeze-list", "arguments": {"mountpoints": targets}}));
        let thawed = self.ask(&json!({"execute": "guest-fsfreeze-thaw"}));
        for (what, answer) in [("froze", frozen?), ("thawed", thawed?)] {
            if answer != json!(count) {
                return Err(format!("qemu-ga {what} {answer} of {count} file systems").into());
            }
        }
        Ok(())
    }

    fn ask(&mut self, command: &Value) -> Result<Value> {
        writeln!(self.stream.get_mut(), "{command}")?;
        let mut line = String::new();
        self.stream.read_line(&mut line).map_err(|e| format!("qemu-ga: {command}: {e}"))?;
        let mut answer: Value = serde_json::from_str(&line)?;
        match answer.get_mut("return") {
            Some(value) => Ok(value.take()),
            None => Err(format!("qemu-ga: {command}: {}", line.trim_end()).into()),
        }
    }
}
