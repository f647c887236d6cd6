//! One virtual machine, from its disks to its end.

use std::{
    cell::RefCell,
    fs,
    ops::Deref,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};

use super::{Inside, Place, image, qmp::Qmp};
use crate::lab::{command, finish, guest_agent::Host, process::tool, until};

/// From the start of QEMU until the shell answers; 3 s on an idle machine.
const BOOT: Duration = Duration::from_secs(60);
/// The same for the guest with systemd and databases; 20 s on an idle machine.
const SLOW_BOOT: Duration = Duration::from_secs(180);
/// What makes a guest under emulation boot quickly; none of it has to do with what is tested.
pub const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check \
                                    random.trust_cpu=on audit=0";

/// What to boot.
#[derive(Debug, Clone)]
pub struct Boot {
    pub systemd: bool,
    pub megabytes: u32,
    pub processors: u32,
    /// further arguments of the kernel
    pub kernel: String,
    /// further arguments of QEMU
    pub qemu: Vec<String>,
    /// a reset in the guest boots it again instead of ending QEMU
    pub reboots: bool,
    /// wake up in this memory snapshot, of disks that are there already
    pub wake: Option<&'static str>,
    /// boot what was cut from another machine, which is left as it is
    pub copy_of: Option<[PathBuf; 2]>,
}

impl Boot {
    pub fn small() -> Boot {
        Boot {
            systemd: false,
            megabytes: 320,
            processors: 1,
            kernel: String::new(),
            qemu: Vec::new(),
            reboots: false,
            wake: None,
            copy_of: None,
        }
    }

    pub fn systemd() -> Boot {
        Boot { systemd: true, megabytes: 1536, processors: 2, ..Boot::small() }
    }

    pub fn base(&self) -> PathBuf {
        image(if self.systemd { "systemd.img" } else { "small.img" })
    }

    pub fn limit(&self) -> Duration {
        if self.systemd { SLOW_BOOT } else { BOOT }
    }
}

/// A running machine. Dropped, it is gone; by a panic, its console is shown.
pub struct Machine {
    pub place: Place,
    child: RefCell<Child>,
    qmp: RefCell<Qmp>,
    inside: Inside,
}

impl Deref for Machine {
    type Target = Inside;

    fn deref(&self) -> &Inside {
        &self.inside
    }
}

impl Machine {
    /// Boots new disks over the common images, and waits for the shell.
    pub fn boot(place: &Place, boot: &Boot) -> Machine {
        let machine = Machine::start(place, boot);
        machine.inside.wait_for_shell(boot.limit(), || machine.ended());
        machine
    }

    /// The two disks a guest may write to, as overlays of the common images.
    pub fn make_disks(place: &Place, base: &Path) {
        Machine::make_overlays(place, [base, &image("data.img")], "raw");
    }

    fn make_overlays(place: &Place, bases: [&Path; 2], format: &str) {
        for (name, base) in ["root", "data"].into_iter().zip(bases) {
            let disk = place.disk.join(format!("{name}.qcow2"));
            tool(command("qemu-img").args(["create", "-q", "-f", "qcow2", "-F", format, "-b"]).arg(base).arg(disk));
        }
    }

    /// As [`Machine::boot`], but the guest may still be on its way.
    pub fn start(place: &Place, boot: &Boot) -> Machine {
        match &boot.copy_of {
            Some([root, data]) => Machine::make_overlays(place, [root, data], "qcow2"),
            None if boot.wake.is_none() => Machine::make_disks(place, &boot.base()),
            None => {}
        }
        let mut qemu = qemu(place, boot);
        let log = fs::File::create(place.file("qemu.log")).expect("memory");
        qemu.stdout(log.try_clone().expect("a descriptor")).stderr(log);
        let child = qemu.spawn().unwrap_or_else(|e| panic!("failed to start QEMU: {e}"));
        let said = || fs::read_to_string(place.file("qemu.log")).unwrap_or_default();
        let up = until(Duration::from_secs(20), || place.file("qmp.sock").exists());
        assert!(up, "QEMU did not start: {}", said());
        Machine {
            qmp: RefCell::new(Qmp::connect(&place.file("qmp.sock"))),
            inside: Inside::new(&place.file("shell.sock"), &place.file("serial.log")),
            place: place.clone(),
            child: RefCell::new(child),
        }
    }

    /// Whether the guest switches itself off, or resets and does not boot again, within `limit`.
    pub fn ends_within(&self, limit: Duration) -> bool {
        until(limit, || self.ended().is_some())
    }

    fn ended(&self) -> Option<String> {
        let status = self.child.borrow_mut().try_wait().ok().flatten()?;
        let said = fs::read_to_string(self.place.file("qemu.log")).unwrap_or_default();
        Some(format!("QEMU ended: {status} {said}"))
    }

    /// A host on the guest-agent channel. There can be only one at a time.
    pub fn host(&self) -> Host {
        Host::connect(&self.place.file("ga.sock"))
    }

