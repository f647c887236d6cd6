//! A root that can be frozen: an ext4 on a loop device, entered with `pivot_root` in one more mount namespace, with a
//! second disk at /mnt/ephemeral. Programs come from a bind mount of the world's /usr, which cannot be frozen, and from
//! /opt, which can: holdstill itself lies there, as it would on a machine's root.
//!
//! The world's /run is visible inside under the same name: sockets, logs and progress of a fact lie there.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Child,
    time::Duration,
};

use super::{Fs, Lab, Type, command, daemon::BINARY, finish, process::tool, until};

/// Where holdstill lies inside.
pub const PROGRAM: &str = "/opt/holdstill";

/// Builds the root's view of the machine, makes it the root, refuses to go on if any mount is not the lab's, and stays.
const ENTER: &str = r#"
set -e
cd "$1"
mount --bind /usr usr
mount -o remount,bind,ro usr
mount -t proc proc proc
mount -t sysfs sys sys
mount --rbind /dev dev
mount --bind /run run
mount --bind "$2" mnt/ephemeral
pivot_root . oldroot
cd /
umount -l /oldroot
while read -r _ _ dev _ at rest; do
    kind=${rest#* - }
    case "$dev $kind" in 7:*|*" overlay "*|*" proc "*|*" sysfs "*|*" tmpfs "*) ;; *) echo "$at is $dev $kind" >&2; exit 1 ;; esac
done < /proc/self/mountinfo
echo ready > "$3"
exec sleep 600
"#;

pub struct PrivateRoot<'lab> {
    holder: Child,
    /// the root and the second disk, seen from outside
    pub root: Fs<'lab>,
    pub ephemeral: Fs<'lab>,
}

impl Lab {
    pub fn private_root(&self) -> PrivateRoot<'_> {
        let root = self.fs_at(Type::Ext4, Path::new("/lab/root"), 1024);
        let ephemeral = self.fs(Type::Ext4);
        for dir in
            ["proc", "sys", "dev", "run", "usr", "root", "tmp", "etc", "var/lib", "mnt/ephemeral", "opt", "oldroot"]
        {
            fs::create_dir_all(root.mount.join(dir)).expect("it is new");
        }
        for dir in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
            if let Ok(target) = fs::read_link(Path::new("/").join(dir)) {
                std::os::unix::fs::symlink(target, root.mount.join(dir)).expect("it is new");
            }
        }
        for file in ["passwd", "group", "nsswitch.conf", "ld.so.cache"] {
            fs::copy(Path::new("/etc").join(file), root.mount.join("etc").join(file)).expect("every Debian has it");
        }
        fs::copy(BINARY, root.mount.join(&PROGRAM[1..])).expect("it has room");
        let ready = self.memory_dir("root").join("ready");
        let holder = command("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", ENTER, "sh"])
            .args([&root.mount, &ephemeral.mount, &ready])
            .spawn()
            .expect("util-linux");
        let private = PrivateRoot { holder, root, ephemeral };
        assert!(until(Duration::from_secs(10), || ready.exists()), "the private root was not entered");
        let seen = private.tool("cat", &["/proc/self/mountinfo"]);
        let root = seen.lines().find(|l| l.split(' ').nth(4) == Some("/")).expect("there is a root");
        assert!(root.split(' ').nth(2).is_some_and(|dev| dev.starts_with("7:")), "the root inside is {root}");
        private
    }
}

impl PrivateRoot<'_> {
    /// What makes a command run inside.
    pub fn wrapper(&self) -> Vec<String> {
        vec!["nsenter".to_owned(), "--mount".to_owned(), format!("--target={}", self.holder.id()), "--".to_owned()]
    }

    /// Runs a program inside to its end; answers what it printed.
    pub fn tool(&self, program: &str, args: &[&str]) -> String {
        let wrapper = self.wrapper();
        tool(command(&wrapper[0]).args(&wrapper[1..]).arg(program).args(args))
    }

    /// Where a path inside lies for the fact itself.
    pub fn outside(&self, inside: &str) -> PathBuf {
        self.root.mount.join(inside.trim_start_matches('/'))
    }
}

impl Drop for PrivateRoot<'_> {
    fn drop(&mut self) {
        let _ = finish(&mut self.holder, Duration::ZERO);
    }
}
