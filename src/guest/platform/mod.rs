//! Which cloud or hypervisor this is, and the numbers by which a copy knows itself. Called by receipts
//! and coverage. Files alone, no metadata service is asked; a guest without DMI (Firecracker, many ARM boards) is normal.
//! What is known of each platform is data: see [`known`].

pub mod known;
#[cfg(test)]
mod listed;

use std::{fmt, fs, path::Path};

use self::known::{Globs, Known, Recognise};
use super::cloud_init;

/// Where this guest runs.
#[derive(Clone, Copy)]
pub struct Platform(&'static Known);

impl Platform {
    /// The one called so in `known/`.
    pub fn named(name: &str) -> Option<Self> {
        known::all().iter().find(|known| known.name == name).map(Self)
    }

    pub fn unknown() -> Self {
        Self::named("unknown").expect("known/unknown.toml is there")
    }

    /// What is known of it.
    pub fn known(self) -> &'static Known {
        self.0
    }

    /// "OpenStack", for people.
    pub fn title(self) -> &'static str {
        &self.0.title
    }

    /// By the firmware; where that names a hypervisor anybody may run, or nothing, by what cloud-init found.
    pub fn of(dmi: &Dmi, cloud_id: Option<&str>) -> Self {
        let by_firmware = dmi.platform();
        let by_cloud_init = || {
            let id = cloud_id?;
            known::all().iter().find(|known| known.cloud_ids.iter().any(|own| own == id)).map(Self)
        };
        if by_firmware.0.generic { by_cloud_init().unwrap_or(by_firmware) } else { by_firmware }
    }

    /// Of the guest below `root`.
    pub fn read(root: &Path) -> Self {
        Self::of(&Dmi::read(root), cloud_init::cloud_id(root).as_deref())
    }
}

impl PartialEq for Platform {
    fn eq(&self, other: &Self) -> bool {
        self.0.name == other.0.name
    }
}

impl Eq for Platform {}

impl fmt::Debug for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Platform").field(&self.0.name).finish()
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.name)
    }
}

/// What the firmware says; empty where it says nothing, or not to us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dmi {
    pub sys_vendor: String,
    pub product_name: String,
    pub product_serial: String,
    pub product_uuid: String,
    pub chassis_asset_tag: String,
    /// `/sys/hypervisor/uuid`, on Xen
    pub hypervisor_uuid: String,
}

impl Dmi {
    pub fn read(root: &Path) -> Self {
        let dmi = |name: &str| text(&root.join("sys/class/dmi/id").join(name)).unwrap_or_default();
        Self {
            sys_vendor: dmi("sys_vendor"),
            product_name: dmi("product_name"),
            product_serial: dmi("product_serial"),
            product_uuid: dmi("product_uuid"),
            chassis_asset_tag: dmi("chassis_asset_tag"),
            hypervisor_uuid: text(&root.join("sys/hypervisor/uuid")).unwrap_or_default(),
        }
    }

    /// The platform whose rules fit best; the unknown one if none does.
    pub fn platform(&self) -> Platform {
        let rules = known::all().iter().flat_map(|known| known.recognise.iter().map(move |rule| (known, rule)));
        let fits = rules.filter(|(_, rule)| self.fits(rule));
        // of equals the first, so that the answer is always the same
        let best = fits.reduce(|best, next| if next.1.strength() > best.1.strength() { next } else { best });
        best.map_or_else(Platform::unknown, |(known, _)| Platform(known))
    }

    fn fits(&self, rule: &Recognise) -> bool {
        let fits = |glob: &Option<Globs>, text: &str| glob.as_ref().is_none_or(|glob| glob.fits(text));
        fits(&rule.chassis_asset_tag, &self.chassis_asset_tag)
            && fits(&rule.hypervisor_uuid, &self.hypervisor_uuid)
            && fits(&rule.product_name, &self.product_name)
            && fits(&rule.product_serial, &self.product_serial)
            && fits(&rule.sys_vendor, &self.sys_vendor)
            && fits(&rule.product_uuid, &self.product_uuid.to_ascii_lowercase())
    }
}