    pub fn qmp(&self, command: &str, arguments: Value) -> Value {
        self.qmp.borrow_mut().run(command, arguments)
    }

    /// Cuts both disks at the same instant: what was written so far stays in the files it is in, which are answered.
    pub fn cut(&self, tag: &str) -> [PathBuf; 2] {
        let so_far = self.qmp("query-block", Value::Null);
        let file_of = |name: &str| {
            let devices = so_far.as_array().expect("a list");
            let device = devices.iter().find(|d| d["device"] == name).expect("both disks are there");
            PathBuf::from(device["inserted"]["file"].as_str().expect("a file"))
        };
        let cut = ["root", "data"].map(file_of);
        self.qmp("transaction", self.to_cut(tag));
        cut
    }

    /// What `transaction` has to be given to do that.
    pub fn to_cut(&self, tag: &str) -> Value {
        let next = |name: &str| self.place.disk.join(format!("{name}-{tag}.qcow2"));
        let actions = ["root", "data"].map(|name| {
            json!({"type": "blockdev-snapshot-sync",
                   "data": {"device": name, "snapshot-file": next(name), "format": "qcow2"}})
        });
        json!({"actions": actions})
    }

    /// The machine is gone, from one moment to the next.
    pub fn kill(&self) {
        let _ = finish(&mut self.child.borrow_mut(), Duration::ZERO);
    }

    /// Lets so many bytes a second through to one of its disks; 0: as many as there are.
    pub fn throttle(&self, disk: &str, bytes: u32) {
        let mut limits = json!({"device": disk, "bps": bytes});
        for other in ["bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"] {
            limits[other] = json!(0);
        }
        self.qmp("block_set_io_throttle", limits);
    }

    /// Writes memory and disks into a snapshot within the disks.
    pub fn save(&self, name: &str) {
        let said = self.qmp.borrow_mut().monitor(&format!("savevm {name}"));
        assert_eq!(said, "", "savevm failed");
    }

    /// Goes back to that moment, in this same QEMU.
    pub fn load(&self, name: &str) {
        let said = self.qmp.borrow_mut().monitor(&format!("loadvm {name}"));
        assert_eq!(said, "", "loadvm failed");
        self.inside.hang_up();
    }

    /// Resets it; the guest boots again.
    pub fn reset(&self, boot: &Boot) {
        self.inside.hang_up();
        let so_far = self.inside.console().matches(READY).count();
        self.qmp("system_reset", Value::Null);
        let again = || self.inside.console().matches(READY).count() > so_far;
        assert!(until(boot.limit(), again), "it did not boot again");
        self.inside.wait_for_shell(boot.limit(), || self.ended());
    }
}

/// What a guest's init says on the console when it has done its part.
pub const READY: &str = "LAB ready";

fn qemu(place: &Place, boot: &Boot) -> Command {
    let mut qemu = command("qemu-system-x86_64");
    let init = if boot.systemd { "labinit=/lib/systemd/systemd" } else { "" };
    let arguments = format!("{KERNEL_ARGUMENTS} {init} {}", boot.kernel);
    let socket =
        |id: &str, file: &str| format!("socket,id={id},path={},server=on,wait=off", place.file(file).display());
    qemu.args([
        "-accel",
        "tcg",
        "-machine",
        "q35",
        "-cpu",
        "qemu64",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
    ])
    .args(["-m", &boot.megabytes.to_string(), "-smp", &boot.processors.to_string()])
    .arg("-kernel")
    .arg(image("kernel/vmlinux"))
    .arg("-initrd")
    .arg(image("initrd.cpio"))
    .args(["-append", &arguments])
    .args(["-serial", &format!("file:{}", place.file("serial.log").display())])
    .args(["-qmp", &format!("unix:{},server=on,wait=off", place.file("qmp.sock").display())])
    .args(["-device", "pcie-root-port,id=spare,chassis=9,slot=9"])
    .args(["-device", "virtio-serial-pci"])
    .args(["-chardev", &socket("ga", "ga.sock"), "-device", "virtserialport,chardev=ga,name=org.qemu.guest_agent.0"])
    .args(["-chardev", &socket("shell", "shell.sock"), "-device", "virtserialport,chardev=shell,name=lab.shell"]);
    for name in ["root", "data"] {
        // the machine's own disk may be slow; what the host does with flushes is not what is tested
        let drive = format!("if=none,id={name},file={}/{name}.qcow2,format=qcow2,cache=unsafe", place.disk.display());
        qemu.args(["-drive", &drive, "-device", &format!("virtio-blk-pci,drive={name},id=disk-{name},serial={name}")]);
    }
    if !boot.reboots {
        qemu.arg("-no-reboot");
    }
    if let Some(snapshot) = boot.wake {
        qemu.args(["-loadvm", snapshot]);
    }
    qemu.args(&boot.qemu).stdin(Stdio::null());
    qemu
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = finish(&mut self.child.borrow_mut(), Duration::ZERO);
    }
}
