//! Databases nobody configured: found wherever they run, told apart, and held only if all they need is.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::Path,
    process::Child,
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::lab::{
    Daemon, Fs, Lab, Type, command,
    daemon::step,
    database::{
        Edition, Engine, Server, ServerOptions,
        options::{Bind, Listens, Network, Place},
        session::Address,
    },
    finish, process,
    process::tool,
    until,
};

facts! {
    several_servers_in_odd_places_are_one_hold_without_any_configuration within 120,
    a_server_in_a_container_is_found_and_held_where_its_data_really_are within 120,
    a_server_in_another_network_is_named_with_what_would_help within 60,
    a_socket_that_leads_to_another_server_is_not_that_server within 90,
    settings_can_be_given_for_what_is_found within 60,
    a_linked_database_directory_on_a_disk_that_is_not_held_is_uncovered within 90,
    a_disk_mounted_inside_a_data_directory_is_uncovered_unless_it_is_held within 90,
    data_split_over_two_held_disks_is_covered within 90,
    a_postgresql_that_shuts_down_is_said_and_not_spoken_to within 60,
    data_in_an_overlay_lie_where_its_upper_layer_does within 90,
    a_server_configured_by_its_port_and_found_on_its_socket_is_held_once within 60,
    a_log_on_a_transient_disk_is_worse_than_all_of_a_database_there within 90,
    what_databases_have_on_a_transient_disk_is_named_there within 90,
    a_log_on_a_frozen_disk_is_a_remark_and_one_elsewhere_is_none within 90,
    the_printed_role_is_enough_to_hold within 120,
    my_cnf_lets_root_in_unless_others_can_read_it within 90,
    pgpass_and_services_let_us_in_unless_others_can_read_them within 90,
}

fn disk<'lab>(lab: &'lab Lab, at: &str) -> Fs<'lab> {
    lab.fs_at(Type::Ext4, at.as_ref(), 512)
}

fn server<'lab>(lab: &'lab Lab, engine: Engine, options: ServerOptions) -> Server<'lab> {
    lab.server_of(&Edition::of_host(engine), options)
}

fn discovering<'lab>(lab: &'lab Lab, over: &[&Fs]) -> Daemon<'lab> {
    lab.daemon(over).set("databases.discover", true).start()
}

/// What `check` says it would do.
fn plan(daemon: &Daemon) -> Value {
    daemon.cli(&["check"]).json["plan"].clone()
}

/// Names of the databases a report is about.
fn databases(report: &Value) -> Vec<String> {
    let steps = report["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
    let names = steps.iter().filter(|s| s["kind"] == "database").filter_map(|s| s["name"].as_str());
    names.map(str::to_owned).collect()
}

/// The one problem of this code.
fn problem<'a>(report: &'a Value, code: &str) -> &'a Value {
    let problems = report["problems"].as_array().map(Vec::as_slice).unwrap_or_default();
    problems.iter().find(|p| p["code"] == code).unwrap_or_else(|| panic!("no {code} in {report:#}"))
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn directory(server: &Server) -> String {
    server.socket().parent().expect("a file").display().to_string()
}

fn several_servers_in_odd_places_are_one_hold_without_any_configuration(lab: &Lab) {
    let disks = [disk(lab, "/mnt/one"), disk(lab, "/mnt/two"), disk(lab, "/mnt/three")];
    let one = server(lab, Engine::Postgresql, ServerOptions::on(&disks[0]));
    let two = server(lab, Engine::Postgresql, ServerOptions { listens: Listens::Port, ..ServerOptions::on(&disks[1]) });
    let three = server(lab, Engine::Mariadb, ServerOptions::on(&disks[2]));
    let daemon = discovering(lab, &disks.iter().collect::<Vec<_>>());
    let report = daemon.freeze(&["--for", "20s", "--require", "application"]);
    let Address::Port(port) = two.address else { panic!("it listens on a port") };
    let mut expected = [
        format!("db:postgresql:5432@{}", directory(&one)),
        format!("db:postgresql:{port}@tcp"),
        format!("db:mysql:mysqld@{}", directory(&three)),
    ];
    let mut found = databases(&report);
    expected.sort();
    found.sort();
    assert_eq!(found, expected, "{report:#}");
    for name in &expected {
        let paths = step(&report, name)["database"]["paths"].as_array().cloned().unwrap_or_default();
        assert!(!paths.is_empty() && paths.iter().all(|p| p["held"] == true), "{name}: {paths:?}");
    }
    assert_eq!((&report["consistency"], &daemon.thaw()["verdict"]), (&"application".into(), &"unbroken".into()));
}

