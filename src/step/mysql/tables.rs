//! Which tables have no transactions (a freeze alone may leave those half written) and which are empty after any restart.
//!
//! `information_schema.TABLES` shows an account only what it has a privilege on, so a small account sees nothing and
//! learns nothing: an empty list counts only if the account can see every table. `LOCK TABLES` and `SHOW DATABASES` do
//! not make tables visible; REFERENCES does, and allows nothing else.

use super::{
    flavour::Server,
    link::{Link, Trouble, code},
    rights::{may_lock, sees_every_table},
    strategy::Count,
};
use crate::step::database::Deadline;

/// The server itself ends the listing after this; old versions open a file for each table.
const LIST_LIMIT: u64 = 2_000;

/// More are not listed: beyond a few it makes no difference how many there are.
const MOST: usize = 1_000;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Table {
    schema: String,
    name: String,
    engine: String,
}

impl Table {
    /// For SQL: `schema`.`name`
    pub fn quoted(&self) -> String {
        let quote = |name: &str| format!("`{}`", name.replace('`', "``"));
        format!("{}.{}", quote(&self.schema), quote(&self.name))
    }

    /// For comparing with its schema and name in SQL.
    pub fn literal(&self) -> String {
        let quote = |name: &str| format!("'{}'", name.replace('\\', "\\\\").replace('\'', "\\'"));
        format!("({}, {})", quote(&self.schema), quote(&self.name))
    }

    /// Is it named in this statement, with or without its schema?
    pub fn is_named_in(&self, statement: &str) -> bool {
        let name = self.name.to_lowercase();
        let lower = statement.to_lowercase();
        lower.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$')).any(|word| word == name)
    }

    pub fn is(&self, schema: &str, name: &str) -> bool {
        self.schema == schema && self.name == name
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{} ({})", self.schema, self.name, self.engine)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tables {
    pub non_transactional: Vec<Table>,
    pub lost: Vec<Table>,
    /// why the lists may lack some
    pub unknown: Option<&'static str>,
    /// the account may lock the first list's tables
    pub lockable: bool,
}

impl Tables {
    fn unknown(why: &'static str) -> Tables {
        Tables { unknown: Some(why), ..Tables::default() }
    }
}

impl Tables {
    #[cfg(test)]
    pub fn of(tables: &[(&str, &str, &str)]) -> Tables {
        let table = |&(schema, name, engine): &(&str, &str, &str)| Table {
            schema: schema.to_owned(),
            name: name.to_owned(),
            engine: engine.to_owned(),
        };
        Tables { non_transactional: tables.iter().map(table).collect(), ..Tables::default() }
    }

    /// There are files of such tables.
    pub fn doubt(&mut self) {
        if self.non_transactional.is_empty() && self.unknown.is_none() {
            self.unknown = Some(SEEN_ON_DISK);
        }
    }

    /// A grant would help.
    pub fn need_a_grant(&self) -> bool {
        self.unknown == Some(NOT_ALL_SEEN)
    }

