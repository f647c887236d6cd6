//! Directories of scripts, each called with a word: QEMU's and VMware's.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use super::{
    super::{
        Call, Calls, Error, Listing, Statuses,
        list::{ignored, names},
        unusable,
        usable::{Started, usable},
    },
    Base,
};

/// `/etc/qemu/fsfreeze-hook.d/*`: `freeze`, `thaw`. Its aggregator passes over what is not executable, and so do we, but
/// we say so.
///
/// # Errors
/// The directory is missing, or a script in it cannot be run safely.
pub fn qemu(base: &Base, listing: &mut Listing) -> Result<(), Error> {
    each(base, listing, |path| {
        let call = |word| Some(Call::new(path, &[word]));
        Calls { prepare: None, freeze: call("freeze"), thaw: call("thaw"), failed: call("thaw") }
    })
}

/// `/etc/vmware-tools/backupScripts.d/*`: `freeze`, then `thaw`, or `freezeFail` if the hold never was; with
/// `scriptArg` behind it. VMware does not tell the script that failed; here whatever was started is told.
///
/// # Errors
/// The directory is missing, or a script in it cannot be run safely.
pub fn vmware(base: &Base, argument: Option<&str>, listing: &mut Listing) -> Result<(), Error> {
    each(base, listing, |path| {
        let call = |word| Some(Call::new(path, &[&[word], argument.as_slice()].concat()));
        Calls { prepare: None, freeze: call("freeze"), thaw: call("thaw"), failed: call("freezeFail") }
    })
}

fn each(base: &Base, listing: &mut Listing, calls: impl Fn(&Path) -> Calls) -> Result<(), Error> {
    if !base.path.is_dir() {
        return Err(unusable(
            &base.path,
            "there is no such directory",
            "correct the path, or switch the convention off",
        ));
    }
    for script in names(&base.path, base.user.as_ref())? {
        let path = base.path.join(&script);
        let name = format!("{}/{script}", base.name);
        let about = fs::metadata(&path).ok();
        let runs = about.is_none_or(|about| about.is_file() && about.permissions().mode() & 0o111 != 0);
        if ignored(&script) || !runs {
            listing.ignored.push(name);
            continue;
        }
        usable(&path, Started::ByKernel, base.user.as_ref())?;
        listing.hooks.push(base.hook(name, &path, calls(&path), Statuses::Zero));
    }
    Ok(())
}
