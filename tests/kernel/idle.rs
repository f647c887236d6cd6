//! What a daemon costs while nothing is held: as the release build, which `tests/run` makes before these tests.

use std::{fs, path::PathBuf, thread, time::Duration};

use crate::lab::{
    Lab, Type,
    process::{pss_kib, wakeups},
};

facts! {
    an_idle_daemon_and_its_warden_share_eight_mebibytes,
    an_idle_daemon_and_its_warden_sleep within 90,
}

fn release(lab: &Lab) -> PathBuf {
    match std::env::var_os("HOLDSTILL_RELEASE") {
        Some(path) => path.into(),
        None => lab.skip("no release build: HOLDSTILL_RELEASE is not set"),
    }
}

fn an_idle_daemon_and_its_warden_share_eight_mebibytes(lab: &Lab) {
    let fs = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&fs]).binary(&release(lab)).start();
    let told = lab.memory_dir("told").join("report");
    daemon.setup().reporter("10-a", &format!("cat > {}", told.display()));
    daemon.freeze(&["--for", "5s"]);
    daemon.thaw();
    assert!(crate::lab::until(Duration::from_secs(5), || told.exists()), "nobody was told");
    // idle is a second later: then what only the hold needed is given back
    let used = || [daemon.pid(), daemon.warden()].map(pss_kib);
    let small = crate::lab::until(Duration::from_secs(5), || used().iter().sum::<u64>() <= 8 * 1024);
    assert!(small, "daemon and warden use {:?} KiB", used());
}

fn an_idle_daemon_and_its_warden_sleep(lab: &Lab) {
    let disk = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&disk]).binary(&release(lab)).start();
    let pids = [daemon.pid(), daemon.warden()];
    // what starting up left to do is done once its threads have ended, and a whole second passes without a wake-up
    let woken = || pids.iter().map(|pid| wakeups(*pid)).sum::<u64>();
    let alone = |pid: &i32| fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|tasks| tasks.count() == 1);
    let settled = crate::lab::until(Duration::from_secs(25), || {
        let before = woken();
        thread::sleep(Duration::from_secs(1));
        pids.iter().all(alone) && woken() == before
    });
    assert!(settled, "it never comes to rest");
    let before = woken();
    thread::sleep(Duration::from_secs(17));
    let times = woken() - before;
    assert!(times <= 2, "woken {times} times in 17 s of idleness");
}
