//! The guest-agent channel, over a unix socket: freeze and thaw are a hold, and the host learns what became of it. The
//! virtio port itself and real hypervisors are in `tests/vm`.

use std::{
    fs,
    io::{Read as _, Write as _},
    path::PathBuf,
    time::Duration,
};

use serde_json::{Value, json};

use crate::lab::{
    Daemon, Fs, Lab, Type, Writer,
    guest_agent::{Host, request},
    now, until,
};

facts! {
    a_freeze_is_a_hold_and_a_thaw_answers_how_many_it_let_go,
    while_frozen_all_but_six_commands_have_been_disabled,
    a_thaw_when_nothing_is_frozen_is_zero_and_runs_no_hook,
    a_list_ignores_names_nobody_knows_but_not_all_of_them,
    a_freeze_nobody_comes_back_for_is_let_go_and_the_next_thaw_says_so_once,
    a_status_claims_the_hold,
    a_deadline_is_told_by_the_next_thaw,
    a_thaw_by_somebody_else_is_told_by_the_next_thaw,
    a_local_thaw_before_the_hosts_own_is_told,
    a_killed_daemon_still_owes_the_answer,
    an_answered_hold_is_not_told_again_after_a_restart,
    a_new_freeze_after_a_broken_hold_is_answered_for_itself,
    a_freeze_that_cannot_be_is_an_error_that_says_why,
    a_slow_freeze_is_answered_before_what_came_after_it_even_to_a_new_connection,
    hanging_up_means_nothing,
    the_channel_may_be_a_serial_port,
    a_channel_that_cannot_be_had_stops_the_daemon,
    what_is_not_ours_the_stock_agent_answers_but_not_while_held,
    what_the_administrator_has_forbidden_stays_forbidden,
    the_hold_of_another_caller_is_not_the_hosts,
    a_host_that_does_not_read_delays_nobody,
    after_any_noise_the_next_sync_is_answered,
}

struct Channel<'lab> {
    daemon: Daemon<'lab>,
    host: Host,
    writer: Writer,
    disk: Fs<'lab>,
    socket: PathBuf,
    marks: PathBuf,
}

fn channel(lab: &Lab) -> Channel<'_> {
    channel_with(lab, &[])
}

/// A daemon on the channel with a hook that notes its phases.
fn channel_with<'lab>(lab: &'lab Lab, settings: &[(&str, &str)]) -> Channel<'lab> {
    let disk = lab.fs(Type::Ext4);
    let socket = lab.memory_dir("channel").join("ga.sock");
    let marks = lab.memory_dir("marks").join("marks");
    let mut setup =
        lab.daemon(&[&disk]).set("listen.guest_agent", socket.display().to_string()).set("listen.relay", false);
    for (key, value) in settings {
        setup = setup.set(key, *value);
    }
    setup.hook("10-mark", &format!("echo $1 >>{}", marks.display()));
    let daemon = setup.start();
    Channel { host: Host::connect(&socket), writer: lab.writer(&disk), daemon, disk, socket, marks }
}

impl Channel<'_> {
    fn marks(&self) -> String {
        fs::read_to_string(&self.marks).unwrap_or_default().replace('\n', " ")
    }

    /// The thaw's error, which is told once.
    fn thaw_tells(&mut self, what: &str) {
        let error = self.host.thaw();
        assert_eq!(error["class"], "GenericError", "{error}");
        let told = error["desc"].as_str().unwrap_or_default();
        assert!(told.contains(what), "{told}");
        assert_eq!(self.host.thaw(), json!(0), "said once");
        self.writer.assert_writable_within(Duration::from_secs(2));
    }
}

fn desc(error: &Value) -> &str {
    error["desc"].as_str().unwrap_or_else(|| panic!("not an error: {error}"))
}

fn a_freeze_is_a_hold_and_a_thaw_answers_how_many_it_let_go(lab: &Lab) {
    let mut it = channel(lab);
    assert_eq!(it.host.status(), "thawed");
    assert_eq!(it.host.freeze(), json!(1));
    it.writer.assert_blocked();
    assert_eq!((it.host.status(), it.daemon.phase()), (json!("frozen"), "held".into()));
    assert_eq!(it.host.thaw(), json!(1));
    it.writer.assert_writable_within(Duration::from_secs(2));
    assert_eq!(it.host.status(), "thawed");
    assert_eq!(it.marks(), "freeze thaw ");
    let last = it.daemon.cli(&["status"]).json["last"].clone();
    assert_eq!((&last["verdict"], &last["caller"]), (&json!("unbroken"), &json!("guest-agent channel")));
}

