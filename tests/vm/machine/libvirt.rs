//! A real libvirtd in the world of a fact, with directories, accounts and a network of its own: this machine's domains and
//! networks, if it has any, are neither seen nor started. Ends with its value, by its pid.

use std::{
    fs,
    ops::Deref,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use nix::{
    mount::{MsFlags, mount},
    sys::signal::Signal,
};

use super::{Boot, Inside, Machine, Place, has, image, qemu::KERNEL_ARGUMENTS};
use crate::lab::{Lab, command, finish, now, process, until};

/// Where libvirt keeps everything; its socket and pid file are below /run, which is the world's own.
const DIRECTORIES: [&str; 4] = ["/etc/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt"];
const CAPABILITIES: &str = "/var/cache/libvirt/qemu/capabilities";
const SOCKET: &str = "/run/libvirt/libvirt-sock";
const LOG: &str = "/run/libvirtd.log";
/// libvirt starts only if these exist, whatever its configuration says.
const ACCOUNTS: [(&str, &str); 4] = [
    ("/etc/passwd", "libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin"),
    ("/etc/group", "libvirt-qemu:x:64055:"),
    ("/etc/group", "libvirt:x:64056:"),
    ("/etc/group", "kvm:x:64057:"),
];
/// No service manager, no message bus, no log daemon, no control groups.
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
unix_sock_rw_perms = "0700"
log_filters = "1:qemu.qemu_agent 3:*"
log_outputs = "1:file:/run/libvirtd.log"
"#;
/// A libvirt that has never run here starts QEMU to learn what it can: 3 s on an idle machine.
const START: Duration = Duration::from_secs(60);
/// A virsh that takes longer hangs; the slowest thing asked here is a freeze whose hook takes six seconds.
const PATIENCE: Duration = Duration::from_secs(40);

/// The daemon.
pub struct Libvirt {
    child: Child,
    pub virsh: Virsh,
}

impl Libvirt {
    /// Starts it; skips the fact if it is not installed.
    pub fn start(lab: &Lab) -> Libvirt {
        for program in ["libvirtd", "virsh"] {
            if !has(program) {
                lab.skip(&format!("{program} is not installed"));
            }
        }
        for directory in DIRECTORIES {
            fs::create_dir_all(directory).expect("the world's root is in memory");
            mount(Some("lab"), directory, Some("tmpfs"), MsFlags::empty(), Some("mode=755")).expect("memory");
        }
        for (file, line) in ACCOUNTS {
            account(file, line);
        }
        fs::write("/etc/libvirt/qemu.conf", QEMU_CONF).expect("memory");
        fs::write("/etc/libvirt/libvirtd.conf", LIBVIRTD_CONF).expect("memory");
        let learnt = lab.store("../vm-libvirt-capabilities");
        copy(&learnt, Path::new(CAPABILITIES));
        let mut libvirt = Libvirt { child: daemon(), virsh: Virsh };
        libvirt.answers(lab);
        if !learnt.exists() {
            copy(Path::new(CAPABILITIES), &learnt);
        }
        libvirt
    }

    fn answers(&mut self, lab: &Lab) {
        let mut said = None;
        let up = until(START, || {
            if UnixStream::connect(SOCKET).is_ok() {
                said = Some(self.virsh.run(&["capabilities"]));
            }
            said.is_some() || !matches!(self.child.try_wait(), Ok(None))
        });
        let said = said.unwrap_or_else(|| panic!("libvirtd does not listen ({up}): {}", log()));
        if said.err.contains("no connection driver available") {
            lab.skip("libvirt's driver for QEMU is not installed");
        }
        assert_eq!(said.status, Some(0), "{}\n{}", said.err, log());
    }

    /// Ends it, and starts it again; its domains run on.
    pub fn restart(&mut self, lab: &Lab, signal: Signal) {
        self.end(signal);
        self.child = daemon();
        self.answers(lab);
    }

    /// Stops it for a while at the moment something has become so: everything it was about to do takes that much longer.
    pub fn pause(&self, when: impl Fn() -> bool, long: Duration) {
        let pid = self.child.id().cast_signed();
        let end = now() + PATIENCE;
        while !when() {
            assert!(now() < end, "libvirtd was never where it was to be paused");
            thread::yield_now();
        }
        process::signal(pid, Signal::SIGSTOP);
        thread::sleep(long);
        process::signal(pid, Signal::SIGCONT);
    }

    fn end(&mut self, signal: Signal) {
        process::signal(self.child.id().cast_signed(), signal);
        let _ = finish(&mut self.child, Duration::from_secs(10));
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        self.end(Signal::SIGTERM);
        if thread::panicking() {
            eprintln!("libvirtd said last:\n{}", log());
        }
    }
}

fn daemon() -> Child {
    let out = fs::File::create("/run/libvirtd.out").expect("memory");
    let mut libvirtd = command("unshare");
    // what it might do to a firewall or a bridge stays here
    libvirtd.args(["--net", "libvirtd", "--pid-file", "/run/libvirtd.pid"]);
    libvirtd.stdout(out.try_clone().expect("a descriptor")).stderr(out);
    libvirtd.spawn().unwrap_or_else(|e| panic!("failed to start libvirtd: {e}"))
}

/// What it complained of, and what it said on its way.
fn log() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let log = read(LOG);
    let grave: Vec<&str> = log.lines().filter(|line| line.contains(": error :")).collect();
    let last = grave[grave.len().saturating_sub(12)..].join("\n");
    format!("{}{last}", read("/run/libvirtd.out"))
}

