//! What we read ourselves instead of asking the stock agent: `guest-get-fsinfo`, `guest-get-osinfo`,
//! `guest-get-host-name`, `guest-network-get-interfaces`. Every field, type and omission as in qemu-ga 7.2 to 10, because
//! libvirt maps disks and addresses from them. Called by the agent, on a thread that may block.
//!
//! Where we differ, on purpose:
//! - `total-bytes-privileged`, which qemu-ga has since 9.1, is always there; clients ignore what they don't know.
//! - A file system mounted more than once is listed once, as qemu-ga 10 does; 7.2 lists every mount of it.
//! - No `used-bytes` and totals where asking could hang or would tell of another file system: served by FUSE, below a
//!   network mount, or mounted over.
//! - A single-quoted value in os-release is read as a shell reads it; qemu-ga cuts it at its first space.

use std::{io, path::Path};

use serde_json::{Map, Value, json};

use super::reply::{Answer, Error};
use crate::guest::{
    attachment::PciAddress,
    filesystems::{self, Disk, FileSystem},
    network::{self, Interface},
    osinfo,
};

/// The reader that answers a command, if it is one of ours: a function of the root directory. It may block.
pub fn native(command: &str) -> Option<fn(&Path) -> Answer> {
    match command {
        "guest-get-fsinfo" => Some(fsinfo),
        "guest-get-osinfo" => Some(osinfo),
        "guest-get-host-name" => Some(host_name),
        "guest-network-get-interfaces" => Some(interfaces),
        _ => None,
    }
}

/// Their names, for `guest-info`.
pub const NATIVE: [&str; 4] =
    ["guest-get-fsinfo", "guest-get-host-name", "guest-get-osinfo", "guest-network-get-interfaces"];

fn failed(what: &str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::generic(format!("failed to {what}: {source}"))
}

fn fsinfo(root: &Path) -> Answer {
    let found = filesystems::read(root).map_err(failed("read the mount table"))?;
    Ok(found.iter().map(file_system).collect())
}

fn file_system(found: &FileSystem) -> Value {
    let mut object = json!({
        "name": found.name,
        "mountpoint": found.mount_point.to_string_lossy(),
        "type": found.fs_type,
        "disk": found.disks.iter().map(disk).collect::<Value>(),
    });
    if let Some(usage) = found.usage {
        object["used-bytes"] = usage.used.into();
        object["total-bytes"] = usage.total.into();
        object["total-bytes-privileged"] = usage.total_privileged.into();
    }
    object
}

fn disk(found: &Disk) -> Value {
    let at = &found.attachment;
    let pci = match at.pci {
        Some(PciAddress { domain, bus, slot, function }) => [domain, bus, slot, function].map(i64::from),
        None => [-1; 4], // "fields are set to -1 if invalid"
    };
    let mut object = json!({
        "pci-controller": { "domain": pci[0], "bus": pci[1], "slot": pci[2], "function": pci[3] },
        "bus-type": at.bus_type.to_string(),
        "bus": at.bus,
        "target": at.target,
        "unit": at.unit,
    });
    if let Some(serial) = &found.serial {
        object["serial"] = serial.as_str().into();
    }
    if let Some(dev) = &found.dev {
        object["dev"] = dev.as_str().into();
    }
    if let Some(ccw) = at.ccw {
        object["ccw-address"] =
            json!({ "cssid": ccw.cssid, "ssid": ccw.ssid, "subchno": ccw.subchno, "devno": ccw.devno });
    }
    object
}

fn osinfo(root: &Path) -> Answer {
    let found = osinfo::read(root);
    let fields = [
        ("name", found.name),
        ("kernel-release", found.kernel_release),
        ("version", found.version),
        ("pretty-name", found.pretty_name),
        ("version-id", found.version_id),
        ("kernel-version", found.kernel_version),
        ("machine", found.machine),
        ("id", found.id),
        ("variant", found.variant),
        ("variant-id", found.variant_id),
    ];
    let said = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), Value::from(value?))));
    Ok(Value::Object(said.collect::<Map<_, _>>()))
}

fn host_name(root: &Path) -> Answer {
    let name = osinfo::host_name(root).map_err(failed("read the host name"))?;
    Ok(json!({ "host-name": name }))
}

fn interfaces(root: &Path) -> Answer {
    let found = network::read(root).map_err(failed("list network interfaces"))?;
    Ok(found.iter().map(interface).collect())
}

