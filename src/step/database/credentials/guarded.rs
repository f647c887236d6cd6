//! Files with passwords, read only if nobody else can read or change them.

use std::{
    fs, io,
    io::Read,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

/// Longest password file that is read.
const LONGEST_PASSWORD: u64 = 4096;
/// Longest option file, service file or password list that is read.
const LONGEST_FILE: u64 = 1 << 20;

/// Why a file is not used, and the cure; both without a word of what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unusable {
    /// completes "FILE …"
    pub why: String,
    pub cure: String,
    pub missing: bool,
}

/// A file's text, and whether others can read it.
pub(super) struct Guarded {
    text: String,
    /// why it must not hold a password, if so
    exposed: Option<Unusable>,
}

impl Guarded {
    /// Reads a file that says where to connect or as whom. May block like any read: call it where that is allowed.
    ///
    /// # Errors
    /// Not readable, not a file, somebody else's, too long, or others can write to it.
    pub(super) fn read(path: &Path) -> Result<Guarded, Unusable> {
        Guarded::read_at_most(path, LONGEST_FILE)
    }

    fn read_at_most(path: &Path, longest: u64) -> Result<Guarded, Unusable> {
        let unusable = |why: String, cure: String| Unusable { why, cure, missing: false };
        // Without O_NONBLOCK a FIFO would keep us.
        let open = fs::OpenOptions::new().read(true).custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits()).open(path);
        let (file, about) = open.and_then(|file| file.metadata().map(|about| (file, about))).map_err(|error| {
            let missing = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
            Unusable { missing, ..unusable(format!("cannot be read: {error}"), String::new()) }
        })?;
        if !about.is_file() {
            return Err(unusable("is not a regular file".to_owned(), String::new()));
        }
        if about.uid() != 0 && about.uid() != nix::unistd::geteuid().as_raw() {
            let cure = format!("chown root {}", path.display());
            return Err(unusable(format!("belongs to uid {}", about.uid()), cure));
        }
        let open_to = |who| {
            let why = format!("{who} (mode {:04o})", about.mode() & 0o7777);
            unusable(why, format!("chmod 600 {}", path.display()))
        };
        if about.mode() & 0o022 != 0 {
            return Err(open_to("is open to others"));
        }
        let mut bytes = Vec::new();
        match file.take(longest + 1).read_to_end(&mut bytes) {
            Ok(_) if bytes.len() as u64 > longest => {
                return Err(unusable(format!("is longer than {longest} bytes"), String::new()));
            }
            Ok(_) => {}
            Err(error) => return Err(unusable(format!("cannot be read: {error}"), String::new())),
        }
        let text = String::from_utf8(bytes).map_err(|_| unusable("is not valid UTF-8".to_owned(), String::new()))?;
        Ok(Guarded { text, exposed: (about.mode() & 0o077 != 0).then(|| open_to("is open to others")) })
    }

    /// The text, for what is no secret.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Whether a password in it may be used.
    ///
    /// # Errors
    /// Others can read it.
    pub(super) fn secret(&self) -> Result<(), Unusable> {
        self.exposed.clone().map_or(Ok(()), Err)
    }
}

/// Reads the one line of a password file. May block like any read: call it where that is allowed.
///
/// # Errors
/// Not readable, not a file, somebody else's, open to others, not one line.
pub(super) fn read_password(path: &Path) -> Result<String, Unusable> {
    let file = Guarded::read_at_most(path, LONGEST_PASSWORD)?;
    file.secret()?;
    let line = file.text.strip_suffix('\n').unwrap_or(&file.text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() || line.contains(['\n', '\0']) {
        let why = "must hold the password on one line and nothing else".to_owned();
        return Err(Unusable { why, cure: String::new(), missing: false });
    }
    Ok(line.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_password_file_is_one_line_and_nobody_elses() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("password");
        let read = |content: &str, mode: u32| {
            fs::write(&path, content).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode set");
            read_password(&path)
        };
        assert_eq!(read("secret with space \n", 0o600).expect("fine"), "secret with space ");
        assert_eq!(read("secret", 0o400).expect("fine"), "secret");
        let refused = |content: &str, mode: u32| read(content, mode).expect_err("refused");
        assert!(refused("secret\n", 0o640).why.contains("open to others"));
        assert!(refused("secret\n", 0o604).cure.contains("chmod 600"));
        assert!(refused("secret\n", 0o620).why.contains("open to others"));
        assert!(refused("one\ntwo\n", 0o600).why.contains("one line"));
        assert!(refused("", 0o600).why.contains("one line"));
        assert!(refused(&"x".repeat(5000), 0o600).why.contains("longer than"));
        assert!(read_password(directory.path()).expect_err("a directory").why.contains("not a regular file"));
        assert!(!refused("one\ntwo\n", 0o600).why.contains("two"), "no part of it is ever shown");
        assert!(read_password(&directory.path().join("none")).expect_err("nothing there").missing);
    }

    #[test]
    fn a_file_others_can_read_may_say_where_but_not_with_which_password() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("my.cnf");
        fs::write(&path, "[client]\nsocket=/x\n").expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("mode set");
        let file = Guarded::read(&path).expect("readable by all is fine");
        assert!(file.secret().expect_err("no secrets").why.contains("open to others"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o664)).expect("mode set");
        assert!(Guarded::read(&path).is_err(), "who can write to it decides where we connect");
    }
}