fn while_frozen_all_but_six_commands_have_been_disabled(lab: &Lab) {
    let mut it = channel(lab);
    assert_eq!(it.host.freeze(), json!(1));
    for command in ["guest-fsfreeze-freeze", "guest-fsfreeze-freeze-list", "guest-get-fsinfo", "guest-get-osinfo"] {
        let error = it.host.ask(command, Value::Null);
        assert_eq!(error["class"], "CommandNotFound");
        assert_eq!(desc(&error), format!("Command {command} has been disabled: the agent is in frozen state"));
    }
    assert_eq!(it.host.ask("guest-ping", Value::Null), json!({}));
    assert_eq!(it.host.ask("guest-sync", json!({"id": 1_795_220_334_038_i64})), json!(1_795_220_334_038_i64));
    let info = it.host.ask("guest-info", Value::Null);
    let commands = info["supported_commands"].as_array().expect("a list");
    let enabled: Vec<&str> =
        commands.iter().filter(|c| c["enabled"] == true).filter_map(|c| c["name"].as_str()).collect();
    assert_eq!(enabled.len(), 6, "{enabled:?}");
    assert_eq!(it.host.thaw(), json!(1));
}

fn a_thaw_when_nothing_is_frozen_is_zero_and_runs_no_hook(lab: &Lab) {
    let mut it = channel(lab);
    assert_eq!(it.host.thaw(), json!(0));
    assert_eq!(it.host.freeze(), json!(1));
    assert_eq!([it.host.thaw(), it.host.thaw(), it.host.thaw()], [json!(1), json!(0), json!(0)]);
    assert_eq!(it.marks(), "freeze thaw ");
}

fn a_list_ignores_names_nobody_knows_but_not_all_of_them(lab: &Lab) {
    let mut it = channel(lab);
    let list = |names: &[&str]| json!({"mountpoints": names});
    let here = it.disk.at().to_owned();
    assert_eq!(it.host.ask("guest-fsfreeze-freeze-list", list(&["/nowhere", &here])), json!(1));
    assert_eq!(it.host.thaw(), json!(1));
    assert_eq!(it.host.ask("guest-fsfreeze-freeze-list", list(&[&format!("{here}/")])), json!(1));
    assert_eq!(it.host.thaw(), json!(1));
    assert_eq!(it.host.ask("guest-fsfreeze-freeze-list", Value::Null), json!(1), "none named: all");
    assert_eq!(it.host.thaw(), json!(1));
    let error = it.host.ask("guest-fsfreeze-freeze-list", list(&["/nowhere", "else"]));
    assert_eq!(desc(&error), "nothing to freeze: not mounted: /nowhere, else");
    let error = it.host.ask("guest-fsfreeze-freeze-list", list(&[]));
    assert_eq!(desc(&error), "nothing to freeze: no mount point was named");
    let error = it.host.ask("guest-fsfreeze-freeze-list", json!({"mountpoints": "/"}));
    assert_eq!(desc(&error), "Invalid parameter type for 'mountpoints', expected: array");
    assert_eq!(it.host.status(), "thawed");
}

fn a_freeze_nobody_comes_back_for_is_let_go_and_the_next_thaw_says_so_once(lab: &Lab) {
    let mut it = channel_with(lab, &[("hold.unclaimed", "1s")]);
    assert_eq!(it.host.freeze(), json!(1));
    let frozen = now();
    it.writer.assert_blocked();
    assert!(until(Duration::from_secs(6), || !it.writer.is_blocked()), "nobody came back, and it still holds");
    let after = now() - frozen;
    assert!(after >= Duration::from_millis(900), "let go after {after:?}");
    assert_eq!(it.host.status(), "thawed");
    it.thaw_tells("neither status nor thaw within 1s");
    assert_eq!(it.marks(), "freeze thaw ");
}

fn a_status_claims_the_hold(lab: &Lab) {
    let mut it = channel_with(lab, &[("hold.unclaimed", "1s")]);
    assert_eq!((it.host.freeze(), it.host.status()), (json!(1), json!("frozen")));
    std::thread::sleep(Duration::from_millis(2500));
    it.writer.assert_blocked();
    assert_eq!((it.host.status(), it.host.thaw()), (json!("frozen"), json!(1)));
}

fn a_deadline_is_told_by_the_next_thaw(lab: &Lab) {
    let mut it = channel_with(lab, &[("hold.max", "1s")]);
    assert_eq!((it.host.freeze(), it.host.status()), (json!(1), json!("frozen")));
    assert!(until(Duration::from_secs(6), || it.host.status() == "thawed"));
    it.thaw_tells("nobody asked to let go before the deadline");
}

