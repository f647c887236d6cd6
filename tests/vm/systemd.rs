//! A guest as people have them: Debian with systemd, PostgreSQL and MariaDB as installed, holdstill from `packaging/`. It
//! takes half a minute to boot, so each fact says several things.

use std::{collections::BTreeSet, fs, thread, time::Duration};

use serde_json::{Value, json};

use crate::{
    lab::{
        Lab,
        guest_agent::{Host, request},
        now,
    },
    machine::{Agent, Boot, Holdstill, Machine, Place, image, inside::STILL, ledger, oracle},
    table::MARKS,
};

facts! {
    a_quiesced_snapshot_boots_and_has_every_row_its_databases_had_acknowledged within 420,
    under_systemd_writers_go_on_and_the_agent_comes_back_whatever_happens_to_it within 420,
    the_stock_agent_keeps_its_channel_until_the_command_that_check_names within 300,
}

/// On an idle machine all of these take one or two seconds.
const SOON: Duration = Duration::from_secs(10);
/// A unit that is killed comes back after a second, one that waits for the kernel after its rescue has given up waiting.
const COMES_BACK: Duration = Duration::from_secs(30);

/// Boots it, all units started, none of them failed.
fn boot(lab: &Lab, name: &str, boot: &Boot) -> Machine {
    if !image("systemd.img").exists() {
        lab.skip(&format!("no {}: run tests/vm/image/build.sh", image("systemd.img").display()));
    }
    let guest = Machine::boot(&Place::new(lab, name), boot);
    guest.becomes(
        "sleep 0.5; case $(timeout 20 systemctl is-system-running --wait) in running | degraded) ;; *) false; esac",
        boot.limit(),
    );
    assert_eq!(guest.sh("systemctl list-units --failed --plain --no-legend"), "");
    assert_eq!(unit(&guest), "active running");
    guest
}

/// The stock agent is installed and masked, as docs/guest-agent.md has it.
fn with_our_channel() -> Boot {
    Boot { kernel: "systemd.mask=qemu-guest-agent.service".to_owned(), ..Boot::systemd() }
}

