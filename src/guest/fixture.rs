//! Small machines for tests: `tests/fixtures/guest/NAME.tree` is /proc, /sys and /dev as somebody's guest has them, unpacked
//! into a temporary directory. They are not kept as directories because sysfs' links run in circles and /proc's lead to
//! this machine's own `/`, and cargo follows every link below the package.
//!
//! `-- PATH` starts a file, `-- PATH -> TARGET` is a link; `\xNN` is a byte, and a backslash ends a text without newline.

use std::{fs, os::unix::fs::symlink, path::Path};

use tempfile::TempDir;

/// Unpacks one.
pub fn fixture(name: &str) -> TempDir {
    let trees = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/guest");
    unpack(&trees.join(name).with_extension("tree"))
}

/// Unpacks the one at `path`.
pub fn unpack(path: &Path) -> TempDir {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("a fixture at {}: {error}", path.display()));
    let root = tempfile::tempdir().expect("a temporary directory");
    // The mark also separates: no line of /proc or /sys begins with it.
    for entry in text.strip_prefix("-- ").expect("starts with an entry").split("\n-- ") {
        let (header, content) = entry.split_once('\n').unwrap_or((entry, ""));
        let (path, target) = header.split_once(" -> ").map_or((header, None), |(path, target)| (path, Some(target)));
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().expect("below the root")).expect("a directory");
        match target {
            Some(target) => symlink(target, path).expect("a link"),
            None => fs::write(path, bytes(content)).expect("a file"),
        }
    }
    root
}

fn bytes(content: &str) -> Vec<u8> {
    let line = match content.strip_suffix('\n').unwrap_or(content) {
        "" => return Vec::new(),
        text => text.strip_suffix('\\').map_or_else(|| format!("{text}\n"), str::to_string),
    };
    let mut parts = line.split(r"\x");
    let mut out = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at(2);
        out.push(u8::from_str_radix(digits, 16).expect("two hexadecimal digits"));
        out.extend(rest.as_bytes());
    }
    out
}
