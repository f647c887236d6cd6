//! Real virtual machines for the tests: QEMU without KVM, in the world of a fact, so that they end with it.
//!
//! ```text
//!   fact ─┬─ Machine ─ qemu ─┬─ QMP socket ······ snapshots, pause, memory snapshots
//!         │                  ├─ guest-agent port · a Host (tests/lab/guest_agent.rs), as libvirt or Proxmox would be
//!         │                  └─ shell port ······ Inside: commands in the guest
//!         └─ Libvirt ─ libvirtd ─ Domain ─ the same three
//! ```
//!
//! What they boot is made by `tests/vm/image/build.sh`. Every wait ends; a machine that is dropped by a panic says what
//! its console said last.

pub mod agent;
pub mod inside;
pub mod ledger;
pub mod libvirt;
pub mod oracle;
pub mod qemu;
pub mod qmp;
pub mod vsock;

use std::path::{Path, PathBuf};

pub use agent::{Agent, Holdstill, QemuGa};
pub use inside::Inside;
pub use qemu::{Boot, Machine};

use crate::lab::Lab;

/// Where one machine's files are; can be handed to another thread, which a [`Lab`] cannot.
#[derive(Debug, Clone)]
pub struct Place {
    /// in memory: sockets, logs, small disks. Short, because a socket's path has room for 107 bytes.
    pub memory: PathBuf,
    /// on the machine's disk, for what is large
    pub disk: PathBuf,
}

impl Place {
    /// A new place for a machine; skips the fact if there is nothing to boot.
    pub fn new(lab: &Lab, name: &str) -> Place {
        for piece in ["kernel/vmlinux", "initrd.cpio", "small.img", "data.img"] {
            if !image(piece).exists() {
                lab.skip(&format!("no {}: run tests/vm/image/build.sh", image(piece).display()));
            }
        }
        if !has("qemu-system-x86_64") || !has("qemu-img") {
            lab.skip("QEMU is not installed");
        }
        let memory = lab.memory_dir(name);
        let disk = lab.store(memory.file_name().and_then(|n| n.to_str()).expect("the lab's names are ASCII"));
        std::fs::create_dir_all(&disk).expect("the lab's directory is writable");
        Place { memory, disk }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.memory.join(name)
    }
}

/// One of the pieces `tests/vm/image/build.sh` makes.
pub fn image(piece: &str) -> PathBuf {
    let made = std::env::var_os("HOLDSTILL_VM_LAB")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/vm-lab"), PathBuf::from);
    made.join(piece)
}

/// Whether a program is installed.
pub fn has(program: &str) -> bool {
    ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].iter().any(|dir| Path::new(dir).join(program).is_file())
}