fn account(file: &str, line: &str) {
    let text = fs::read_to_string(file).unwrap_or_default();
    let name = &line[..=line.find(':').expect("an account")];
    if !text.lines().any(|known| known.starts_with(name)) {
        fs::write(file, format!("{}\n{line}\n", text.trim_end())).expect("the world's root is in memory");
    }
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).expect("it is ours");
        let from = format!("{}/.", from.display());
        let mut cp = command("cp").args(["-a", &from]).arg(to).spawn().expect("coreutils");
        let _ = finish(&mut cp, Duration::from_secs(10));
    }
}

/// The client, as an administrator has it. Can be handed to another thread.
#[derive(Debug, Clone, Copy)]
pub struct Virsh;

/// What a virsh said, and how it ended; `status` is none if it had to be killed.
#[derive(Debug, Clone)]
pub struct Said {
    pub status: Option<i32>,
    pub out: String,
    pub err: String,
    pub took: Duration,
}

impl Said {
    /// # Panics
    /// It failed.
    pub fn ok(&self) -> &str {
        assert_eq!(self.status, Some(0), "virsh failed: {}{}", self.out, self.err);
        &self.out
    }

    /// # Panics
    /// It did not fail by itself.
    pub fn failed(&self) -> &str {
        assert_eq!(self.status, Some(1), "virsh was to fail: {}{}", self.out, self.err);
        &self.err
    }
}

impl Virsh {
    pub fn command(self, words: &[&str]) -> Command {
        let mut virsh = command("virsh");
        virsh.args(["--connect", "qemu:///system"]).args(words);
        virsh
    }

    /// Runs one to its end.
    pub fn run(self, words: &[&str]) -> Said {
        let begun = now();
        let mut virsh = self.command(words);
        let mut child = virsh.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("virsh is installed");
        let (mut out, mut err) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
        let out = thread::spawn(move || std::io::read_to_string(&mut out).unwrap_or_default());
        let err = thread::spawn(move || std::io::read_to_string(&mut err).unwrap_or_default());
        let status = finish(&mut child, PATIENCE).and_then(|status| status.code());
        let took = now() - begun;
        let [out, err] = [out, err].map(|text| text.join().expect("it only reads").trim().to_owned());
        Said { status, out, err, took }
    }

