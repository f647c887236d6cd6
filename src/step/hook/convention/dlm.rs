//! AWS's Data Lifecycle Manager: an SSM document (schema 2.2) whose shell script is given `command` (`pre-script`,
//! `post-script`) and `executionId`, and answers with exit statuses 201 to 206. Its script alone will do as well: with
//! `{{ command }}` in it it is treated as the document's, without it gets the two as arguments.
//! See <https://docs.aws.amazon.com/ebs/latest/userguide/automate-app-consistent-backups.html>.
//!
//! SSM puts parameters into the text of the script before it runs it. So do we, into a file on tmpfs.

use std::{path::PathBuf, time::Duration};

use serde_json::Value;

use super::{
    super::{
        Call, Calls, EXECUTION_ID, Error, Hook, Statuses, Word, unusable,
        usable::{Started, interpreter, read_guarded, usable},
    },
    Base,
};

/// SSM's own limit on a document, in bytes.
const LONGEST: u64 = 64 * 1024;

/// What Data Lifecycle Manager takes if nothing else is said.
const LIMIT: Duration = Duration::from_secs(10);

/// # Errors
/// The document cannot be read, has no shell script in it, or that cannot be run.
pub fn hook(base: &Base) -> Result<Hook, Error> {
    let text = read_guarded(&base.path, LONGEST)?;
    let script = if text.trim_start().starts_with('{') {
        from_document(&text).map_err(|why| {
            let hint = "`aws ssm get-document --document-format JSON` prints one";
            unusable(&base.path, why, hint)
        })?
    } else if text.starts_with("schemaVersion") || text.starts_with("---") {
        let hint = "`aws ssm get-document --document-format JSON` prints the same document as JSON";
        return Err(unusable(&base.path, "it is an SSM document in YAML, which is not read here", hint));
    } else {
        text
    };
    let calls = if placeholders(&script).any(|name| name == "command") {
        let (program, before) = shell(base, &script)?;
        let call = |command: &str| {
            let text = filled(&script, command);
            let words = before.iter().map(|word| Word::Text(word.into())).chain([Word::Script(text)]).collect();
            Some(Call { program: program.clone(), words, retries: 0 })
        };
        Calls { prepare: None, freeze: call("pre-script"), thaw: call("post-script"), failed: call("post-script") }
    } else {
        usable(&base.path, Started::ByKernel, base.user.as_ref())?;
        let call = |command: &str| {
            let words = vec![Word::Text(command.into()), Word::ExecutionId];
            Some(Call { program: base.path.clone(), words, retries: 0 })
        };
        Calls { prepare: None, freeze: call("pre-script"), thaw: call("post-script"), failed: call("post-script") }
    };
    let mut hook = base.hook(base.name.clone(), &base.path, calls, Statuses::Dlm);
    hook.limit = LIMIT;
    Ok(hook)
}

/// The shell script of a document, with the defaults of all parameters but our two put in.
fn from_document(text: &str) -> Result<String, String> {
    let document: Value = serde_json::from_str(text).map_err(|error| format!("it is not valid JSON: {error}"))?;
    let steps = document["mainSteps"].as_array().ok_or("it has no mainSteps: it is no SSM document")?;
    let mut scripts = steps.iter().filter(|step| step["action"] == "aws:runShellScript");
    let step = scripts.next().ok_or("none of its mainSteps is aws:runShellScript")?;
    if scripts.next().is_some() {
        return Err("more than one of its mainSteps is aws:runShellScript".to_owned());
    }
    let lines = step["inputs"]["runCommand"].as_array().ok_or("its aws:runShellScript has no runCommand")?;
    let lines: Option<Vec<&str>> = lines.iter().map(Value::as_str).collect();
    let mut script = lines.ok_or("its runCommand is no list of lines")?.join("\n");
    for name in placeholders(&script.clone()).filter(|name| !["command", "executionId"].contains(name)) {
        let default = document["parameters"][name]["default"].as_str();
        let default = default.ok_or_else(|| format!("its parameter `{name}` has no default"))?;
        script = replaced(&script, name, default);
    }
    Ok(script)
}

/// What starts the script: its first line, or sh.
fn shell(base: &Base, script: &str) -> Result<(PathBuf, Vec<String>), Error> {
    let Some(line) = script.strip_prefix("#!").and_then(|rest| rest.lines().next()) else {
        return Ok(("/bin/sh".into(), Vec::new()));
    };
    interpreter(&base.path, script.as_bytes())?;
    let mut words = line.splitn(2, char::is_whitespace).map(|word| word.trim().to_owned()).filter(|w| !w.is_empty());
    let program = words.next().unwrap_or_else(|| "/bin/sh".to_owned());
    Ok((program.into(), words.collect()))
}

fn filled(script: &str, command: &str) -> String {
    replaced(&replaced(script, "command", command), "executionId", EXECUTION_ID)
}

/// The names between `{{` and `}}`.
fn placeholders(text: &str) -> impl Iterator<Item = &str> {
    text.split("{{")
        .skip(1)
        .filter_map(|rest| Some(rest.split_once("}}")?.0.trim()))
        .filter(|name| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric()))
}

fn replaced(text: &str, name: &str, value: &str) -> String {
    let mut parts = text.split("{{");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once("}}") {
            Some((found, rest)) if found.trim() == name => out.extend([value, rest]),
            Some(_) | None => out.extend(["{{", part]),
        }
    }
    out
}