fn contained<'a>(disk: &'a Fs) -> ServerOptions<'a> {
    ServerOptions { place: Place::Container(Network::Own), ..ServerOptions::on(disk) }
}

fn a_server_in_a_container_is_found_and_held_where_its_data_really_are(lab: &Lab) {
    for engine in [Engine::Mariadb, Engine::Postgresql] {
        let disk = lab.fs(Type::Ext4);
        let contained = server(lab, engine, contained(&disk));
        let daemon = discovering(lab, &[&disk]);
        let report = daemon.freeze(&["--for", "20s", "--require", "application"]);
        let [name] = &databases(&report)[..] else { panic!("not exactly one: {report:#}") };
        let paths = &step(&report, name)["database"]["paths"];
        let data = paths.as_array().into_iter().flatten().find(|p| p["purpose"] == "data").expect("it is told");
        assert_eq!(data["path"], contained.dirs.data.display().to_string(), "as the server calls it");
        assert_eq!(data["filesystem"], disk.step(), "not what that path is for us");
        assert_eq!(daemon.thaw()["verdict"], "unbroken");
        drop(daemon);
        drop(contained);
    }
}

/// A PostgreSQL that can only be reached from its own network. Nobody can ask it whether it has started.
struct Apart(Child);

impl Apart {
    fn start(lab: &Lab, disk: &Fs) -> Apart {
        let edition = Edition::of_host(Engine::Postgresql);
        let programs = edition.programs().unwrap_or_else(|why| lab.skip(&why));
        let data = disk.mount.join("data");
        lab.try_initialise(&edition, &data, &mut ServerOptions::on(disk)).expect("a new file system");
        let mut server = command("unshare");
        server.args(["--net", "setpriv", "--clear-groups"]);
        server.args([format!("--reuid={}", programs.uid), format!("--regid={}", programs.gid)]);
        server.arg(&programs.server).arg("-D").arg(&data).args(["-c", "listen_addresses=*"]);
        server.args(["-c", "unix_socket_directories=", "-c", "port=5999", "-c", "hot_standby=off"]);
        let log = fs::File::create(lab.memory_dir("apart").join("log")).expect("memory");
        let child = server.current_dir("/").stdout(log.try_clone().expect("a descriptor")).stderr(log).spawn();
        let apart = Apart(child.expect("util-linux"));
        let pid_file = data.join("postmaster.pid");
        let ready =
            || fs::read_to_string(&pid_file).is_ok_and(|text| text.lines().nth(7).map(str::trim) == Some("ready"));
        assert!(until(Duration::from_secs(20), ready), "it did not come up");
        apart
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        process::signal(self.0.id().cast_signed(), Signal::SIGINT);
        assert!(finish(&mut self.0, Duration::from_secs(15)).is_some(), "it does not end");
    }
}

fn a_server_in_another_network_is_named_with_what_would_help(lab: &Lab) {
    let disk = disk(lab, "/mnt/db");
    let apart = Apart::start(lab, &disk);
    let daemon = discovering(lab, &[&disk]);
    let report = plan(&daemon);
    let said = problem(&report, "DATABASE_NOT_HELD");
    assert!(text(said, "message").contains(&format!("pid {}", apart.0.id())), "{said:#}");
    assert!(text(said, "message").contains("a network of its own"), "{said:#}");
    assert!(text(said, "hint").contains("unix_socket_directories"), "{said:#}");
    daemon.cli(&["freeze", "--require", "application"]).exits(4);
    drop(daemon);
}

