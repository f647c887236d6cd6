//! A snapshot cut by QEMU itself inside a hold: what the copy says of itself.

use std::time::Duration;

use serde_json::json;

use crate::{
    lab::Lab,
    machine::{Agent, Boot, Holdstill, Machine, Place, QemuGa, agent::Setup, oracle},
    table::usual,
};
facts! {
    a_snapshot_cut_inside_a_hold_needs_no_recovery_and_one_beside_it_does within 120,
    the_stock_agents_snapshot_is_clean_too within 120,
}

/// Cuts once while frozen and once while writers write; answers whether the journals of the two need recovery.
fn cut_twice(lab: &Lab, agent: &dyn Agent) -> (Machine, [bool; 2], [bool; 2]) {
    let place = Place::new(lab, agent.name());
    let guest = Machine::boot(&place, &Boot::small());
    agent.begin(&guest, &Setup { hook: None, ..usual() });
    let mut host = guest.host();
    agent.answers(&mut host);
    guest.write_all_the_time();
    assert!(guest.becomes("[ -e /srv/written ] && [ -e /mnt/data/written ]", Duration::from_secs(10)));

    assert_eq!(host.freeze(), json!(2));
    let held = guest.cut("after");
    assert_eq!(host.thaw(), json!(2));
    // the writer writes again: any later moment is a moment too
    let before = guest.sh("cat /srv/written");
    assert!(guest.becomes(&format!("[ $(cat /srv/written) != {} ]", before.trim()), Duration::from_secs(10)));
    let live = guest.cut("later");
    let recovery = |cut: [std::path::PathBuf; 2]| cut.map(|disk| oracle::needs_recovery(&place, &disk));
    let (held, live) = (recovery(held), recovery(live));
    (guest, held, live)
}

fn a_snapshot_cut_inside_a_hold_needs_no_recovery_and_one_beside_it_does(lab: &Lab) {
    let (guest, held, live) = cut_twice(lab, &Holdstill);
    assert_eq!(held, [false, false], "a held ext4 is clean");
    assert_eq!(live, [true, true], "a live ext4 is not");

    let copies = ["root", "data"].map(|name| guest.place.disk.join(format!("{name}.raw")));
    let verified = oracle::verify(lab, &copies, &[]);
    assert_eq!(verified["grade"], "cut-inside", "{verified}");
    let kept = guest.sh("holdstill history --json");
    assert!(kept.contains("unbroken"), "{kept}");
}

fn the_stock_agents_snapshot_is_clean_too(lab: &Lab) {
    let (_, held, live) = cut_twice(lab, &QemuGa);
    assert_eq!(held, [false, false]);
    assert_eq!(live, [true, true]);
}
