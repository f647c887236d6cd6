//! What comes over the wire: noise, haste, hosts that do not read, that hang up and come back.

use std::{thread, time::Duration};

use serde_json::{Value, json};

use crate::{
    lab::{
        Lab,
        guest_agent::{RESET, request},
    },
    machine::{Boot, agent::Setup, oracle},
    table::{Outcome, Trial, case, compare_in, ends, usual},
};

facts! {
    after_whatever_came_the_next_sync_is_answered within 180,
    a_status_behind_a_slow_freeze_is_answered_after_it_even_to_the_next_connection within 120,
}

fn after_whatever_came_the_next_sync_is_answered(lab: &Lab) {
    let cases = [
        case("T38", "a reset in the middle of a request", reset_mid_request, "in step", "in step"),
        case("T38", "garbage, and a line of 64 KiB", garbage, "in step", "in step"),
        case("T38", "a plain sync, as libvirt does", plain_sync, "in step", "in step"),
        case("T38", "sync and command in one write, as Proxmox does", pipelined, "in step", "in step"),
        case("T38", "an answer left over from the last connection", left_over, "in step", "in step"),
        case("T39", "5,000 requests, and no answer read", never_reads, "in step", "in step"),
        case("T39", "the host hangs up in the middle of an answer", hangs_up_mid_answer, "in step", "in step"),
        case("T40", "freeze-list of an unknown place", unknown_place, "an error", "0"),
        case("T40", "freeze-list of no place", no_place, "an error", "0"),
        case("T40", "freeze-list with a slash at the end", trailing_slash, "1", "0"),
        case("T40", "freeze-list of a known and an unknown place", known_and_unknown, "1", "1"),
        case("T41", "1,000 rounds of ping and info: memory", polled, "no more", "no more"),
    ];
    compare_in(lab, &Boot::small(), &usual(), &cases);
}

/// Whether the agent understands its host again, from whatever state it is in.
fn in_step(trial: &Trial) -> Outcome {
    let synced = trial.host(|host| host.syncs_within(Duration::from_secs(40)));
    ends(if synced && trial.status() == json!("thawed") { "in step" } else { "out of step" })
}

fn reset_mid_request(trial: &Trial) -> Outcome {
    trial.host(|host| {
        host.send(b"{\"execute\": \"guest-fsfreeze-fre");
        host.send(&[RESET]);
        host.send(b"{\"execute\": \"guest-ping\", \"arguments\": {\"\xff\xff");
    });
    in_step(trial)
}

fn garbage(trial: &Trial) -> Outcome {
    trial.host(|host| {
        host.send(b"\n\n  \n}{][\"\x00\x01\xc3(\n");
        host.send(&[&[b'a'; 65536][..], b"\n"].concat());
        host.send(b"[[[[[[[[[[\n\"never ends\n");
    });
    in_step(trial)
}

fn plain_sync(trial: &Trial) -> Outcome {
    // libvirt's ids are milliseconds since 1970: more than 32 bits
    let id = json!(1_795_220_334_038_u64);
    assert_eq!(trial.ask("guest-sync", json!({"id": id})), id);
    in_step(trial)
}

fn pipelined(trial: &Trial) -> Outcome {
    let both = [request("guest-sync-delimited", json!({"id": 40_711})), request("guest-fsfreeze-status", Value::Null)]
        .concat();
    trial.host(|host| {
        host.send(both.as_bytes());
        assert_eq!(host.line(), b"\xff{\"return\": 40711}");
        assert_eq!(host.answer(), json!({"return": "thawed"}));
    });
    in_step(trial)
}

fn left_over(trial: &Trial) -> Outcome {
    trial.host(|host| host.send(request("guest-info", Value::Null).repeat(20).as_bytes()));
    trial.hang_up();
    trial.connect();
    in_step(trial)
}

fn never_reads(trial: &Trial) -> Outcome {
    let many = request("guest-ping", Value::Null).repeat(100);
    trial.host(|host| {
        (0..50).take_while(|_| host.takes_within(many.as_bytes(), Duration::from_secs(2))).count();
    });
    trial.hang_up();
    trial.connect();
    in_step(trial)
}

fn hangs_up_mid_answer(trial: &Trial) -> Outcome {
    trial.host(|host| {
        host.send(request("guest-info", Value::Null).repeat(3).as_bytes());
        assert!(host.first_bytes(5).starts_with(b"{\"ret"));
    });
    trial.hang_up();
    trial.connect();
    in_step(trial)
}

fn list(trial: &Trial, places: &[&str]) -> Outcome {
    let answer = trial.ask("guest-fsfreeze-freeze-list", json!({"mountpoints": places}));
    trial.thaw();
    if answer.is_number() { ends(answer.to_string()) } else { ends("an error").with(answer["desc"].to_string()) }
}

fn unknown_place(trial: &Trial) -> Outcome {
    list(trial, &["/nowhere", "nowhere", ""])
}

fn no_place(trial: &Trial) -> Outcome {
    list(trial, &[])
}

fn trailing_slash(trial: &Trial) -> Outcome {
    list(trial, &["/mnt/data/"])
}

