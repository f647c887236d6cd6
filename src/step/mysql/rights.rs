//! What the account may see and lock, from SHOW GRANTS: the lines of one account and of the roles that are active for it.

/// From SHOW GRANTS: a privilege on all tables that makes them visible, and no part of it revoked again.
pub(super) fn sees_every_table<'a>(grants: impl Iterator<Item = &'a str>) -> bool {
    const MAKE_VISIBLE: [&str; 12] = [
        "ALL PRIVILEGES",
        "SELECT",
        "INSERT",
        "UPDATE",
        "DELETE",
        "CREATE",
        "DROP",
        "REFERENCES",
        "INDEX",
        "ALTER",
        "SHOW VIEW",
        "TRIGGER",
    ];
    let mut sees = false;
    for line in grants {
        if line.starts_with("REVOKE ") {
            return false;
        }
        let Some((privileges, _)) = line.strip_prefix("GRANT ").and_then(|rest| rest.split_once(" ON *.* TO ")) else {
            continue;
        };
        sees |= privileges.split(',').any(|privilege| MAKE_VISIBLE.contains(&privilege.trim()));
    }
    sees
}

/// From SHOW GRANTS: both privileges that FLUSH TABLES … WITH READ LOCK needs on a table, besides RELOAD.
pub(super) fn may_lock<'a>(grants: impl Iterator<Item = &'a str>, schema: &str) -> bool {
    let on_schema = format!(" ON `{}`.* TO ", schema.replace('`', "``"));
    // in a name here `_` stands for any character unless it is escaped
    let escaped = on_schema.replace('_', "\\_");
    let (mut locks, mut reads) = (false, false);
    for line in grants {
        let Some(rest) = line.strip_prefix("GRANT ") else { continue };
        let on = [" ON *.* TO ", on_schema.as_str(), escaped.as_str()];
        let Some((privileges, _)) = on.iter().find_map(|on| rest.split_once(on)) else { continue };
        let has = |wanted: &str| privileges.split(',').any(|one| [wanted, "ALL PRIVILEGES"].contains(&one.trim()));
        locks |= has("LOCK TABLES");
        reads |= has("SELECT");
    }
    locks && reads
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sees(grants: &[&str]) -> bool {
        sees_every_table(grants.iter().copied())
    }

    #[test]
    fn an_account_sees_every_table_by_a_privilege_on_all_of_them() {
        assert!(sees(&["GRANT RELOAD, REFERENCES ON *.* TO `k`@`localhost`"]));
        assert!(sees(&["GRANT ALL PRIVILEGES ON *.* TO `root`@`localhost` WITH GRANT OPTION"]));
        assert!(sees(&[
            "GRANT `keeper` TO `k`@`%`",
            "GRANT USAGE ON *.* TO `k`@`%`",
            "GRANT SELECT ON *.* TO `keeper`"
        ]));
        assert!(!sees(&["GRANT RELOAD, PROCESS, LOCK TABLES, SHOW DATABASES ON *.* TO `k`@`localhost`"]));
        assert!(!sees(&["GRANT USAGE ON *.* TO `k`@`%`", "GRANT SELECT ON `app`.* TO `k`@`%`"]));
        assert!(!sees(&["GRANT SELECT ON *.* TO `k`@`%`", "REVOKE SELECT ON `hidden`.* FROM `k`@`%`"]));
        assert!(!sees(&["GRANT CREATE USER, CREATE ROLE ON *.* TO `k`@`%`"]));
        assert!(!sees(&[]));
    }

    #[test]
    fn an_account_may_lock_what_it_may_lock_and_read() {
        let may = |grants: &[&str]| may_lock(grants.iter().copied(), "app_1");
        assert!(may(&["GRANT SELECT, RELOAD, LOCK TABLES ON *.* TO `k`@`%`"]));
        assert!(may(&["GRANT ALL PRIVILEGES ON *.* TO 'root'@'localhost' WITH GRANT OPTION"]));
        assert!(may(&["GRANT LOCK TABLES ON *.* TO `k`@`%`", "GRANT SELECT ON `app_1`.* TO `k`@`%`"]));
        assert!(may(&["GRANT LOCK TABLES ON *.* TO `k`@`%`", "GRANT SELECT ON `app\\_1`.* TO `k`@`%`"]));
        assert!(!may(&["GRANT LOCK TABLES ON *.* TO `k`@`%`", "GRANT SELECT ON `other`.* TO `k`@`%`"]));
        assert!(!may(&["GRANT REFERENCES, RELOAD ON *.* TO `k`@`%`"]));
    }
}