fn unit(guest: &Machine) -> String {
    let said = guest.sh("systemctl show --value -p ActiveState -p SubState holdstill");
    said.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The one JSON document a command prints.
fn asked(guest: &Machine, command: &str) -> Value {
    let said = guest.sh(&format!("{command} 2>/dev/null"));
    serde_json::from_str(&said).unwrap_or_else(|e| panic!("{command}: {e}: {said}"))
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map_or(&[], Vec::as_slice)
}

/// What it claims of each database.
fn claims(report: &Value) -> Vec<(&str, &str)> {
    let databases = list(report, "steps").iter().filter_map(|step| step.get("database"));
    databases.filter_map(|database| Some((database["engine"].as_str()?, database["claim"].as_str()?))).collect()
}

fn codes(report: &Value) -> Vec<&str> {
    list(report, "problems").iter().filter_map(|problem| problem["code"].as_str()).collect()
}

/// A host that the agent answers.
fn host(guest: &Machine) -> Host {
    let mut host = guest.host();
    (&Holdstill as &dyn Agent).answers(&mut host);
    host
}

// --- databases -------------------------------------------------------------------------------------------------------

fn a_quiesced_snapshot_boots_and_has_every_row_its_databases_had_acknowledged(lab: &Lab) {
    let guest = boot(lab, "original", &with_our_channel());
    let checked = asked(&guest, "holdstill check --json");
    let report = &checked["plan"];
    assert_eq!(claims(report), [("mariadb", "exact"), ("postgresql", "bounded")], "{report}");
    assert_eq!(report["consistency"], "application", "{report}");
    assert!(codes(report).contains(&"CALLERS"), "{report}");
    assert!(!list(report, "problems").iter().any(|problem| problem["severity"] == "warning"), "{report}");

    ledger::begin(&guest);
    ledger::grow(&guest, [0, 0], 20);
    let mut host = host(&guest);
    let before = ledger::acknowledged(&guest);
    assert_eq!(host.freeze(), json!(2));
    assert_eq!(host.status(), "frozen");
    let held = ledger::noted(&guest);
    assert_eq!(ledger::noted(&guest)[1], held[1], "MariaDB commits while it is held");
    let cut = guest.cut("after");
    assert_eq!(host.thaw(), json!(2));
    ledger::grow(&guest, held, 5);

    let id = asked(&guest, "holdstill history --json")["reports"][0]["id"].as_str().expect("an id").to_owned();
    let record = guest.sh(&format!("holdstill thaw --json {id} 2>/dev/null"));
    let kept: Value = serde_json::from_str(&record).expect("JSON");
    let report = &kept["report"];
    assert_eq!(claims(report), [("mariadb", "exact"), ("postgresql", "bounded")], "{report}");
    assert_eq!([&report["consistency"], &report["verdict"]], ["application", "unbroken"], "{report}");
    let record_file = guest.place.file("record.json");
    fs::write(&record_file, &record).expect("memory");

    let place = guest.place.clone();
    drop(guest);
    let copies = cut.each_ref().map(|disk| oracle::raw(&place, disk));
    assert_eq!(oracle::verify(lab, &copies, &[])["grade"], "cut-inside");
    let with_record = ["--record", record_file.to_str().expect("ASCII")];
    assert_eq!(oracle::verify(lab, &copies, &with_record)["grade"], "proven");
    for copy in copies {
        fs::remove_file(copy).expect("it is ours");
    }

    let copy = boot(lab, "copy", &Boot { copy_of: Some(cut), ..with_our_channel() });
    let found = ledger::rows(&copy);
    println!("acknowledged before {before:?}, while held {held:?}, found in the copy {found:?}");
    // PostgreSQL goes on for as long as it needs no disk; one row may have been written and not yet acknowledged
    assert!((before[0]..=held[0] + 1).contains(&found[0]), "PostgreSQL");
    assert_eq!(found[1], held[1], "MariaDB is held at exactly one row");
    // mounted by its boot, so its journal does not tell any more when it was cut
    let verified = asked(&copy, "holdstill verify --json");
    assert_eq!([&verified["grade"], &verified["hold_id"]], ["consistent-with-hold", id.as_str()], "{verified}");
    copy.write("/run/record.json", &record);
    assert_eq!(asked(&copy, "holdstill verify --json --record /run/record.json")["grade"], "proven");
    assert_eq!(claims(&asked(&copy, "holdstill check --json")["plan"]).len(), 2, "and it can be held again");
}

// --- the unit --------------------------------------------------------------------------------------------------------

/// Waits until the unit runs, by itself.
fn comes_back(guest: &Machine) {
    let runs = "sleep 0.2; [ $(systemctl is-active holdstill) = active ]";
    assert!(guest.becomes(runs, COMES_BACK), "{}", guest.run("systemctl status holdstill").1);
}

/// The hook's marks since the last time; none are left.
fn marks(guest: &Machine) -> String {
    guest.sh("cat /run/marks; rm /run/marks").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Everything was let go of and undone, and the host is told, once, why its snapshot is worth nothing.
fn let_go_and_said(guest: &Machine, why: &str) {
    assert_eq!(marks(guest), "freeze thaw", "hooks ({why})");
    assert_eq!(guest.sh("cat /sys/kernel/rcu_expedited").trim(), "0", "the tunable ({why})");
    let mut host = host(guest);
    let told = host.thaw();
    let text = told["desc"].as_str().unwrap_or_default();
    assert!(text.contains("broken") && text.contains(why), "{told}");
    assert_eq!(host.thaw(), json!(0), "once is enough");
    assert!(guest.writable_within(&["/", "/mnt/data"], SOON));
}

fn kill_all(guest: &Machine) {
    (&Holdstill as &dyn Agent).kill_all(guest);
}

fn under_systemd_writers_go_on_and_the_agent_comes_back_whatever_happens_to_it(lab: &Lab) {
    let guest = boot(lab, "unit", &with_our_channel());
    // the kernel's own work is to be slow, not the host
    guest.write("/etc/holdstill/holdstill.toml.d/lab.toml", "[hold]\nunclaimed = \"60s\"\nquiesce = \"60s\"\n");
    let waits = format!("{MARKS}; [ $1 = thaw ] || while [ -e /run/wait ]; do sleep 0.1; done");
    guest.write("/etc/holdstill/hooks.d/10-lab", &format!("#!/bin/sh\n{waits}\n"));
    guest.write("/etc/holdstill/hooks.d/10-lab.toml", "timeout = \"60s\"\n");
    guest.sh("chmod 755 /etc/holdstill/hooks.d/10-lab; sync; systemctl restart holdstill");
    let freeze = || {
        assert_eq!(host(&guest).freeze(), json!(2));
        assert!(guest.is_frozen());
    };

    freeze();
    kill_all(&guest);
    let took = guest.thaws_within(SOON).expect("systemd runs the rescue");
    println!("all killed while held: writable after {took:.1?}");
    comes_back(&guest);
    let_go_and_said(&guest, "the daemon ended during this hold");

    killed_while_the_kernel_freezes(&guest);

    for how in ["stop", "restart", "reload-or-restart"] {
        freeze();
        let begun = now();
        guest.sh(&format!("systemctl {how} holdstill"));
        println!("systemctl {how} while held: {:.1?}", now() - begun);
        assert!(now() - begun < SOON, "systemctl {how} took {:?}", now() - begun);
        assert_eq!(guest.sh("systemctl show --value -p Result holdstill").trim(), "success");
        if how == "stop" {
            assert!(guest.writable_within(&["/", "/mnt/data"], SOON));
            assert_eq!(unit(&guest), "inactive dead");
            guest.sh("systemctl start holdstill");
        }
        let_go_and_said(&guest, "the daemon was told to stop");
    }
    assert_eq!(guest.sh("systemctl list-units --failed --plain --no-legend"), "");

    units_stand_still_and_go_on(&guest);

    freeze();
    let begun = now();
    guest.sh("systemctl reboot");
    assert!(guest.ends_within(Duration::from_secs(60)), "a reboot hangs while held");
    println!("systemctl reboot while held: {:.1?}", now() - begun);
}

/// The ready-made hook, as shipped but for its list: it freezes or stops units, and lets go on what it did that to.
fn units_stand_still_and_go_on(guest: &Machine) {
    let unit = |name: &str| format!("[Service]\nExecStart=/bin/sh -c 'while sleep 0.1; do echo >>/run/{name}; done'\n");
    for name in ["counts", "frozen-before", "down"] {
        guest.write(&format!("/run/systemd/system/{name}.service"), &unit(name));
    }
    guest.sh("systemctl daemon-reload; systemctl start counts frozen-before; systemctl freeze frozen-before");
    let hook = "/etc/holdstill/hooks.d/30-systemd-units";
    let sample = include_str!("../../hooks/30-systemd-units.sample");
    let sample = sample.replace("shop-worker.service", "counts.service\nfrozen-before.service\ndown.service");
    guest.write(&format!("{hook}.toml"), "timeout = \"30s\"\n");
    let state = || guest.sh("systemctl show --value -p ActiveState -p FreezerState counts").replace('\n', " ");
    let moves = "n=$(wc -l </run/counts); sleep 1; [ $(wc -l </run/counts) -gt $n ]";
    for (way, while_held) in [("freeze", "active frozen"), ("stop", "inactive running")] {
        guest.write(hook, &sample.replace("way=stop ", &format!("way={way} ")));
        guest.sh(&format!("chmod 755 {hook}; sync; {moves}"));
        assert_eq!(host(guest).freeze(), json!(2), "{way}");
        assert_eq!(state().trim(), while_held, "{way}");
        assert_eq!(host(guest).ask("guest-fsfreeze-thaw", Value::Null), json!(2), "{way}");
        assert!(guest.becomes(moves, SOON), "{way}: it does not go on");
        assert_eq!(guest.sh("systemctl show --value -p FreezerState frozen-before").trim(), "frozen", "{way}");
        assert_eq!(guest.sh("systemctl show --value -p ActiveState down").trim(), "inactive", "{way}");
    }
    guest.sh(&format!("rm {hook} {hook}.toml; systemctl thaw frozen-before; systemctl stop counts frozen-before"));
}

/// One of the two disks becomes so slow, in the last moment before the freeze, that the kernel does not finish FIFREEZE.
fn killed_while_the_kernel_freezes(guest: &Machine) {
    guest.sh("touch /run/wait");
    host(guest).send(request("guest-fsfreeze-freeze", Value::Null).as_bytes());
    assert!(guest.becomes("[ -e /run/marks ]", SOON), "the hook runs when all else is prepared");
    guest.throttle("data", 512);
    guest.sh("rm /run/wait");
    let inside = "grep -lq '^16 .* 0xc0045877 ' /proc/[0-9]*/syscall";
    assert!(guest.becomes(inside, SOON), "no guardian is inside FIFREEZE");
    kill_all(guest);
    assert!(guest.writable_within(&["/"], SOON), "what is not stuck is let go at once");
    assert!(!guest.writable_within(&["/mnt/data"], STILL), "the kernel was quicker than this test");
    // every process of ours is gone; only systemd can have done it
    thread::sleep(Duration::from_secs(3));
    guest.throttle("data", 0);
    assert!(guest.writable_within(&["/mnt/data"], SOON), "thawed the moment the freeze has landed");
    comes_back(guest);
    let_go_and_said(guest, "the daemon ended before all was held");
}

// --- the stock agent -------------------------------------------------------------------------------------------------

/// The commands `guest-info` lists as enabled.
fn commands(host: &mut Host) -> (String, BTreeSet<String>) {
    let info = host.ask("guest-info", Value::Null);
    let enabled = list(&info, "supported_commands").iter().filter(|command| command["enabled"] == true);
    let names = enabled.filter_map(|command| Some(command["name"].as_str()?.to_owned())).collect();
    (info["version"].as_str().unwrap_or_default().to_owned(), names)
}

fn executes(host: &mut Host) -> Value {
    let begun = host.ask("guest-exec", json!({"path": "/bin/echo", "arg": ["hello"], "capture-output": true}));
    if begun.get("class").is_some() {
        return begun;
    }
    loop {
        let status = host.ask("guest-exec-status", json!({"pid": begun["pid"]}));
        if status["exited"] != false {
            return status["out-data"].clone();
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn the_stock_agent_keeps_its_channel_until_the_command_that_check_names(lab: &Lab) {
    let guest = boot(lab, "stock", &Boot::systemd());
    assert_eq!(guest.sh("systemctl is-active qemu-guest-agent").trim(), "active");
    let checked = asked(&guest, "holdstill check --json");
    let nobody = list(&checked["plan"], "problems").iter().find(|problem| problem["code"] == "NOBODY_CAN_ASK");
    let nobody = nobody.unwrap_or_else(|| panic!("{checked}"));
    assert_eq!(nobody["severity"], "warning");
    assert_eq!(guest.run("holdstill check --strict >/dev/null 2>&1").0, 4);
    let stock = {
        let mut host = host(&guest);
        let (version, commands) = commands(&mut host);
        assert!(!version.contains("holdstill"), "{version}");
        commands
    };

    let hint = nobody["hint"].as_str().unwrap_or_default();
    let command = hint.split('`').nth(1).unwrap_or_else(|| panic!("no command in the hint: {hint}"));
    guest.sh(command);
    let checked = asked(&guest, "holdstill check --json");
    assert!(codes(&checked["plan"]).contains(&"CALLERS"), "{checked}");
    assert!(!codes(&checked["plan"]).contains(&"NOBODY_CAN_ASK"), "{checked}");

    let mut host = host(&guest);
    let (version, union) = commands(&mut host);
    assert!(version.contains("holdstill"), "{version}");
    let lost: Vec<&String> = stock.difference(&union).collect();
    assert!(lost.is_empty(), "what the host could do before: {lost:?}");
    assert_eq!(executes(&mut host), "aGVsbG8K");
    assert_eq!(host.freeze(), json!(2));
    assert_eq!(executes(&mut host)["class"], "CommandNotFound", "a command would wait for a disk");
    assert!(!commands(&mut host).1.contains("guest-exec"));
    assert_eq!(host.thaw(), json!(2));
    assert_eq!(executes(&mut host), "aGVsbG8K");
}
