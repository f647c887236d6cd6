//! Which operating system this is and what it calls itself. Called for `guest-get-osinfo` and `guest-get-host-name`.

use std::{fs, path::Path};

use nix::sys::utsname::uname;

/// os-release(5)'s fields and uname(2)'s; `None`: not said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OsInfo {
    pub id: Option<String>,
    pub name: Option<String>,
    pub pretty_name: Option<String>,
    pub version: Option<String>,
    pub version_id: Option<String>,
    pub variant: Option<String>,
    pub variant_id: Option<String>,
    pub machine: Option<String>,
    pub kernel_release: Option<String>,
    pub kernel_version: Option<String>,
}

/// Reads `etc/os-release`, else `usr/lib/os-release`, below `root`; the kernel is the running one. A guest without either
/// file (busybox) is normal.
pub fn read(root: &Path) -> OsInfo {
    let text =
        ["etc/os-release", "usr/lib/os-release"].iter().find_map(|path| fs::read_to_string(root.join(path)).ok());
    let kernel = uname().ok();
    let word = |word: &std::ffi::OsStr| word.to_string_lossy().into_owned();
    OsInfo {
        machine: kernel.as_ref().map(|kernel| word(kernel.machine())),
        kernel_release: kernel.as_ref().map(|kernel| word(kernel.release())),
        kernel_version: kernel.as_ref().map(|kernel| word(kernel.version())),
        ..parse(&text.unwrap_or_default())
    }
}

/// The text of os-release: assignments as a shell reads them. Of a name given twice the last counts.
pub fn parse(text: &str) -> OsInfo {
    let value = |name: &str| {
        let of = |line: &str| {
            let (key, value) = line.trim_start().split_once('=')?;
            (key.trim_end() == name).then(|| unquote(value.trim()))
        };
        text.lines().filter_map(of).next_back()
    };
    OsInfo {
        id: value("ID"),
        name: value("NAME"),
        pretty_name: value("PRETTY_NAME"),
        version: value("VERSION"),
        version_id: value("VERSION_ID"),
        variant: value("VARIANT"),
        variant_id: value("VARIANT_ID"),
        ..OsInfo::default()
    }
}

/// Without quotes a value ends at the first space or semicolon. Within double quotes a backslash keeps what a shell would
/// take for its own, and is itself kept before anything else.
fn unquote(value: &str) -> String {
    let Some(quote @ ('"' | '\'')) = value.chars().next() else {
        return value.split([' ', ';']).next().unwrap_or_default().to_owned();
    };
    let mut out = String::new();
    let mut rest = value[1..].chars();
    while let Some(c) = rest.next() {
        match c {
            '\\' if quote == '"' => match rest.clone().next() {
                Some(escaped @ ('$' | '\'' | '"' | '\\' | '`')) => {
                    out.push(escaped);
                    rest.next();
                }
                Some(_) | None => out.push('\\'),
            },
            c if c == quote => break,
            c => out.push(c),
        }
    }
    out
}

/// The host name, as gethostname(2) has it.
pub fn host_name(root: &Path) -> std::io::Result<String> {
    Ok(String::from_utf8_lossy(&fs::read(root.join("proc/sys/kernel/hostname"))?).trim_end_matches('\n').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_and_fedora_say_who_they_are() {
        let found = parse(
            "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nNAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\nID=debian\n",
        );
        assert_eq!(found.pretty_name.as_deref(), Some("Debian GNU/Linux 12 (bookworm)"));
        assert_eq!((found.id.as_deref(), found.version_id.as_deref()), (Some("debian"), Some("12")));
        assert_eq!((found.variant, found.version), (None, None));
        let found = parse("# a comment\nVARIANT=\"Server Edition\"\nVARIANT_ID=server\nVERSION=\n");
        assert_eq!((found.variant.as_deref(), found.variant_id.as_deref()), (Some("Server Edition"), Some("server")));
        assert_eq!(found.version.as_deref(), Some(""), "empty is said too");
    }

    #[test]
    fn quotes_are_taken_off_as_a_shell_does() {
        let name = |value: &str| parse(&format!("NAME={value}")).name.expect("given");
        assert_eq!(name(r#""a \"b\" \$c \n""#), r#"a "b" $c \n"#);
        assert_eq!(name("'Arch Linux'"), "Arch Linux");
        assert_eq!(name(r"'a\b'"), r"a\b");
        assert_eq!(name("two words"), "two");
        assert_eq!(name("a;b"), "a");
        assert_eq!(name("\"open"), "open");
        assert_eq!(name("\"é\\"), "é\\");
    }

    #[test]
    fn without_a_file_the_kernel_is_still_known() {
        let empty = tempfile::tempdir().expect("a directory");
        let found = read(empty.path());
        assert!(found.machine.is_some() && found.kernel_release.is_some() && found.kernel_version.is_some());
        assert_eq!((found.id, found.name), (None, None));
        fs::create_dir_all(empty.path().join("usr/lib")).expect("created");
        fs::write(empty.path().join("usr/lib/os-release"), "ID=x").expect("written");
        assert_eq!(read(empty.path()).id.as_deref(), Some("x"));
    }

    #[test]
    fn this_machine_has_a_name() {
        let name = host_name(Path::new("/")).expect("/proc");
        assert_eq!(Some(name.as_str()), nix::unistd::gethostname().expect("a name").to_str());
    }
}
