//! What is said of disks that say who made them, in a machine that has them: an array over one that lasts and one that
//! does not, and what the copy's boot would stumble over.

use std::{fs::File, time::Duration};

use serde_json::{Value, json};

use crate::{
    lab::Lab,
    machine::{Agent, Boot, Holdstill, Machine, Place, agent::Setup},
    table::usual,
};

facts! {
    an_array_over_a_lasting_and_a_passing_disk_is_mixed_and_names_the_leg within 120,
}

/// As Google's machines have them: the vendor and the model are all that tells one from the other.
const DISKS: [(&str, &str); 3] =
    [("lasting", "PersistentDisk"), ("passing", "EphemeralDisk"), ("scratch", "EphemeralDisk")];

/// Through sysfs, as mdadm would do it (`Documentation/admin-guide/md.rst`).
const ARRAY: &str = "for module in /lib/disks/*.ko; do insmod $module 2>/dev/null; done
n=0; while [ ! -b /dev/sdc ] && [ $n -lt 200 ]; do n=$((n + 1)); sleep 0.05; done
echo md0 >/sys/module/md_mod/parameters/new_array && cd /sys/block/md0/md &&
echo none >metadata_version && echo raid1 >level && echo 2 >raid_disks && echo 131072 >component_size &&
cat /sys/block/sda/dev >new_dev && cat /sys/block/sdb/dev >new_dev && echo 0 >dev-sda/slot && echo 1 >dev-sdb/slot &&
echo active >array_state && cd / &&
mkdir -p /srv/array /mnt/scratch && /sbin/mke2fs -q -t ext4 -E nodiscard /dev/md0 100M && /sbin/mke2fs -q -t ext4 /dev/sdc &&
mount -t ext4 /dev/md0 /srv/array && mount -t ext4 /dev/sdc /mnt/scratch && echo kept >/srv/array/file";

fn boot(lab: &Lab) -> Machine {
    let place = Place::new(lab, "disks");
    let mut boot = Boot::small();
    boot.qemu.extend(["-smbios", "type=1,manufacturer=Google,product=Google Compute Engine"].map(str::to_owned));
    boot.qemu.extend(["-device", "virtio-scsi-pci,id=scsi"].map(str::to_owned));
    for (lun, (name, product)) in DISKS.into_iter().enumerate() {
        let file = place.disk.join(format!("{name}.raw"));
        File::create(&file).and_then(|file| file.set_len(160 << 20)).expect("the lab's directory is writable");
        let drive = format!("if=none,id={name},format=raw,cache=unsafe,file={}", file.display());
        let device = format!("scsi-hd,drive={name},serial={name},vendor=Google,product={product},scsi-id={lun}");
        boot.qemu.extend(["-drive", &drive, "-device", &device].map(str::to_owned));
    }
    Machine::boot(&place, &boot)
}

fn an_array_over_a_lasting_and_a_passing_disk_is_mixed_and_names_the_leg(lab: &Lab) {
    let guest = boot(lab);
    if guest.run("ls /lib/disks/*raid1.ko").0 != 0 {
        lab.skip("this kernel has no raid1 module: run tests/vm/image/build.sh small");
    }
    guest.sh(ARRAY);
    guest.write("/etc/fstab", "/dev/sdc /mnt/scratch ext4 defaults 0 2\n/dev/vdb /mnt/data ext4 defaults 0 2\n");
    let agent: &dyn Agent = &Holdstill;
    agent.begin(&guest, &Setup { hook: None, ..usual() });
    assert!(guest.becomes("holdstill status >/dev/null 2>&1", Duration::from_secs(30)));

    let report = plan(&guest);
    assert_eq!(durability(&report, "/srv/array"), "mixed", "{report}");
    assert_eq!(durability(&report, "/mnt/scratch"), "transient");
    assert_eq!(durability(&report, "/mnt/data"), "unknown", "a disk of QEMU's says nothing");
    let evidence = &coverage(&report, "/srv/array")["evidence"];
    let says = |value: &str, says: &str| json!({"source": "model", "value": value, "weight": "identity", "says": says});
    assert_eq!(
        evidence,
        &json!([
            says("sda: Google PersistentDisk (Persistent Disk)", "durable"),
            says("sdb: Google EphemeralDisk (local SSD)", "transient"),
        ])
    );
    let lost = list(&report["problems"]).iter().find(|p| p["code"] == "TRANSIENT_DATA" && p["subject"] == "/srv/array");
    let said = lost.and_then(|lost| lost["message"].as_str()).unwrap_or_else(|| panic!("{report}"));
    assert!(said.contains("needs sdb (a leg of md0 (raid1)), which is transient"), "{said}");
    let boot = problem(&report, "FSTAB_WOULD_NOT_BOOT");
    assert_eq!((&boot["subject"], &boot["severity"]), (&json!("/mnt/scratch"), &json!("warning")), "{boot}");

    // what is mixed is held all the same: the half that is in the snapshot should be whole
    let mut host = guest.host();
    agent.answers(&mut host);
    assert_eq!(host.freeze(), json!(3), "the root, /mnt/data and the array; nobody snapshots the scratch disk");
    assert_eq!(host.thaw(), json!(3));
}

fn plan(guest: &Machine) -> Value {
    let said = guest.sh("holdstill check --json 2>/dev/null");
    let answer: Value = serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}"));
    answer["plan"].clone()
}

fn coverage<'a>(report: &'a Value, mount: &str) -> &'a Value {
    let all = list(&report["coverage"]);
    let is = |entry: &&Value| entry["mounts"].as_array().is_some_and(|mounts| mounts.contains(&json!(mount)));
    all.iter().find(is).unwrap_or_else(|| panic!("nothing of {mount} in {report}"))
}

fn durability(report: &Value, mount: &str) -> String {
    coverage(report, mount)["durability"].as_str().unwrap_or_default().to_owned()
}

fn problem<'a>(report: &'a Value, code: &str) -> &'a Value {
    let found: Vec<&Value> = list(&report["problems"]).iter().filter(|problem| problem["code"] == code).collect();
    assert_eq!(found.len(), 1, "{code} in {report}");
    found[0]
}

fn list(of: &Value) -> &[Value] {
    of.as_array().expect("a list")
}
