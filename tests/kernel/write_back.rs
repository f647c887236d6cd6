//! Promise: the stall is short. Dirty files are written back in portions while preparing, and whatever becomes of the
//! process that does it, the hold goes on or ends as asked.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::{fs::FileExt, net::UnixListener},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use nix::{
    fcntl::{FallocateFlags, fallocate},
    sys::{
        signal::Signal,
        stat::{Mode, SFlag, makedev, mknod},
    },
    unistd::mkfifo,
};

use crate::lab::{
    Fs, Lab, Type, command,
    daemon::{Running, Setup, step},
    finish, now,
    process::{alive, ours, signal, tool},
    until,
};

facts! {
    a_file_that_only_its_descriptor_leads_to_is_written_back_before_the_first_round within 120,
    a_file_that_was_closed_is_written_back_before_the_first_round within 120,
    a_file_open_in_another_mount_namespace_is_written_back_before_the_first_round within 60,
    what_is_no_regular_file_is_left_alone within 60,
    an_error_of_writing_back_is_still_told_to_whoever_syncs_next within 60,
    a_thaw_while_portions_are_written_ends_that_at_once within 60,
    a_killed_pacer_costs_nothing_but_its_work within 60,
    a_stopped_pacer_is_killed_at_its_limit within 60,
    a_pacer_does_not_outlive_its_daemon_or_its_warden within 60,
}

const MIB: u64 = 1 << 20;
/// Much more than is left to `syncfs`.
const DIRT: u64 = 64 * MIB;

/// A process that writes `DIRT` into `file`, by shell script; it has the file open as 3 and is killed when dropped.
struct Dirtier(Child);

impl Dirtier {
    fn start(wrapper: &[&str], file: &Path, then: &str) -> Dirtier {
        let script = format!("exec 3>\"$0\"; head -c {DIRT} /dev/zero >&3; {then}; echo ready; exec sleep 60");
        let words = [wrapper, &["sh", "-c", &script]].concat();
        let mut child = command(words[0]).args(&words[1..]).arg(file).stdout(Stdio::piped()).spawn().expect("a shell");
        let mut said = [0; 6];
        child.stdout.as_mut().expect("piped").read_exact(&mut said).expect("it gets ready");
        Dirtier(child)
    }
}

impl Drop for Dirtier {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = finish(&mut self.0, Duration::from_secs(5));
    }
}

/// Bytes written to a disk so far.
fn written(fs: &Fs) -> u64 {
    let name = fs.disk.device.file_name().expect("a device").to_str().expect("ASCII");
    let stat = fs::read_to_string(format!("/sys/block/{name}/stat")).expect("it is attached");
    stat.split_ascii_whitespace().nth(6).expect("sectors written").parse::<u64>().expect("a number") * 512
}

fn clean(fs: &Fs) -> u64 {
    tool(command("sync").arg("-f").arg(&fs.mount));
    written(fs)
}

/// A daemon that pauses at `point`, and the file that tells.
fn pausing<'lab>(lab: &'lab Lab, fs: &[&Fs], point: &str, pause: Duration) -> (Setup<'lab>, PathBuf) {
    let reached = lab.memory_dir("reached").join("points");
    let setup = lab
        .daemon(fs)
        .env("HOLDSTILL_FAILPOINT", format!("{point}:pause={}", pause.as_millis()))
        .env("HOLDSTILL_FAILPOINT_FILE", reached.display().to_string());
    (setup, reached)
}

/// Holds and lets go; when the portions are done, and no round has begun yet, nearly all of `DIRT` must have been written.
fn written_in_portions(lab: &Lab, fs: &Fs, before: u64) {
    assert!(written(fs) - before < DIRT / 2, "{}: written back too early to tell", fs.kind.name());
    let (setup, reached) = pausing(lab, &[fs], "paced", Duration::from_secs(2));
    let daemon = setup.start();
    let freeze = daemon.start_cli(&["freeze", "--for", "10s"]);
    let paced = || fs::read_to_string(&reached).is_ok_and(|points| points.contains("paced"));
    assert!(until(Duration::from_secs(20), paced), "it never got there:\n{}", daemon.log());
    let by_portions = written(fs) - before;
    assert!(by_portions > DIRT * 9 / 10, "{}: {} MiB of 64 were written", fs.kind.name(), by_portions / MIB);
    let answer = freeze.finish();
    answer.exits(0);
    let flushed = step(&answer.report(), &fs.step())["filesystem"]["flushed_bytes"].as_u64().expect("a number");
    assert!(flushed > DIRT * 9 / 10, "{} MiB are reported", flushed / MIB);
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
}

