//! The wire between a guest and its host, through a device in user space: one process per machine, and a client on the
//! host's side of its socket. The machine's own vsock, if it has one, is never touched.

use std::{
    path::PathBuf,
    process::{Child, Command},
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;

use super::{Boot, Place, image};
use crate::lab::{
    Lab, command,
    daemon::BINARY,
    finish,
    process::{self, signal},
    until,
};

/// Where the daemons of these tests listen.
pub const PORT: u32 = 7411;
/// The guest's address. Only its own device knows it, so every machine can have the same.
const CID: u32 = 42;

/// The device's process. It must outlive its machine.
pub struct Device {
    child: Child,
    host_side: PathBuf,
    machine_side: PathBuf,
}

impl Device {
    /// Starts one; skips the fact if it was never built.
    pub fn start(lab: &Lab, place: &Place) -> Device {
        let program = image("vhost-device-vsock");
        if !program.exists() {
            lab.skip(&format!("no {}: run tests/vm/image/build.sh vsock", program.display()));
        }
        let (host_side, machine_side) = (place.file("v.vsock"), place.file("vhost.sock"));
        let vm = format!("guest-cid={CID},socket={},uds-path={}", machine_side.display(), host_side.display());
        let log = std::fs::File::create(place.file("vsock.log")).expect("memory");
        let mut device = command(program.to_str().expect("the lab's names are ASCII"));
        device.args(["--vm", &vm]).stdout(log.try_clone().expect("a descriptor")).stderr(log);
        let child = device.spawn().unwrap_or_else(|e| panic!("failed to start {device:?}: {e}"));
        let device = Device { child, host_side, machine_side };
        let listens = || device.machine_side.exists() && device.host_side.exists();
        assert!(until(Duration::from_secs(10), listens), "the vsock device did not start");
        device
    }

    /// The same machine, with this device; its memory has to be shared with the device's process.
    pub fn plugged_into(&self, mut boot: Boot) -> Boot {
        let memory = format!("memory-backend-memfd,id=memory,size={}M,share=on", boot.megabytes);
        let socket = format!("socket,id=vsock,path={}", self.machine_side.display());
        let arguments = ["-object", &memory, "-machine", "memory-backend=memory", "-chardev", &socket];
        boot.qemu.extend(arguments.map(str::to_owned));
        boot.qemu.extend(["-device", "vhost-user-vsock-pci,chardev=vsock"].map(str::to_owned));
        boot
    }

    pub fn endpoint(&self) -> String {
        format!("vsock:{}:{PORT}", self.host_side.display())
    }

    /// Our program on the host, asking this guest.
    pub fn client(&self) -> Command {
        let mut client = command(BINARY);
        client.env_remove("HOLDSTILL_SOCKET").env_remove("HOLDSTILL_ENDPOINT").args(["--endpoint", &self.endpoint()]);
        client
    }

    /// For a while nothing comes through, in either direction, and nothing is closed.
    pub fn is_stopped_for(&self, long: Duration) {
        let pid = self.child.id().cast_signed();
        signal(pid, Signal::SIGSTOP);
        thread::sleep(long);
        signal(pid, Signal::SIGCONT);
        assert!(process::alive(pid), "the vsock device has ended");
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = finish(&mut self.child, Duration::ZERO);
    }
}
