//! What a report says of each database, for people: how it is held and why so, where its files are, what the copy will
//! lack. Pure text; may change between versions (`--json` may not).

use std::fmt::Write as _;

use super::words;
use crate::proto::{self, step::Detail};

/// A paragraph for each database of the report.
pub fn about(report: &proto::Report) -> String {
    let mut out = String::new();
    for step in &report.steps {
        if let Some(Detail::Database(db)) = &step.detail {
            out.push_str(&paragraph(&step.name, db, report.freeze_by()));
        }
    }
    out
}

fn paragraph(name: &str, db: &proto::Database, freeze_by: proto::FreezeBy) -> String {
    let not_held = match freeze_by {
        proto::FreezeBy::Unspecified | proto::FreezeBy::Agent => ", which is NOT held",
        proto::FreezeBy::Caller => ", which is left to the caller",
    };
    let mut lines = Vec::new();
    if !db.strategy.is_empty() {
        lines.push(match db.strategy_reason.is_empty() {
            true => format!("held by {}", db.strategy),
            false => format!("held by {}: {}", db.strategy, db.strategy_reason),
        });
    }
    lines.extend(db.paths.iter().map(|path| {
        let place = match (path.filesystem.as_str(), path.held) {
            ("", _) => "on a file system that is not known here".to_owned(),
            (filesystem, true) => format!("on {filesystem}"),
            (filesystem, false) => format!("on {filesystem}{not_held}"),
        };
        format!("{}: {} {place}", path.purpose, path.path)
    }));
    if db.open_transactions > 0 {
        let count = db.open_transactions;
        let age = db.oldest_open_transaction.as_ref();
        let age = age.map(|age| format!(", the oldest for {}", words::duration(Some(age)))).unwrap_or_default();
        lines.push(format!("{count} open write transaction(s){age}: the copy rolls them back"));
    }
    if db.prepared_transactions > 0 {
        lines.push(format!("{} prepared transaction(s): still prepared in the copy", db.prepared_transactions));
    }
    let list = |what: &str, tables: &[String]| {
        let shown: Vec<&str> = tables.iter().take(SHOWN).map(String::as_str).collect();
        let more = tables.len().saturating_sub(SHOWN);
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        (!tables.is_empty()).then(|| format!("{what}: {}{more}", shown.join(", ")))
    };
    lines.extend(list("tables without transactions", &db.non_transactional_tables));
    lines.extend(list("empty after any restart, so in the copy too", &db.lost_tables));
    let mut out = format!("{name}:\n");
    for line in &lines {
        let _ = writeln!(out, "  {line}");
    }
    if lines.is_empty() { String::new() } else { out }
}

/// What a caller that copies logs after the thaw has to do yet: which log, and where its label is.
pub fn logs_later(report: &proto::Report) -> String {
    let mut out = String::new();
    match report.verdict() {
        proto::Verdict::Unspecified | proto::Verdict::Unbroken => {}
        proto::Verdict::Broken | proto::Verdict::NeverHeld => return out, // there is nothing to make whole
    }
    for step in &report.steps {
        let Some(Detail::Database(db)) = &step.detail else { continue };
        if db.strategy != "backup-mode" || db.claim() == proto::Claim::Uncovered {
            continue;
        }
        let name = &step.name;
        let log = db.paths.iter().find(|path| path.purpose == "wal").map_or("its log", |path| path.path.as_str());
        let _ = if db.backup_label.is_empty() {
            writeln!(out, "{name} in backup mode: copy {log} after the thaw, which gives out its backup_label")
        } else {
            let mut files = vec!["backup_label"];
            files.extend((!db.tablespace_map.is_empty()).then_some("tablespace_map"));
            let what = words::plural(files.len(), "this file", "these files");
            let _ =
                writeln!(out, "{name}: copy {log} now; a restore needs {what} in the data directory, byte for byte:");
            files.iter().try_for_each(|file| {
                let filter = format!("..|objects|select(.name==\"{name}\").database.{file}");
                writeln!(out, "  holdstill history {} --json | jq -j '{filter}' >{file}", report.id)
            })
        };
    }
    out
}

/// More tables than these are counted.
const SHOWN: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_tells_how_it_is_held_where_it_is_and_what_is_lost() {
        let db = proto::Database {
            strategy: "instance-lock".into(),
            strategy_reason: "every table is InnoDB".into(),
            paths: vec![
                proto::DataPath {
                    purpose: "redo".into(),
                    path: "/fast/redo".into(),
                    filesystem: "fs:/fast".into(),
                    held: false,
                },
                proto::DataPath {
                    purpose: "data".into(),
                    path: "/srv/db".into(),
                    filesystem: "fs:/srv".into(),
                    held: true,
                },
            ],
            open_transactions: 2,
            oldest_open_transaction: Some(prost_types::Duration { seconds: 14, nanos: 0 }),
            lost_tables: (0..7).map(|n| format!("app.m{n} (MEMORY)")).collect(),
            ..proto::Database::default()
        };
        let text = paragraph("db:orders", &db, proto::FreezeBy::Agent);
        let expected = "db:orders:\n  held by instance-lock: every table is InnoDB\n  \
            redo: /fast/redo on fs:/fast, which is NOT held\n  data: /srv/db on fs:/srv\n  \
            2 open write transaction(s), the oldest for 14 s: the copy rolls them back\n  \
            empty after any restart, so in the copy too: app.m0 (MEMORY), app.m1 (MEMORY), app.m2 (MEMORY), \
            app.m3 (MEMORY), app.m4 (MEMORY) and 2 more\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn one_of_which_nothing_is_known_takes_no_lines() {
        assert_eq!(paragraph("db:orders", &proto::Database::default(), proto::FreezeBy::Agent), "");
    }

    #[test]
    fn a_log_copied_later_is_named_and_its_label_can_be_had_byte_for_byte() {
        let mut database = proto::Database { strategy: "backup-mode".into(), ..Default::default() };
        database.set_claim(proto::Claim::Bounded);
        database.paths.push(proto::DataPath { purpose: "wal".into(), path: "/srv/wal".into(), ..Default::default() });
        let text = |database: &proto::Database| {
            let detail = Some(Detail::Database(database.clone()));
            let orders = proto::Step { name: "db:orders".into(), detail, ..proto::Step::default() };
            logs_later(&proto::Report { id: "3f2a".into(), steps: vec![orders], ..proto::Report::default() })
        };
        assert_eq!(
            text(&database),
            "db:orders in backup mode: copy /srv/wal after the thaw, which gives out its backup_label\n"
        );
        database.backup_label = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n".into();
        assert_eq!(
            text(&database),
            "db:orders: copy /srv/wal now; a restore needs this file in the data directory, byte for byte:\n  \
             holdstill history 3f2a --json | jq -j '..|objects|select(.name==\"db:orders\").database.backup_label' \
             >backup_label\n"
        );
        database.set_claim(proto::Claim::Uncovered);
        assert_eq!(text(&database), "", "there is nothing to restore");
    }
}
