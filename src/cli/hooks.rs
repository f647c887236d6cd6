//! `hooks …`, and what other agents' adapters ask.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};

use super::{ConfigFile, Spec, duration};
use crate::{
    guest::databases::Engine,
    step::hook::{Phase, convention::Convention, not_an_engine},
};

#[derive(Debug, Args)]
pub struct Hooks {
    #[command(flatten)]
    pub config: ConfigFile,
    #[command(subcommand)]
    pub action: HookAction,
}

/// What to add, and its settings.
#[derive(Debug, Default, Args)]
pub struct AddHook {
    /// The script; with --convention where that agent's scripts are [default: where it keeps them]
    #[arg(required_unless_present = "convention")]
    pub file: Option<PathBuf>,
    /// Its name there, e.g. 10-orders [default: the file's own, without .sample]
    #[arg(long)]
    pub name: Option<String>,
    /// The number its name begins with: hooks run in the order of their names
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=99))]
    pub order: Option<u8>,
    /// How long one phase may take [default: [hooks] timeout]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub timeout: Option<Duration>,
    /// A failure fails the hold [default, but for some conventions]
    #[arg(long, conflicts_with = "optional")]
    pub required: bool,
    /// A failure lowers the level, and is said
    #[arg(long)]
    pub optional: bool,
    /// Whom it runs as [default: root]
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// A phase it takes part in: prepare, freeze. May be given more than once; thaw comes always [default: freeze]
    #[arg(long = "phase", value_name = "PHASE", value_parser = phase, conflicts_with = "convention")]
    pub phases: Vec<Phase>,
    /// A running engine that it brings to a consistent point, e.g. redis: then that one does not lower the level. May be
    /// given more than once
    #[arg(long, value_name = "ENGINE", value_parser = engine)]
    pub holds: Vec<Engine>,
    /// The scripts are another agent's: qemu, vmware, vmware-legacy, nutanix, google, azure or aws-dlm
    #[arg(long, value_name = "NAME", value_parser = convention)]
    pub convention: Option<Convention>,
    /// What VMware's tools.conf calls scriptArg
    #[arg(long, value_name = "TEXT", requires = "convention")]
    pub argument: Option<String>,
    /// Replace one of the same name
    #[arg(long)]
    pub force: bool,
}

fn phase(text: &str) -> Result<Phase, String> {
    let all = [Phase::Prepare, Phase::Freeze, Phase::Thaw];
    all.into_iter().find(|phase| phase.as_str() == text).ok_or_else(|| "there are prepare, freeze and thaw".to_owned())
}

fn engine(text: &str) -> Result<Engine, String> {
    Engine::named(text).ok_or_else(|| not_an_engine(text))
}

fn convention(text: &str) -> Result<Convention, String> {
    Convention::named(text).ok_or_else(|| {
        let names: Vec<&str> = Convention::ALL.iter().map(|known| known.as_str()).collect();
        format!("there are {}", names.join(", "))
    })
}

#[derive(Debug, Subcommand)]
pub enum HookAction {
    /// List what will run, in order, and what is ignored
    List,
    /// Copy a script into the hooks directory, or switch on scripts written for another agent
    Add(AddHook),
    /// Delete a script, and its settings, from the hooks directory; other agents' scripts are only switched off
    Remove {
        /// Its name, e.g. 10-orders
        name: String,
    },
    /// Let another agent that makes the snapshots drive holdstill: put an adapter where it looks for scripts
    InstallAdapter(InstallAdapter),
    /// Run `freeze` then `thaw` of one hook, or of all in order, holding nothing else
    Test {
        /// Its name, e.g. 10-orders
        name: Option<String>,
    },
}

/// `hooks install-adapter`.
#[derive(Debug, Clone, Args)]
pub struct InstallAdapter {
    /// Which agent
    #[arg(required_unless_present = "list")]
    pub name: Option<Adapted>,
    /// List the adapters there are, and which of them are installed
    #[arg(long, conflicts_with_all = ["name", "remove", "force"])]
    pub list: bool,
    /// Remove it again
    #[arg(long)]
    pub remove: bool,
    /// Take the place of what is there already
    #[arg(long)]
    pub force: bool,
    /// Of a machine mounted here
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
}

/// What another agent's adapter asks.
#[derive(Debug, Args)]
pub struct Adapter {
    #[command(flatten)]
    pub spec: Spec,
    /// What to answer if nothing could be held
    #[arg(long, value_enum, default_value = "fail")]
    pub if_not_held: IfNotHeld,
    /// Who asks
    pub agent: Adapted,
    /// What it asks, in its own words
    pub word: String,
    /// What it says besides
    pub argument: Option<String>,
}

/// An agent with an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Adapted {
    QemuGa,
    Vmware,
    Nutanix,
    Google,
    Azure,
    AwsDlm,
    Velero,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum IfNotHeld {
    /// that it failed
    Fail,
    /// that it may go on: its snapshot is as after a power cut
    GoOn,
}
