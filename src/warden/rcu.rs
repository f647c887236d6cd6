//! The one kernel tunable a hold changes: /sys/kernel/rcu_expedited, while file systems freeze. A FIFREEZE is three RCU
//! grace periods; expedited they take a millisecond together instead of 35.

use std::{fs, io, path::Path, sync::atomic::Ordering::SeqCst};

use super::marker::Marker;

const EXPEDITED: &str = "sys/kernel/rcu_expedited";

/// Does this machine forbid expediting? It interrupts every CPU, which real-time and isolated CPUs must not see.
/// `root` is "/" on a real machine.
pub(crate) fn forbidden(root: &Path) -> bool {
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default().trim().to_owned();
    read("sys/kernel/rcu_normal") == "1"
        || read("sys/kernel/realtime") == "1"
        || !read("sys/devices/system/cpu/isolated").is_empty()
}

/// Why it would not be raised now; `None`: it would. For reports; [`raise`] decides for itself.
pub fn why_not(root: &Path) -> Option<&'static str> {
    let expedited = fs::read_to_string(root.join(EXPEDITED)).map(|value| value.trim() == "1");
    match expedited {
        Err(_) => Some("this kernel has no such tunable"),
        Ok(true) => Some("already set, by somebody else"),
        Ok(false) if forbidden(root) => Some("rcu_normal, real-time or isolated CPUs forbid it"),
        Ok(false) => None,
    }
}

/// Sets it, remembering first that we did. Not if it is set already: then it is not ours to clear.
pub(crate) fn raise(root: &Path, marker: &Marker) {
    let path = root.join(EXPEDITED);
    if fs::read_to_string(&path).is_ok_and(|value| value.trim() == "0") {
        marker.rcu_raised().store(1, SeqCst);
        if fs::write(&path, "1").is_err() {
            marker.rcu_raised().store(0, SeqCst);
        }
    }
}

/// Puts back what [`raise`] changed; says whether there was anything to put back.
///
/// # Errors
/// It could not be written; the marker still knows.
pub(crate) fn restore(root: &Path, marker: &Marker) -> io::Result<bool> {
    if marker.rcu_raised().load(SeqCst) == 0 {
        return Ok(false);
    }
    fs::write(root.join(EXPEDITED), "0")?;
    marker.rcu_raised().store(0, SeqCst);
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Marker) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let marker = Marker::create(root.path()).unwrap();
        (root, marker)
    }

    #[test]
    fn what_was_raised_is_restored_once() {
        let (root, marker) = machine(&[(EXPEDITED, "0\n")]);
        raise(root.path(), &marker);
        assert_eq!(fs::read_to_string(root.path().join(EXPEDITED)).unwrap(), "1");
        assert!(restore(root.path(), &marker).unwrap());
        assert_eq!(fs::read_to_string(root.path().join(EXPEDITED)).unwrap(), "0");
        assert!(!restore(root.path(), &marker).unwrap());
    }

    #[test]
    fn what_the_administrator_set_is_left_alone() {
        let (root, marker) = machine(&[(EXPEDITED, "1\n")]);
        raise(root.path(), &marker);
        assert!(!restore(root.path(), &marker).unwrap());
        assert_eq!(fs::read_to_string(root.path().join(EXPEDITED)).unwrap(), "1\n");
    }

    #[test]
    fn real_time_and_isolated_cpus_forbid_it() {
        assert!(!forbidden(machine(&[("sys/devices/system/cpu/isolated", "\n")]).0.path()));
        for (path, text) in
            [("sys/kernel/rcu_normal", "1"), ("sys/kernel/realtime", "1"), ("sys/devices/system/cpu/isolated", "2-3\n")]
        {
            assert!(forbidden(machine(&[(path, text)]).0.path()), "{path}");
        }
    }
}
