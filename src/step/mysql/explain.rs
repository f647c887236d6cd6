//! What the server or the driver said, with what would cure it.

use mysql_async::{DriverError, IoError, ServerError};

use super::{grants, link::Trouble};
use crate::step::database::{Address, Error, Failed, Target};

pub(super) const CONNECT: &str = "connect to";
pub(super) const HOLD: &str = "hold";

/// Server errors told apart here (dev.mysql.com/doc/mysql-errors, mariadb.com/kb/en/mariadb-error-codes).
pub(super) const LOCK_WAIT_TIMEOUT: u16 = 1205;
const LOGIN_DENIED: [u16; 2] = [1045, 1698];
const TOO_MANY_CONNECTIONS: u16 = 1040;
const TOO_MANY_OF_USER: [u16; 2] = [1203, 1226];
const HOST_DENIED: u16 = 1130;
const NOT_ENCRYPTED: u16 = 3159;
const PLUGIN_NOT_LOADED: u16 = 1524;
const ACCOUNT_LOCKED: [u16; 2] = [3118, 4151];
const PASSWORD_EXPIRED: [u16; 2] = [1820, 1862];

/// `user` is who we log in as, or, once logged in, whom the server took us for.
pub(super) fn explain(target: &Target, user: &str, what: &'static str, failed: Trouble) -> Error {
    let name = target.name.clone();
    let (why, hint) = match failed {
        Failed::TimedOut(limit) => {
            (format!("it did not answer within {limit:?}"), "look at the server: SHOW PROCESSLIST".to_owned())
        }
        Failed::Refused(mysql_async::Error::Server(said)) => {
            (format!("{} ({})", said.message, said.code), cure(target, user, &said))
        }
        Failed::Refused(mysql_async::Error::Io(IoError::Io(error))) => {
            let place = match &target.at {
                Address::Socket(path) => path.display().to_string(),
                Address::Tcp { host, port } => format!("{host} port {port}"),
            };
            let hint = "does the server run, and is `socket` (or `host` and `port`) what it listens on?";
            (format!("{place}: {error}"), hint.to_owned())
        }
        Failed::Refused(mysql_async::Error::Driver(DriverError::UnknownAuthPlugin { name: plugin })) => (
            format!("its account {user} logs in with the plugin {plugin}, which is not supported here"),
            other_plugin(user),
        ),
        Failed::Refused(mysql_async::Error::Driver(
            DriverError::CleartextPluginDisabled | DriverError::MysqlOldPasswordDisabled,
        )) => {
            (format!("its account {user} logs in with a plugin that shows the password to others"), other_plugin(user))
        }
        Failed::Refused(other) => (other.to_string(), String::new()),
    };
    Error { name, what, why, hint }
}

fn cure(target: &Target, user: &str, said: &ServerError) -> String {
    let account = grants::account(user);
    let name = &target.name;
    match said.code {
        code if LOGIN_DENIED.contains(&code) => login(target, user),
        code if super::link::DENIED.contains(&code) => format!("GRANT {} ON *.* TO {account}", needed(&said.message)),
        LOCK_WAIT_TIMEOUT => {
            "a long statement, a DDL statement or another backup is in the way: SHOW PROCESSLIST".to_owned()
        }
        TOO_MANY_CONNECTIONS => format!(
            "all of max_connections are taken: SET GLOBAL max_connections = … higher; or give it a door of its own, \
             admin_address and admin_port of MySQL or extra_port of MariaDB, and name that as `host` and `port` of \
             database {name}"
        ),
        code if TOO_MANY_OF_USER.contains(&code) => {
            format!(
                "ALTER USER {account} WITH MAX_USER_CONNECTIONS 0 MAX_CONNECTIONS_PER_HOUR 0 MAX_QUERIES_PER_HOUR 0"
            )
        }
        HOST_DENIED => {
            format!("the account must be allowed to come from here, or use its unix socket (`socket` of {name})")
        }
        NOT_ENCRYPTED => format!("connect by its unix socket (`socket` of {name}): that counts as safe"),
        PLUGIN_NOT_LOADED => other_plugin(user),
        code if ACCOUNT_LOCKED.contains(&code) => format!("ALTER USER {account} ACCOUNT UNLOCK"),
        code if PASSWORD_EXPIRED.contains(&code) => format!("ALTER USER {account} PASSWORD EXPIRE NEVER"),
        _ => String::new(),
    }
}

