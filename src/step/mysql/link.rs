//! One connection, one statement at a time, each with an end.
//!
//! Letting go must not depend on the driver: `mysql_async` answers a dropped connection by first reading what is
//! still due, which may never come, while the lock lives on. So we hold a duplicate of its socket and cut that first.
//! A server busy with a statement notices when it ends, at the latest after `lock_wait_timeout`.

use std::{collections::BTreeMap, io, os::fd::OwnedFd, time::Duration};

use mysql_async::{Conn, Row, prelude::Queryable};

use crate::{
    step::database::{Deadline, Failed},
    sys::sockets,
};

/// The connection, and its socket from outside. Dropping it cuts the socket first, so that the driver, which would
/// rather read to the end of a pending answer, finds nothing more to read.
pub(super) struct Link {
    conn: Option<Conn>,
    /// as the server numbers its connections
    pub id: u32,
    pub socket: OwnedFd,
    /// a statement was sent whose answer has not been read to its end: the protocol is out of step
    awaiting: bool,
}

impl Drop for Link {
    fn drop(&mut self) {
        sockets::cut(&self.socket);
    }
}

/// What went wrong with a statement.
pub(super) type Trouble = Failed<mysql_async::Error>;

impl Link {
    pub fn new(conn: Conn, socket: OwnedFd) -> Link {
        Link { id: conn.id(), conn: Some(conn), socket, awaiting: false }
    }

    pub async fn rows(&mut self, deadline: Deadline, sql: &str) -> Result<Vec<Row>, Trouble> {
        let out_of_step = || Failed::Refused(io::Error::other("an earlier statement was never answered").into());
        let conn = self.conn.as_mut().filter(|_| !self.awaiting).ok_or_else(out_of_step)?;
        // Set before, cleared after: if this future is dropped while waiting, it stays set.
        self.awaiting = true;
        let answer = deadline.run(conn.query::<Row, _>(sql)).await;
        match &answer {
            Ok(_) | Err(Failed::Refused(mysql_async::Error::Server(_))) => self.awaiting = false,
            Err(Failed::Refused(_) | Failed::TimedOut(_)) => sockets::cut(&self.socket),
        }
        answer
    }

    pub async fn run(&mut self, deadline: Deadline, sql: &str) -> Result<(), Trouble> {
        self.rows(deadline, sql).await.map(drop)
    }

    /// Rows of text columns; what is NULL is empty.
    pub async fn table<const N: usize>(&mut self, deadline: Deadline, sql: &str) -> Result<Vec<[String; N]>, Trouble> {
        Ok(self.rows(deadline, sql).await?.into_iter().map(cells).collect())
    }

    /// One row of text columns; empty ones if there is no row.
    pub async fn row<const N: usize>(&mut self, deadline: Deadline, sql: &str) -> Result<[String; N], Trouble> {
        let row = self.rows(deadline, sql).await?.into_iter().next();
        Ok(row.map_or_else(|| std::array::from_fn(|_| String::new()), cells))
    }

    /// Rows of name and value, the names in small letters.
    pub async fn pairs(&mut self, deadline: Deadline, sql: &str) -> Result<BTreeMap<String, String>, Trouble> {
        let rows = self.table(deadline, sql).await?;
        Ok(rows.into_iter().map(|[name, value]| (name.to_ascii_lowercase(), value)).collect())
    }

    /// Rows whose columns are told apart by their names, in small letters: SHOW statements, whose columns differ between
    /// versions.
    pub async fn named(&mut self, deadline: Deadline, sql: &str) -> Result<Vec<BTreeMap<String, String>>, Trouble> {
        let rows = self.rows(deadline, sql).await?;
        Ok(rows
            .into_iter()
            .map(|row| {
                let names: Vec<String> =
                    row.columns_ref().iter().map(|column| column.name_str().to_ascii_lowercase()).collect();
                names.into_iter().zip(row.unwrap_raw().into_iter().map(shown)).collect()
            })
            .collect())
    }

    /// Says goodbye if the session is in step, and cuts the connection.
    pub async fn close(mut self, deadline: Deadline, limit: Duration) {
        if let Some(conn) = self.conn.take().filter(|_| !self.awaiting) {
            let _ = deadline.at_most(limit).run(conn.disconnect()).await;
        }
    }
}

/// What is nice to have: `None` if the account may not ask.
pub(super) fn if_allowed<T>(answer: Result<T, Trouble>) -> Result<Option<T>, Trouble> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(failed) if code(&failed).is_some_and(|code| DENIED.contains(&code)) => Ok(None),
        Err(failed) => Err(failed),
    }
}

/// Not allowed to: a statement, a table, a column of a table, XA RECOVER.
pub(super) const DENIED: [u16; 5] = [1227, 1142, 1143, 1044, 1401];

/// The server's error code, if it was the server that refused.
pub(super) fn code(failed: &Trouble) -> Option<u16> {
    match failed {
        Failed::Refused(mysql_async::Error::Server(said)) => Some(said.code),
        Failed::Refused(_) | Failed::TimedOut(_) => None,
    }
}

fn cells<const N: usize>(row: Row) -> [String; N] {
    let mut cells = row.unwrap_raw().into_iter();
    std::array::from_fn(|_| shown(cells.next().flatten()))
}

/// The text protocol sends everything as bytes.
fn shown(value: Option<mysql_async::Value>) -> String {
    match value {
        None | Some(mysql_async::Value::NULL) => String::new(),
        Some(mysql_async::Value::Bytes(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
        Some(other) => other.as_sql(true),
    }
}