fn a_socket_that_leads_to_another_server_is_not_that_server(lab: &Lab) {
    let disks = [disk(lab, "/mnt/ours"), disk(lab, "/mnt/theirs")];
    let ours = server(lab, Engine::Mariadb, ServerOptions::on(&disks[0]));
    let mut options = contained(&disks[1]);
    let binds = [(disks[1].mount.join("data"), "/var/lib/mysql"), (directory(&ours).into(), "/srv/ours")];
    options.binds.extend(binds.map(|(from, to)| Bind { from, to: to.into() }));
    let theirs = server(lab, Engine::Mariadb, options);
    let daemon = discovering(lab, &[&disks[0], &disks[1]]);
    let [our_step, their_step] =
        [format!("db:mysql:mysqld@{}", directory(&ours)), "db:mysql:mysqld@/run/server".into()];
    assert_eq!(step(&plan(&daemon), &their_step)["outcome"], "planned");
    // whoever runs the container makes the path of its socket mean ours
    let (forged, aside) = (theirs.socket().to_owned(), theirs.socket().with_file_name("aside"));
    fs::rename(&forged, &aside).expect("root may");
    let ways = [
        (ours.socket(), "No such file"),
        (Path::new("/srv/ours/mysqld.sock"), &format!("process {} answers", ours.pid())),
    ];
    for (target, why) in ways {
        symlink(target, &forged).expect("root may");
        let report = plan(&daemon);
        assert_eq!(step(&report, &our_step)["outcome"], "planned", "{report:#}");
        let refused = step(&report, &their_step);
        assert!(
            refused["outcome"] == "failed" && text(refused, "reason").contains(why),
            "{}: {refused:#}",
            target.display()
        );
        daemon.cli(&["freeze", "--require", "application"]).exits(4);
        fs::remove_file(&forged).expect("root may");
    }
    drop(daemon);
    fs::rename(&aside, &forged).expect("root may");
}

fn settings_can_be_given_for_what_is_found(lab: &Lab) {
    let disk = disk(lab, "/mnt/db");
    let server = server(lab, Engine::Postgresql, ServerOptions::on(&disk));
    let name = format!("postgresql:5432@{}", directory(&server));
    let entry = |user: &str| {
        let words = [("name", name.as_str()), ("engine", "postgresql"), ("user", user)];
        toml::Table::from_iter(words.map(|(key, value)| (key.to_owned(), value.into())))
    };
    let daemon = |user: &str| lab.daemon(&[&disk]).set("databases.discover", true).database(entry(user)).start();
    let right = daemon("postgres");
    let report = right.freeze(&["--for", "10s", "--require", "application"]);
    assert_eq!(databases(&report), [format!("db:{name}")], "once, and where it was found");
    right.thaw();
    drop(right);
    let wrong = daemon("nobody-there");
    let answer = wrong.cli(&["freeze"]);
    assert_eq!((answer.code, answer.reason()), (Some(4), "DATABASE_UNREACHABLE"), "what is configured is required");
}

