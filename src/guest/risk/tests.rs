use std::os::unix::fs::symlink;

use super::*;
use crate::guest::tasks::Processes;

/// Small machines: the mounts of one process, and files as they would be seen from there. What is mounted is a directory.
struct Machine(tempfile::TempDir);

const ROOT: &str = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n";
const MNT: &str = "2 1 254:16 / /mnt rw - ext4 /dev/vdb rw\n";
const DISK: Dev = Dev { major: 254, minor: 16 };

impl Machine {
    fn new(mounts: &str) -> Machine {
        let machine = Machine(tempfile::tempdir().unwrap());
        machine.file("proc/self/mountinfo", mounts)
    }

    fn file(self, path: &str, text: &str) -> Machine {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn dir(self, path: &str) -> Machine {
        fs::create_dir_all(self.0.path().join(path)).unwrap();
        self
    }

    fn link(self, path: &str, target: &str) -> Machine {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
        self
    }

    fn found_with(&self, care: Care) -> Vec<Risk> {
        let wanted = Wanted { dev: DISK, care, home: Some("/mnt".into()), mount_id: 2 };
        let found = Found::default();
        look(self.0.path(), &[wanted], &[], &found);
        let (mut risks, stage) = found.take();
        assert_eq!(stage, None, "all was seen");
        risks.remove(&DISK).unwrap_or_default()
    }

    fn found(&self) -> Vec<(Level, String)> {
        self.found_with(Care::Everything).into_iter().map(|risk| (risk.level, risk.message)).collect()
    }

    /// Without what is said of the top directory.
    fn state(&self) -> Vec<String> {
        self.found().into_iter().filter(|(level, _)| *level == Level::State).map(|(_, message)| message).collect()
    }
}

fn machine() -> Machine {
    Machine::new(&format!("{ROOT}{MNT}"))
}

#[test]
fn a_link_from_where_people_look_is_told_with_where_it_leads() {
    let machine = machine().dir("mnt/mysql").link("var/lib/mysql", "/mnt/mysql").link("opt/app", "../mnt/gone");
    assert_eq!(machine.state(), ["/var/lib/mysql is a link to /mnt/mysql"], "and one to nowhere is not");
}

#[test]
fn a_link_for_temporary_files_is_benign() {
    let found = machine().dir("mnt/tmp").link("var/tmp", "/mnt/tmp").found();
    assert_eq!(found[0], (Level::Benign, "/var/tmp is a link to /mnt/tmp".into()));
}

#[test]
fn a_bind_mount_of_a_part_is_told_and_a_subvolume_is_not() {
    let binds = "3 1 254:16 /srv /srv rw - ext4 /dev/vdb rw\n4 1 254:16 / /data rw - ext4 /dev/vdb rw\n";
    let machine = Machine::new(&format!("{ROOT}{MNT}{binds}")).dir("mnt/srv");
    assert_eq!(machine.state(), ["/srv is a bind mount of /mnt/srv", "/data is a bind mount of /mnt"]);
    let subvolumes = "2 1 254:16 /@ /mnt rw - btrfs /dev/vdb rw,subvol=/@\n\
                      3 1 254:16 /@/home /home rw - btrfs /dev/vdb rw,subvol=/@/home\n";
    assert_eq!(Machine::new(&format!("{ROOT}{subvolumes}")).dir("mnt").state(), [] as [&str; 0]);
}

#[test]
fn dockers_root_is_found_by_its_configuration_by_a_link_or_by_one_of_its_parts() {
    let configured = machine().dir("mnt/docker").file("etc/docker/daemon.json", r#"{"data-root": "/mnt/docker"}"#);
    assert_eq!(configured.state(), ["the root of docker is /mnt/docker, as /etc/docker/daemon.json has it"]);
    let linked = machine().dir("mnt/docker").link("var/lib/docker", "/mnt/docker");
    assert_eq!(linked.state()[0], "the root of docker is /mnt/docker, reached as /var/lib/docker");
    let volumes = machine().dir("mnt/v").link("var/lib/docker/volumes", "/mnt/v");
    assert_eq!(volumes.state(), ["/var/lib/docker/volumes of docker is /mnt/v"]);
    assert_eq!(machine().dir("mnt/x").dir("var/lib/docker").state(), [] as [&str; 0], "where it belongs");
}

#[test]
fn pods_podman_and_pools_of_libvirt_are_found() {
    let machine = machine()
        .dir("mnt/kubelet/pods/a-1/volumes/kubernetes.io~empty-dir/scratch")
        .link("var/lib/kubelet", "/mnt/kubelet")
        .dir("mnt/containers")
        .file("etc/containers/storage.conf", "[storage]\ngraphroot = \"/mnt/containers\"\n")
        .dir("mnt/images")
        .file("etc/libvirt/storage/big.xml", "<pool><target><path>/mnt/images</path></target></pool>");
    let state = machine.state();
    for expected in [
        "the root of kubelet is /mnt/kubelet, reached as /var/lib/kubelet, with 1 emptyDir volume",
        "the root of containers is /mnt/containers, as /etc/containers/storage.conf has it",
        "a pool of libvirt is /mnt/images",
    ] {
        assert!(state.iter().any(|message| message == expected), "{state:#?}");
    }
}

#[test]
fn a_unit_is_told_once_by_whatever_of_it_lies_there() {
    let machine = machine()
        .dir("mnt/backup")
        .file("mnt/app/run", "")
        .file("etc/systemd/system/backup.service", "[Service]\nWorkingDirectory=/mnt/backup\nExecStart=/mnt/app/run\n")
        .file("usr/lib/systemd/system/backup.service", "[Service]\nWorkingDirectory=/var\n")
        .file("usr/lib/systemd/system/other.service", "[Service]\nExecStart=/usr/bin/other\n")
        .file("etc/systemd/system/other.service.d/place.conf", "[Service]\nExecStart=\nExecStart=/mnt/app/run --x\n")
        .file("usr/lib/systemd/system/idle.service", "[Service]\nExecStart=/usr/bin/idle /mnt/none\n")
        .link("lib", "usr/lib")
        .link("etc/systemd/system/alias.service", "/etc/systemd/system/backup.service");
    assert_eq!(
        machine.state(),
        ["backup.service is started with /mnt/app/run", "other.service is started with /mnt/app/run"]
    );
}

#[test]
fn a_system_on_the_disk_itself_is_not_told_unit_by_unit() {
    let machine =
        machine().dir("mnt/backup").file("etc/systemd/system/b.service", "[Service]\nWorkingDirectory=/mnt/backup\n");
    assert!(machine.found_with(Care::System).iter().all(|risk| risk.level < Level::State));
    assert_eq!(machine.found_with(Care::Nothing), []);
}

#[test]
fn a_cron_table_that_writes_there_is_told() {
    let machine = machine().dir("mnt/dumps").file("etc/cron.d/dump", "1 2 * * * root dump >/mnt/dumps/today.sql\n");
    assert_eq!(machine.state(), ["a job of /etc/cron.d/dump uses /mnt/dumps"]);
}

#[test]
fn an_empty_file_system_a_swap_file_and_the_clouds_warning_are_benign() {
    let empty = machine().dir("mnt/lost+found").file("mnt/DATALOSS_WARNING_README.txt", "");
    assert_eq!(empty.found(), [(Level::Benign, "nothing is in /mnt that anybody would miss".into())]);
    let swaps = "Filename\tType\tSize\tUsed\tPriority\n/mnt/pages file 1024 0 -2\n/dev/vdc partition 1024 0 -3\n";
    let swap = machine().file("mnt/pages", "").file("proc/swaps", swaps).found();
    assert_eq!(swap.iter().map(|(level, _)| *level).collect::<Vec<_>>(), [Level::Benign, Level::Benign]);
    let full = machine().file("mnt/file1.txt", "").dir("mnt/tmp").found();
    assert_eq!(full, [(Level::NotEmpty, "file1.txt at the top of /mnt".into())]);
}

#[test]
fn what_is_not_mounted_there_any_more_is_not_looked_into() {
    let machine = machine().file("mnt/file1.txt", "");
    let wanted = Wanted { dev: DISK, care: Care::Everything, home: Some("/mnt".into()), mount_id: 77 };
    let found = Found::default();
    look(machine.0.path(), &[wanted], &[], &found);
    assert!(found.take().0[&DISK][0].message.contains("not looked into"));
}

#[test]
fn nothing_is_resolved_through_the_network_fuse_or_an_automounter() {
    let remote = "3 1 0:41 / /net rw - nfs4 srv:/x rw\n4 1 0:42 / /auto rw - autofs map rw\n\
                  7 1 0:5 / /proc rw - proc proc rw\n5 1 0:43 / /dead rw - fuse.sshfs x rw\n6 3 254:16 / /net/disk rw - ext4 /dev/vdb rw\n";
    let machine = Machine::new(&format!("{ROOT}{MNT}{remote}"))
        .dir("mnt/data")
        .link("net/a", "/mnt/data")
        .link("dead/a", "/mnt/data")
        .dir("auto/a")
        .link("srv/a", "/net/a")
        .link("srv/b", "/dead/a")
        .link("srv/c", "/auto/a")
        .link("srv/d", "/mnt/data");
    let lines = mounts::read(machine.0.path()).unwrap();
    let table = Table::new(&lines);
    let walk = Walk::new(machine.0.path(), &table);
    for path in ["/net/a", "/dead/a", "/auto/a", "/srv/a", "/srv/b", "/srv/c", "/net/disk", "/proc/self", "/none"] {
        assert_eq!(walk.to(Path::new(path)), None, "{path}");
    }
    assert_eq!(walk.to(Path::new("/srv/d")), Some(Place { path: "/mnt/data".into(), dev: DISK }));
    assert_eq!(walk.to(Path::new("/srv/../mnt/./data")).unwrap().dev, DISK);
}

#[test]
fn links_in_a_circle_end() {
    let machine = machine().link("srv/a", "b").link("srv/b", "/srv/a");
    let lines = mounts::read(machine.0.path()).unwrap();
    let table = Table::new(&lines);
    assert_eq!(Walk::new(machine.0.path(), &table).to(Path::new("/srv/a/x")), None);
}

/// Two processes, the second in a mount namespace of its own, on an overlay whose upper layer is on the disk.
fn writing() -> Machine {
    let stat = |name: &str| format!("9 ({name}) S 1 9 9 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 77 0\n");
    let open = |flags: &str, mount: u64| format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t{mount}\nino:\t1\n");
    machine()
        .file("proc/7/stat", &stat("java"))
        .file("proc/7/cgroup", "0::/system.slice/tomcat.service\n")
        .file("proc/7/fdinfo/3", &open("0100002", 2))
        .file("proc/7/fdinfo/4", &open("0100001", 2))
        .file("proc/7/fdinfo/5", &open("0100000", 2))
        .file("proc/7/fdinfo/6", &open("0100002", 1))
        .file("proc/8/stat", &stat("nginx"))
        .file("proc/8/mountinfo", "71 1 0:60 / / rw - overlay overlay rw\n72 1 254:16 / /data rw - ext4 /dev/vdb rw\n")
        .file("proc/8/fdinfo/3", &open("0100001", 71))
        .file("proc/8/fdinfo/4", &open("0100001", 72))
        .file("proc/8/fdinfo/5", &open("04002", 9))
}

#[test]
fn whoever_writes_there_is_told_by_name_in_every_mount_namespace() {
    let machine = writing();
    let root = machine.0.path();
    let processes = Processes::read(root);
    let writers = Writers::read(root, &processes);
    let overlay = Dev { major: 0, minor: 60 };
    let by_dev = writers.by_dev(root, &|dev| (dev == overlay).then_some(DISK));
    assert_eq!(by_dev[&DISK], [Writer { pid: 7, files: 2 }, Writer { pid: 8, files: 2 }]);
    let said = |told: &dyn Fn(i32) -> bool| {
        let risks = written(root, &processes, &by_dev[&DISK], told);
        risks.into_iter().map(|risk| risk.message).collect::<Vec<_>>()
    };
    assert_eq!(
        said(&|_| false),
        ["java (pid 7, tomcat.service) has 2 files open for writing", "nginx (pid 8) has 2 files open for writing"]
    );
    assert_eq!(said(&|pid| pid == 7).len(), 1, "a database speaks for its own");
    assert_eq!(writers.devs(root), [Dev { major: 8, minor: 1 }, DISK].into());
}
