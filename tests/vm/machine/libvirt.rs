//! A real libvirtd, private to the world of a fact: no service manager, no dbus, no other machine's files.

use std::{
    fs,
    ops::Deref,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use super::{Boot, Inside, Machine, Place, has, image, qemu::KERNEL_ARGUMENTS};
use crate::lab::{Lab, command, finish, now, until};

/// The first connection makes libvirt look at what QEMU can do; 6 s.
const UP: Duration = Duration::from_secs(60);
const SOCKET: &str = "/run/libvirt/libvirt-sock";
/// What it found out about QEMU, kept between facts.
const CACHE: &str = "/var/cache/libvirt/qemu";

const QEMU_CONF: &str = r#"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
stdio_handler = "file"
cgroup_controllers = [ ]
namespaces = [ ]
"#;

const LIBVIRTD_CONF: &str = r#"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_filters = "1:qemu.qemu_agent 3:*"
log_outputs = "1:file:/run/libvirtd.log"
"#;

/// The daemon; ends with the value.
pub struct Libvirt {
    child: Child,
}

/// What a command of virsh came to.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub took: Duration,
}

impl Libvirt {
    /// Skips the fact where there is no libvirt.
    pub fn start(lab: &Lab) -> Libvirt {
        if !has("libvirtd") || !has("virsh") {
            lab.skip("libvirt is not installed");
        }
        // the world's root is an overlay in memory: nothing of this reaches the machine
        for (path, text) in [("/etc/libvirt/qemu.conf", QEMU_CONF), ("/etc/libvirt/libvirtd.conf", LIBVIRTD_CONF)] {
            fs::create_dir_all("/etc/libvirt").expect("the world's root is writable");
            fs::write(path, text).expect("the world's root is writable");
        }
        account("/etc/passwd", "libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin");
        account("/etc/group", "libvirt-qemu:x:64055:");
        account("/etc/group", "libvirt:x:64056:");
        account("/etc/group", "kvm:x:64057:");
        for dir in [CACHE, "/var/lib/libvirt/qemu", "/var/log/libvirt/qemu", "/run/libvirt"] {
            fs::create_dir_all(dir).expect("the world's root is writable");
        }
        let kept = lab.store("../vm-libvirt-cache");
        copy(&kept, Path::new(CACHE));
        let log = fs::File::create("/run/libvirtd.out").expect("memory");
        let mut libvirtd = command("libvirtd");
        libvirtd.stdout(log.try_clone().expect("a descriptor")).stderr(log);
        let libvirt = Libvirt { child: libvirtd.spawn().unwrap_or_else(|e| panic!("failed to start libvirtd: {e}")) };
        assert!(until(UP, || Path::new(SOCKET).exists()), "libvirtd does not listen: {}", libvirt.log());
        let mut version = libvirt.start_virsh(&["version"]);
        let connected = finish(&mut version, UP).is_some_and(|s| s.success());
        assert!(connected, "virsh cannot connect: {}", libvirt.log());
        copy(Path::new(CACHE), &kept);
        libvirt
    }

    pub fn log(&self) -> String {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let log = read("/run/libvirtd.log");
        let tail: Vec<&str> = log.lines().rev().take(12).collect();
        format!("{}{}", read("/run/libvirtd.out"), tail.into_iter().rev().collect::<Vec<_>>().join("\n"))
    }

    /// Starts virsh, its output in a pipe nobody reads.
    pub fn start_virsh(&self, arguments: &[&str]) -> Child {
        let mut virsh = command("virsh");
        virsh.args(["-c", &format!("qemu+unix:///system?socket={SOCKET}")]).args(arguments);
        virsh.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it is installed")
    }

    /// Runs virsh to its end; killed after `limit`.
    pub fn virsh_within(&self, limit: Duration, arguments: &[&str]) -> Said {
        let begun = now();
        let mut child = self.start_virsh(arguments);
        let status = finish(&mut child, limit);
        let took = now() - begun;
        let read = |pipe: Option<&mut dyn std::io::Read>| {
            pipe.map_or_else(String::new, |p| std::io::read_to_string(p).unwrap_or_default())
        };
        let out = read(child.stdout.as_mut().map(|p| p as _)) + &read(child.stderr.as_mut().map(|p| p as _));
        Said { code: status.and_then(|s| s.code()), out: out.trim().to_owned(), took }
    }

    pub fn virsh(&self, arguments: &[&str]) -> Said {
        self.virsh_within(Duration::from_secs(40), arguments)
    }