fn a_thaw_by_somebody_else_is_told_by_the_next_thaw(lab: &Lab) {
    let mut it = channel(lab);
    assert_eq!((it.host.freeze(), it.host.status()), (json!(1), json!("frozen")));
    assert!(it.disk.thaw_by_others());
    assert!(until(Duration::from_secs(5), || it.host.status() == "thawed"));
    it.thaw_tells("was broken");
}

fn a_local_thaw_before_the_hosts_own_is_told(lab: &Lab) {
    let mut it = channel(lab);
    assert_eq!(it.host.freeze(), json!(1));
    assert_eq!(it.daemon.thaw()["verdict"], "unbroken");
    it.thaw_tells("let go by somebody else before this thaw");
}

fn a_killed_daemon_still_owes_the_answer(lab: &Lab) {
    let mut it = channel(lab);
    assert_eq!((it.host.freeze(), it.host.status()), (json!(1), json!("frozen")));
    it.daemon.kill();
    it.writer.assert_writable_within(Duration::from_secs(5));
    let mut it = Channel { daemon: it.daemon.again(), ..it };
    it.host = Host::connect(&it.socket);
    assert_eq!(it.host.status(), "thawed");
    it.thaw_tells("the daemon ended during this hold");
}

fn an_answered_hold_is_not_told_again_after_a_restart(lab: &Lab) {
    let mut it = channel_with(lab, &[("hold.unclaimed", "1s")]);
    assert_eq!(it.host.freeze(), json!(1));
    assert!(until(Duration::from_secs(6), || it.host.ask("guest-ping", Value::Null) == json!({})
        && !it.writer.is_blocked()));
    it.thaw_tells("neither status nor thaw");
    it.daemon.kill();
    let mut it = Channel { daemon: it.daemon.again(), ..it };
    it.host = Host::connect(&it.socket);
    assert_eq!(it.host.thaw(), json!(0));
}

fn a_new_freeze_after_a_broken_hold_is_answered_for_itself(lab: &Lab) {
    let mut it = channel_with(lab, &[("hold.unclaimed", "1s")]);
    assert_eq!(it.host.freeze(), json!(1));
    assert!(until(Duration::from_secs(6), || !it.writer.is_blocked()));
    assert_eq!((it.host.freeze(), it.host.status(), it.host.thaw()), (json!(1), json!("frozen"), json!(1)));
}

fn a_freeze_that_cannot_be_is_an_error_that_says_why(lab: &Lab) {
    let mut it = channel(lab);
    fs::write(it.daemon.setup().hooks_dir().join("20-text"), "no program\n").expect("memory");
    let error = it.host.freeze();
    assert_eq!(error["class"], "GenericError");
    assert!(desc(&error).starts_with("HOOK_UNUSABLE: ") && desc(&error).contains("20-text"), "{error}");
    assert_eq!((it.host.status(), it.host.thaw()), (json!("thawed"), json!(0)));
    assert_eq!(it.marks(), "", "nothing was touched");
}

/// Proxmox: the client that asked gives up, a new one asks for the status, and takes its answer as proof that the
/// freeze has ended.
fn a_slow_freeze_is_answered_before_what_came_after_it_even_to_a_new_connection(lab: &Lab) {
    let it = channel(lab);
    it.daemon.setup().hook("20-slow", "[ $1 = thaw ] || sleep 2");
    let sync = |id: i32| request("guest-sync-delimited", json!({"id": id}));
    it.host.send((sync(1) + &request("guest-fsfreeze-freeze", Value::Null)).as_bytes());
    assert!(until(Duration::from_secs(5), || it.marks().starts_with("freeze")));
    drop(it.host);
    let mut second = Host::connect(&it.socket);
    second.send((sync(2) + &request("guest-fsfreeze-status", Value::Null)).as_bytes());
    assert_eq!(second.line(), b"\xff{\"return\": 2}");
    assert_eq!(second.answer(), json!({"return": "frozen"}));
    it.writer.assert_blocked();
    assert_eq!(second.thaw(), json!(1));
}

fn hanging_up_means_nothing(lab: &Lab) {
    let mut it = channel(lab);
    assert_eq!(it.host.freeze(), json!(1));
    for _ in 0..5 {
        it.host = Host::connect(&it.socket);
        assert_eq!(it.host.status(), "frozen");
    }
    it.writer.assert_blocked();
    assert_eq!(it.host.thaw(), json!(1));
}

