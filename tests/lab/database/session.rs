//! Asking a server, with the drivers holdstill itself uses.

use std::{
    fmt,
    future::Future,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use mysql_async::prelude::Queryable;

use super::edition::Engine;

/// Where a server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Socket(PathBuf),
    /// on 127.0.0.1
    Port(u16),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Socket(path) => path.display().fmt(f),
            Address::Port(port) => port.fmt(f),
        }
    }
}

impl FromStr for Address {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Address, Self::Err> {
        Ok(text.parse().map_or_else(|_| Address::Socket(text.into()), Address::Port))
    }
}

/// One session with either kind.
pub enum Session {
    Postgresql(tokio_postgres::Client),
    Mysql(mysql_async::Conn),
}

impl Session {
    /// # Errors
    /// What the driver says.
    pub async fn open(engine: Engine, address: &Address) -> Result<Session, String> {
        if engine.speaks_mysql() {
            // without `prefer_socket(false)` the driver changes over to whichever socket the server names
            let options = mysql_async::OptsBuilder::default().user(Some("root")).prefer_socket(false);
            let options = match address {
                Address::Socket(path) => options.socket(path.to_str()),
                Address::Port(port) => options.ip_or_hostname("127.0.0.1").tcp_port(*port),
            };
            return mysql_async::Conn::new(options).await.map(Session::Mysql).map_err(|e| e.to_string());
        }
        let mut config = tokio_postgres::Config::new();
        config.user("postgres").dbname("postgres");
        match address {
            Address::Socket(path) => {
                let (dir, port) = (path.parent().unwrap_or(Path::new("/")), path.extension());
                config.host_path(dir).port(port.and_then(|p| p.to_str()?.parse().ok()).unwrap_or(5432))
            }
            Address::Port(port) => config.host("127.0.0.1").port(*port),
        };
        let (client, connection) = config.connect(tokio_postgres::NoTls).await.map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        Ok(Session::Postgresql(client))
    }

    /// All rows, all columns, as text; NULL is empty.
    ///
    /// # Errors
    /// What the server says.
    pub async fn rows(&mut self, sql: &str) -> Result<Vec<Vec<String>>, String> {
        match self {
            Session::Postgresql(client) => {
                let messages = client.simple_query(sql).await.map_err(|e| format!("{e}: {:?}", e.as_db_error()))?;
                let row = |message| match message {
                    tokio_postgres::SimpleQueryMessage::Row(row) => {
                        Some((0..row.len()).map(|n| row.get(n).unwrap_or_default().to_owned()).collect())
                    }
                    _ => None,
                };
                Ok(messages.into_iter().filter_map(row).collect())
            }
            Session::Mysql(session) => {
                let rows: Vec<mysql_async::Row> = session.query(sql).await.map_err(|e| e.to_string())?;
                let text = |value| match value {
                    mysql_async::Value::NULL => String::new(),
                    mysql_async::Value::Bytes(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                    other => other.as_sql(true),
                };
                Ok(rows.into_iter().map(|row| row.unwrap().into_iter().map(text).collect()).collect())
            }
        }
    }
}

/// Runs `asked` to its end, or gives up after 10 s.
pub fn limited<T>(asked: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = runtime();
    let in_time = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(10), asked).await });
    runtime.shutdown_background();
    in_time.map_err(|_| "no answer within 10 s".to_owned())?
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}