    /// Starts a transient domain over the common images, and waits for its shell.
    pub fn boot(self, place: &Place, name: &str) -> Domain {
        let boot = Boot::small();
        Machine::make_disks(place, &boot.base());
        let file = place.file("domain.xml");
        fs::write(&file, definition(place, name, &boot)).expect("memory");
        let created = self.run(&["create", file.to_str().expect("the lab's names are ASCII")]);
        assert_eq!(created.status, Some(0), "{}\n{}", created.err, log());
        let inside = Inside::new(&place.file("shell.sock"), &place.file("serial.log"));
        let domain = Domain { virsh: self, place: place.clone(), name: name.to_owned(), inside };
        domain.inside.wait_for_shell(boot.limit(), || None);
        domain
    }
}

/// A running domain; destroyed when dropped.
pub struct Domain {
    virsh: Virsh,
    pub place: Place,
    pub name: String,
    inside: Inside,
}

impl Deref for Domain {
    type Target = Inside;

    fn deref(&self) -> &Inside {
        &self.inside
    }
}

impl Domain {
    /// `virsh words[0] DOMAIN words[1…]`, to its end.
    pub fn virsh(&self, words: &[&str]) -> Said {
        self.virsh.run(&self.about(words))
    }

    /// The same, and it can be killed.
    pub fn start_virsh(&self, words: &[&str]) -> Child {
        let mut virsh = self.virsh.command(&self.about(words));
        virsh.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("virsh is installed")
    }

    fn about<'a>(&'a self, words: &[&'a str]) -> Vec<&'a str> {
        [&words[..1], &[&self.name], &words[1..]].concat()
    }

    /// Until libvirt can ask its agent.
    pub fn has_agent(&self) {
        let asks = || self.virsh(&["qemu-agent-command", r#"{"execute":"guest-ping"}"#]).status == Some(0);
        assert!(until(Duration::from_secs(30), asks), "libvirt does not reach the agent of {}", self.name);
    }

    /// The file a disk was in before the first snapshot.
    pub fn base(&self, disk: &str) -> PathBuf {
        self.place.disk.join(format!("{disk}.qcow2"))
    }

    /// The file libvirt makes for a disk with a snapshot of that name.
    pub fn above(&self, disk: &str, snapshot: &str) -> PathBuf {
        self.place.disk.join(format!("{disk}.{snapshot}"))
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        let _ = self.virsh(&["destroy"]);
    }
}

/// The same machine as [`Machine`]'s, in libvirt's words.
fn definition(place: &Place, name: &str, boot: &Boot) -> String {
    let disk = |target: &str, name: &str| {
        format!(
            "<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='unsafe'/>\
             <source file='{}/{name}.qcow2'/><target dev='{target}' bus='virtio'/><serial>{name}</serial></disk>",
            place.disk.display()
        )
    };
    let channel = |name: &str, file: &str| {
        format!(
            "<channel type='unix'><source mode='bind' path='{}'/><target type='virtio' name='{name}'/></channel>",
            place.file(file).display()
        )
    };
    format!(
        "<domain type='qemu'><name>{name}</name>\
         <memory unit='MiB'>{megabytes}</memory><vcpu>{processors}</vcpu>\
         <os><type arch='x86_64' machine='q35'>hvm</type><kernel>{kernel}</kernel><initrd>{initrd}</initrd>\
         <cmdline>{KERNEL_ARGUMENTS} {more}</cmdline></os>\
         <features><acpi/></features>\
         <cpu mode='custom' match='exact' check='none'><model fallback='allow'>qemu64</model></cpu><clock offset='utc'/>\
         <on_poweroff>destroy</on_poweroff><on_reboot>destroy</on_reboot><on_crash>destroy</on_crash>\
         <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>\
         <controller type='usb' model='none'/><memballoon model='none'/>{root}{data}\
         <controller type='virtio-serial' index='0'/>{agent}{shell}\
         <serial type='file'><source path='{console}'/><target port='0'/></serial></devices></domain>",
        megabytes = boot.megabytes,
        processors = boot.processors,
        kernel = image("kernel/vmlinux").display(),
        initrd = image("initrd.cpio").display(),
        more = boot.kernel,
        root = disk("vda", "root"),
        data = disk("vdb", "data"),
        agent = channel("org.qemu.guest_agent.0", "ga.sock"),
        shell = channel("lab.shell", "shell.sock"),
        console = place.file("serial.log").display(),
    )
}
