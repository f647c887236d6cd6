//! Which cloud or hypervisor this is, and the numbers by which a copy knows itself. Called by receipts
//! and coverage. Files alone, no metadata service is asked; a guest without DMI (Firecracker, many ARM boards) is normal.

use std::{fmt, fs, path::Path};

/// Where this guest runs, by cloud-init's `ds-identify` rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Platform {
    Azure,
    Aws,
    Gcp,
    OpenStack,
    Alibaba,
    Oci,
    DigitalOcean,
    Hetzner,
    Vultr,
    UpCloud,
    Scaleway,
    Linode,
    Exoscale,
    CloudStack,
    CloudSigma,
    HyperV,
    VmWare,
    Nutanix,
    KubeVirt,
    /// KVM or QEMU with nothing said about who runs it
    Kvm,
    Unknown,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Azure => "azure",
            Self::Aws => "aws",
            Self::Gcp => "gcp",
            Self::OpenStack => "openstack",
            Self::Alibaba => "alibaba",
            Self::Oci => "oci",
            Self::DigitalOcean => "digitalocean",
            Self::Hetzner => "hetzner",
            Self::Vultr => "vultr",
            Self::UpCloud => "upcloud",
            Self::Scaleway => "scaleway",
            Self::Linode => "linode",
            Self::Exoscale => "exoscale",
            Self::CloudStack => "cloudstack",
            Self::CloudSigma => "cloudsigma",
            Self::HyperV => "hyper-v",
            Self::VmWare => "vmware",
            Self::Nutanix => "nutanix",
            Self::KubeVirt => "kubevirt",
            Self::Kvm => "kvm",
            Self::Unknown => "unknown",
        })
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

const AZURE_CHASSIS: &str = "7783-7084-3265-9085-8269-3286-77";
const OPENSTACK_CHASSIS: [&str; 6] = [
    "OpenTelekomCloud",
    "HUAWEICLOUD",
    "SAP CCloud VM",
    "Samsung Cloud Platform",
    "OpenStack Nova",
    "OpenStack Compute",
];

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

    pub fn platform(&self) -> Platform {
        let (vendor, product, chassis) =
            (self.sys_vendor.as_str(), self.product_name.as_str(), self.chassis_asset_tag.as_str());
        match () {
            () if chassis == AZURE_CHASSIS => Platform::Azure,
            () if self.is_aws() => Platform::Aws,
            () if product == "Google Compute Engine" || self.product_serial.starts_with("GoogleCloud-") => {
                Platform::Gcp
            }
            () if matches!(product, "OpenStack Nova" | "OpenStack Compute") || OPENSTACK_CHASSIS.contains(&chassis) => {
                Platform::OpenStack
            }
            () if product == "Alibaba Cloud ECS" => Platform::Alibaba,
            () if chassis == "OracleCloud.com" => Platform::Oci,
            () if product.starts_with("Exoscale") => Platform::Exoscale,
            () if product.starts_with("CloudStack") => Platform::CloudStack,
            () if product.starts_with("CloudSigma") => Platform::CloudSigma,
            () if product.starts_with("KubeVirt") || vendor == "KubeVirt" => Platform::KubeVirt,
            () => Self::by_vendor(vendor),
        }
    }

    fn by_vendor(vendor: &str) -> Platform {
        match vendor {
            "DigitalOcean" => Platform::DigitalOcean,
            "Hetzner" => Platform::Hetzner,
            "Vultr" => Platform::Vultr,
            "UpCloud" => Platform::UpCloud,
            "Scaleway" => Platform::Scaleway,
            "Linode" | "Akamai" => Platform::Linode,
            "Microsoft Corporation" => Platform::HyperV,
            "VMware, Inc." => Platform::VmWare,
            "Nutanix" => Platform::Nutanix,
            "QEMU" | "Red Hat" => Platform::Kvm,
            _ => Platform::Unknown,
        }
    }

    /// Xen guests have an ec2 hypervisor UUID; later ones an ec2 product UUID, which some firmware prints byte-swapped.
    fn is_aws(&self) -> bool {
        let uuid = self.product_uuid.to_ascii_lowercase();
        let group = uuid.split('-').next().unwrap_or_default();
        let swapped = group.len() == 8 && group[4..5] == *"2" && group.ends_with("ec");
        self.hypervisor_uuid.starts_with("ec2")
            || group.starts_with("ec2")
            || swapped
            || self.sys_vendor == "Amazon EC2"
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
}

impl Instance {
    pub fn read(root: &Path) -> Self {
        Self {
            boot_id: text(&root.join("proc/sys/kernel/random/boot_id")),
            machine_id: text(&root.join("etc/machine-id")).filter(|id| id != "uninitialized"),
            product_uuid: text(&root.join("sys/class/dmi/id/product_uuid")).map(|uuid| uuid.to_ascii_lowercase()),
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

    fn dmi(vendor: &str, product: &str, chassis: &str, uuid: &str) -> Platform {
        Dmi {
            sys_vendor: vendor.into(),
            product_name: product.into(),
            chassis_asset_tag: chassis.into(),
            product_uuid: uuid.into(),
            ..Dmi::default()
        }
        .platform()
    }

    #[test]
    fn a_guest_without_dmi_is_unknown_not_an_error() {
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(Dmi::read(empty.path()), Dmi::default());
        assert_eq!(Dmi::default().platform(), Platform::Unknown);
        assert_eq!(Instance::read(empty.path()), Instance::default());
    }

    #[test]
    fn clouds_are_told_by_what_their_firmware_says() {
        assert_eq!(dmi("Microsoft Corporation", "Virtual Machine", AZURE_CHASSIS, ""), Platform::Azure);
        assert_eq!(dmi("Microsoft Corporation", "Virtual Machine", "8535-9487", ""), Platform::HyperV);
        assert_eq!(dmi("Google", "Google Compute Engine", "", ""), Platform::Gcp);
        assert_eq!(dmi("OpenStack Foundation", "OpenStack Nova", "", ""), Platform::OpenStack);
        assert_eq!(dmi("Huawei", "custom", "HUAWEICLOUD", ""), Platform::OpenStack);
        assert_eq!(dmi("QEMU", "Standard PC (Q35 + ICH9, 2009)", "OracleCloud.com", ""), Platform::Oci);
        assert_eq!(dmi("QEMU", "Standard PC (Q35 + ICH9, 2009)", "", "e5c24a8a"), Platform::Kvm);
        assert_eq!(dmi("Akamai", "Compute Instance", "", ""), Platform::Linode);
    }

    #[test]
    fn aws_is_known_by_its_uuid_in_either_byte_order() {
        assert_eq!(dmi("Xen", "HVM domU", "", "EC2E1916-9099-7CAF-FD21-012345ABCDEF"), Platform::Aws);
        assert_eq!(dmi("Xen", "HVM domU", "", "45E12AEC-DCD1-B213-94ED-012345ABCDEF"), Platform::Aws);
        assert_eq!(dmi("Xen", "HVM domU", "", "45E1AAEC-DCD1-B213-94ED-012345ABCDEF"), Platform::Unknown);
        assert_eq!(dmi("Xen", "HVM domU", "", "é2ec"), Platform::Unknown, "no panic inside a character");
    }
}
