//! The databases of a hold: found and configured ones, connected to, and where their files are.
//!
//! ```text
//!   /proc ──▶ candidates ──▶ connect (all at once) ──▶ identity ──▶ coverage ──▶ an Instance, or why it is none
//!   config ──▶
//! ```
//!
//! What touches files of servers runs in threads with a limit: a data directory may lie on what no longer answers.

mod add;
mod candidates;
mod coverage;
mod ground;
mod identity;
mod table_files;

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;

use self::{
    add::failure,
    candidates::{Candidate, Unreachable},
};
use super::{READ_LIMIT, Surroundings, Survey, TOUCH_LIMIT, in_a_thread};
use crate::{
    config::Settings,
    guest::databases,
    proto,
    step::database::{self, Address, Given, Logs, Session, Target},
};

/// A database that takes longer to let us in would make us wait later, too.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// More parts than this are counted as covered or not, and not listed.
const MOST_PATHS: usize = 64;

/// One database that can be held.
pub struct Instance {
    pub target: Target,
    pub session: Session,
    /// the server's process, if it is known
    pid: Option<i32>,
    /// every directory it needs is on a file system that is frozen
    pub covered: bool,
}

impl Instance {
    pub(super) fn pid(&self) -> Option<i32> {
        self.pid
    }
}

impl Survey {
    pub(super) async fn find_databases(
        &mut self,
        settings: &Settings,
        surroundings: &Surroundings,
        spec: &proto::HoldSpec,
    ) {
        let found = self.look_for_databases(settings, surroundings).await;
        let (candidates, unreachable) = self.candidates(settings, surroundings, &found).await;
        let mut told: BTreeSet<i32> = BTreeSet::new();
        let candidates = self.ready_ones(candidates, surroundings, &mut told).await;
        let logs = match spec.capture_mode() {
            proto::CaptureMode::LogsAfterThaw => Logs::AfterThaw,
            proto::CaptureMode::Unspecified | proto::CaptureMode::WhileHeld => Logs::WhileHeld,
        };
        let connections = join_all(candidates.iter().map(|c| Session::connect(&c.target, logs, CONNECT_LIMIT))).await;
        for (candidate, connection) in candidates.into_iter().zip(connections) {
            match connection {
                Ok(session) => {
                    let server = self.add_if_it_is_the_one(candidate, session, &found, surroundings).await;
                    told.extend(server);
                }
                Err(error) => {
                    told.extend(candidate.server);
                    self.cannot_hold(&candidate.target, &error);
                }
            }
        }
        let running = found.engines.iter().filter(|_| settings.databases.discover);
        for engine in running.filter(|engine| !told.contains(&engine.pid)) {
            self.not_held(engine, unreachable.iter().find(|u| u.pid == engine.pid));
        }
        self.leave_out_receipts(self.who_minds_receipts(&found), surroundings).await;
        self.engines = found.engines;
    }

    /// Servers that a directory among their data disturbs: PostgreSQL and MariaDB. An old MariaDB goes by MySQL's name and says
    /// what it is once it is connected to.
    fn who_minds_receipts(&self, found: &databases::Found) -> Vec<i32> {
        let by_name = found.engines.iter().filter_map(|running| match running.engine {
            databases::Engine::Postgresql | databases::Engine::Mariadb => Some(running.pid),
            databases::Engine::Mysql
            | databases::Engine::Redis
            | databases::Engine::Valkey
            | databases::Engine::Mongodb
            | databases::Engine::Etcd
            | databases::Engine::Clickhouse
            | databases::Engine::Cassandra
            | databases::Engine::Elasticsearch => None,
        });
        let told = self.databases.iter().filter(|db| db.session.describe().engine != "mysql");
        by_name.chain(told.filter_map(|db| db.pid)).collect()
    }

