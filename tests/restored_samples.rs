//! The ready-made scripts of `hooks/restored.d`, run for real in a root of their own: what they change on a clone, and that
//! they change nothing else.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::{Command, Output},
    time::{Duration, SystemTime},
};

const OLD: &str = "0123456789abcdef0123456789abcdef";

/// Runs a sample, edited, on a machine of this kind.
fn run(name: &str, edits: &[(&str, &str)], kind: &str, differences: &str) -> Output {
    let mut text = fs::read_to_string(format!("{}/hooks/restored.d/{name}.sample", env!("CARGO_MANIFEST_DIR")))
        .expect("it is shipped");
    for (from, to) in edits {
        assert_eq!(text.matches(from).count(), 1, "{from:?} should stand once in {name}");
        text = text.replace(from, to);
    }
    Command::new("sh")
        .args(["-c", &text])
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOLDSTILL_RESTORED", kind)
        .env("HOLDSTILL_ID", "nightly")
        .env("HOLDSTILL_MACHINE_ID", OLD)
        .env("HOLDSTILL_DIFFERENCES", differences)
        .output()
        .expect("sh")
}

fn in_root(name: &str, root: &Path, kind: &str) -> String {
    let to = format!("root={} ", root.display());
    let edit = if name == "40-random-seed" { ("root=/           ", to.as_str()) } else { ("root=/ ", to.as_str()) };
    said(&run(name, &[edit], kind, "product_uuid: a, now b"))
}

fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {text}", output.status);
    text
}

fn put(root: &Path, path: &str, text: impl AsRef<[u8]>) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().expect("below the root")).expect("a scratch root");
    fs::write(&path, text).expect("a scratch root");
    // older than this boot: it came with the copy
    let file = fs::File::options().append(true).open(&path).expect("it was just made");
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)).expect("a scratch root");
}

fn read(root: &Path, path: &str) -> String {
    String::from_utf8_lossy(&fs::read(root.join(path)).expect("it is there")).trim().to_owned()
}

#[test]
fn a_clone_gets_a_machine_id_of_its_own_and_dbus_the_same() {
    let root = tempfile::tempdir().expect("a scratch root");
    put(root.path(), "etc/machine-id", format!("{OLD}\n"));
    // systemd would read the old one back from here
    put(root.path(), "var/lib/dbus/machine-id", format!("{OLD}\n"));
    in_root("10-machine-id", root.path(), "reverted");
    assert_eq!(read(root.path(), "etc/machine-id"), OLD, "a machine that was set back stays who it is");
    in_root("10-machine-id", root.path(), "clone");
    let new = read(root.path(), "etc/machine-id");
    assert!(new != OLD && new.len() == 32 && new.chars().all(|c| c.is_ascii_hexdigit()), "{new}");
    assert_eq!(read(root.path(), "var/lib/dbus/machine-id"), new);
    in_root("10-machine-id", root.path(), "clone");
    assert_eq!(read(root.path(), "etc/machine-id"), new, "it is its own already");
}

#[test]
fn a_clone_gets_host_keys_of_its_own_of_the_same_types() {
    let root = tempfile::tempdir().expect("a scratch root");
    let dir = root.path().join("etc/ssh");
    fs::create_dir_all(&dir).expect("a scratch root");
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    for kind in ["ed25519", "ecdsa"] {
        let key = dir.join(format!("ssh_host_{kind}_key"));
        let made = Command::new("ssh-keygen").args(["-q", "-t", kind, "-N", "", "-f"]).arg(&key).status();
        assert!(made.expect("openssh-client").success());
        fs::File::options().append(true).open(&key).expect("made").set_modified(old).expect("a scratch root");
    }
    let before = read(root.path(), "etc/ssh/ssh_host_ed25519_key.pub");
    in_root("20-ssh-host-keys", root.path(), "reverted");
    assert_eq!(read(root.path(), "etc/ssh/ssh_host_ed25519_key.pub"), before);
    let text = in_root("20-ssh-host-keys", root.path(), "clone");
    assert!(text.contains("2 host keys are new"), "{text}");
    let after = read(root.path(), "etc/ssh/ssh_host_ed25519_key.pub");
    assert!(after.starts_with("ssh-ed25519 ") && after != before);
    for kind in ["ed25519", "ecdsa"] {
        let key = dir.join(format!("ssh_host_{kind}_key"));
        assert_eq!(key.metadata().expect("there").mode() & 0o777, 0o600, "{}", key.display());
        let public = Command::new("ssh-keygen").args(["-y", "-f"]).arg(&key).output().expect("openssh-client");
        let public = String::from_utf8_lossy(&public.stdout).into_owned();
        let words = |text: &str| text.split(' ').take(2).map(str::to_owned).collect::<Vec<_>>();
        let beside = read(root.path(), &format!("etc/ssh/ssh_host_{kind}_key.pub"));
        assert_eq!(words(public.trim()), words(&beside), "the two halves belong together");
    }
    assert_eq!(fs::read_dir(&dir).expect("there").count(), 4, "nothing is left beside them");
    let again = in_root("20-ssh-host-keys", root.path(), "clone");
    assert!(again.contains("0 host keys are new"), "{again}");
}

