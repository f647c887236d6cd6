//! PostgreSQL and MariaDB in a guest as people have it, snapshotted by a real libvirt with `--quiesce`, and the copies opened.

use std::{path::Path, process::Command, time::Duration};

use crate::{
    lab::{Lab, Type, command, process::tool},
    machine::{Boot, Inside, Place, image, libvirt::Libvirt, oracle},
};

facts! {
    a_quiesced_libvirt_snapshot_has_all_that_two_databases_acknowledged within 400,
}

/// holdstill owns the channel; the stock agent would come first.
const OURS: &str = "systemd.show_status=0 systemd.mask=qemu-guest-agent.service";

fn place(lab: &Lab, name: &str) -> Place {
    if !image("systemd.img").exists() {
        lab.skip("no systemd.img: run tests/vm/image/build.sh systemd");
    }
    Place::new(lab, name)
}

fn is_up(guest: &Inside, limit: Duration) -> bool {
    guest.becomes("systemctl is-active --quiet holdstill && holdstill status", limit)
}

const POSTGRES: &str = "su postgres -c 'psql -Atq'";

/// One session each that inserts row after row and notes, in memory, which were acknowledged.
fn write_to_both(guest: &Inside) {
    guest.sh(&format!("echo 'create table ledger (id int primary key)' | {POSTGRES}"));
    guest.sh("mariadb -e 'create database lab; create table lab.ledger (id int primary key) engine=innodb'");
    let rows = "i=0; while :; do i=$((i+1));";
    guest.start(
        "postgres",
        &format!("{rows} echo \"insert into ledger values ($i) returning id;\"; done | {POSTGRES} >/run/pg"),
    );
    guest.start(
        "maria",
        &format!("{rows} echo \"insert into lab.ledger values ($i); select $i;\"; done | mariadb -nN >/run/my"),
    );
    let enough = "[ $(wc -l </run/pg) -gt 50 ] && [ $(wc -l </run/my) -gt 50 ]";
    assert!(guest.becomes(enough, Duration::from_secs(60)), "{} {}", guest.output("postgres"), guest.output("maria"));
}

/// The last whole line each client has written: a row acknowledged before we looked.
fn acknowledged(guest: &Inside) -> [u64; 2] {
    ["/run/pg", "/run/my"].map(|file| {
        let last = guest.sh(&format!("tail -n 2 {file} | head -n 1"));
        last.trim().parse().unwrap_or_else(|_| panic!("{file} ends in {last:?}"))
    })
}

/// Opens the copies' data directories with the copies' own servers, natively and not under emulation; counts rows.
fn rows_in(lab: &Lab, root: &Path) -> [u64; 2] {
    let copy = lab.mount_copy(Type::Ext4, root);
    let at = copy.mount.display().to_string();
    let mount = |kind: &[&str], to: &str| drop(tool(command("mount").args(kind).arg(format!("{at}/{to}"))));
    mount(&["--bind", "/dev"], "dev");
    mount(&["-t", "tmpfs", "-o", "mode=1777", "none"], "dev/shm");
    mount(&["-t", "proc", "proc"], "proc");
    mount(&["-t", "tmpfs", "none"], "run");
    let inside = |script: &str| {
        let mut chroot: Command = command("chroot");
        tool(chroot.arg(&copy.mount).args(["sh", "-ec", script]))
    };
    // recovers first, as any server would
    let postgres = inside(
        "cd /; v=$(ls /usr/lib/postgresql); install -d -o postgres /run/postgresql; \
         echo 'select count(*) from ledger' | setpriv --reuid postgres --regid postgres --init-groups \
         /usr/lib/postgresql/$v/bin/postgres --single -D /var/lib/postgresql/$v/main \
         -c config_file=/etc/postgresql/$v/main/postgresql.conf -c ssl=off postgres",
    );
    let maria = inside(
        "install -d -o mysql /run/mysqld /run/out; \
         echo \"select count(*) into outfile '/run/out/rows' from lab.ledger;\" | \
         mariadbd --bootstrap --user=mysql --datadir=/var/lib/mysql --secure-file-priv= >/run/out/log 2>&1 || \
         { cat /run/out/log >&2; exit 1; }; cat /run/out/rows",
    );
    for mounted in ["run", "proc", "dev/shm", "dev"] {
        tool(command("umount").arg(format!("{at}/{mounted}")));
    }
    let quoted = postgres.split('"').nth(1).unwrap_or_else(|| panic!("no count in {postgres}"));
    [quoted, maria.trim()].map(|count| count.parse().unwrap_or_else(|_| panic!("no count: {count:?}")))
}

fn a_quiesced_libvirt_snapshot_has_all_that_two_databases_acknowledged(lab: &Lab) {
    let place = place(lab, "databases");
    let libvirt = Libvirt::start(lab);
    let guest = libvirt.boot(&place, "databases", &Boot { kernel: OURS.to_owned(), ..Boot::systemd() });
    let ready = "systemctl is-active --quiet mariadb && ls /run/postgresql/.s.PGSQL.5432";
    assert!(guest.becomes(ready, Duration::from_secs(120)), "the databases did not start");
    assert!(is_up(&guest, Duration::from_secs(60)), "{}", guest.run("journalctl -u holdstill").1);
    guest.agent_answers();
    write_to_both(&guest);

    let before = acknowledged(&guest);
    let cut = guest.virsh("snapshot-create-as", &["held", "--disk-only", "--quiesce", "--no-metadata"]);
    assert_eq!(cut.code, Some(0), "{}\n{}", cut.out, guest.run("journalctl -u holdstill").1);
    let after = acknowledged(&guest);
    let kept = guest.sh("holdstill history --json");
    assert!(kept.contains("\"verdict\":\"unbroken\"") && kept.contains("\"consistency\":\"application\""), "{kept}");

    let copies = ["root", "data"].map(|name| oracle::raw(&place, &guest.disk(name)));
    let verified = oracle::verify(lab, &copies, &[]);
    assert_eq!(verified["grade"], "cut-inside", "{verified}");
    let rows = rows_in(lab, &copies[0]);
    for (i, engine) in ["PostgreSQL", "MariaDB"].into_iter().enumerate() {
        assert!(rows[i] >= before[i], "{engine} had acknowledged {} rows, {} are in the copy", before[i], rows[i]);
        // the one under way when everything stopped
        assert!(
            rows[i] <= after[i] + 1,
            "{engine}'s copy has {} rows, {} were acknowledged after it",
            rows[i],
            after[i]
        );
    }
}