/// Checks that the one database there is misses `path` on `lacking`, and that a hold over both disks has it.
fn covered_only_with(lab: &Lab, data: &Fs, lacking: &Fs, path: &Path) {
    let without = discovering(lab, &[data]);
    let report = plan(&without);
    let said = problem(&report, "DATABASE_UNCOVERED");
    for word in [path.to_str().expect("ASCII"), &lacking.step(), "[filesystems] include"] {
        assert!(text(said, "message").contains(word), "{word}: {said:#}");
    }
    let [name] = &databases(&report)[..] else { panic!("not exactly one: {report:#}") };
    assert_eq!(step(&report, name)["database"]["claim"], "uncovered");
    without.cli(&["freeze", "--require", "application"]).exits(4);
    drop(without);
    let both = discovering(lab, &[data, lacking]);
    let report = both.freeze(&["--for", "10s", "--require", "application"]);
    let paths = step(&report, name)["database"]["paths"].as_array().cloned().unwrap_or_default();
    let there = paths.iter().find(|p| p["filesystem"] == lacking.step());
    assert!(there.is_some_and(|p| p["held"] == true && p["path"] == path.display().to_string()), "{paths:?}");
    assert_eq!(both.thaw()["verdict"], "unbroken");
}

fn a_linked_database_directory_on_a_disk_that_is_not_held_is_uncovered(lab: &Lab) {
    let (data, far) = (disk(lab, "/mnt/db"), disk(lab, "/mnt/far"));
    let server = server(lab, Engine::Mariadb, ServerOptions::on(&data));
    server.query("CREATE DATABASE archive");
    let link = server.data.join("archive");
    let moved = far.mount.join("archive");
    fs::create_dir(&moved).expect("there is room");
    let owner = nix::unistd::User::from_name("nobody").expect("readable").expect("everybody has one");
    chown(&moved, Some(owner.uid.as_raw()), Some(owner.gid.as_raw())).expect("root may");
    fs::remove_dir_all(&link).expect("root may");
    symlink(&moved, &link).expect("root may");
    covered_only_with(lab, &data, &far, &link);
}

fn a_disk_mounted_inside_a_data_directory_is_uncovered_unless_it_is_held(lab: &Lab) {
    let data = disk(lab, "/mnt/db");
    let server = server(lab, Engine::Postgresql, ServerOptions::on(&data));
    let inside = server.data.join("base/inside");
    let nested = lab.fs_at(Type::Ext4, &inside, 64);
    covered_only_with(lab, &data, &nested, &inside);
    drop(nested);
    fs::remove_dir(&inside).expect("it was only a mount point");
}

fn data_split_over_two_held_disks_is_covered(lab: &Lab) {
    let (data, log) = (disk(lab, "/mnt/db"), disk(lab, "/mnt/log"));
    let server = server(lab, Engine::Postgresql, ServerOptions { log: Some(&log), ..ServerOptions::on(&data) });
    covered_only_with(lab, &data, &log, &server.data.join("pg_wal"));
}

fn a_postgresql_that_shuts_down_is_said_and_not_spoken_to(lab: &Lab) {
    let disk = disk(lab, "/mnt/db");
    let server = server(lab, Engine::Postgresql, ServerOptions::on(&disk));
    let daemon = discovering(lab, &[&disk]);
    // as it writes it itself, while a smart shutdown waits for its clients
    let pid_file = server.data.join("postmaster.pid");
    let text_of_it = fs::read_to_string(&pid_file).expect("it runs");
    fs::write(&pid_file, text_of_it.replace("ready   ", "stopping")).expect("root may");
    let report = plan(&daemon);
    let said = problem(&report, "DATABASE_UNREACHABLE");
    assert!(text(said, "message").contains("shutting down"), "{said:#}");
    assert_eq!(databases(&report).len(), 1, "{report:#}");
    fs::write(&pid_file, text_of_it).expect("root may");
    daemon.freeze(&["--for", "10s", "--require", "application"]);
    daemon.thaw();
}

