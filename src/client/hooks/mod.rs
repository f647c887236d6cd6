//! `hooks`: list, add, remove and test what runs around a hold. Needs no daemon.

mod add;
mod list;
mod test;

use std::{io, path::Path};

use super::Answer;
use crate::{
    cli::{HookAction, Hooks},
    config::Loaded,
    error::{Failure, reason},
    hold::RefusalKind,
    step::hook,
    warden::marker::Marker,
};

/// Does what `args` say.
///
/// # Errors
/// The configuration or a hook cannot be used, or a file operation failed.
pub async fn hooks(loaded: &Loaded, args: &Hooks) -> Result<Answer, Failure> {
    let settings = &loaded.settings;
    let dir = &settings.hooks.dir;
    match &args.action {
        HookAction::List => Ok(list::list(dir, &listing(loaded)?, &list::LastRuns::read(&settings.paths))),
        HookAction::Add(args) => add::add(dir, args),
        HookAction::Remove { name } => {
            outside_a_hold(&settings.paths.run, &format!("remove {name}"))?;
            add::remove(dir, name)
        }
        HookAction::InstallAdapter(args) => super::adapters::adapters(args),
        HookAction::Test { name } => {
            outside_a_hold(&settings.paths.run, "test hooks")?;
            test::test(listing(loaded)?, &settings.paths.run, name.as_deref()).await
        }
    }
}

/// A hook that a hold has started must be there for its thaw, and its application must not be let go by a test.
fn outside_a_hold(run: &Path, what: &str) -> Result<(), Failure> {
    // whoever may not look there can do neither of the two
    match Marker::open(run) {
        Ok(Some(hold)) => {
            let message = format!("failed to {what}: the hold {} is not over", hold.hold_id);
            let hint = "try again after `holdstill thaw`; after a crash `holdstill rescue` ends it";
            Err(Failure::local(RefusalKind::FailedPrecondition, "HOLD_IN_PROGRESS", message).hint(hint))
        }
        Ok(None) | Err(_) => Ok(()),
    }
}

fn listing(loaded: &Loaded) -> Result<hook::Listing, Failure> {
    let hooks = &loaded.settings.hooks;
    hook::list(&hooks.dir, hooks.timeout, &hooks.conventions).map_err(|error| failure(&error))
}

/// A hook's error as the command line tells it.
fn failure(error: &hook::Error) -> Failure {
    let (kind, code, next) = match error {
        hook::Error::Directory { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            (RefusalKind::PermissionDenied, reason::NOT_PERMITTED, String::new())
        }
        hook::Error::Directory { .. } => (RefusalKind::FailedPrecondition, reason::LOCAL, String::new()),
        hook::Error::Unusable { hint, .. } => (RefusalKind::FailedPrecondition, "HOOK_UNUSABLE", hint.clone()),
        hook::Error::Start { .. }
        | hook::Error::Panicked { .. }
        | hook::Error::Exit { .. }
        | hook::Error::Killed { .. }
        | hook::Error::TimedOut { .. } => (RefusalKind::Aborted, "STEP_FAILED", String::new()),
    };
    Failure::local(kind, code, format!("failed to {error}")).hint(next)
}
