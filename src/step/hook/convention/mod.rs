//! Scripts written for another agent, run as its authors expect: their arguments, their exit statuses, unmodified. What
//! is ours stays ours: limits, captured output, ownership, and an undo for whatever was started, newest first (their own
//! agents run thaw in the order of freeze, or not at all after a failure).
//!
//! | convention | where | called with | a failure |
//! |---|---|---|---|
//! | `qemu` | `/etc/qemu/fsfreeze-hook.d/` | `freeze`, `thaw` | is only logged there: here it lowers the level |
//! | `vmware` | `/etc/vmware-tools/backupScripts.d/` | `freeze`, `thaw` or `freezeFail`, the argument | fails the hold |
//! | `vmware-legacy` | `/usr/sbin/pre-freeze-script`, `post-thaw-script` | nothing | fails the hold |
//! | `nutanix` | `/usr/local/sbin/pre_freeze`, `post_thaw` | nothing | lowers the level |
//! | `google` | `/etc/google/snapshots/pre.sh`, `post.sh` | the disks | fails the hold |
//! | `azure` | `/etc/azure/VMSnapshotScriptPluginConfig.json` | what that says | as that says |
//! | `aws-dlm` | an SSM document, or its script | `pre-script`, `post-script` | lowers the level |

mod azure;
mod directory;
mod dlm;
mod pair;

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Calls, Error, Hook, Listing, Statuses, User, list::SwitchedOn, unusable};

/// Whose scripts they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Convention {
    /// the QEMU guest agent's fsfreeze-hook.d
    Qemu,
    /// VMware Tools' backupScripts.d
    Vmware,
    /// VMware's older pair, which NAKIVO, Acronis and others go on using
    VmwareLegacy,
    Nutanix,
    /// the Google Compute Engine guest agent
    Google,
    /// Azure Backup's script framework
    Azure,
    /// AWS's Data Lifecycle Manager
    AwsDlm,
}

impl Convention {
    pub const ALL: [Convention; 7] = [
        Convention::Qemu,
        Convention::Vmware,
        Convention::VmwareLegacy,
        Convention::Nutanix,
        Convention::Google,
        Convention::Azure,
        Convention::AwsDlm,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Convention::Qemu => "qemu",
            Convention::Vmware => "vmware",
            Convention::VmwareLegacy => "vmware-legacy",
            Convention::Nutanix => "nutanix",
            Convention::Google => "google",
            Convention::Azure => "azure",
            Convention::AwsDlm => "aws-dlm",
        }
    }

    pub fn named(name: &str) -> Option<Convention> {
        Convention::ALL.into_iter().find(|known| known.as_str() == name)
    }

    /// Where its agent keeps them; `None`: it has no such place.
    pub fn usual_path(self) -> Option<&'static Path> {
        let path = match self {
            Convention::Qemu => "/etc/qemu/fsfreeze-hook.d",
            Convention::Vmware => "/etc/vmware-tools/backupScripts.d",
            Convention::VmwareLegacy => "/usr/sbin",
            Convention::Nutanix => "/usr/local/sbin",
            Convention::Google => "/etc/google/snapshots",
            Convention::Azure => "/etc/azure/VMSnapshotScriptPluginConfig.json",
            Convention::AwsDlm => return None,
        };
        Some(Path::new(path))
    }

    /// Is the hold failed by a failure, as its authors expect?
    fn required(self) -> bool {
        match self {
            Convention::Vmware | Convention::VmwareLegacy | Convention::Google => true,
            Convention::Qemu | Convention::Nutanix | Convention::Azure | Convention::AwsDlm => false,
        }
    }
}

/// Adds what `on` switches on to `listing`.
///
/// # Errors
/// `Unusable`: what should be there is not, or cannot be run safely.
pub fn expand(on: &SwitchedOn, default_limit: Duration, listing: &mut Listing) -> Result<(), Error> {
    let Some(convention) = on.settings.convention else { return Ok(()) };
    let path = on.settings.path.clone().or_else(|| convention.usual_path().map(Path::to_owned)).ok_or_else(|| {
        let why = format!("the convention {} needs a path: its agent keeps its scripts nowhere", convention.as_str());
        unusable(&on.at, why, "set path = \"/etc/holdstill/dlm-document.json\", or wherever it is")
    })?;
    let user = on.settings.user.as_deref().map(User::named).transpose().map_err(|why| unusable(&on.at, why, ""))?;
    let from = listing.hooks.len();
    let base = Base { name: on.name.clone(), path, user, limit: default_limit, required: convention.required() };
    match convention {
        Convention::Qemu => directory::qemu(&base, listing)?,
        Convention::Vmware => directory::vmware(&base, on.settings.argument.as_deref(), listing)?,
        Convention::VmwareLegacy => listing.hooks.push(pair::vmware_legacy(&base)?),
        Convention::Nutanix => listing.hooks.push(pair::nutanix(&base)?),
        Convention::Google => listing.hooks.push(pair::google(&base)?),
        Convention::Azure => azure::add(&base, listing)?,
        Convention::AwsDlm => listing.hooks.push(dlm::hook(&base)?),
    }
    for hook in &mut listing.hooks[from..] {
        hook.limit = on.settings.timeout.unwrap_or(hook.limit);
        hook.required = on.settings.required.unwrap_or(hook.required);
        hook.holds.clone_from(&on.settings.holds);
    }
    Ok(())
}

/// What all hooks of one convention start from.
struct Base {
    /// "50-vmware"
    name: String,
    path: PathBuf,
    user: Option<User>,
    limit: Duration,
    required: bool,
}

impl Base {
    fn hook(&self, name: String, path: &Path, calls: Calls, statuses: Statuses) -> Hook {
        let (user, limit, required) = (self.user.clone(), self.limit, self.required);
        Hook { name, path: path.to_owned(), limit, required, user, calls, statuses, holds: Vec::new() }
    }
}

/// Puts a script where it is run from, for whom it runs as alone: there may be a password in it.
///
/// # Errors
/// The tmpfs is full or gone.
pub fn stage(staging: &Path, text: &str, user: Option<&User>) -> io::Result<PathBuf> {
    fs::DirBuilder::new().recursive(true).mode(0o711).create(staging)?;
    let path = staging.join(format!("script-{:08x}", crc32fast::hash(text.as_bytes())));
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    io::Write::write_all(&mut file, text.as_bytes())?;
    if let Some(user) = user {
        std::os::unix::fs::fchown(&file, Some(user.ids.uid), Some(user.ids.gid))?;
    }
    Ok(path)
}
