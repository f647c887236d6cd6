//! Azure Backup's script framework: `VMSnapshotScriptPluginConfig.json` names a script before and one after, run by `sh`
//! with the parameters given. Status 0 is success, 2 a warning, anything else an error.
//! See <https://learn.microsoft.com/azure/backup/backup-azure-linux-app-consistent>.

use std::{path::Path, time::Duration};

use serde_json::Value;

use super::{
    super::{
        Call, Calls, Error, Listing, Statuses, Word, unusable,
        usable::{Started, read_guarded, usable},
    },
    Base,
};

/// Longest configuration that is read, in bytes.
const LONGEST: u64 = 64 * 1024;

/// What the framework itself takes if `timeoutInSeconds` is not set.
const LIMIT: Duration = Duration::from_secs(10);

/// A day, as for every limit of ours.
const LONGEST_LIMIT: u64 = 24 * 60 * 60;

/// # Errors
/// The configuration cannot be read or names no script, or one that cannot be run safely.
pub fn add(base: &Base, listing: &mut Listing) -> Result<(), Error> {
    let wrong = |why: String| unusable(&base.path, why, "see Azure's VMSnapshotScriptPluginConfig.json");
    let text = read_guarded(&base.path, LONGEST)?;
    let config: Value = serde_json::from_str(&text).map_err(|error| wrong(format!("it is not valid JSON: {error}")))?;
    let call = |which: &str| -> Result<Option<Call>, Error> {
        let Some(script) = config[format!("{which}ScriptLocation")].as_str().filter(|path| !path.is_empty()) else {
            return Ok(None);
        };
        let script = Path::new(script);
        if !script.is_absolute() {
            return Err(wrong(format!("{which}ScriptLocation must be an absolute path, not {}", script.display())));
        }
        usable(script, Started::ByShell, base.user.as_ref())?;
        let parameters = match &config[format!("{which}ScriptParams")] {
            Value::Null => Vec::new(),
            Value::Array(words) => words.iter().map(plain).collect(),
            other => return Err(wrong(format!("{which}ScriptParams must be a list, not {other}"))),
        };
        let words = [script.as_os_str().to_owned()].into_iter().chain(parameters.into_iter().map(Into::into));
        let retries = whole_number(&config[format!("{which}ScriptNoOfRetries")]).unwrap_or(0);
        let retries = u32::try_from(retries).map_err(|_| wrong(format!("{which}ScriptNoOfRetries is too large")))?;
        Ok(Some(Call { program: "/bin/sh".into(), words: words.map(Word::Text).collect(), retries }))
    };
    let (freeze, thaw) = (call("pre")?, call("post")?);
    if freeze.is_none() && thaw.is_none() {
        return Err(wrong("it names neither preScriptLocation nor postScriptLocation".to_owned()));
    }
    let calls = Calls { prepare: None, freeze, thaw: thaw.clone(), failed: thaw };
    let mut hook = base.hook(base.name.clone(), &base.path, calls, Statuses::Azure);
    let limit = whole_number(&config["timeoutInSeconds"]).filter(|s| *s > 0).map(|s| s.min(LONGEST_LIMIT));
    hook.limit = limit.map_or(LIMIT, Duration::from_secs);
    hook.required = flag(&config["continueBackupOnFailure"]) == Some(false);
    if flag(&config["fsFreezeEnabled"]) == Some(false) {
        let what = "fsFreezeEnabled = false is not followed: file systems are frozen all the same";
        listing.notes.push((base.name.clone(), what.to_owned()));
    }
    listing.hooks.push(hook);
    Ok(())
}

/// A parameter as Python's `str()` would pass it.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Numbers and flags come with and without quotes.
fn whole_number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.trim().parse().ok())
}

fn flag(value: &Value) -> Option<bool> {
    value.as_bool().or_else(|| match value.as_str()?.to_ascii_lowercase().as_str() {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    })
}