const TYPES: [Type; 3] = [Type::Ext4, Type::Xfs, Type::Btrfs];

fn a_file_that_only_its_descriptor_leads_to_is_written_back_before_the_first_round(lab: &Lab) {
    for kind in TYPES {
        let fs = lab.fs_at(kind, &Path::new("/mnt").join(kind.name()), 2048);
        let before = clean(&fs);
        let dirtier = Dirtier::start(&[], &fs.mount.join("data"), "rm \"$0\"");
        written_in_portions(lab, &fs, before);
        drop(dirtier);
    }
}

fn a_file_that_was_closed_is_written_back_before_the_first_round(lab: &Lab) {
    for kind in TYPES {
        let fs = lab.fs_at(kind, &Path::new("/mnt").join(kind.name()), 2048);
        let before = clean(&fs);
        fs::create_dir_all(fs.mount.join("a/b")).expect("it is writable");
        // as after an unpacked archive: one large file, and many small ones that make a portion together
        fs::write(fs.mount.join("a/b/dump"), vec![7_u8; 60 << 20]).expect("it is writable");
        // few of them: btrfs writes back by itself when it has much to remember
        for n in 0..64 {
            fs::write(fs.mount.join(format!("a/{n}")), vec![7_u8; 64 << 10]).expect("it is writable");
        }
        written_in_portions(lab, &fs, before);
    }
}

fn a_file_open_in_another_mount_namespace_is_written_back_before_the_first_round(lab: &Lab) {
    let fs = lab.fs_at(Type::Ext4, Path::new("/mnt/there"), 512);
    let before = clean(&fs);
    let unshare = ["unshare", "--mount", "--propagation", "private"];
    let dirtier = Dirtier::start(&unshare, &fs.mount.join("data"), "rm \"$0\"");
    written_in_portions(lab, &fs, before);
    drop(dirtier);
}

fn what_is_no_regular_file_is_left_alone(lab: &Lab) {
    let fs = lab.fs_at(Type::Ext4, Path::new("/mnt/odd"), 256);
    let at = |name: &str| fs.mount.join(name);
    mkfifo(&at("fifo"), Mode::S_IRWXU).expect("it is writable");
    mkfifo(&at("lonely"), Mode::S_IRWXU).expect("it is writable");
    mknod(&at("full"), SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 7)).expect("root may");
    std::os::unix::fs::symlink("/proc/kcore", at("link")).expect("it is writable");
    let fifo = File::options().read(true).write(true).open(at("fifo")).expect("both ends at once");
    let device = File::options().write(true).open(at("full")).expect("/dev/full");
    let socket = UnixListener::bind(at("socket")).expect("it is writable");
    // whoever opened this FIFO for reading, and be it for an instant, would let this one go on
    let lonely = at("lonely");
    let waiting = thread::spawn(move || File::options().write(true).open(lonely));
    fs::write(at("data"), vec![7_u8; 32 << 20]).expect("it is writable");
    let daemon = lab.daemon(&[&fs]).start();
    daemon.freeze(&["--for", "10s"]);
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    assert!(!waiting.is_finished(), "a FIFO was opened");
    let reader = File::options().read(true).write(true).open(at("lonely")).expect("both ends at once");
    waiting.join().expect("it only opens").expect("somebody reads");
    drop((fifo, device, socket, reader));
}

