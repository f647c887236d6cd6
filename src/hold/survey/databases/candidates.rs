//! Which instances there are, and how each is reached. Decided from what was found and what is configured; nothing is
//! connected to.

use std::collections::BTreeSet;

use crate::{
    guest::databases::{self, Found, RunningEngine},
    step::database::{self, Address, Given, Target},
};

/// An instance to connect to.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub target: Target,
    /// the process that must answer, if it is known
    pub server: Option<i32>,
}

/// A server of an engine we hold that we cannot connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unreachable {
    pub pid: i32,
    /// completes "it runs and is not held: …"
    pub why: String,
    pub cure: String,
}

/// Everything running, each instance once, none of what `configured` already names by its server's process.
pub(super) fn discovered(found: &Found) -> (Vec<Candidate>, Vec<Unreachable>) {
    let (mut candidates, mut unreachable) = (Vec::new(), Vec::new());
    let mut names = BTreeSet::new();
    for engine in &found.engines {
        let Some(spoken) = spoken(engine.engine) else { continue };
        match way_to(spoken, engine) {
            Ok(mut target) => {
                if let Some(container) = &engine.container {
                    target.name = format!("{}@{container}", target.name);
                }
                if !names.insert(target.name.clone()) {
                    target.name = format!("{}@pid{}", target.name, engine.pid);
                    names.insert(target.name.clone());
                }
                candidates.push(Candidate { target, server: Some(engine.pid) });
            }
            Err((why, cure)) => unreachable.push(Unreachable { pid: engine.pid, why, cure }),
        }
    }
    for socket in &found.sockets {
        let Some(spoken) = spoken(socket.engine) else { continue };
        let target = Target::discovered(spoken, socket.path.clone());
        if names.insert(target.name.clone()) {
            candidates.push(Candidate { target, server: None });
        }
    }
    // not by process number, which changes with every boot
    candidates.sort_by(|a: &Candidate, b| a.target.name.cmp(&b.target.name));
    (candidates, unreachable)
}

/// Its unix socket first, then a port of ours.
fn way_to(spoken: database::Engine, engine: &RunningEngine) -> Result<Target, (String, String)> {
    if !engine.open_to_us {
        let why = "what it listens on is hidden from us".to_owned();
        return Err((why, "run the daemon as root in the machine's own user namespace".to_owned()));
    }
    // where distributions put it first: its name is the shortest, too
    let sockets = engine.sockets.iter().map(|path| Target::discovered(spoken, path.clone()));
    if let Some(target) = sockets.min_by_key(|target| (target.name.len(), target.name.clone())) {
        return Ok(Target { seen_by: engine.elsewhere.then_some(engine.pid), ..target });
    }
    let setting = match spoken {
        database::Engine::Postgresql => "`unix_socket_directories`",
        database::Engine::Mysql => "`socket`",
    };
    match engine.ports.first() {
        None => Err(("it listens on nothing".to_owned(), format!("give it a unix socket: {setting}"))),
        Some(at) if engine.apart => {
            let why = format!("it listens on port {} of a network of its own and on no unix socket", at.port());
            let cure = format!(
                "give it a unix socket ({setting}), or configure it as a [[database]] with a `host` and `port` that lead there"
            );
            Err((why, cure))
        }
        Some(at) => {
            let host = match at.ip() {
                ip if !ip.is_unspecified() => ip.to_string(),
                ip if ip.is_ipv6() && engine.ports.iter().all(|port| port.is_ipv6()) => "::1".to_owned(),
                _ => "127.0.0.1".to_owned(),
            };
            Ok(Target::discovered_over_tcp(spoken, host, at.port()))
        }
    }
}

/// Settings given under the name of a discovered instance are that instance's: it is taken out of `discovered`.
pub(super) fn named(mut target: Target, discovered: &mut Vec<Candidate>) -> Candidate {
    let same = |d: &Candidate| d.target.name == target.name && d.target.engine == target.engine;
    match discovered.iter().position(same) {
        Some(at) if target.place == Given::Guessed => {
            let Candidate { target: found, server } = discovered.remove(at);
            target.at = found.at;
            target.seen_by = found.seen_by;
            target.place = found.place;
            Candidate { target, server }
        }
        Some(_) | None => Candidate { target, server: None },
    }
}

/// The process a target leads to, among those that run. Looks at files: call it where that may block.
pub(super) fn server_of(target: &Target, running: &[RunningEngine]) -> Option<i32> {
    let leads_to = |engine: &&RunningEngine| {
        let speaks = spoken(engine.engine) == Some(target.engine);
        let seen_by = engine.elsewhere.then_some(engine.pid);
        speaks
            && match &target.at {
                Address::Socket(_) => engine.sockets.iter().any(|path| {
                    let found = Target { seen_by, ..Target::discovered(target.engine, path.clone()) };
                    database::same_instance(target, &found)
                }),
                Address::Tcp { host, port } => {
                    is_here(host) && !engine.apart && engine.ports.iter().any(|at| at.port() == *port)
                }
            }
    };
    running.iter().find(leads_to).map(|engine| engine.pid)
}

