//! One script before, one after: VMware's older pair, Nutanix's and Google's.

use std::path::Path;

use super::{
    super::{
        Call, Calls, Error, Hook, Statuses, Word, unusable,
        usable::{Started, usable},
    },
    Base,
};

/// `pre-freeze-script` and `post-thaw-script`, without arguments. One of the two is enough.
///
/// # Errors
/// Neither is there, or one cannot be run safely.
pub fn vmware_legacy(base: &Base) -> Result<Hook, Error> {
    pair(base, "pre-freeze-script", "post-thaw-script", Both::OneIsEnough, &[])
}

/// `pre_freeze` and `post_thaw`, without arguments.
///
/// # Errors
/// One is missing or cannot be run safely.
pub fn nutanix(base: &Base) -> Result<Hook, Error> {
    pair(base, "pre_freeze", "post_thaw", Both::Needed, &[])
}

/// `pre.sh` and `post.sh`, whose argument is the list of disks. One that is missing makes Google's agent fail, too.
///
/// # Errors
/// One is missing or cannot be run safely.
pub fn google(base: &Base) -> Result<Hook, Error> {
    pair(base, "pre.sh", "post.sh", Both::Needed, &[Word::Disks])
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Both {
    Needed,
    OneIsEnough,
}

fn pair(base: &Base, before: &str, after: &str, both: Both, words: &[Word]) -> Result<Hook, Error> {
    let call = |name: &str| -> Result<Option<Call>, Error> {
        let path = base.path.join(name);
        if both == Both::OneIsEnough && !path.exists() && !path.is_symlink() {
            return Ok(None);
        }
        usable(&path, Started::ByKernel, base.user.as_ref())?;
        Ok(Some(Call { program: path, words: words.to_vec(), retries: 0 }))
    };
    let (freeze, thaw) = (call(before)?, call(after)?);
    if freeze.is_none() && thaw.is_none() {
        let why = format!("there is neither {before} nor {after} in it");
        return Err(unusable(&base.path, why, "put them there, or switch the convention off"));
    }
    let shown = freeze.as_ref().or(thaw.as_ref()).map_or(Path::new(""), |call| &call.program).to_owned();
    let calls = Calls { prepare: None, freeze, thaw: thaw.clone(), failed: thaw };
    Ok(base.hook(base.name.clone(), &shown, calls, Statuses::Zero))
}
