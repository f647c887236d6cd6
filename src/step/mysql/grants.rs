//! What the account lacks, as SQL to paste. The whole role is in `step::database::roles`.

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
