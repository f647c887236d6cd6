//! `20-etcd`, with a cluster of one.

use std::{fs, net::TcpListener, path::Path, process::Stdio, time::Duration};

use super::{Server, add, has, said};
use crate::lab::{Lab, Type, command, until};

facts! {
    what_etcd_acknowledged_is_in_the_copy_and_so_is_a_snapshot_for_a_new_cluster within 90,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port()
}

struct Etcd {
    _server: Server,
    endpoints: String,
}

fn etcd(data: &Path) -> Etcd {
    let [client, peer] = [free_port(), free_port()].map(|port| format!("http://127.0.0.1:{port}"));
    let mut start = command("etcd");
    start.arg("--data-dir").arg(data).args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    start.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    // what the copy was started as does not matter: it is a cluster of one
    start.args(["--initial-cluster", &format!("default={peer}"), "--force-new-cluster"]);
    let server = Server::start(start.stdout(Stdio::null()).stderr(Stdio::null()));
    let etcd = Etcd { _server: server, endpoints: format!("--endpoints={client}") };
    let up = || command("etcdctl").args([&etcd.endpoints, "get", "n"]).output().is_ok_and(|o| o.status.success());
    assert!(until(Duration::from_secs(20), up), "it does not answer");
    etcd
}

impl Etcd {
    fn get(&self, key: &str) -> u64 {
        let value = said(&["etcdctl", &self.endpoints, "get", "--print-value-only", key]);
        value.parse().unwrap_or_else(|_| panic!("{key} is {value:?}"))
    }
}

fn what_etcd_acknowledged_is_in_the_copy_and_so_is_a_snapshot_for_a_new_cluster(lab: &Lab) {
    // its log is made in pieces of 64 MB
    let disk = lab.fs_at(Type::Ext4, Path::new("/mnt/etcd"), 512);
    let server = etcd(&disk.mount.join("data"));
    let daemon = lab.daemon(&[&disk]).start();
    let saved = disk.mount.join("saved/snapshot.db");
    let edits = [
        ("saved=/var/lib/holdstill-etcd/snapshot.db ", format!("saved={} ", saved.display())),
        ("--endpoints=http://127.0.0.1:2379", server.endpoints.clone()),
    ];
    add(&daemon, "20-etcd", "", &edits.each_ref().map(|(from, to)| (*from, to.as_str())));
    let failed = daemon.cli(&["freeze", "--id", "unprepared"]);
    failed.exits(1).says("20-etcd");
    fs::write(daemon.setup().hooks_dir().join("20-etcd.toml"), "prepare = true\ntimeout = \"20s\"\n").expect("memory");

    said(&["etcdctl", &server.endpoints, "put", "n", "0"]);
    let acknowledged = lab.memory_dir("acknowledged").join("n");
    let writes = format!(
        "while n=$((n+1)); do etcdctl {} put n $n >/dev/null && echo $n >{}; done",
        server.endpoints,
        acknowledged.display()
    );
    let mut writer = command("setsid");
    let mut writer = Server::start(writer.args(["sh", "-c", &writes]));
    let number = || fs::read_to_string(&acknowledged).ok().and_then(|n| n.trim().parse().ok()).unwrap_or(0);
    assert!(until(Duration::from_secs(10), || number() > 3), "nobody writes");
    let report = daemon.freeze(&["--for", "30s"]);
    assert_eq!(report["consistency"], "application", "{report:#}");
    let before: u64 = number();
    let copy = disk.copy();
    daemon.thaw();
    assert!(until(Duration::from_secs(5), || number() > before), "writers wait after the thaw");
    writer.kill();

    let copied = lab.mount_copy(Type::Ext4, &copy);
    let from_data = etcd(&copied.mount.join("data")).get("n");
    assert!(from_data >= before, "the copy has {from_data}, {before} were acknowledged before the hold");
    // and the file makes a new cluster, with what was there in `prepare`
    let restored = copied.mount.join("restored");
    let tool = if has("etcdutl") { "etcdutl" } else { "etcdctl" };
    let file = copied.mount.join("saved/snapshot.db");
    let words = [tool, "snapshot", "restore", file.to_str().expect("ASCII"), "--data-dir"];
    said(&[&words[..], &[restored.to_str().expect("ASCII")]].concat());
    let from_file = etcd(&restored).get("n");
    assert!((1..=before).contains(&from_file), "the saved file has {from_file}, the hold began at {before}");
}