/// A terminal is one: what the host writes is not echoed, translated or cut into lines.
fn the_channel_may_be_a_serial_port(lab: &Lab) {
    let disk = lab.fs(Type::Ext4);
    // this world's /dev has no terminals of its own
    fs::create_dir_all("/dev/pts").expect("a directory");
    let own = Some("newinstance,ptmxmode=0666");
    nix::mount::mount(Some("devpts"), "/dev/pts", Some("devpts"), nix::mount::MsFlags::empty(), own).expect("mounted");
    std::os::unix::fs::symlink("pts/ptmx", "/dev/ptmx").expect("this world's alone");
    let line = nix::pty::openpty(None, None).expect("a pseudoterminal");
    let port = nix::unistd::ttyname(&line.slave).expect("it has a name");
    let setup = lab.daemon(&[&disk]).set("listen.guest_agent", port.display().to_string()).set("listen.relay", false);
    let daemon = setup.start();
    let mut host = fs::File::from(line.master);
    let mut ask = |request: String, answer: &str| {
        host.write_all(request.as_bytes()).expect("a terminal");
        let mut heard = vec![0; answer.len()];
        host.read_exact(&mut heard).expect("an answer");
        assert_eq!(String::from_utf8_lossy(&heard), answer);
    };
    let taken = || daemon.log().contains("the host can ask on the guest-agent channel");
    assert!(until(Duration::from_secs(5), taken), "{}", daemon.log());
    // end of file and interrupt, to a terminal that is not raw
    ask(
        "\u{3}\u{4}\n".into(),
        "{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error, expected value at line 1 column 1\"}}\n",
    );
    ask(request("guest-sync", json!({"id": 7})), "{\"return\": 7}\n");
    ask(request("guest-fsfreeze-freeze", Value::Null), "{\"return\": 1}\n");
    assert_eq!(daemon.phase(), "held");
    ask(request("guest-fsfreeze-thaw", Value::Null), "{\"return\": 1}\n");
}

fn a_channel_that_cannot_be_had_stops_the_daemon(lab: &Lab) {
    let disk = lab.fs(Type::Ext4);
    let file = lab.memory_dir("channel").join("file");
    fs::write(&file, "no socket").expect("memory");
    let answer = lab.daemon(&[&disk]).set("listen.guest_agent", file.display().to_string()).serve();
    answer.exits(4).says("it exists and is not a socket");
    assert_eq!(fs::read_to_string(&file).expect("still there"), "no socket");
}

/// A daemon that passes on what it does not answer, if the stock agent is installed.
fn relaying(lab: &Lab) -> Channel<'_> {
    if !std::path::Path::new("/usr/sbin/qemu-ga").exists() {
        lab.skip("qemu-ga is not installed");
    }
    let disk = lab.fs(Type::Ext4);
    let socket = lab.memory_dir("channel").join("ga.sock");
    let daemon = lab.daemon(&[&disk]).set("listen.guest_agent", socket.display().to_string()).start();
    Channel { host: Host::connect(&socket), writer: lab.writer(&disk), daemon, disk, socket, marks: PathBuf::new() }
}

/// Whether `guest-info` lists a command, and says it would be answered.
fn enabled(host: &mut Host, command: &str) -> Option<bool> {
    let info = host.ask("guest-info", Value::Null);
    let commands = info["supported_commands"].as_array().expect("a list");
    commands.iter().find(|known| known["name"] == command).and_then(|known| known["enabled"].as_bool())
}

fn what_is_not_ours_the_stock_agent_answers_but_not_while_held(lab: &Lab) {
    let mut it = relaying(lab);
    assert_eq!(enabled(&mut it.host, "guest-exec"), Some(true));
    assert!(it.host.ask("guest-get-time", Value::Null).is_i64());
    let run = json!({"path": "/bin/echo", "arg": ["hello"], "capture-output": true});
    let pid = it.host.ask("guest-exec", run)["pid"].clone();
    let mut ended = Value::Null;
    until(Duration::from_secs(5), || {
        ended = it.host.ask("guest-exec-status", json!({"pid": pid}));
        ended["exited"] == true
    });
    assert_eq!(ended["out-data"], "aGVsbG8K", "{ended}");
    // the id of a request that is passed on comes back, as does the stock agent's own word on what is wrong with it
    it.host.send(b"{\"execute\": \"guest-get-time\", \"arguments\": {\"x\": 1}, \"id\": \"mine\"}\n");
    let answer = it.host.answer();
    assert_eq!((&answer["id"], desc(&answer["error"])), (&json!("mine"), "Parameter 'x' is unexpected"));
    let error = it.host.ask("guest-fly", Value::Null);
    assert_eq!(desc(&error), "The command guest-fly has not been found");

    assert_eq!(it.host.freeze(), json!(1));
    assert_eq!(enabled(&mut it.host, "guest-exec"), Some(false));
    let error = it.host.ask("guest-get-time", Value::Null);
    assert_eq!(desc(&error), "Command guest-get-time has been disabled: the agent is in frozen state");
    assert_eq!(it.host.thaw(), json!(1));
    assert!(it.host.ask("guest-get-time", Value::Null).is_i64());

    it.daemon.freeze(&[]);
    let error = it.host.ask("guest-get-time", Value::Null);
    assert!(desc(&error).ends_with("the agent is in frozen state"), "whoever holds: {error}");
    it.daemon.thaw();
}

