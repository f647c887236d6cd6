//! Who we are to a database, decided before its engine connects: the engines only use what is in the target then.
//!
//! In this order, the first that says something counts: `user` and `password_file`; `service` or `defaults_file`; what
//! people have for their own use, /root/.my.cnf and /root/.pgpass; nothing, for the server asks the kernel who we are.
//! `/etc/mysql/debian.cnf` is read only where it is configured.
//!
//! A password goes only to a server somebody named: one that is configured, one where the system's own always is, or the
//! one the file itself writes out. Anybody can run something called `mysqld`.

mod guarded;
mod meant;
mod option_file;
mod pgpass;
mod service;

use std::path::{Path, PathBuf};

use self::{
    guarded::{Guarded, Unusable, read_password},
    meant::{is_meant, is_ours},
    option_file::Options,
    pgpass::{Named, Wanted},
};
use super::{Address, Deadline, Engine, Error, Failed, Given, Secret, Target, look, remark, target::without_var};
use crate::proto::{Problem, Severity};

/// A target that says all that is known, and what there is to remark about where it was read.
#[derive(Debug)]
pub(super) struct Resolved {
    pub target: Target,
    /// the file the password is from, if it is from one nobody configured for this instance
    pub from: Option<PathBuf>,
    pub remarks: Vec<Problem>,
}

/// Reads what is configured and what people keep.
///
/// # Errors
/// A file that is configured and cannot be used; with its cure.
pub(super) async fn resolve(target: &Target, deadline: Deadline) -> Result<Resolved, Error> {
    let wanted = target.clone();
    let error = |why, hint| Error { name: target.name.clone(), what: "read the settings of", why, hint };
    match look(deadline, move || Ok(Files::of_root().resolve(wanted))).await {
        Ok(resolved) => resolved.map_err(|(why, hint)| error(why, hint)),
        Err(Failed::TimedOut(limit)) => {
            Err(error(format!("its files were not read within {limit:?}"), "see the kernel log".to_owned()))
        }
        Err(Failed::Refused(io)) => Err(error(io.to_string(), String::new())),
    }
}

/// Where people keep what clients should know.
struct Files {
    option_file: PathBuf,
    passwords: PathBuf,
    /// the first that has a service counts; Debian's own place and upstream's are not the same
    services: [PathBuf; 3],
}

/// (why, cure)
type Refused = (String, String);

impl Files {
    fn of_root() -> Files {
        let [user, debian, upstream] =
            ["/root/.pg_service.conf", "/etc/postgresql-common/pg_service.conf", "/etc/pg_service.conf"];
        Files {
            option_file: "/root/.my.cnf".into(),
            passwords: "/root/.pgpass".into(),
            services: [user.into(), debian.into(), upstream.into()],
        }
    }

    fn resolve(&self, target: Target) -> Result<Resolved, Refused> {
        let mut resolved = Resolved { target, from: None, remarks: Vec::new() };
        if resolved.target.password.is_some() {
            return Ok(resolved);
        }
        if let Some(path) = resolved.target.password_file.clone() {
            let password = read_password(&path).map_err(|unusable| refused("password_file", &path, unusable))?;
            resolved.target.password = Some(Secret::new(password));
        }
        match resolved.target.engine {
            Engine::Postgresql => {
                self.service(&mut resolved)?;
                self.password_list(&mut resolved);
            }
            Engine::Mysql => match resolved.target.defaults_file.clone() {
                Some(path) => configured_options(&mut resolved, &path)?,
                None => self.own_options(&mut resolved),
            },
        }
        Ok(resolved)
    }

    fn service(&self, resolved: &mut Resolved) -> Result<(), Refused> {
        let Some(name) = resolved.target.service.clone() else { return Ok(()) };
        for path in &self.services {
            let file = match Guarded::read(path) {
                Ok(file) => file,
                Err(unusable) if unusable.missing => continue,
                Err(unusable) => return Err(refused("service file", path, unusable)),
            };
            let Some(found) = service::find(file.text(), &name) else { continue };
            resolved.connect_to(found.host, found.port, 5432);
            if resolved.log_in_as(found.user, found.password) {
                file.secret().map_err(|unusable| refused("service file", path, unusable))?;
            }
            return Ok(());
        }
        let looked: Vec<String> = self.services.iter().map(|path| path.display().to_string()).collect();
        let hint = format!("correct `service`, or add [{name}] to one of them");
        Err((format!("no service `{name}` is in {}", looked.join(", ")), hint))
    }

