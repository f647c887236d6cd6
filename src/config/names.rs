//! Who is behind the names in `[access]`.

use std::{fs, path::Path};

/// Looks up users and groups.
pub(super) trait Names {
    fn uid(&self, user: &str) -> Option<u32>;
    fn gid(&self, group: &str) -> Option<u32>;
}

/// The machine's: `etc/passwd` and `etc/group` below `root` first, so that nothing else is asked for the usual names (a
/// name service may hang, and `rescue` reads this too); on the running system then whatever it is configured to ask.
pub(super) struct System<'a> {
    pub root: &'a Path,
}

impl Names for System<'_> {
    fn uid(&self, user: &str) -> Option<u32> {
        number(&read(self.root, "etc/passwd"), user).or_else(|| {
            let found = self.asks_the_system().then(|| nix::unistd::User::from_name(user).ok().flatten()).flatten();
            found.map(|user| user.uid.as_raw())
        })
    }

    fn gid(&self, group: &str) -> Option<u32> {
        number(&read(self.root, "etc/group"), group).or_else(|| {
            let found = self.asks_the_system().then(|| nix::unistd::Group::from_name(group).ok().flatten()).flatten();
            found.map(|group| group.gid.as_raw())
        })
    }
}

impl System<'_> {
    fn asks_the_system(&self) -> bool {
        self.root == Path::new("/")
    }
}

/// A machine with root and nobody else.
pub(super) struct OnlyRoot;

impl Names for OnlyRoot {
    fn uid(&self, user: &str) -> Option<u32> {
        (user == "root").then_some(0)
    }

    fn gid(&self, group: &str) -> Option<u32> {
        (group == "root").then_some(0)
    }
}

fn read(root: &Path, file: &str) -> String {
    fs::read(root.join(file)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// The third field of the line that begins with `name`, as passwd(5) and group(5) have it.
fn number(text: &str, name: &str) -> Option<u32> {
    let line = text.lines().find(|line| line.split(':').next() == Some(name))?;
    line.split(':').nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_whole_or_not_at_all() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbackup:x:34:34::/:/bin/sh\n";
        assert_eq!(
            (number(passwd, "backup"), number(passwd, "back"), number("backup:x", "backup")),
            (Some(34), None, None)
        );
    }
}
