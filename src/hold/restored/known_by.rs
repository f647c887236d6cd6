//! What is in every copy of a machine and identifies it, or lets somebody in: said by path, never by content. A list of
//! usual places, a few looks each; nothing is searched.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::{
    guest::{Kind, mounts},
    hold::plan::problem,
    proto::{self, Severity},
};

/// What there is to say of one sort of file.
struct Sort {
    code: &'static str,
    what: &'static str,
    hint: &'static str,
    /// patterns below the root; `~` stands for every home directory
    at: &'static [&'static str],
    /// made anew on this machine, it is this machine's
    renewed: bool,
}

const SORTS: &[Sort] = &[
    Sort {
        code: "SSH_HOST_KEYS",
        what: "SSH host keys: whoever knows the original takes this machine for it",
        hint: "enable restored.d/20-ssh-host-keys",
        at: &["etc/ssh/ssh_host_*_key"],
        renewed: true,
    },
    Sort {
        code: "RANDOM_SEED",
        what: "a random seed or the key of encrypted credentials",
        hint: "enable restored.d/40-random-seed",
        at: &["var/lib/systemd/random-seed", "var/lib/systemd/credential.secret", "boot/efi/loader/random-seed"],
        renewed: true,
    },
    Sort {
        code: "DATABASE_IDENTITY",
        what: "the identity of a MySQL server: two of one replication must not share it",
        hint: "restored.d/30-mysql-uuid renews it while the server is stopped",
        at: &["var/lib/mysql/auto.cnf"],
        renewed: true,
    },
    Sort {
        code: "LETS_IN",
        what: "keys that let somebody in",
        hint: "remove those that are not meant for this machine",
        at: &["root/.ssh/authorized_keys", "~/.ssh/authorized_keys"],
        renewed: false,
    },
    Sort {
        code: "CREDENTIALS",
        what: "credentials for other systems",
        hint: "replace them if whoever has this copy should not have them",
        at: &[
            "~/.ssh/id_*",
            "~/.my.cnf",
            "~/.pgpass",
            "~/.aws/credentials",
            "~/.kube/config",
            "~/.docker/config.json",
            "~/.config/gcloud/application_default_credentials.json",
            "etc/mysql/debian.cnf",
            "etc/kubernetes/*.conf",
            "etc/rancher/k3s/k3s.yaml",
            "etc/krb5.keytab",
        ],
        renewed: false,
    },
    Sort {
        code: "PRIVATE_KEYS",
        what: "private keys of certificates",
        hint: "replace them if whoever has this copy should not have them",
        at: &["etc/ssl/private/*.key", "etc/pki/tls/private/*.key", "etc/letsencrypt/live/*/privkey.pem"],
        renewed: false,
    },
];

/// Homes that are looked into, and entries of one directory.
const HOMES: usize = 64;
const ENTRIES: usize = 1024;
/// Paths that are named of one sort; the others are counted.
const NAMED: usize = 8;

/// One problem for each sort there is. `since`: when this boot began; `machine_id`: it is that of the original.
pub fn problems(root: &Path, since: i64, machine_id: Option<String>) -> Vec<proto::Problem> {
    let lines = mounts::read(root).unwrap_or_default();
    let near = |path: &Path| {
        mounts::covering(&lines, path).is_none_or(|line| match mounts::kind_of(&line.fs_type) {
            Kind::Remote | Kind::Unknown => false,
            Kind::Freezable | Kind::FlushOnly | Kind::Memory | Kind::Stacked | Kind::Image | Kind::Pseudo => true,
        })
    };
    let homes: Vec<PathBuf> = homes(root).into_iter().filter(|home| near(home)).collect();
    let mut all = Vec::new();
    if let Some(id) = machine_id.filter(|id| !id.is_empty()) {
        let message = format!("/etc/machine-id is that of the original ({id}): DHCP and others take the two for one");
        all.push(problem(
            Severity::Warning,
            "MACHINE_ID",
            "/etc/machine-id",
            &message,
            "enable restored.d/10-machine-id",
        ));
    }
    for sort in SORTS {
        let patterns = sort.at.iter().flat_map(|pattern| match pattern.strip_prefix("~/") {
            Some(below) => homes.iter().map(|home| home.join(below)).collect(),
            None => vec![Path::new("/").join(pattern)],
        });
        let mut found: Vec<PathBuf> =
            patterns.filter(|path| near(path)).flat_map(|path| matches(root, &path)).collect();
        found.retain(|path| stands(&below(root, path), sort.renewed.then_some(since)));
        found.sort();
        found.dedup();
        if found.is_empty() {
            continue;
        }
        let mut names: Vec<String> = found.iter().take(NAMED).map(|path| path.display().to_string()).collect();
        if found.len() > NAMED {
            names.push(format!("and {} more", found.len() - NAMED));
        }
        let message = format!("in this and every other copy: {}: {}", sort.what, names.join(", "));
        all.push(problem(Severity::Warning, sort.code, &names[0], &message, sort.hint));
    }
    all
}