fn known_and_unknown(trial: &Trial) -> Outcome {
    list(trial, &["/nowhere", "/mnt/data"])
}

/// What all processes of the agent have in memory, in KiB: of their own, and with the files they have mapped. The latter
/// comes and goes with the page cache.
pub fn memory(trial: &Trial) -> [u64; 2] {
    let said = trial.guest.sh(&format!(
        "for p in $({}); do cat /proc/$p/smaps_rollup; done | \
         awk '/^Anonymous/ {{ own += $2 }} /^Rss/ {{ all += $2 }} END {{ print own, all }}'",
        trial.agent.processes()
    ));
    let numbers: Vec<u64> = said.split_whitespace().map(|n| n.parse().expect("KiB")).collect();
    numbers.try_into().expect("two numbers")
}

/// `rounds` of ping and info, pipelined by the ten so that it does not take for ever under emulation.
pub fn poll(trial: &Trial, rounds: usize) {
    let ten = [request("guest-ping", Value::Null), request("guest-info", Value::Null)].concat().repeat(10);
    trial.host(|host| {
        for _ in 0..rounds / 10 {
            host.send(ten.as_bytes());
            for _ in 0..20 {
                host.line();
            }
        }
    });
}

fn polled(trial: &Trial) -> Outcome {
    poll(trial, 200);
    // what a hold needed is given back when it has been over for a second
    thread::sleep(Duration::from_secs(2));
    let [before, _] = memory(trial);
    poll(trial, 1000);
    let [after, _] = memory(trial);
    ends(if after <= before + 64 { "no more" } else { "more" }).with(format!("{before} → {after} KiB"))
}

fn a_status_behind_a_slow_freeze_is_answered_after_it_even_to_the_next_connection(lab: &Lab) {
    fn run(trial: &Trial) -> Outcome {
        let sync = |id: u32| request("guest-sync-delimited", json!({"id": id}));
        trial.host(|host| {
            host.send([sync(101), request("guest-fsfreeze-freeze", Value::Null)].concat().as_bytes());
            assert_eq!(host.line(), b"\xff{\"return\": 101}");
        });
        // every command of Proxmox's comes over a connection of its own
        trial.hang_up();
        thread::sleep(Duration::from_millis(500));
        trial.connect();
        let answer = trial.host(|host| {
            host.send([sync(102), request("guest-fsfreeze-status", Value::Null)].concat().as_bytes());
            loop {
                // the freeze's own answer, if the first connection's end was not yet known then
                let line = host.line_within(Duration::from_secs(20)).expect("an answer");
                if line == b"\xff{\"return\": 102}" {
                    return host.answer();
                }
                assert!(!line.contains(&RESET), "an answer to somebody else's sync");
            }
        });
        let frozen = trial.guest.is_frozen();
        let status = answer["return"].as_str().unwrap_or("something else");
        let thawed = trial.thaw();
        ends(format!("“{status}” when it {} frozen; thaws {thawed}", if frozen { "is" } else { "is not" }))
    }
    /// All of a backup, in the order and with the connections of Proxmox; only its patience is shorter.
    fn backup(trial: &Trial) -> Outcome {
        let ask = |id: u32, name: &str, patience: Duration| {
            trial.connect();
            let answer = trial.host(|host| {
                let sync = request("guest-sync-delimited", json!({"id": id}));
                host.send([sync, request(name, Value::Null)].concat().as_bytes());
                let ours = format!("\u{ff}{{\"return\": {id}}}");
                let ours: Vec<u8> = ours.chars().map(|c| u8::try_from(u32::from(c)).expect("latin")).collect();
                while host.line_within(Duration::from_secs(20)).expect("an answer to the sync") != ours {}
                host.answer_within(patience)
            });
            trial.hang_up();
            answer.map(|answer| answer["return"].clone())
        };
        let long = Duration::from_secs(20);
        trial.guest.write_all_the_time();
        assert_eq!(ask(201, "guest-ping", long), Some(json!({})));
        assert_eq!(ask(202, "guest-fsfreeze-status", long), Some(json!("thawed")));
        // it gives up waiting for the freeze, and asks for the status instead
        assert_eq!(ask(203, "guest-fsfreeze-freeze", Duration::from_secs(1)), None);
        assert_eq!(ask(204, "guest-fsfreeze-status", long), Some(json!("frozen")));
        let cut = trial.guest.cut("backup");
        let thawed = ask(205, "guest-fsfreeze-thaw", long);
        let clean = cut.iter().all(|disk| !oracle::needs_recovery(&trial.guest.place, disk));
        ends(format!("{}, thaws {}", if clean { "clean" } else { "not clean" }, thawed.unwrap_or_default()))
    }
    let setup = Setup { hook: Some("[ $1 = thaw ] || sleep 3"), ..usual() };
    let expected = "“frozen” when it is frozen; thaws 2";
    let what = "status over a new connection during a freeze of 3 s";
    let cases = [
        case("T38b", what, run, expected, expected),
        case("PVE", "a backup as Proxmox does it", backup, "clean, thaws 2", "clean, thaws 2"),
    ];
    compare_in(lab, &Boot::small(), &setup, &cases);
}
