//! What administrators of libvirt hosts do with virsh, under a real libvirtd: our agent, and beside it the stock one.

use std::{path::PathBuf, thread, time::Duration};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    lab::{Lab, finish, until},
    machine::{
        Agent, Boot, Holdstill, Place,
        agent::Setup,
        libvirt::{Domain, Libvirt, Said},
        oracle,
    },
    table::{BOTH, Outcome, at_once, both, ends, lets_go_or_not, usual},
};

facts! {
    what_virsh_asks_is_answered_as_by_the_stock_agent within 120,
    a_quiesced_snapshot_is_clean_or_fails_with_the_reason within 120,
    a_guest_whose_virsh_gave_up_or_was_killed_is_let_go within 150,
    a_hold_outlives_a_restart_of_libvirtd within 120,
    without_the_stock_agent_virsh_freezes_and_knows_the_disks within 120,
}

/// A domain with an agent that libvirt reaches.
fn domain<'a>(libvirt: &'a Libvirt, place: &Place, agent: &dyn Agent, setup: &Setup) -> Domain<'a> {
    let domain = libvirt.boot(place, agent.name(), &Boot::small());
    agent.begin(&domain, setup);
    domain.agent_answers();
    domain
}

/// The same with each agent, ours first, in domains of their own.
fn with_both<T: Send>(lab: &Lab, libvirt: &Libvirt, setup: &Setup, run: impl Fn(&Domain) -> T + Sync) -> Vec<T> {
    let places = BOTH.map(|agent| Place::new(lab, agent.name()));
    at_once(|agent| {
        let place = &places[usize::from(agent.name() != Holdstill.name())];
        run(&domain(libvirt, place, agent, setup))
    })
}