/// A plain file with something in it, and not made since.
fn stands(path: &Path, since: Option<i64>) -> bool {
    fs::symlink_metadata(path)
        .is_ok_and(|about| !about.is_dir() && about.len() > 0 && since.is_none_or(|since| about.mtime() < since))
}

/// What a pattern with at most one `*` in each of its parts finds; in absolute paths as the machine knows them.
fn matches(root: &Path, pattern: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/")];
    for part in pattern.iter().skip(1).filter_map(|part| part.to_str()) {
        found = match part.split_once('*') {
            None => found.into_iter().map(|path| path.join(part)).collect(),
            Some((begin, end)) => found.iter().flat_map(|path| entries(root, path, begin, end)).collect(),
        };
    }
    found
}

fn entries(root: &Path, dir: &Path, begin: &str, end: &str) -> Vec<PathBuf> {
    let names = fs::read_dir(below(root, dir)).into_iter().flatten().take(ENTRIES).flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let fits = |name: &String| name.len() >= begin.len() + end.len() && name.starts_with(begin) && name.ends_with(end);
    // "id_*" is meant to find keys, not what is public
    names.filter(fits).filter(|name| !name.ends_with(".pub")).map(|name| dir.join(name)).collect()
}

fn homes(root: &Path) -> Vec<PathBuf> {
    let passwd = fs::read_to_string(root.join("etc/passwd")).unwrap_or_default();
    let mut homes: Vec<PathBuf> = passwd
        .lines()
        .filter_map(|line| line.split(':').nth(5))
        .map(PathBuf::from)
        .filter(|home| home.is_absolute() && home.components().count() > 1)
        .collect();
    homes.sort();
    homes.dedup();
    homes.truncate(HOMES);
    homes
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, path: &str) {
        fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
        fs::write(root.join(path), "secret").unwrap();
    }

    #[test]
    fn what_lets_in_and_what_identifies_is_named_by_path_alone() {
        let root = tempfile::tempdir().unwrap();
        for path in [
            "etc/ssh/ssh_host_rsa_key",
            "etc/ssh/ssh_host_rsa_key.pub",
            "root/.ssh/authorized_keys",
            "home/anna/.ssh/id_ed25519",
            "home/anna/.pgpass",
            "home/bob/.pgpass",
            "etc/letsencrypt/live/example.org/privkey.pem",
        ] {
            put(root.path(), path);
        }
        let passwd = "root:x:0:0::/root:/bin/sh\nanna:x:1:1::/home/anna:/bin/sh\nbob:x:2:2::/home/bob:/bin/sh\n";
        fs::write(root.path().join("etc/passwd"), passwd).unwrap();
        fs::create_dir_all(root.path().join("proc/self")).unwrap();
        let mounts = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:9 / /home/bob rw - nfs srv:/bob rw\n";
        fs::write(root.path().join("proc/self/mountinfo"), mounts).unwrap();
        let found = problems(root.path(), i64::MAX, Some("m".into()));
        let codes: Vec<_> = found.iter().map(|problem| problem.code.as_str()).collect();
        assert_eq!(codes, ["MACHINE_ID", "SSH_HOST_KEYS", "LETS_IN", "CREDENTIALS", "PRIVATE_KEYS"]);
        let all: String = found.iter().map(|problem| problem.message.clone()).collect();
        assert!(all.contains("/home/anna/.ssh/id_ed25519") && all.contains("example.org"), "{all}");
        assert!(!all.contains("/home/bob"), "an NFS home may hang: {all}");
        assert!(!all.contains("secret") && !all.contains(".pub"), "{all}");
        let renewed: Vec<_> = problems(root.path(), 0, None).into_iter().map(|problem| problem.code).collect();
        assert_eq!(renewed, ["LETS_IN", "CREDENTIALS", "PRIVATE_KEYS"], "host keys made since are this machine's own");
    }
}