fn data_in_an_overlay_lie_where_its_upper_layer_does(lab: &Lab) {
    let (disk, other) = (disk(lab, "/mnt/db"), disk(lab, "/mnt/other"));
    let layers = ["lower", "upper", "work"].map(|name| disk.mount.join(name));
    let merged = Path::new("/mnt/merged");
    layers.iter().for_each(|layer| fs::create_dir(layer).expect("there is room"));
    fs::create_dir_all(merged).expect("the world's root is writable");
    let [lower, upper, work] = layers.each_ref().map(|layer| layer.display());
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    tool(command("mount").args(["-t", "overlay", "-o", &options, "overlay"]).arg(merged));
    let server = lab.server_in(&Edition::of_host(Engine::Postgresql), &merged.join("data"), ServerOptions::existing());
    let elsewhere = discovering(lab, &[&other]);
    let report = plan(&elsewhere);
    assert!(text(problem(&report, "DATABASE_UNCOVERED"), "message").contains(&disk.step()), "{report:#}");
    drop(elsewhere);
    let daemon = discovering(lab, &[&disk]);
    let report = daemon.freeze(&["--for", "10s", "--require", "application"]);
    let [name] = &databases(&report)[..] else { panic!("not exactly one: {report:#}") };
    let data = &step(&report, name)["database"]["paths"][0];
    assert_eq!((&data["filesystem"], &data["held"]), (&disk.step().into(), &true.into()), "{report:#}");
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    drop(daemon);
    drop(server);
    tool(command("umount").arg(merged));
}

fn a_server_configured_by_its_port_and_found_on_its_socket_is_held_once(lab: &Lab) {
    let disk = disk(lab, "/mnt/db");
    // the last setting counts: it has both
    let options = ServerOptions { listens: Listens::Port, ..ServerOptions::on(&disk) };
    let server = server(lab, Engine::Postgresql, options.setting("unix_socket_directories=/tmp"));
    let daemon = lab.daemon(&[&disk]).set("databases.discover", true).database(server.entry("orders")).start();
    let report = daemon.freeze(&["--for", "10s", "--require", "application"]);
    assert_eq!(databases(&report), ["db:orders"], "{report:#}");
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
}

fn what_databases_have_on_a_transient_disk_is_named_there(lab: &Lab) {
    let (data, log, other) = (disk(lab, "/mnt/db"), disk(lab, "/mnt/log"), disk(lab, "/mnt/other"));
    let server = server(lab, Engine::Postgresql, ServerOptions { log: Some(&log), ..ServerOptions::on(&data) });
    let daemon = lab.daemon(&[&data]).set("databases.discover", true).set("transient.mounts", vec![log.at()]).start();
    let report = plan(&daemon);
    let at_risk = |fs: &Fs| {
        let list = report["coverage"].as_array().cloned().unwrap_or_default();
        let entry = list.into_iter().find(|entry| entry["mounts"][0] == fs.at());
        entry.unwrap_or_else(|| panic!("{} is not listed: {report:#}", fs.at()))["at_risk"].clone()
    };
    let name = format!("db:postgresql:5432@{}", directory(&server));
    assert_eq!(at_risk(&log), Value::from(vec![name]), "{report:#}");
    assert!(at_risk(&other).as_array().is_none_or(Vec::is_empty), "nothing of it is there: {report:#}");
}

/// The data are worth nothing without it, and the copy would have them and not it.
fn a_log_on_a_transient_disk_is_worse_than_all_of_a_database_there(lab: &Lab) {
    for engine in [Engine::Postgresql, Engine::Mariadb] {
        let (data, log) = (disk(lab, "/mnt/db"), disk(lab, "/mnt/log"));
        let server = server(lab, engine, ServerOptions { log: Some(&log), ..ServerOptions::on(&data) });
        let setup = lab.daemon(&[&data, &log]).database(server.entry("orders"));
        let worst = |lost: &Fs, kept: &Fs, policy: &str| {
            let setup = setup.clone().set("transient.mounts", vec![lost.at()]).set("transient.policy", policy);
            let daemon = setup.start();
            // said to be in the snapshot, whatever a disk of the lab is taken for
            let answer = daemon.cli(&["check", "--disk", kept.disk.device.to_str().expect("ASCII")]);
            let report = answer.json["plan"].clone();
            let list = report["coverage"].as_array().cloned().unwrap_or_default();
            let entry = list.into_iter().find(|entry| entry["mounts"][0] == lost.at()).expect("listed");
            assert_eq!(entry["risks"][0]["subject"], "db:orders", "{entry:#}");
            (entry["risks"][0]["level"].as_str().unwrap_or_default().to_owned(), report["problems"].to_string())
        };
        let (level, problems) = worst(&log, &data, "refuse");
        assert_eq!(level, "needed", "{}: {problems}", engine.name());
        assert!(problems.contains("a part that the database orders needs (/mnt/"), "{problems}");
        let (level, problems) = worst(&data, &log, "warn");
        assert_eq!(level, "database", "{}: {problems}", engine.name());
        assert!(problems.contains("(loop") && problems.contains("transient): the database orders"), "{problems}");
    }
}