/// The kernel tells an error once to those who open the file later: that must not be us.
fn an_error_of_writing_back_is_still_told_to_whoever_syncs_next(lab: &Lab) {
    lab.tmpfs_at(Path::new("/mnt/memory"));
    let image = Path::new("/mnt/memory/disk.img");
    let fs = lab.fs_on(Type::Ext4, Path::new("/mnt/thin"), image, 48);
    let backing = File::options().read(true).write(true).open(image).expect("memory");
    fallocate(&backing, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, 48 << 20).expect("64 MiB of memory");
    // each written as a whole, by a single call: whatever met the error, nobody meets it a second time
    let files: Vec<PathBuf> = (0..24).map(|n| fs.mount.join(format!("data-{n}"))).collect();
    files.iter().for_each(|file| fs::write(file, vec![7; 1 << 20]).expect("it is writable"));
    clean(&fs);
    // now the disk loses the blocks of these files, and no others, and there are no more
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let mut block = [0; 4096];
    for at in (0..48 << 20).step_by(block.len()) {
        backing.read_exact_at(&mut block, at).expect("memory");
        if block == [7; 4096] {
            fallocate(&backing, hole, at.cast_signed(), 4096).expect("memory");
        }
    }
    fs::write("/mnt/memory/full", vec![0; 64 << 20]).expect_err("there is no room for that");
    for file in &files {
        let file = File::options().write(true).open(file).expect("it is there");
        file.write_all_at(&vec![8; 1 << 20], 0).expect("into the page cache");
    }

    let daemon = lab.daemon(&[&fs]).start();
    let answer = daemon.cli(&["freeze", "--for", "5s"]);
    answer.exits(4);
    assert_eq!(answer.reason(), "FLUSH_FAILED", "{answer:?}");
    let sync = |file: &PathBuf| File::open(file).and_then(|file| file.sync_all());
    let told: Vec<&PathBuf> = files.iter().filter(|file| sync(file).is_err()).collect();
    // not all: a loop device is content when the beginning of a request was written
    assert!(told.len() >= 12, "somebody else has been told that files could not be written; left are {told:?}");
    assert!(told.iter().all(|file| sync(file).is_ok()), "it is told once: otherwise this proves nothing");
    drop(daemon);
}

/// A hold under way whose pacer has just begun, and does nothing for a long time.
fn pacing<'lab>(lab: &'lab Lab, fs: &Fs, prepare: &str) -> (crate::lab::Daemon<'lab>, Running, i32) {
    // not over the last one: what replaces a file's contents, ext4 writes back when it is closed
    let _ = fs::remove_file(fs.mount.join("data"));
    fs::write(fs.mount.join("data"), vec![7_u8; 32 << 20]).expect("it is writable");
    let (setup, _) = pausing(lab, &[fs], "pacing", Duration::from_secs(40));
    let daemon = setup.set("hold.prepare", prepare).start();
    let freeze = daemon.start_cli(&["freeze", "--for", "10s"]);
    let pacer = || ours().iter().find(|process| process.name == "holdstill-pace").map(|process| process.pid);
    assert!(until(Duration::from_secs(10), || pacer().is_some()), "nobody writes back:\n{}", daemon.log());
    (daemon, freeze, pacer().expect("it was there a moment ago"))
}

fn a_thaw_while_portions_are_written_ends_that_at_once(lab: &Lab) {
    let fs = lab.fs_at(Type::Ext4, Path::new("/mnt/slow"), 256);
    let writer = lab.writer(&fs);
    let (daemon, freeze, pacer) = pacing(lab, &fs, "30s");
    let asked = now();
    daemon.cli(&["thaw"]);
    let answer = freeze.finish();
    assert!(now() - asked < Duration::from_secs(2), "it took {:?}", now() - asked);
    answer.exits(1);
    assert!(!alive(pacer), "it is still there");
    assert!(writer.longest() < Duration::from_millis(500), "a writer waited: {:?}", writer.longest());
    drop(writer);
}

fn a_killed_pacer_costs_nothing_but_its_work(lab: &Lab) {
    let fs = lab.fs_at(Type::Ext4, Path::new("/mnt/slow"), 256);
    let (daemon, freeze, pacer) = pacing(lab, &fs, "30s");
    signal(pacer, Signal::SIGKILL);
    let answer = freeze.finish();
    answer.exits(0);
    assert!(answer.took < Duration::from_secs(5), "it took {:?}", answer.took);
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
}

fn a_stopped_pacer_is_killed_at_its_limit(lab: &Lab) {
    let fs = lab.fs_at(Type::Ext4, Path::new("/mnt/slow"), 256);
    let (daemon, freeze, pacer) = pacing(lab, &fs, "8s");
    signal(pacer, Signal::SIGSTOP);
    let answer = freeze.finish();
    answer.exits(0);
    assert!(!alive(pacer), "it is still there");
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
}

fn a_pacer_does_not_outlive_its_daemon_or_its_warden(lab: &Lab) {
    let fs = lab.fs_at(Type::Ext4, Path::new("/mnt/slow"), 256);
    let (daemon, freeze, pacer) = pacing(lab, &fs, "30s");
    daemon.kill();
    assert!(until(Duration::from_secs(2), || !alive(pacer)), "it outlived its daemon");
    freeze.finish();
    drop(daemon);
    let (daemon, freeze, pacer) = pacing(lab, &fs, "30s");
    signal(daemon.warden(), Signal::SIGKILL);
    assert!(until(Duration::from_secs(2), || !alive(pacer)), "it outlived its warden");
    freeze.finish();
    drop(daemon);
}
