//! What the account needs, as SQL to paste. The role is the same for every strategy: which one is chosen depends on the
//! tables, and those change.

use super::flavour::Server;

/// `user@host` as CURRENT_USER() tells it, quoted for SQL.
pub(super) fn account(current_user: &str) -> String {
    let (user, host) = current_user.rsplit_once('@').unwrap_or((current_user, "localhost"));
    let quote = |name: &str| format!("'{}'", name.replace('\\', "\\\\").replace('\'', "\\'"));
    format!("{}@{}", quote(user), quote(host))
}

/// One statement that gives one privilege.
pub(super) fn grant(privilege: &str, account: &str) -> String {
    format!("GRANT {privilege} ON *.* TO {account}")
}

/// Everything a hold may need, statement by statement.
pub(super) fn role(server: &Server, account: &str) -> Vec<String> {
    if server.is_mariadb() {
        let logs = if server.has_monitor_privileges() { "BINLOG MONITOR, SLAVE MONITOR" } else { "REPLICATION CLIENT" };
        return vec![grant(&format!("RELOAD, PROCESS, {logs}, REFERENCES, LOCK TABLES, SELECT"), account)];
    }
    let mut role = vec![grant("RELOAD, PROCESS, REPLICATION CLIENT, REFERENCES, LOCK TABLES, SELECT", account)];
    if server.has_instance_lock() {
        role.push(grant("BACKUP_ADMIN, XA_RECOVER_ADMIN", account));
    }
    role
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_quoted_for_sql() {
        assert_eq!(account("root@localhost"), "'root'@'localhost'");
        assert_eq!(account("o'neil@%"), "'o\\'neil'@'%'");
        assert_eq!(account("a@b@10.0.0.%"), "'a@b'@'10.0.0.%'");
    }
}