/// What tells one running guest from its copies; each `None` where it cannot be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Instance {
    /// new at every boot
    pub boot_id: Option<String>,
    /// copied along with the disk
    pub machine_id: Option<String>,
    /// the hypervisor's, lower case: usually new for a copy, the same after a revert in place
    pub product_uuid: Option<String>,
    /// the platform's, as cloud-init found it in this boot: new for a copy
    pub instance_id: Option<String>,
}

impl Instance {
    pub fn read(root: &Path) -> Self {
        Self {
            boot_id: text(&root.join("proc/sys/kernel/random/boot_id")),
            machine_id: text(&root.join("etc/machine-id")).filter(|id| id != "uninitialized"),
            product_uuid: text(&root.join("sys/class/dmi/id/product_uuid")).map(|uuid| uuid.to_ascii_lowercase()),
            instance_id: cloud_init::instance_id(root),
        }
    }
}

fn text(path: &Path) -> Option<String> {
    let bytes = fs::read(path).ok()?;
    let text = String::from_utf8_lossy(&bytes).trim().to_string();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dmi(vendor: &str, product: &str, chassis: &str, uuid: &str) -> String {
        Dmi {
            sys_vendor: vendor.into(),
            product_name: product.into(),
            chassis_asset_tag: chassis.into(),
            product_uuid: uuid.into(),
            ..Dmi::default()
        }
        .platform()
        .to_string()
    }

    #[test]
    fn a_guest_without_dmi_is_unknown_not_an_error() {
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(Dmi::read(empty.path()), Dmi::default());
        assert_eq!(Dmi::default().platform().to_string(), "unknown");
        assert_eq!(Instance::read(empty.path()), Instance::default());
    }

    #[test]
    fn clouds_are_told_by_what_their_firmware_says() {
        assert_eq!(dmi("Microsoft Corporation", "Virtual Machine", "7783-7084-3265-9085-8269-3286-77", ""), "azure");
        assert_eq!(dmi("Microsoft Corporation", "Virtual Machine", "8535-9487", ""), "hyper-v");
        assert_eq!(dmi("Google", "Google Compute Engine", "", ""), "gcp");
        assert_eq!(dmi("OpenStack Foundation", "OpenStack Nova", "", ""), "openstack");
        assert_eq!(dmi("Huawei", "custom", "HUAWEICLOUD", ""), "openstack");
        assert_eq!(dmi("QEMU", "Standard PC (Q35 + ICH9, 2009)", "OracleCloud.com", ""), "oci");
        assert_eq!(dmi("QEMU", "Standard PC (Q35 + ICH9, 2009)", "", "e5c24a8a"), "kvm");
        assert_eq!(dmi("Akamai", "Compute Instance", "", ""), "linode");
    }

    #[test]
    fn a_cloud_that_changed_its_firmwares_words_is_told_by_cloud_init_and_never_against_the_firmware() {
        let of = |vendor: &str, id| Platform::of(&Dmi { sys_vendor: vendor.into(), ..Dmi::default() }, id).to_string();
        assert_eq!(of("QEMU", Some("openstack")), "openstack");
        assert_eq!(of("", Some("gce")), "gcp");
        assert_eq!(of("Hetzner", Some("openstack")), "hetzner");
        assert_eq!(of("QEMU", Some("nocloud")), "kvm");
    }

    #[test]
    fn a_uuid_that_begins_like_amazons_by_chance_does_not_make_it_amazon() {
        assert_eq!(
            dmi("OpenStack Foundation", "OpenStack Nova", "", "ec2e1916-9099-7caf-fd21-012345abcdef"),
            "openstack"
        );
        assert_eq!(dmi("QEMU", "Standard PC", "", "ec2e1916-9099-7caf-fd21-012345abcdef"), "kvm");
    }

    #[test]
    fn aws_is_known_by_its_uuid_in_either_byte_order() {
        assert_eq!(dmi("Xen", "HVM domU", "", "EC2E1916-9099-7CAF-FD21-012345ABCDEF"), "aws");
        assert_eq!(dmi("Xen", "HVM domU", "", "45E12AEC-DCD1-B213-94ED-012345ABCDEF"), "aws");
        assert_eq!(dmi("Xen", "HVM domU", "", "45E1AAEC-DCD1-B213-94ED-012345ABCDEF"), "unknown");
        assert_eq!(dmi("Xen", "HVM domU", "", "é2ec"), "unknown", "no panic inside a character");
    }
}