/// "Access denied; you need (at least one of) the SUPER, REPLICATION CLIENT privilege(s) for this operation": the one of
/// these that allows least beyond it.
fn needed(message: &str) -> &str {
    let named = message.split_once("(at least one of) the ").and_then(|(_, rest)| rest.split_once(" privilege(s)"));
    let Some((list, _)) = named else { return "SELECT" };
    let mut privileges = list.split(" or ").flat_map(|part| part.split(", ")).map(str::trim);
    let first = privileges.clone().find(|privilege| *privilege != "SUPER");
    first.or(privileges.next()).unwrap_or(list)
}

fn login(target: &Target, user: &str) -> String {
    let name = &target.name;
    if let Some(path) = &target.password_file {
        return format!("put the password of {user} into {} (`password_file`)", path.display());
    }
    let account = grants::account(user);
    format!(
        "set `user` and `password_file` of database {name}, or let the system's root in without a password: \
         ALTER USER {account} IDENTIFIED VIA unix_socket (MariaDB), \
         ALTER USER {account} IDENTIFIED WITH auth_socket AS 'root' (MySQL, after INSTALL PLUGIN auth_socket SONAME \
         'auth_socket.so')"
    )
}

fn other_plugin(user: &str) -> String {
    let account = grants::account(user);
    format!(
        "ALTER USER {account} IDENTIFIED WITH caching_sha2_password BY '…' (MySQL), \
         ALTER USER {account} IDENTIFIED VIA unix_socket or IDENTIFIED BY '…' (MariaDB)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(code: u16, message: &str) -> Error {
        let target = Target::discovered(crate::step::database::Engine::Mysql, "/run/mysqld/mysqld.sock".into());
        let said = ServerError { code, message: message.to_owned(), state: "HY000".to_owned() };
        explain(&target, "keeper@localhost", HOLD, Failed::Refused(mysql_async::Error::Server(said)))
    }

    #[test]
    fn what_is_missing_is_granted_by_pasting_the_hint() {
        let denied = |list: &str| {
            told(1227, &format!("Access denied; you need (at least one of) the {list} privilege(s) for this operation"))
                .hint
        };
        assert_eq!(denied("BACKUP_ADMIN"), "GRANT BACKUP_ADMIN ON *.* TO 'keeper'@'localhost'");
        assert_eq!(denied("RELOAD or FLUSH_TABLES"), "GRANT RELOAD ON *.* TO 'keeper'@'localhost'");
        assert_eq!(denied("SUPER, REPLICATION CLIENT"), "GRANT REPLICATION CLIENT ON *.* TO 'keeper'@'localhost'");
        assert_eq!(denied("SUPER, BINLOG MONITOR"), "GRANT BINLOG MONITOR ON *.* TO 'keeper'@'localhost'");
    }

    #[test]
    fn each_refusal_names_its_cure() {
        assert!(told(1040, "Too many connections").hint.contains("max_connections"));
        assert!(told(1040, "Too many connections").hint.contains("admin_port"));
        assert!(told(1045, "Access denied for user").hint.contains("`password_file` of database mysql:mysqld"));
        assert!(told(1698, "Access denied for user").hint.contains("auth_socket"));
        assert_eq!(told(3118, "locked").hint, "ALTER USER 'keeper'@'localhost' ACCOUNT UNLOCK");
        assert!(
            told(1205, "Lock wait timeout exceeded").to_string().starts_with("hold database mysql:mysqld: Lock wait")
        );
        let plugin = DriverError::UnknownAuthPlugin { name: "sha256_password".to_owned() };
        let target = Target::discovered(crate::step::database::Engine::Mysql, "/s.sock".into());
        let error = explain(&target, "k@%", CONNECT, Failed::Refused(mysql_async::Error::Driver(plugin)));
        assert!(error.why.contains("sha256_password") && error.hint.contains("ALTER USER 'k'@'%'"));
    }
}
