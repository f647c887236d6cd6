//! Hypervisors stop the whole machine while they cut.

use std::time::Duration;

use serde_json::json;

use crate::{
    lab::Lab,
    machine::{Agent, Boot, Holdstill, Machine, Place, agent::Setup, oracle},
    table::MARKS,
};

facts! {
    a_machine_paused_for_five_seconds_while_held_is_unbroken within 120,
}

/// With the limits as they are shipped, and longer than a quiet host gets here.
fn a_machine_paused_for_five_seconds_while_held_is_unbroken(lab: &Lab) {
    let place = Place::new(lab, "paused");
    let guest = Machine::boot(&place, &Boot::small());
    let agent: &dyn Agent = &Holdstill;
    let setup = Setup { settings: vec![("hold.unclaimed", "\"4s\"")], hook: Some(MARKS), ..Setup::default() };
    agent.begin(&guest, &setup);
    let mut host = guest.host();
    agent.answers(&mut host);
    guest.write_all_the_time();

    assert_eq!(host.freeze(), json!(2));
    guest.qmp("stop", serde_json::Value::Null);
    let held = guest.cut("paused");
    std::thread::sleep(Duration::from_secs(5));
    guest.qmp("cont", serde_json::Value::Null);
    assert_eq!(host.thaw(), json!(2), "its thaw answers as if nothing had been");

    let kept = guest.sh("holdstill history --json");
    assert!(kept.contains("\"verdict\":\"unbroken\""), "{kept}");
    let copies = held.map(|cut| oracle::raw(&place, &cut));
    let verified = oracle::verify(lab, &copies, &[]);
    assert_eq!(verified["grade"], "cut-inside", "{verified}");
}
