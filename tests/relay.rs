//! The relay and the real qemu-ga, in a mount namespace of its own. It is never asked to freeze anything; the relay has told
//! it not to.

use std::{env, fs, io::Write, path::Path};

use holdstill::door::qga::{
    policy::Policy,
    relay::{Command, Relay},
};
use serde_json::{Value, json};

/// Runs `fact` with a relay to the real program, or says why it cannot be run.
async fn with_relay(name: &str, policy: &str, fact: impl AsyncFnOnce(&mut Relay, &Path)) {
    let root = nix::unistd::geteuid().is_root();
    let program = ["/usr/sbin/qemu-ga", "/usr/bin/qemu-ga"].into_iter().find(|path| Path::new(path).is_file());
    let (Some(program), true) = (program, root) else {
        let why = if root { "qemu-ga is not installed" } else { "needs root" };
        let skips = env::var_os("HOLDSTILL_SKIPS").unwrap_or_else(|| panic!("{why}"));
        let mut skips = fs::OpenOptions::new().append(true).create(true).open(skips).expect("writable");
        return writeln!(skips, "{name}: {why}").expect("written");
    };
    let run = tempfile::Builder::new().prefix("holdstill-relay-").tempdir_in("/dev/shm").expect("tmpfs has room");
    let root = run.path().join("root");
    fs::create_dir_all(root.join("etc/qemu")).expect("created");
    fs::write(root.join("etc/qemu/qemu-ga.conf"), policy).expect("written");
    let args = ["-m", program].map(Into::into).to_vec();
    let mut relay = Relay::with_program(run.path(), &Policy::read(&root), "/usr/bin/unshare".into(), args);
    fact(&mut relay, run.path()).await;
    relay.end().await;
}

async fn ask(relay: &mut Relay, command: &str, arguments: Value) -> Value {
    let line = json!({ "execute": command, "arguments": arguments, "id": "x" }).to_string();
    let mut reply = Vec::new();
    relay.pass(line.as_bytes(), true, &mut reply).await.expect("passed on");
    assert!(reply.ends_with(b"\n") && reply.iter().filter(|byte| **byte == b'\n').count() == 1);
    let reply: Value = serde_json::from_slice(&reply).expect("JSON");
    assert_eq!(reply["id"], "x", "{reply}");
    reply
}

fn find<'a>(commands: &'a [Command], name: &str) -> &'a Command {
    commands.iter().find(|command| command.name == name).expect("it has this")
}

#[tokio::test]
async fn it_says_what_it_can_do_and_that_freezing_is_not_its_own() {
    with_relay("it_says_what_it_can_do_and_that_freezing_is_not_its_own", "", async |relay, _| {
        let commands = relay.commands().await;
        assert!(find(commands, "guest-exec").enabled && find(commands, "guest-exec").success_response);
        assert!(!find(commands, "guest-shutdown").success_response);
        assert!(!find(commands, "guest-fsfreeze-freeze").enabled && !find(commands, "guest-fsfreeze-thaw").enabled);
    })
    .await;
}

#[tokio::test]
async fn what_the_administrator_blocked_is_blocked_there_too() {
    let policy =
        "[general]\ndaemon=1\nmethod=virtio-serial\nlogfile=/nonexistent/log\nblock-rpcs=guest-exec,guest-sync\n";
    with_relay("what_the_administrator_blocked_is_blocked_there_too", policy, async |relay, _| {
        assert!(!find(relay.commands().await, "guest-exec").enabled);
        assert!(find(relay.commands().await, "guest-file-open").enabled);
        let reply = ask(relay, "guest-exec", json!({ "path": "/bin/true" })).await;
        assert!(reply["error"]["desc"].as_str().is_some_and(|desc| desc.contains("has been disabled")), "{reply}");
    })
    .await;
}

#[tokio::test]
async fn commands_are_answered_and_errors_too() {
    with_relay("commands_are_answered_and_errors_too", "", async |relay, _| {
        assert_eq!(ask(relay, "guest-ping", json!({})).await["return"], json!({}));
        assert!(ask(relay, "guest-get-time", json!({})).await["return"].as_i64() > Some(1 << 60));
        assert_eq!(ask(relay, "guest-fly", json!({})).await["error"]["class"], "CommandNotFound");
        let wrong = b"{\"execute\": \"guest-shutdown\", \"arguments\": {\"mode\": \"sideways\"}}";
        let mut reply = Vec::new();
        relay.pass(wrong, false, &mut reply).await.expect("an error is an answer");
        assert!(reply.starts_with(b"{\"error\""), "{}", String::from_utf8_lossy(&reply));
        assert_eq!(ask(relay, "guest-ping", json!({})).await["return"], json!({}), "still in step");
    })
    .await;
}

#[tokio::test]
async fn files_and_programs_live_on_between_requests() {
    with_relay("files_and_programs_live_on_between_requests", "", async |relay, run| {
        let path = run.join("file");
        let open = json!({ "path": path, "mode": "w+" });
        let handle = ask(relay, "guest-file-open", open).await["return"].as_i64().expect("a handle");
        // 6 MiB of base64: many times what a socket takes at once, in either direction
        let data = "QUJD".repeat(1_500_000);
        let wrote = ask(relay, "guest-file-write", json!({ "handle": handle, "buf-b64": data })).await;
        assert_eq!(wrote["return"]["count"], 4_500_000);
        ask(relay, "guest-file-seek", json!({ "handle": handle, "offset": 0, "whence": 0 })).await;
        let read = ask(relay, "guest-file-read", json!({ "handle": handle, "count": 4_500_000 })).await;
        assert_eq!(read["return"]["buf-b64"].as_str().map(str::len), Some(6_000_000));
        ask(relay, "guest-file-close", json!({ "handle": handle })).await;

        let exec = json!({ "path": "/bin/sh", "arg": ["-c", "echo $QGA_X; cat /proc/self/oom_score_adj; echo ${NOTIFY_SOCKET-none}"],
            "capture-output": true });
        let pid = ask(relay, "guest-exec", exec).await["return"]["pid"].clone();
        let ended = loop {
            let status = ask(relay, "guest-exec-status", json!({ "pid": pid })).await["return"].clone();
            if status["exited"] == true {
                break status;
            }
        };
        assert_eq!((&ended["exitcode"], &ended["out-data"]), (&json!(0), &json!("CjAKbm9uZQo=")), "\\n0\\nnone\\n");
    })
    .await;
}