fn interface(found: &Interface) -> Value {
    let hardware: Vec<String> = found.hardware.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut object = json!({ "name": found.name, "hardware-address": hardware.join(":") });
    if !found.addresses.is_empty() {
        let address = |address: &network::Address| {
            let kind = if address.ip.is_ipv4() { "ipv4" } else { "ipv6" };
            json!({ "ip-address": address.ip.to_string(), "ip-address-type": kind, "prefix": address.prefix })
        };
        object["ip-addresses"] = found.addresses.iter().map(address).collect();
    }
    if let Some(counters) = found.counters {
        object["statistics"] = json!({
            "rx-bytes": counters.rx_bytes,
            "rx-packets": counters.rx_packets,
            "rx-errs": counters.rx_errors,
            "rx-dropped": counters.rx_dropped,
            "tx-bytes": counters.tx_bytes,
            "tx-packets": counters.tx_packets,
            "tx-errs": counters.tx_errors,
            "tx-dropped": counters.tx_dropped,
        });
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::attachment::{Attachment, Bus, CcwAddress};

    #[test]
    fn every_native_command_is_named_and_no_other() {
        assert!(NATIVE.iter().all(|command| native(command).is_some()));
        assert!(native("guest-exec").is_none() && native("guest-get-fsinfo ").is_none());
    }

    #[test]
    fn a_file_system_has_the_fields_libvirt_maps_by() {
        let attachment = Attachment {
            bus_type: Bus::Scsi,
            pci: Some(PciAddress { domain: 0, bus: 2, slot: 3, function: 1 }),
            ccw: None,
            bus: 0,
            target: 0,
            unit: 7,
        };
        let on_channel =
            Attachment { pci: None, ccw: Some(CcwAddress { cssid: 254, ssid: 0, subchno: 1, devno: 2 }), ..attachment };
        let found = FileSystem {
            name: "sda1".into(),
            mount_point: "/srv".into(),
            fs_type: "ext4".into(),
            usage: Some(filesystems::Usage { used: 1, total: 2, total_privileged: 3 }),
            disks: vec![
                Disk { dev: Some("/dev/sda1".into()), serial: Some("0QEMU_x".into()), attachment },
                Disk { dev: None, serial: None, attachment: on_channel },
            ],
        };
        assert_eq!(
            file_system(&found),
            json!({
                "name": "sda1", "mountpoint": "/srv", "type": "ext4",
                "used-bytes": 1, "total-bytes": 2, "total-bytes-privileged": 3,
                "disk": [
                    { "serial": "0QEMU_x", "bus-type": "scsi", "bus": 0, "target": 0, "unit": 7, "dev": "/dev/sda1",
                      "pci-controller": { "domain": 0, "bus": 2, "slot": 3, "function": 1 } },
                    { "bus-type": "scsi", "bus": 0, "target": 0, "unit": 7,
                      "pci-controller": { "domain": -1, "bus": -1, "slot": -1, "function": -1 },
                      "ccw-address": { "cssid": 254, "ssid": 0, "subchno": 1, "devno": 2 } },
                ],
            })
        );
        let unasked = FileSystem { usage: None, disks: vec![], ..found };
        assert_eq!(file_system(&unasked), json!({ "name": "sda1", "mountpoint": "/srv", "type": "ext4", "disk": [] }));
    }

    #[test]
    fn an_interface_without_an_address_has_no_list_of_them_and_no_counters() {
        let bare =
            Interface { name: "eth1".into(), hardware: [0x52, 0x54, 0, 0xab, 0, 1], addresses: vec![], counters: None };
        assert_eq!(interface(&bare), json!({ "name": "eth1", "hardware-address": "52:54:00:ab:00:01" }));
        let address = |ip: &str, prefix| network::Address { ip: ip.parse().expect("an IP"), prefix };
        let used = Interface {
            addresses: vec![address("192.0.2.1", 24), address("fe80::1", 64)],
            counters: Some(network::Counters { rx_bytes: 5, tx_dropped: 6, ..Default::default() }),
            ..bare
        };
        let value = interface(&used);
        assert_eq!(
            value["ip-addresses"],
            json!([
                { "ip-address": "192.0.2.1", "ip-address-type": "ipv4", "prefix": 24 },
                { "ip-address": "fe80::1", "ip-address-type": "ipv6", "prefix": 64 },
            ])
        );
        assert_eq!(value["statistics"].as_object().map(Map::len), Some(8));
        assert_eq!((&value["statistics"]["rx-bytes"], &value["statistics"]["tx-dropped"]), (&json!(5), &json!(6)));
    }

    #[test]
    fn a_guest_that_says_nothing_of_itself_has_only_its_kernel() {
        let empty = tempfile::tempdir().expect("a directory");
        let value = osinfo(empty.path()).expect("an answer");
        let mut fields: Vec<&str> = value.as_object().expect("an object").keys().map(String::as_str).collect();
        fields.sort_unstable();
        assert_eq!(fields, ["kernel-release", "kernel-version", "machine"]);
    }

    #[test]
    fn an_unreadable_mount_table_is_an_error_with_its_reason() {
        let empty = tempfile::tempdir().expect("a directory");
        let error = fsinfo(empty.path()).expect_err("no /proc");
        assert!(error.desc.starts_with("failed to read the mount table: "), "{error}");
    }
}
