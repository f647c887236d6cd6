//! Unlogged tables: empty after any crash recovery, so empty in every copy. A catalogue lists those of its own database
//! only, so every database is looked into, briefly and through a connection of its own.

use std::time::Duration;

use tokio_postgres::Config;

use super::{
    super::database::{Deadline, Target},
    connect::{self, Login, Refused, text},
};

/// More databases than this are not looked into.
const MOST_DATABASES: usize = 16;
/// More tables than this are not listed.
const MOST_TABLES: usize = 64;
/// All of it takes no longer.
const LIMIT: Duration = Duration::from_secs(1);

const TABLES: &str = "SELECT current_database()::text AS database, n.nspname::text AS schema, c.relname::text AS name
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relpersistence = 'u' AND c.relkind IN ('r', 'm') ORDER BY 2, 3 LIMIT 65";
const DATABASES: &str = "SELECT datname::text AS name FROM pg_database
     WHERE datallowconn AND NOT datistemplate AND datname <> current_database() ORDER BY 1";

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unlogged {
    /// "database.schema.table (unlogged)"
    pub tables: Vec<String>,
    /// databases that could not be looked into
    pub unknown: Vec<String>,
}

pub(super) async fn find(
    login: &Login,
    target: &Target,
    config: &Config,
    deadline: Deadline,
) -> Result<Unlogged, Refused> {
    let mut found = Unlogged { tables: tables(login, deadline).await?, unknown: Vec::new() };
    let soon = deadline.at_most(LIMIT);
    for (index, row) in login.rows(deadline, DATABASES).await?.iter().enumerate() {
        let database = text(row, "name");
        let theirs = if index < MOST_DATABASES { look_into(login, target, config, database, soon).await } else { None };
        match theirs {
            Some(theirs) => found.tables.extend(theirs),
            None => found.unknown.push(database.to_owned()),
        }
    }
    found.tables.truncate(MOST_TABLES);
    Ok(found)
}

/// `None`: not let in, or not in time.
async fn look_into(
    login: &Login,
    target: &Target,
    config: &Config,
    database: &str,
    deadline: Deadline,
) -> Option<Vec<String>> {
    let other = connect::log_in(target, config, &login.user, database, deadline).await.ok()?.ok()?;
    let theirs = tables(&other, deadline).await.ok();
    other.leave(deadline).await;
    theirs
}

async fn tables(login: &Login, deadline: Deadline) -> Result<Vec<String>, Refused> {
    let named = |row: &tokio_postgres::Row| {
        format!("{}.{}.{} (unlogged)", text(row, "database"), text(row, "schema"), text(row, "name"))
    };
    Ok(login.rows(deadline, TABLES).await?.iter().map(named).collect())
}