#[test]
fn a_stopped_mysql_makes_a_new_uuid_and_a_running_one_is_left_alone() {
    let root = tempfile::tempdir().expect("a scratch root");
    let dir = fs::canonicalize(root.path()).expect("there");
    let list = format!("datadirs='\n{}\n'", dir.display());
    let edit = [("datadirs='\n/var/lib/mysql\n'", list.as_str())];
    let sample = |kind| run("30-mysql-uuid", &edit, kind, "");
    put(&dir, "auto.cnf", "[auto]\nserver-uuid=1b4e28ba-2fa1-11d2-883f-b9a761bde3fb\n");
    said(&sample("reverted"));
    assert!(dir.join("auto.cnf").exists());

    // what a server looks like from outside: its name, and where it works
    let server = dir.join("mysqld");
    fs::copy("/bin/sleep", &server).expect("coreutils");
    fs::set_permissions(&server, fs::Permissions::from_mode(0o755)).expect("a scratch root");
    let mut running = Command::new(&server).arg("60").current_dir(&dir).spawn().expect("it can be started");
    let refused = sample("clone");
    running.kill().expect("it is ours");
    running.wait().expect("it is ours");
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("Stop it"), "{text}");
    assert!(dir.join("auto.cnf").exists(), "the server would have gone on with the old uuid");

    let text = said(&sample("clone"));
    assert!(text.contains("1b4e28ba-2fa1-11d2-883f-b9a761bde3fb"), "{text}");
    assert!(!dir.join("auto.cnf").exists() && dir.join("auto.cnf.original").exists());
    said(&sample("clone"));
}

#[test]
fn a_clone_gets_a_new_seed_and_keeps_the_key_of_its_credentials_unless_told() {
    let root = tempfile::tempdir().expect("a scratch root");
    put(root.path(), "var/lib/systemd/random-seed", [7; 512]);
    put(root.path(), "var/lib/systemd/credential.secret", [8; 64]);
    in_root("40-random-seed", root.path(), "crashed");
    let seed = || fs::read(root.path().join("var/lib/systemd/random-seed")).expect("there");
    assert_eq!(seed(), [7; 512]);
    let text = in_root("40-random-seed", root.path(), "clone");
    assert!(text.contains("still that of the original"), "{text}");
    assert!(seed().len() == 512 && seed() != [7; 512]);
    let mode = root.path().join("var/lib/systemd/random-seed").metadata().expect("there").mode();
    assert_eq!(mode & 0o777, 0o600);
    let to = format!("root={} ", root.path().display());
    let edits = [("root=/           ", to.as_str()), ("credentials=keep ", "credentials=remove ")];
    said(&run("40-random-seed", &edits, "clone", ""));
    assert!(!root.path().join("var/lib/systemd/credential.secret").exists());
}

#[test]
fn cloud_init_that_has_not_noticed_is_said() {
    let root = tempfile::tempdir().expect("a scratch root");
    let to = format!("root={} ", root.path().display());
    let edit = [("root=/ ", to.as_str())];
    let text = said(&run("50-cloud-init", &edit, "clone", ""));
    assert!(text.contains("no cloud-init"), "{text}");
    put(root.path(), "var/lib/cloud/data/instance-id", "i-1\n");
    let text = said(&run("50-cloud-init", &edit, "clone", "product_uuid: a, now b"));
    assert!(text.contains("still takes this machine for i-1") && text.contains("cloud-init clean"), "{text}");
    let text = said(&run("50-cloud-init", &edit, "clone", "instance_id: i-1, now i-2"));
    assert!(text.contains("nothing to do"), "{text}");
}
