//! Who we are to a database, decided before its engine connects: the engines only use what is in the target then.

use super::{Deadline, Error, Failed, Secret, Target, look, password::read_password};

const READ: &str = "read the password of";

/// The target with its password, if it has one anywhere.
///
/// # Errors
/// A file that is configured and cannot be used; with its cure.
pub(super) async fn resolve(target: &Target, deadline: Deadline) -> Result<Target, Error> {
    let mut resolved = target.clone();
    if resolved.password.is_some() {
        return Ok(resolved);
    }
    let Some(path) = target.password_file.clone() else { return Ok(resolved) };
    let error = |why, hint| Error { name: target.name.clone(), what: READ, why, hint };
    let read = look(deadline, move || Ok(read_password(&path))).await;
    let read = read.map_err(|failed| match failed {
        Failed::TimedOut(limit) => error(format!("its file was not read within {limit:?}"), String::new()),
        Failed::Refused(io) => error(io.to_string(), String::new()),
    })?;
    resolved.password = Some(Secret::new(read.map_err(|(why, hint)| error(why, hint))?));
    Ok(resolved)
}