    async fn look_for_databases(&mut self, settings: &Settings, surroundings: &Surroundings) -> databases::Found {
        // settings for one over TCP are of use only if its server is found
        if !settings.databases.discover && settings.databases.configured.is_empty() {
            return databases::Found::default();
        }
        let (root, processes) = (surroundings.root.clone(), self.guest.processes.clone());
        let found = in_a_thread(READ_LIMIT, move || databases::read(&root, &processes)).await;
        let Some(found) = found else {
            // nothing found is not nothing there
            self.expected.capped = true;
            self.unread("DISCOVERY_INCOMPLETE", "look for databases");
            return databases::Found::default();
        };
        found
    }

    /// Configured instances, then those that are only found.
    async fn candidates(
        &mut self,
        settings: &Settings,
        surroundings: &Surroundings,
        found: &databases::Found,
    ) -> (Vec<Candidate>, Vec<Unreachable>) {
        let (mut discovered, mut unreachable) = match settings.databases.discover {
            true => candidates::discovered(found),
            false => Default::default(),
        };
        let configured: Vec<Candidate> = settings
            .databases
            .configured
            .iter()
            .map(|target| candidates::named(target.clone(), &mut discovered))
            .collect();
        let engines = found.engines.clone();
        let asked = configured.clone();
        let sockets: Vec<Target> = discovered.iter().filter(|d| d.server.is_none()).map(|d| d.target.clone()).collect();
        let known = in_a_thread(TOUCH_LIMIT, move || {
            let server = |c: &Candidate| c.server.or_else(|| candidates::server_of(&c.target, &engines));
            // a path that listens and is not there is another mount namespace's
            let twice =
                |t: &Target| !database::is_there(t) || asked.iter().any(|c| database::same_instance(&c.target, t));
            let servers: Vec<Option<i32>> = asked.iter().map(server).collect();
            (servers, sockets.iter().map(twice).collect::<Vec<bool>>())
        })
        .await;
        let (servers, twice) = known.unwrap_or_default();
        let mut twice = twice.into_iter();
        discovered.retain(|d| match d.server {
            Some(pid) => !servers.contains(&Some(pid)),
            None => !twice.next().unwrap_or(false),
        });
        let mut all: Vec<Candidate> = configured;
        for (candidate, server) in all.iter_mut().zip(&servers) {
            candidate.server = candidate.server.or(*server);
        }
        self.find_listeners(&mut all, surroundings).await;
        unreachable.retain(|u| !servers.contains(&Some(u.pid)));
        all.extend(discovered);
        (all, unreachable)
    }

    /// A port of this machine that no known server has is somebody's: a server of another name, or what leads into a
    /// container.
    async fn find_listeners(&self, candidates: &mut [Candidate], surroundings: &Surroundings) {
        for candidate in candidates.iter_mut().filter(|c| c.server.is_none() && c.target.place == Given::Told) {
            let Address::Tcp { host, port } = &candidate.target.at else { continue };
            if candidates::is_here(host) {
                let (root, processes, port) = (surroundings.root.clone(), self.guest.processes.clone(), *port);
                let found = in_a_thread(READ_LIMIT, move || databases::listens_on(&root, &processes, port)).await;
                candidate.server = found.flatten();
            }
        }
    }

    /// Leaves out, and says, those that start or stop just now.
    async fn ready_ones(
        &mut self,
        candidates: Vec<Candidate>,
        surroundings: &Surroundings,
        told: &mut BTreeSet<i32>,
    ) -> Vec<Candidate> {
        let (root, asked) = (surroundings.root.clone(), candidates.clone());
        let states = in_a_thread(TOUCH_LIMIT, move || {
            let state = |candidate: &Candidate| match candidate.target.engine {
                database::Engine::Postgresql => identity::not_ready(&root, candidate.server?),
                database::Engine::Mysql => None,
            };
            asked.iter().map(state).collect::<Vec<_>>()
        })
        .await
        .unwrap_or_default();
        let mut ready = Vec::new();
        let mut states = states.into_iter();
        for candidate in candidates {
            match states.next().flatten() {
                None => ready.push(candidate),
                Some((why, cure)) => {
                    told.extend(candidate.server);
                    self.cannot_hold(&candidate.target, &failure(&candidate.target, why.to_owned(), cure));
                }
            }
        }
        ready
    }
}