    pub fn count(&self) -> Count {
        if self.unknown.is_some() { Count::Unknown } else { Count::Known(self.non_transactional.len()) }
    }
}

const NOT_ALL_SEEN: &str = "the account cannot see every table";
const SEEN_ON_DISK: &str = "files of such tables lie in its data directory, and the server tells of none";
const NOT_IN_TIME: &str = "listing the tables took too long";
const TOO_MANY: &str = "there are more than a thousand";

/// MAX_EXECUTION_TIME and max_statement_time say this when they end a statement.
const ENDED: [u16; 2] = [3024, 1969];

/// # Errors
/// The connection failed, or the server refused to list anything.
pub(super) async fn list(link: &mut Link, server: &Server, deadline: Deadline) -> Result<Tables, Trouble> {
    let grants = link.table::<1>(deadline, "SHOW GRANTS").await?;
    if !sees_every_table(grants.iter().map(|[line]| line.as_str())) {
        return Ok(Tables::unknown(NOT_ALL_SEEN));
    }
    let select = format!(
        "TABLE_SCHEMA, TABLE_NAME, ENGINE, CREATE_OPTIONS FROM information_schema.TABLES WHERE TABLE_TYPE = 'BASE TABLE' \
         AND TABLE_SCHEMA NOT IN ('mysql', 'information_schema', 'performance_schema', 'sys') AND ENGINE <> 'InnoDB' \
         LIMIT {}",
        MOST + 1
    );
    match link.table::<4>(deadline, &server.limited(LIST_LIMIT, &select)).await {
        Ok(rows) => {
            let mut tables = sorted(rows);
            let lines = || grants.iter().map(|[line]| line.as_str());
            tables.lockable = tables.non_transactional.iter().all(|table| may_lock(lines(), &table.schema));
            Ok(tables)
        }
        Err(failed) if code(&failed).is_some_and(|code| ENDED.contains(&code)) => Ok(Tables::unknown(NOT_IN_TIME)),
        Err(failed) => Err(failed),
    }
}

fn sorted(rows: Vec<[String; 4]>) -> Tables {
    let mut tables = Tables { unknown: (rows.len() > MOST).then_some(TOO_MANY), ..Tables::default() };
    for [schema, name, engine, options] in rows {
        let kind = kind(&engine, &options);
        let table = Table { schema, name, engine };
        match kind {
            Keeps::Transactions | Keeps::Nothing => {}
            Keeps::Files => tables.non_transactional.push(table),
            Keeps::Memory => tables.lost.push(table),
        }
    }
    tables.non_transactional.sort();
    tables.lost.sort();
    tables
}

/// What a table's engine keeps, and how.
#[derive(Debug, PartialEq, Eq)]
enum Keeps {
    Transactions,
    /// written in place: half written is damaged
    Files,
    Memory,
    /// its data is another table's or another server's
    Nothing,
}

fn kind(engine: &str, options: &str) -> Keeps {
    match engine.to_ascii_lowercase().as_str() {
        "innodb" | "rocksdb" | "tokudb" | "ndbcluster" | "ndb" => Keeps::Transactions,
        "memory" | "heap" => Keeps::Memory,
        "mrg_myisam" | "blackhole" | "federated" | "performance_schema" | "sequence" | "spider" => Keeps::Nothing,
        // Aria logs its changes and recovers, unless told not to or in a row format that cannot be logged.
        "aria" => {
            let options = options.to_ascii_lowercase();
            let format = options.split_whitespace().find_map(|option| option.strip_prefix("row_format="));
            let logged = !options.contains("transactional=0") && format.is_none_or(|format| format == "page");
            if logged { Keeps::Transactions } else { Keeps::Files }
        }
        _ => Keeps::Files,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted_by_what_a_crash_does_to_them() {
        let row = |name: &str, engine: &str, options: &str| {
            [name, engine, options].map(str::to_owned).into_iter().collect::<Vec<_>>()
        };
        let rows = [
            row("log", "MyISAM", ""),
            row("plain", "Aria", "transactional=0"),
            row("fixed", "Aria", "row_format=FIXED"),
            row("safe", "Aria", "transactional=1 row_format=PAGE"),
            row("usual", "Aria", ""),
            row("now", "MEMORY", ""),
            row("all", "MRG_MyISAM", ""),
            row("next", "SomethingNew", ""),
        ];
        let tables =
            sorted(rows.into_iter().map(|r| ["app".to_owned(), r[0].clone(), r[1].clone(), r[2].clone()]).collect());
        let shown = |tables: &[Table]| tables.iter().map(Table::to_string).collect::<Vec<_>>();
        assert_eq!(
            shown(&tables.non_transactional),
            ["app.fixed (Aria)", "app.log (MyISAM)", "app.next (SomethingNew)", "app.plain (Aria)"]
        );
        assert_eq!(shown(&tables.lost), ["app.now (MEMORY)"]);
        assert_eq!(tables.count(), Count::Known(4));
        let unseen = Tables::unknown(NOT_ALL_SEEN);
        assert_eq!(unseen.count(), Count::Unknown, "nothing seen is not nothing there");
        let mut told = Tables::default();
        assert_eq!(told.count(), Count::Known(0));
        told.doubt();
        assert_eq!(told.count(), Count::Unknown, "its files are there");
    }

    #[test]
    fn a_tables_name_is_quoted_and_found_as_a_word() {
        let table = Table { schema: "a`b".to_owned(), name: "orders".to_owned(), engine: "MyISAM".to_owned() };
        assert_eq!(table.quoted(), "`a``b`.`orders`");
        assert!(table.is_named_in("INSERT INTO `a``b`.`Orders` SELECT 1"));
        assert!(!table.is_named_in("INSERT INTO orders_2025 VALUES (1)"));
    }
}