    /// `.pgpass`.
    fn password_list(&self, resolved: &mut Resolved) {
        if resolved.target.password.is_some() {
            return;
        }
        let Some(file) = resolved.optional(&self.passwords) else { return };
        let target = &resolved.target;
        let (directory, port) = match &target.at {
            Address::Socket(path) => {
                let port = path.extension().and_then(|port| port.to_str()?.parse().ok()).unwrap_or(5432);
                (without_var(path).parent().map(|dir| dir.display().to_string()).unwrap_or_default(), port)
            }
            Address::Tcp { host, port } => (host.clone(), *port),
        };
        let usual = directory == "/run/postgresql";
        let named = match () {
            () if target.configured => Named::ByUs,
            () if !is_ours(target) => return,
            () if usual => Named::ByUs,
            () => Named::ByTheEntryAlone,
        };
        let host = if usual { "localhost" } else { &directory };
        let user = target.user.as_deref().unwrap_or("postgres");
        if let Some(password) = pgpass::password(file.text(), Wanted { host, port, user, named }) {
            resolved.target.password = Some(Secret::new(password));
            resolved.from = Some(self.passwords.clone());
        }
    }

    /// `.my.cnf`.
    fn own_options(&self, resolved: &mut Resolved) {
        if resolved.target.password.is_some() {
            return;
        }
        let Some(file) = resolved.optional(&self.option_file) else { return };
        let options = option_file::parse(file.text());
        if !is_meant(&options, &resolved.target) {
            return;
        }
        resolved.note_includes(&options, &self.option_file);
        resolved.connect_to(options.socket.or(options.host), options.port, 3306);
        if resolved.log_in_as(options.user, options.password) {
            resolved.from = Some(self.option_file.clone());
        }
    }
}

/// `defaults_file`: somebody wants it, so that what is wrong with it is an error.
fn configured_options(resolved: &mut Resolved, path: &Path) -> Result<(), Refused> {
    let file = Guarded::read(path).map_err(|unusable| refused("defaults_file", path, unusable))?;
    let options = option_file::parse(file.text());
    resolved.note_includes(&options, path);
    resolved.connect_to(options.socket.or(options.host), options.port, 3306);
    if resolved.log_in_as(options.user, options.password) {
        file.secret().map_err(|unusable| refused("defaults_file", path, unusable))?;
    }
    Ok(())
}

impl Resolved {
    /// Takes over where to connect, unless that was told.
    fn connect_to(&mut self, place: Option<String>, port: Option<u16>, usual: u16) {
        if self.target.place == Given::Told {
            return;
        }
        let local = |host: &String| self.target.engine == Engine::Mysql && host == "localhost";
        let at = match place {
            Some(path) if path.starts_with('/') => {
                let path = PathBuf::from(path);
                match (self.target.engine, port) {
                    (Engine::Postgresql, port) => {
                        Address::Socket(path.join(format!(".s.PGSQL.{}", port.unwrap_or(usual))))
                    }
                    (Engine::Mysql, _) => Address::Socket(path),
                }
            }
            Some(host) if !local(&host) => Address::Tcp { host, port: port.unwrap_or(usual) },
            Some(_) | None => return,
        };
        self.target.at = at;
        self.target.place = Given::Told;
    }

    /// Takes over user and password, each unless it was told; somebody else's password is none of ours. Whether the
    /// password was taken.
    fn log_in_as(&mut self, user: Option<String>, password: Option<String>) -> bool {
        let another = matches!((&self.target.user, &user), (Some(told), Some(user)) if told != user);
        if another {
            return false;
        }
        self.target.user = self.target.user.take().or(user);
        let password = password.filter(|password| !password.is_empty() && self.target.password.is_none());
        let taken = password.is_some();
        self.target.password = self.target.password.take().or(password.map(Secret::new));
        taken
    }

    /// A file of passwords that need not be there; one that cannot be used is said.
    fn optional(&mut self, path: &Path) -> Option<Guarded> {
        let read = Guarded::read(path).and_then(|file| file.secret().map(|()| file));
        match read {
            Ok(file) => Some(file),
            Err(unusable) if unusable.missing => None,
            Err(Unusable { why, cure, .. }) => {
                self.note("PASSWORDS_IGNORED", format!("{} {why}: ignored", path.display()), cure);
                None
            }
        }
    }

    fn note_includes(&mut self, options: &Options, path: &Path) {
        if options.includes {
            let message = format!("{} includes other files, which are not read", path.display());
            self.note("INCLUDE_IGNORED", message, "write user, password and socket into the file itself".to_owned());
        }
    }

    fn note(&mut self, code: &str, message: String, hint: String) {
        self.remarks.push(remark(&self.target.name, Severity::Note, code, message, hint));
    }
}

fn refused(what: &str, path: &Path, unusable: Unusable) -> Refused {
    (format!("its {what} {} {}", path.display(), unusable.why), unusable.cure)
}

#[cfg(test)]
mod tests;