fn a_log_on_a_frozen_disk_is_a_remark_and_one_elsewhere_is_none(lab: &Lab) {
    let disk = disk(lab, "/mnt/db");
    let remarks = |report: &Value| report.to_string().contains("LOG_ON_DISK");
    let collecting = |setting: &str| {
        server(lab, Engine::Postgresql, ServerOptions::on(&disk).setting("logging_collector=on").setting(setting))
    };
    let there = collecting("log_directory=log");
    let daemon = discovering(lab, &[&disk]);
    let report = plan(&daemon);
    assert!(remarks(&report), "its log is frozen with its data: {report:#}");
    drop(there);
    fs::remove_dir_all(disk.mount.join("data")).expect("nobody uses it any more");
    let elsewhere = collecting("log_directory=/tmp");
    assert!(!remarks(&plan(&daemon)), "its log is in memory here");
    drop(elsewhere);
}

fn the_printed_role_is_enough_to_hold(lab: &Lab) {
    let (one, two) = (disk(lab, "/mnt/one"), disk(lab, "/mnt/two"));
    let postgresql = server(lab, Engine::Postgresql, ServerOptions::on(&one));
    let mariadb = server(lab, Engine::Mariadb, ServerOptions::on(&two));
    let discovered = discovering(lab, &[&one, &two]);
    let printed = discovered.cli(&["check", "--sql"]);
    printed.exits(0);
    drop(discovered);
    for server in [&postgresql, &mariadb] {
        let roles = printed.json["roles"].as_array().cloned().unwrap_or_default();
        let role = roles.into_iter().find(|role| role["engine"] == server.engine().name());
        let role = role.unwrap_or_else(|| panic!("none for {}: {:#}", server.engine().name(), printed.json));
        assert!(role["version"].as_str().is_some_and(|version| !version.is_empty()), "{role:#}");
        for statement in text(&role, "sql").lines().filter(|line| !line.starts_with("--")) {
            server.query(statement);
        }
    }
    let password = lab.memory_dir("password").join("file");
    fs::write(&password, "change me\n").expect("memory");
    fs::set_permissions(&password, fs::Permissions::from_mode(0o600)).expect("memory");
    let entry = |server: &Server, name: &str| {
        let mut entry = server.entry(name);
        entry.insert("user".to_owned(), "holdstill".into());
        entry.insert("password_file".to_owned(), password.display().to_string().into());
        entry
    };
    let daemon =
        lab.daemon(&[&one, &two]).database(entry(&postgresql, "pg")).database(entry(&mariadb, "maria")).start();
    let report = plan(&daemon);
    let problems = report["problems"].as_array().cloned().unwrap_or_default();
    let about = |p: &&Value| p["severity"] == "warning" && text(p, "subject").starts_with("db:");
    assert_eq!(problems.iter().find(about), None, "{report:#}");
    let report = daemon.freeze(&["--for", "10s", "--require", "application"]);
    assert_eq!(report["consistency"], "application", "{report:#}");
    let thawed = daemon.thaw();
    assert_eq!((&thawed["verdict"], &thawed["consistency"]), (&"unbroken".into(), &"application".into()), "{thawed:#}");
}

