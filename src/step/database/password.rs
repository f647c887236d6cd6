//! Passwords, read from files that nobody else can read or change.

use std::{
    fs,
    io::Read,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

/// Longest password file that is read.
const LONGEST_PASSWORD: u64 = 4096;

/// Reads the one line of a password file. May block like any read: call it where that is allowed.
///
/// # Errors
/// (why, cure): not readable, not a file, somebody else's, open to others, not one line.
pub(in crate::step) fn read_password(path: &Path) -> Result<String, (String, String)> {
    let refused = |why: String, hint: String| Err((format!("its password_file {} {why}", path.display()), hint));
    // Without O_NONBLOCK a FIFO would keep us.
    let open = fs::OpenOptions::new().read(true).custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits()).open(path);
    let (file, about) = match open.and_then(|file| file.metadata().map(|about| (file, about))) {
        Ok(both) => both,
        Err(error) => return refused(format!("cannot be read: {error}"), String::new()),
    };
    if !about.is_file() {
        return refused("is not a regular file".to_owned(), String::new());
    }
    if about.uid() != 0 && about.uid() != nix::unistd::geteuid().as_raw() {
        return refused(format!("belongs to uid {}", about.uid()), format!("chown root {}", path.display()));
    }
    if about.mode() & 0o077 != 0 {
        let why = format!("is open to others (mode {:04o})", about.mode() & 0o7777);
        return refused(why, format!("chmod 600 {}", path.display()));
    }
    let mut text = String::new();
    match file.take(LONGEST_PASSWORD).read_to_string(&mut text) {
        Ok(_) => {}
        Err(error) => return refused(format!("cannot be read: {error}"), String::new()),
    }
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() || line.contains(['\n', '\0']) {
        return refused("must hold the password on one line and nothing else".to_owned(), String::new());
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
        assert!(refused("secret\n", 0o640).0.contains("open to others"));
        assert!(refused("secret\n", 0o604).1.contains("chmod 600"));
        assert!(refused("one\ntwo\n", 0o600).0.contains("one line"));
        assert!(refused("", 0o600).0.contains("one line"));
        assert!(read_password(directory.path()).expect_err("a directory").0.contains("not a regular file"));
        assert!(!refused("one\ntwo\n", 0o600).0.contains("two"), "no part of it is ever shown");
    }
}