/// Asked in this order; what is printed must not tell the agents apart.
const ASKED: [&[&str]; 21] = [
    &["domfsinfo"],
    &["guestinfo"],
    &["domhostname", "--source", "agent"],
    &["domifaddr", "--source", "agent"],
    &["guestvcpus"],
    &["qemu-agent-command", r#"{"execute":"guest-get-timezone"}"#],
    &["qemu-agent-command", r#"{"execute":"guest-no-such"}"#],
    &["domfsthaw"],
    &["domfsfreeze"],
    // held
    &["domfsfreeze"],
    &["guestinfo"],
    &["domfsinfo"],
    &["domtime"],
    &["qemu-agent-command", r#"{"execute":"guest-fsfreeze-status"}"#],
    &["domfsthaw"],
    &["domfsthaw"],
    &["domfsfreeze", "--mountpoint", "/mnt/data"],
    &["domfsthaw"],
    &["domfsfreeze", "--mountpoint", "/mnt/data", "--mountpoint", "/nowhere"],
    &["domfsthaw", "--mountpoint", "/mnt/data"],
    &["domfsthaw"],
];

fn what_virsh_asks_is_answered_as_by_the_stock_agent(lab: &Lab) {
    struct Told {
        asked: Vec<Said>,
        time: u64,
        nowhere: Said,
    }
    let libvirt = Libvirt::start(lab);
    let setup = Setup { settings: vec![("listen.relay", "true")], ..Setup::default() };
    let told = with_both(lab, &libvirt, &setup, |domain| Told {
        asked: ASKED.iter().map(|words| domain.virsh(words[0], &words[1..])).collect(),
        time: seconds(domain.virsh("domtime", &[]).ok()),
        nowhere: domain.virsh("domfsfreeze", &["--mountpoint", "/nowhere"]),
    });
    let [ours, theirs] = &told[..] else { panic!("two agents") };
    for (words, (ours, theirs)) in ASKED.iter().zip(ours.asked.iter().zip(&theirs.asked)) {
        let plain = |said: &Said| (said.code, without_usage(&said.out));
        assert_eq!(plain(ours), plain(theirs), "{words:?}");
    }
    let said =
        |words: &[&str]| ASKED.iter().position(|asked| *asked == words).map(|at| &ours.asked[at]).expect("asked");
    let fsinfo = said(&["domfsinfo"]).ok();
    for disk in ["/            vda    ext4   vda", "/mnt/data    vdb    ext4   vdb"] {
        assert!(fsinfo.contains(disk), "libvirt does not know which disk is which:\n{fsinfo}");
    }
    let guestinfo = said(&["guestinfo"]).ok();
    for field in [
        "user.count",
        "os.pretty-name",
        "timezone.offset",
        "hostname",
        "fs.1.disk.0.alias",
        "disk.1.name",
        "if.0.addr.0.addr",
    ] {
        assert!(guestinfo.contains(field), "no {field} in\n{guestinfo}");
    }
    assert_eq!(said(&["domfsfreeze"]).ok(), "Froze 2 filesystem(s)");
    assert_eq!(said(&["domfsfreeze", "--mountpoint", "/mnt/data"]).ok(), "Froze 1 filesystem(s)");
    assert!(ours.time.abs_diff(theirs.time) < 10, "{} and {}", ours.time, theirs.time);
    // the one difference: to have frozen nothing is no success
    assert_eq!(theirs.nowhere.ok(), "Froze 0 filesystem(s)");
    let why = "'guest-fsfreeze-freeze-list': nothing to freeze: not mounted: /nowhere";
    assert!(ours.nowhere.failed().ends_with(why), "{}", ours.nowhere.out);
}

/// How full a disk is differs from guest to guest.
fn without_usage(said: &str) -> String {
    said.lines().filter(|line| !line.contains(".used-bytes")).collect::<Vec<_>>().join("\n")
}

fn seconds(domtime: &str) -> u64 {
    domtime.strip_prefix("Time: ").and_then(|rest| rest.parse().ok()).unwrap_or_else(|| panic!("no time: {domtime}"))
}

/// The newest hold, as the guest remembers it.
fn last_hold(domain: &Domain) -> Value {
    let mut history: Value = serde_json::from_str(&domain.sh("holdstill history --json 2>/dev/null")).expect("JSON");
    history["reports"][0].take()
}

/// Whether each of the two disks, as they were in these files, needs recovery.
fn recovery(domain: &Domain, file: impl Fn(&str) -> PathBuf) -> [bool; 2] {
    ["root", "data"].map(|disk| oracle::needs_recovery(&domain.place, &file(disk)))
}

/// virsh snapshot-create-as, quiesced as an administrator would.
const QUIESCED: [&str; 3] = ["--disk-only", "--quiesce", "--atomic"];

fn a_quiesced_snapshot_is_clean_or_fails_with_the_reason(lab: &Lab) {
    let libvirt = Libvirt::start(lab);
    let domain = domain(&libvirt, &Place::new(lab, "snapshots"), &Holdstill, &usual());
    let cut = |name: &str, how: &[&str]| domain.virsh("snapshot-create-as", &[&[name], how].concat());
    domain.write_all_the_time();
    assert!(domain.becomes("[ -e /srv/written ] && [ -e /mnt/data/written ]", Duration::from_secs(10)));

    assert_eq!(cut("held", &QUIESCED).ok(), "Domain snapshot held created");
    let hold = last_hold(&domain);
    assert_eq!((&hold["verdict"], &hold["reason"]), (&"unbroken".into(), &"asked".into()), "{hold}");
    assert_eq!(recovery(&domain, |disk| domain.disk(disk)), [false; 2], "the snapshot is not clean");
    writers_go_on(&domain);

    cut("live", &["--disk-only", "--atomic"]).ok();
    assert_eq!(recovery(&domain, |disk| domain.above(disk, "held")), [true; 2], "nobody held the guest");
    writers_go_on(&domain);

    // refused: nothing is cut, and whoever asked is told why
    domain.write("/etc/holdstill/hooks.d/20-forgotten", "#!/bin/sh\n");
    let refused = cut("refused", &QUIESCED);
    let why = "'guest-fsfreeze-freeze': HOOK_UNUSABLE: use the hook /etc/holdstill/hooks.d/20-forgotten: it is not executable";
    assert!(refused.failed().contains(why), "{}", refused.out);
    assert!(!domain.above("root", "refused").exists(), "a snapshot was made all the same");
    writers_go_on(&domain);
    domain.sh("rm /etc/holdstill/hooks.d/20-forgotten");

    cut_for_too_long(&libvirt, &domain);
}

/// The hold broke while it was cut: libvirt fails and forgets the snapshot, but its files are made, and in use.
fn cut_for_too_long(libvirt: &Libvirt, domain: &Domain) {
    let above = domain.above("root", "late");
    let late = thread::scope(|scope| {
        let name = domain.name.as_str();
        let cutting =
            scope.spawn(move || libvirt.virsh(&[&["snapshot-create-as", name, "late"][..], &QUIESCED].concat()));
        // frozen, and about to go on
        libvirt.pause(|| above.exists(), Duration::from_secs(5));
        cutting.join().expect("it only waits")
    });
    let why = "was broken: the host asked for neither status nor thaw within 3s of the freeze";
    assert!(late.failed().contains("'guest-fsfreeze-thaw': hold qga-") && late.out.contains(why), "{}", late.out);
    writers_go_on(domain);
    assert_eq!(domain.virsh("domfsthaw", &[]).ok(), "Thawed 0 filesystem(s)", "it was told already");

    assert!(!domain.virsh("snapshot-list", &["--name"]).ok().contains("late"));
    let in_use = || domain.virsh("domblklist", &[]).ok().matches(".late").count();
    assert_eq!(in_use(), 2, "both disks go on in the new files");
    for target in ["vda", "vdb"] {
        domain.virsh("blockcommit", &[target, "--active", "--pivot", "--shallow"]).ok();
    }
    assert_eq!(in_use(), 0, "a commit undoes it");
    writers_go_on(domain);
}

/// The writers of both disks get something written.
fn writers_go_on(domain: &Domain) {
    let before = domain.sh("cat /srv/written");
    let more = format!("[ $(cat /srv/written) != {} ]", before.trim());
    assert!(domain.becomes(&more, Duration::from_secs(10)), "the guest stays frozen");
}

/// Waits for the freeze that nobody waits for any more, and looks who lets go.
fn lands_and_is_let_go(domain: &Domain) -> Outcome {
    // twice: on a busy machine a single write may take that long by itself
    let landed = until(Duration::from_secs(20), || domain.is_frozen() && domain.is_frozen());
    assert!(landed, "the freeze never came");
    lets_go_or_not(domain, Duration::from_secs(6))
}

/// virsh, asked to thaw what nobody thawed in time.
fn thaws(domain: &Domain) -> Outcome {
    let [first, second] = [domain.virsh("domfsthaw", &[]), domain.virsh("domfsthaw", &[])];
    assert_eq!(second.ok(), "Thawed 0 filesystem(s)", "only the first may be kept from going on");
    match (first.code, first.out.split_once("was broken: ")) {
        (Some(1), Some((_, why))) => ends("fails, once: the hold was broken").with(why),
        _ => ends(first.out),
    }
}

fn a_guest_whose_virsh_gave_up_or_was_killed_is_let_go(lab: &Lab) {
    let libvirt = Libvirt::start(lab);
    let settings = vec![("hold.max", "\"20s\""), ("hold.unclaimed", "\"4s\""), ("hooks.timeout", "\"9s\"")];
    let slow = Setup { settings, hook: Some("[ $1 = thaw ] || sleep 6"), ..Setup::default() };
    let rows = [
        ("virsh domfsfreeze is killed before the freeze is done", ["lets go", "stays frozen"]),
        ("virsh domfsthaw after that", ["fails, once: the hold was broken", "Thawed 2 filesystem(s)"]),
        ("virsh domfsfreeze gives up (guest-agent-timeout)", ["lets go", "stays frozen"]),
        ("virsh domfsthaw after that again", ["fails, once: the hold was broken", "Thawed 2 filesystem(s)"]),
    ];
    let ended = with_both(lab, &libvirt, &slow, |domain| {
        let mut virsh = domain.start_virsh("domfsfreeze");
        thread::sleep(Duration::from_secs(1));
        assert!(finish(&mut virsh, Duration::ZERO).is_none(), "it was to be killed while it waits");
        let killed = [lands_and_is_let_go(domain), thaws(domain)];

        domain.virsh("guest-agent-timeout", &["--timeout", "3"]).ok();
        let gives_up = domain.virsh("domfsfreeze", &[]);
        assert!(gives_up.took < Duration::from_secs(5), "{gives_up:?}");
        assert!(gives_up.failed().ends_with("Guest agent not available for now"), "{}", gives_up.out);
        killed.into_iter().chain([lands_and_is_let_go(domain), thaws(domain)]).collect::<Vec<_>>()
    });
    both(lab, "T04", &rows, &ended);
}

fn a_hold_outlives_a_restart_of_libvirtd(lab: &Lab) {
    let libvirt = Libvirt::start(lab);
    let settings = vec![("hold.max", "\"40s\""), ("hold.unclaimed", "\"30s\"")];
    let setup = Setup { settings, ..Setup::default() };
    let domain = domain(&libvirt, &Place::new(lab, "restarted"), &Holdstill, &setup);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        domain.virsh("domfsfreeze", &[]).ok();
        libvirt.restart(lab, signal);
        assert!(domain.is_frozen(), "let go by {signal} to libvirtd");
        domain.agent_answers();
        assert_eq!(domain.virsh("domfsthaw", &[]).ok(), "Thawed 2 filesystem(s)");
        let hold = last_hold(&domain);
        assert_eq!(hold["verdict"], "unbroken", "{hold}");
    }
}

fn without_the_stock_agent_virsh_freezes_and_knows_the_disks(lab: &Lab) {
    let libvirt = Libvirt::start(lab);
    let place = Place::new(lab, "alone");
    let domain = libvirt.boot(&place, "alone", &Boot::small());
    domain.sh("rm /usr/sbin/qemu-ga");
    let agent: &dyn Agent = &Holdstill;
    agent.begin(&domain, &Setup { settings: vec![("listen.relay", "true")], ..Setup::default() });
    domain.agent_answers();
    let guestinfo = domain.virsh("guestinfo", &[]);
    for field in ["os.pretty-name", "hostname", "fs.1.disk.0.alias", "if.0.addr.0.addr"] {
        assert!(guestinfo.ok().contains(field), "no {field} in\n{}", guestinfo.out);
    }
    assert!(!guestinfo.out.contains("user.count"), "{}", guestinfo.out);
    let time = domain.virsh("domtime", &[]);
    assert!(time.failed().ends_with("The command guest-get-time has not been found"), "{}", time.out);
    assert_eq!(domain.virsh("domfsfreeze", &[]).ok(), "Froze 2 filesystem(s)");
    assert_eq!(domain.virsh("domfsthaw", &[]).ok(), "Thawed 2 filesystem(s)");
}
