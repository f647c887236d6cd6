//! What administrators of libvirt hosts do, with a real libvirtd and either agent in the guest.

use std::{thread, time::Duration};

use crate::{
    lab::{Lab, finish, until},
    machine::{
        Boot, Place,
        agent::Setup,
        libvirt::{Domain, Libvirt},
        oracle,
    },
    table::{BOTH, Outcome, both, ends, usual},
};

facts! {
    virsh_freezes_looks_cuts_and_thaws within 180,
    a_freeze_whose_virsh_was_killed_is_let_go within 180,
    a_freeze_that_came_after_libvirts_timeout_is_let_go within 180,
    a_hold_that_broke_is_told_by_domfsthaw within 180,
}

/// Tries something with each agent, in a domain of its own under the same libvirtd.
fn with_both(lab: &Lab, what: &str, setup: &Setup, expected: [&str; 2], run: fn(&Domain) -> Outcome) {
    let libvirt = Libvirt::start(lab);
    let places = BOTH.map(|agent| Place::new(lab, agent.name()));
    both(lab, "virsh", what, expected, |agent| {
        let place = &places[usize::from(agent.name() != "holdstill")];
        let domain = libvirt.boot(place, agent.name(), &Boot::small());
        agent.begin(&domain, setup);
        domain.agent_answers();
        run(&domain)
    });
}

fn virsh_freezes_looks_cuts_and_thaws(lab: &Lab) {
    fn run(domain: &Domain) -> Outcome {
        let says = |verb: &str, arguments: &[&str], code: i32, words: &str| {
            let said = domain.virsh(verb, arguments);
            assert_eq!(said.code, Some(code), "{verb}: {}", said.out);
            assert!(said.out.contains(words), "{verb}: {}", said.out);
        };
        says("domfsfreeze", &[], 0, "Froze 2 filesystem(s)");
        assert!(domain.is_frozen());
        says("domfsfreeze", &[], 1, "has been disabled");
        says("domfsthaw", &[], 0, "Thawed 2 filesystem(s)");
        says("domfsthaw", &[], 0, "Thawed 0 filesystem(s)");
        says("domfsfreeze", &["--mountpoint", "/mnt/data"], 0, "Froze 1 filesystem(s)");
        says("domfsthaw", &[], 0, "Thawed 1 filesystem(s)");

        let fsinfo = domain.virsh("domfsinfo", &[]).out;
        let found = |mount: &str, target: &str| {
            fsinfo.lines().any(|l| {
                let words: Vec<&str> = l.split_whitespace().collect();
                words.first() == Some(&mount) && words.last() == Some(&target)
            })
        };
        assert!(found("/", "vda") && found("/mnt/data", "vdb"), "{fsinfo}");
        let info = domain.virsh("guestinfo", &[]).out;
        for word in ["os.id", "hostname", "fs.0.mountpoint", "if.0.name"] {
            assert!(info.contains(word), "no {word} in\n{info}");
        }

        domain.write_all_the_time();
        assert!(domain.becomes("[ -e /srv/written ] && [ -e /mnt/data/written ]", Duration::from_secs(10)));
        says("snapshot-create-as", &["held", "--disk-only", "--quiesce", "--no-metadata"], 0, "held");
        assert!(domain.writable_within(&["/srv", "/mnt/data"], Duration::from_secs(5)), "it was not thawed");
        let clean = ["root", "data"].map(|name| !oracle::needs_recovery(&domain.place, &domain.disk(name)));
        assert_eq!(clean, [true, true], "the snapshot was cut beside the freeze");
        ends("all as expected, snapshot clean")
    }
    let expected = "all as expected, snapshot clean";
    let setup = Setup { settings: vec![("hold.max", "\"20s\""), ("listen.relay", "true")], ..usual() };
    with_both(lab, "freeze, thaw, fsinfo, guestinfo, quiesced snapshot", &setup, [expected; 2], run);
}

/// A freeze that takes three seconds.
fn slow() -> Setup {
    Setup { hook: Some("[ $1 = thaw ] || sleep 3"), ..usual() }
}

/// Waits for the freeze that nobody waits for any more, and whether somebody lets go.
fn lands_and_is_let_go(domain: &Domain) -> Outcome {
    assert!(until(Duration::from_secs(15), || domain.is_frozen()), "the freeze never landed");
    match domain.thaws_within(Duration::from_secs(6)) {
        Some(took) => ends("lets go").took(took),
        None => ends("stays frozen"),
    }
}

fn a_freeze_whose_virsh_was_killed_is_let_go(lab: &Lab) {
    fn run(domain: &Domain) -> Outcome {
        let mut virsh = domain.start_virsh("domfsfreeze");
        thread::sleep(Duration::from_secs(1));
        assert!(finish(&mut virsh, Duration::ZERO).is_none(), "it was killed while it waited");
        lands_and_is_let_go(domain)
    }
    with_both(lab, "virsh killed while it waits for the freeze", &slow(), ["lets go", "stays frozen"], run);
}

fn a_freeze_that_came_after_libvirts_timeout_is_let_go(lab: &Lab) {
    fn run(domain: &Domain) -> Outcome {
        assert_eq!(domain.virsh("guest-agent-timeout", &["--timeout", "1"]).code, Some(0));
        let said = domain.virsh("domfsfreeze", &[]);
        assert_eq!(said.code, Some(1), "{}", said.out);
        assert!(said.took < Duration::from_millis(2500), "{said:?}");
        lands_and_is_let_go(domain)
    }
    with_both(lab, "the freeze lands after guest-agent-timeout", &slow(), ["lets go", "stays frozen"], run);
}

fn a_hold_that_broke_is_told_by_domfsthaw(lab: &Lab) {
    fn run(domain: &Domain) -> Outcome {
        assert_eq!(domain.virsh("domfsfreeze", &[]).code, Some(0));
        thread::sleep(Duration::from_millis(4500));
        let said = domain.virsh("domfsthaw", &[]);
        let again = domain.virsh("domfsthaw", &[]);
        assert_eq!((again.code, again.out.contains("Thawed 0")), (Some(0), true), "{}", again.out);
        match said.code {
            Some(1) if said.out.contains("was broken") => ends("an error: broken"),
            Some(0) => ends(said.out),
            _ => ends("something else").with(said.out),
        }
    }
    let expected = ["an error: broken", "Thawed 2 filesystem(s)"];
    with_both(lab, "domfsthaw long after domfsfreeze", &usual(), expected, run);
}
