//! Real virtual machines: our binary and the stock guest agent on the guest-agent channel, under QEMU and real libvirt,
//! with no KVM. The laboratory is `tests/lab` and [`machine`]; what is booted is made by `tests/vm/image/build.sh`.

#[path = "../lab/mod.rs"]
#[macro_use]
#[expect(dead_code, reason = "the kernel tests use the rest of it")]
mod lab;

mod anna;
mod databases;
mod disks;
mod filesystems;
mod machine;
mod paused;
mod snapshots;
mod systemd;
mod table;
mod transcript;
mod virsh;
mod vsock;
mod who_thaws;
mod wire;

use std::process::ExitCode;

fn main() -> ExitCode {
    let of_the_harness = std::env::args().nth(1).is_none_or(|word| !word.starts_with("--lab-") && word != "--list");
    if of_the_harness {
        table::begin();
    }
    // most of a fact's time is waiting for a deadline; the longest ones come first
    let facts = [
        databases::FACTS,
        anna::FACTS,
        systemd::FACTS,
        snapshots::FACTS,
        who_thaws::FACTS,
        filesystems::FACTS,
        disks::FACTS,
        wire::FACTS,
        transcript::FACTS,
        paused::FACTS,
        virsh::FACTS,
        vsock::FACTS,
    ];
    let ended = lab::main_side_by_side(&facts, 2);
    if of_the_harness {
        println!("{}", table::printed());
    }
    ended
}