fn what_the_administrator_has_forbidden_stays_forbidden(lab: &Lab) {
    fs::create_dir_all("/etc/qemu").expect("this world's alone");
    let forbidden = "[general]\nblock-rpcs=guest-exec,guest-get-osinfo,guest-fsfreeze-freeze\n";
    fs::write("/etc/qemu/qemu-ga.conf", forbidden).expect("this world's alone");
    let mut it = relaying(lab);
    for command in ["guest-exec", "guest-get-osinfo", "guest-fsfreeze-freeze"] {
        assert_eq!(enabled(&mut it.host, command), Some(false), "{command}");
        let error = it.host.ask(command, Value::Null);
        assert_eq!(desc(&error), format!("Command {command} has been disabled: the command is not allowed"));
    }
    assert!(it.host.ask("guest-get-time", Value::Null).is_i64());
}

fn the_hold_of_another_caller_is_not_the_hosts(lab: &Lab) {
    let mut it = channel(lab);
    it.daemon.freeze(&["--id", "theirs"]);
    assert_eq!(it.host.status(), "thawed", "a host that is told `frozen` would skip its own freeze");
    let error = it.host.freeze();
    assert!(desc(&error).starts_with("HOLD_IN_PROGRESS: "), "{error}");
    assert_eq!(it.host.thaw(), json!(0));
    it.writer.assert_blocked();
    assert_eq!(it.daemon.thaw()["verdict"], "unbroken");
}

fn a_host_that_does_not_read_delays_nobody(lab: &Lab) {
    let mut it = channel_with(lab, &[("hold.unclaimed", "2s")]);
    let resident = || {
        let status = fs::read_to_string(format!("/proc/{}/status", it.daemon.pid())).expect("it runs");
        let line = status.lines().find(|l| l.starts_with("VmRSS")).expect("resident memory").to_owned();
        line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).expect("kB")
    };
    let before = resident();
    assert_eq!(it.host.freeze(), json!(1));
    // far more than all buffers on the way hold; the agent stops reading when it cannot answer
    let stuck = it.host.sends_until_nothing_is_taken(request("guest-info", Value::Null).as_bytes());
    assert!(stuck < 10_000, "it took {stuck} requests without one answer read");
    // it is let go although the channel is stuck
    assert!(until(Duration::from_secs(8), || !it.writer.is_blocked()));
    assert_eq!(it.daemon.phase(), "idle");
    let grown = resident().saturating_sub(before);
    assert!(grown < 8 * 1024, "{grown} kB more");
    it.host = Host::connect(&it.socket);
    it.thaw_tells("neither status nor thaw");
}

fn after_any_noise_the_next_sync_is_answered(lab: &Lab) {
    let mut it = channel(lab);
    let long = vec![b'['; 64 << 20];
    let deep = "[".repeat(1 << 20).into_bytes();
    let noises: [&[u8]; 7] = [
        b"\xff\xff\xff",
        b"{\"execute\": \"guest-pi",
        b"\xf0\x9f",
        b"}}}]]]",
        &long,
        &deep,
        b"{\"execute\": \"guest-sync\", \"arguments\": {\"id\": {}}}",
    ];
    for (id, noise) in noises.into_iter().enumerate() {
        it.host.send(noise);
        it.host.send(b"\n");
        it.host.send(format!("\u{0}\n{}", request("guest-sync-delimited", json!({"id": id}))).as_bytes());
        let wanted = format!("{{\"return\": {id}}}");
        let found = (0..8).any(|_| it.host.line().strip_prefix(b"\xff").is_some_and(|line| line == wanted.as_bytes()));
        assert!(found, "sync {id} was not answered");
    }
    assert!(it.host.is_silent_for(Duration::from_millis(200)), "nothing is said unasked");
}