/// Whether a host means this machine, whatever its addresses.
pub(super) fn is_here(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

/// The protocol an engine speaks, if it is one we hold.
pub(super) fn spoken(engine: databases::Engine) -> Option<database::Engine> {
    use databases::Engine;
    match engine {
        Engine::Postgresql => Some(database::Engine::Postgresql),
        Engine::Mysql | Engine::Mariadb => Some(database::Engine::Mysql),
        Engine::Redis
        | Engine::Valkey
        | Engine::Mongodb
        | Engine::Etcd
        | Engine::Clickhouse
        | Engine::Cassandra
        | Engine::Elasticsearch => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(engine: databases::Engine, pid: i32, sockets: &[&str]) -> RunningEngine {
        RunningEngine {
            engine,
            pid,
            datadir: None,
            sockets: sockets.iter().map(Into::into).collect(),
            ports: Vec::new(),
            elsewhere: false,
            apart: false,
            container: None,
            open_to_us: true,
        }
    }

    fn found(engines: Vec<RunningEngine>) -> Found {
        Found { sockets: Vec::new(), engines }
    }

    fn names(found: &Found) -> Vec<String> {
        discovered(found).0.into_iter().map(|candidate| candidate.target.name).collect()
    }

    const POSTGRES: databases::Engine = databases::Engine::Postgresql;

    #[test]
    fn every_instance_has_a_name_of_its_own_that_stays() {
        let usual = "/run/postgresql/.s.PGSQL.5432";
        let contained = |pid, container: Option<&str>| RunningEngine {
            elsewhere: true,
            container: container.map(str::to_owned),
            ..engine(POSTGRES, pid, &[usual])
        };
        let all = found(vec![
            engine(POSTGRES, 10, &["/tmp/.s.PGSQL.5432", usual]),
            engine(POSTGRES, 11, &["/tmp/.s.PGSQL.5433"]),
            contained(12, Some("4f2e9c31d0aa")),
            contained(13, None),
            engine(databases::Engine::Redis, 14, &["/run/redis.sock"]),
        ]);
        assert_eq!(
            names(&all),
            ["postgresql:5432", "postgresql:5432@4f2e9c31d0aa", "postgresql:5432@pid13", "postgresql:5433@/tmp"]
        );
        let seen_by: Vec<Option<i32>> = discovered(&all).0.into_iter().map(|c| c.target.seen_by).collect();
        assert_eq!(seen_by, [None, Some(12), Some(13), None]);
    }

    #[test]
    fn a_sandboxed_service_is_called_what_it_always_was() {
        let sandboxed =
            RunningEngine { elsewhere: true, ..engine(databases::Engine::Mariadb, 20, &["/run/mysqld/mysqld.sock"]) };
        assert_eq!(names(&found(vec![sandboxed])), ["mysql:mysqld"]);
    }

    #[test]
    fn without_a_socket_a_port_of_ours_will_do_and_one_of_another_network_is_said() {
        let at = |ports: &[&str]| ports.iter().map(|port| port.parse().unwrap()).collect::<Vec<_>>();
        let ours =
            RunningEngine { ports: at(&["0.0.0.0:3307", "[::]:33060"]), ..engine(databases::Engine::Mysql, 30, &[]) };
        let v6 = RunningEngine { ports: at(&["[::]:5433"]), ..engine(POSTGRES, 31, &[]) };
        let apart = RunningEngine { ports: at(&["0.0.0.0:5432"]), apart: true, ..engine(POSTGRES, 32, &[]) };
        let hidden = RunningEngine { open_to_us: false, ..engine(POSTGRES, 33, &[]) };
        let (candidates, unreachable) = discovered(&found(vec![ours, v6, apart, hidden]));
        let ways: Vec<_> = candidates.iter().map(|c| (c.target.name.as_str(), c.target.at.clone())).collect();
        let tcp = |host: &str, port| Address::Tcp { host: host.to_owned(), port };
        assert_eq!(ways, [("mysql:3307@tcp", tcp("127.0.0.1", 3307)), ("postgresql:5433@tcp", tcp("::1", 5433))]);
        let [apart, hidden] = &unreachable[..] else { panic!("{unreachable:?}") };
        assert!(apart.pid == 32 && apart.why.contains("a network of its own"), "{apart:?}");
        assert!(apart.cure.contains("`unix_socket_directories`") && apart.cure.contains("`host`"), "{apart:?}");
        assert!(hidden.pid == 33 && hidden.why.contains("hidden"), "{hidden:?}");
    }

    #[test]
    fn settings_under_a_discovered_name_are_that_instances() {
        let (mut candidates, _) = discovered(&found(vec![engine(POSTGRES, 40, &["/tmp/.s.PGSQL.5433"])]));
        let settings = Target {
            name: "postgresql:5433@/tmp".to_owned(),
            configured: true,
            user: Some("keeper".to_owned()),
            place: Given::Guessed,
            ..Target::discovered(database::Engine::Postgresql, "/run/postgresql/.s.PGSQL.5432".into())
        };
        let told = Target { place: Given::Told, ..settings.clone() };
        assert_eq!(named(told, &mut candidates).server, None, "another socket is another instance");
        let candidate = named(settings, &mut candidates);
        assert_eq!((candidate.server, candidate.target.user.as_deref()), (Some(40), Some("keeper")));
        assert_eq!(candidate.target.at, Address::Socket("/tmp/.s.PGSQL.5433".into()));
        assert!(candidates.is_empty());
    }

    #[test]
    fn a_port_of_this_machine_leads_to_who_listens_on_it() {
        let listens = RunningEngine { ports: vec!["0.0.0.0:5432".parse().unwrap()], ..engine(POSTGRES, 50, &[]) };
        let tcp = |host: &str| Target::discovered_over_tcp(database::Engine::Postgresql, host.to_owned(), 5432);
        assert_eq!(server_of(&tcp("127.0.0.1"), std::slice::from_ref(&listens)), Some(50));
        assert_eq!(server_of(&tcp("db.example.org"), std::slice::from_ref(&listens)), None);
        let apart = RunningEngine { apart: true, ..listens };
        assert_eq!(server_of(&tcp("localhost"), &[apart]), None);
    }
}
