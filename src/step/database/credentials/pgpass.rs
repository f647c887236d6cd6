//! PostgreSQL's password list (`.pgpass`), as libpq reads it: `host:port:database:user:password`, `*` for any, `\` before a
//! colon or backslash that is meant.

/// Whom a password is wanted for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// `localhost` for the usual socket directory, else the directory or the host
    pub host: &'a str,
    pub port: u16,
    pub user: &'a str,
    pub named: Named,
}

/// How much an entry must say. A password goes to nobody it was not written down for: on this machine anybody can run
/// something called `postgres` on a port or in a directory of his own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Named {
    /// somebody configured this server, or it is where the system's own is: `*` matches, as for libpq
    ByUs,
    /// only found: host and port must be written out
    ByTheEntryAlone,
}

const DATABASE: &str = "postgres";

/// The first entry that fits; an empty password counts as none.
pub(super) fn password(text: &str, wanted: Wanted<'_>) -> Option<String> {
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| entry(line, wanted)).filter(|p| !p.is_empty())
}

fn entry(line: &str, wanted: Wanted<'_>) -> Option<String> {
    let (fields, password) = split(line)?;
    let port = wanted.port.to_string();
    let fits = |field: &Field, value: &str| field.any || field.text == value;
    let written = |field: &Field| wanted.named == Named::ByUs || !field.any;
    let [host, port_field, database, user] = &fields;
    (fits(host, wanted.host) && fits(port_field, &port) && fits(database, DATABASE) && fits(user, wanted.user))
        .then_some(())
        .filter(|()| written(host) && written(port_field))
        .map(|()| password)
}

#[derive(Default)]
struct Field {
    text: String,
    any: bool,
}

/// The first four fields and the rest of the line.
fn split(line: &str) -> Option<([Field; 4], String)> {
    let mut fields: [Field; 4] = Default::default();
    let mut rest = line;
    for field in &mut fields {
        let end = end_of_field(rest)?;
        let raw = &rest[..end];
        *field = Field { text: unescaped(raw), any: raw == "*" };
        rest = &rest[end + 1..];
    }
    // libpq takes the password up to the end of the line, a colon ends it no more
    Some((fields, unescaped(rest)))
}

fn end_of_field(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(at, c)| {
        let here = c == ':' && !escaped;
        escaped = c == '\\' && !escaped;
        here.then_some(at)
    })
}

fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            '\\' => out.extend(rest.next()),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HERE: Wanted<'_> = Wanted { host: "localhost", port: 5432, user: "postgres", named: Named::ByUs };

    #[test]
    fn the_first_entry_that_fits_has_the_password() {
        let list = "# hostname:port:database:username:password\n\
                    db.example.org:5432:*:postgres:elsewhere\n\
                    localhost:5433:postgres:postgres:other port\n\
                    localhost:*:orders:postgres:other database\n\
                    localhost:*:*:keeper:other user\n\
                    *:*:*:*:found\n\
                    localhost:5432:postgres:postgres:too late\n";
        assert_eq!(password(list, HERE).as_deref(), Some("found"));
        assert_eq!(password(list, Wanted { port: 5433, ..HERE }).as_deref(), Some("other port"));
        assert_eq!(password(list, Wanted { user: "keeper", ..HERE }).as_deref(), Some("other user"));
        assert_eq!(password("nonsense\n\n:::\n", HERE), None);
    }

    #[test]
    fn a_backslash_protects_colons_and_itself() {
        let list = r"/srv/odd\:dir:5432:*:postgres:a\:b\\c:d";
        assert_eq!(password(list, Wanted { host: "/srv/odd:dir", ..HERE }).as_deref(), Some(r"a:b\c:d"));
        assert_eq!(password(r"\*:5432:*:postgres:x", HERE), None, "a star that is meant is no wildcard");
    }

    #[test]
    fn a_server_nobody_named_gets_no_password_by_a_wildcard() {
        let found = Wanted { host: "/tmp", named: Named::ByTheEntryAlone, ..HERE };
        assert_eq!(password("*:*:*:postgres:secret\n/tmp:*:*:postgres:secret\n", found), None);
        assert_eq!(password("/tmp:5432:*:postgres:meant\n", found).as_deref(), Some("meant"));
    }

    proptest! {
        #[test]
        fn no_text_makes_looking_panic(text in "(:|\\*|\\\\|localhost|5432|#|é|\n){0,40}") {
            password(&text, HERE);
        }
    }
}