    /// Boots a guest as a domain called `name`, and waits for its shell.
    pub fn boot(&self, place: &Place, name: &str, boot: &Boot) -> Domain<'_> {
        Machine::make_disks(place, &boot.base());
        let xml = place.file("domain.xml");
        fs::write(&xml, domain(place, name, boot)).expect("memory");
        let created = self.virsh(&["create", xml.to_str().expect("ASCII")]);
        assert_eq!(created.code, Some(0), "{}\n{}", created.out, self.log());
        let inside = Inside::new(&place.file("shell.sock"), &place.file("serial.log"));
        let domain = Domain { libvirt: self, place: place.clone(), name: name.to_owned(), inside };
        domain.inside.wait_for_shell(boot.limit(), || None);
        domain
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("libvirt said last:\n{}", self.log());
        }
        let _ = finish(&mut self.child, Duration::ZERO);
    }
}

/// A running domain; gone with the value.
pub struct Domain<'a> {
    libvirt: &'a Libvirt,
    pub place: Place,
    pub name: String,
    inside: Inside,
}

impl Deref for Domain<'_> {
    type Target = Inside;

    fn deref(&self) -> &Inside {
        &self.inside
    }
}

impl Domain<'_> {
    /// virsh VERB DOMAIN ARGUMENTS…
    pub fn virsh(&self, verb: &str, arguments: &[&str]) -> Said {
        self.libvirt.virsh(&[&[verb, &self.name], arguments].concat())
    }

    /// As [`Domain::virsh`], but somebody may kill it.
    pub fn start_virsh(&self, verb: &str) -> Child {
        self.libvirt.start_virsh(&[verb, &self.name])
    }

    /// Until libvirt reaches the agent.
    pub fn agent_answers(&self) {
        let ping = || self.virsh("qemu-agent-command", &["{\"execute\":\"guest-ping\"}"]).code == Some(0);
        assert!(until(Duration::from_secs(60), ping), "libvirt does not reach the agent");
    }

    /// The file a disk was in before the last snapshot.
    pub fn disk(&self, name: &str) -> PathBuf {
        self.place.disk.join(format!("{name}.qcow2"))
    }
}

impl Drop for Domain<'_> {
    fn drop(&mut self) {
        self.libvirt.virsh(&["destroy", &self.name]);
    }
}

/// Adds an account that libvirt insists on.
fn account(file: &str, line: &str) {
    let text = fs::read_to_string(file).unwrap_or_default();
    let name = line.split_inclusive(':').next().unwrap_or_default();
    if !text.lines().any(|l| l.starts_with(name)) {
        fs::write(file, format!("{}\n{line}\n", text.trim_end())).expect("the world's root is writable");
    }
}

fn copy(from: &Path, to: &Path) {
    if from.exists() {
        let mut cp = command("cp").arg("-a").arg("-T").arg(from).arg(to).spawn().expect("coreutils");
        let _ = finish(&mut cp, Duration::from_secs(10));
    }
}

fn domain(place: &Place, name: &str, boot: &Boot) -> String {
    let disk = |file: &str, target: &str| {
        format!(
            "<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='unsafe'/>\
             <source file='{}/{file}.qcow2'/><target dev='{target}' bus='virtio'/><serial>{file}</serial></disk>",
            place.disk.display()
        )
    };
    let channel = |file: &str, name: &str| {
        format!(
            "<channel type='unix'><source mode='bind' path='{}'/><target type='virtio' name='{name}'/></channel>",
            place.file(file).display()
        )
    };
    let init = if boot.systemd { "labinit=/lib/systemd/systemd" } else { "" };
    format!(
        "<domain type='qemu'><name>{name}</name><memory unit='MiB'>{memory}</memory><vcpu>{cpus}</vcpu>\
         <os><type arch='x86_64' machine='q35'>hvm</type><kernel>{kernel}</kernel><initrd>{initrd}</initrd>\
         <cmdline>{KERNEL_ARGUMENTS} {init} {more}</cmdline></os><features><acpi/></features>\
         <cpu mode='custom' match='exact' check='none'><model fallback='allow'>qemu64</model></cpu>\
         <on_poweroff>destroy</on_poweroff><on_reboot>destroy</on_reboot><on_crash>destroy</on_crash>\
         <devices><emulator>/usr/bin/qemu-system-x86_64</emulator><controller type='usb' model='none'/>\
         <memballoon model='none'/>{root}{data}<controller type='virtio-serial' index='0'/>{agent}{shell}\
         <serial type='file'><source path='{serial}'/><target port='0'/></serial></devices></domain>",
        memory = boot.megabytes,
        cpus = boot.processors,
        kernel = image("kernel/vmlinux").display(),
        initrd = image("initrd.cpio").display(),
        more = boot.kernel,
        root = disk("root", "vda"),
        data = disk("data", "vdb"),
        agent = channel("ga.sock", "org.qemu.guest_agent.0"),
        shell = channel("shell.sock", "lab.shell"),
        serial = place.file("serial.log").display(),
    )
}