/// A file in root's home, which is this world's own.
fn at_home(name: &str, mode: u32, content: &str) {
    let path = Path::new("/root").join(name);
    fs::write(&path, content).expect("the world's root is writable");
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("root may");
}

/// Checks that a file lets us in only if nobody else can read it or owns it.
fn lets_in_unless_exposed(lab: &Lab, disk: &Fs, name: &str, content: &str) {
    let daemon = discovering(lab, &[disk]);
    daemon.cli(&["freeze", "--require", "application"]).exits(4);
    at_home(name, 0o600, content);
    let report = daemon.freeze(&["--for", "10s", "--require", "application"]);
    assert_eq!(report["consistency"], "application");
    daemon.thaw();
    let path = Path::new("/root").join(name);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("root may");
    let exposed = plan(&daemon);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("root may");
    chown(&path, Some(65534), None).expect("root may");
    let foreign = plan(&daemon);
    fs::remove_file(&path).expect("root may");
    for (report, why) in [(exposed, "is open to others (mode 0640)"), (foreign, "belongs to uid 65534")] {
        let said = problem(&report, "DATABASE_UNREACHABLE");
        assert!(text(said, "hint").contains(&format!("/root/{name} {why}: ignored")), "{said:#}");
        assert!(!report.to_string().contains("s3cret"), "{report:#}");
    }
    assert!(!daemon.log().contains("s3cret"), "{}", daemon.log());
}

fn my_cnf_lets_root_in_unless_others_can_read_it(lab: &Lab) {
    let disk = disk(lab, "/mnt/db");
    let server = server(lab, Engine::Mariadb, ServerOptions::on(&disk));
    let socket = server.socket().display().to_string();
    server.query("CREATE USER keeper@localhost IDENTIFIED BY 's3cret # and so on'");
    server.query("GRANT ALL ON *.* TO keeper@localhost");
    server.query("ALTER USER root@localhost ACCOUNT LOCK");
    let content =
        format!("# mine\n[client]\nuser = keeper\npassword = \"s3cret # and so on\"  # really\nsocket={socket}\n");
    lets_in_unless_exposed(lab, &disk, ".my.cnf", &content);
}

fn pgpass_and_services_let_us_in_unless_others_can_read_them(lab: &Lab) {
    let disk = disk(lab, "/mnt/db");
    let server = server(lab, Engine::Postgresql, ServerOptions::on(&disk));
    server.query("ALTER ROLE postgres PASSWORD 's3cret:x'");
    fs::write(server.data.join("pg_hba.conf"), "local all all scram-sha-256\n").expect("root may");
    server.query("SELECT pg_reload_conf()");
    assert!(until(Duration::from_secs(5), || server.try_query("SELECT 1").is_err()), "it still asks for no password");
    let place = directory(&server);
    lets_in_unless_exposed(
        lab,
        &disk,
        ".pgpass",
        &format!("*:*:*:postgres:wrong\n{place}:5432:*:postgres:s3cret\\:x\n"),
    );
    at_home(".pg_service.conf", 0o600, &format!("[orders]\nhost={place}\nuser=postgres\npassword=s3cret:x\n"));
    let words = [("name", "orders"), ("engine", "postgresql"), ("service", "orders")];
    let entry = toml::Table::from_iter(words.map(|(key, value)| (key.to_owned(), value.into())));
    let daemon = lab.daemon(&[&disk]).database(entry).start();
    assert_eq!(databases(&daemon.freeze(&["--for", "10s", "--require", "application"])), ["db:orders"]);
    daemon.thaw();
    at_home(".pg_service.conf", 0o644, &format!("[orders]\nhost={place}\nuser=postgres\npassword=s3cret:x\n"));
    let answer = daemon.cli(&["freeze"]);
    assert_eq!((answer.code, answer.reason()), (Some(4), "DATABASE_UNREACHABLE"));
    answer.says("is open to others").says("chmod 600");
}
