//! MySQL and MariaDB option files (`my.cnf`): what the client programs would take from them, read as they read it
//! (mysys/my_default.c: groups, quotes, escapes, and `#` in the middle of a line).

use std::fmt;

/// What a client is told. Later values replace earlier ones.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub user: Option<String>,
    pub password: Option<String>,
    pub socket: Option<String>,
    pub host: Option<String>,
    pub port: Option<u16>,
    /// it names other files, which are not read
    pub includes: bool,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let password = self.password.as_ref().map(|_| "…");
        f.debug_struct("Options").field("user", &self.user).field("password", &password).finish_non_exhaustive()
    }
}

/// Groups that any client program reads.
const GROUPS: [&str; 5] = ["client", "client-server", "client-mariadb", "mysql", "mariadb-client"];

pub(super) fn parse(text: &str) -> Options {
    let mut options = Options::default();
    let mut ours = false;
    for line in text.lines() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if line.starts_with('!') {
            options.includes |= line.starts_with("!include");
        } else if let Some(group) = line.strip_prefix('[') {
            ours = group.split(']').next().is_some_and(|group| GROUPS.contains(&group.trim()));
        } else if ours {
            options.take(without_comment(line));
        }
    }
    options
}

impl Options {
    fn take(&mut self, line: &str) {
        let Some((key, value)) = line.split_once('=') else { return };
        let value = plain(value.trim());
        match key.trim() {
            "user" => self.user = Some(value),
            "password" | "pass" => self.password = Some(value),
            "socket" => self.socket = Some(value),
            "host" => self.host = Some(value),
            "port" => self.port = value.parse().ok().or(self.port),
            _ => {}
        }
    }
}

/// Up to a `#` that no quotes protect.
fn without_comment(line: &str) -> &str {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in line.char_indices() {
        if !escaped && (c == '\'' || c == '"') {
            match quote {
                None => quote = Some(c),
                Some(open) if open == c => quote = None,
                Some(_) => {}
            }
        }
        if quote.is_none() && c == '#' {
            return &line[..at];
        }
        escaped = quote.is_some() && c == '\\' && !escaped;
    }
    line
}

/// Without the quotes around it, escapes decoded; of an unknown escape both characters stay.
fn plain(value: &str) -> String {
    let quoted = |q: char| value.len() > 1 && value.starts_with(q) && value.ends_with(q);
    let inner = if quoted('"') || quoted('\'') { &value[1..value.len() - 1] } else { value };
    let mut out = String::with_capacity(inner.len());
    let mut rest = inner.chars();
    while let Some(c) = rest.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match rest.next() {
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('r') => out.push('\r'),
            Some('b') => out.push('\u{8}'),
            Some('s') => out.push(' '),
            Some(same @ ('"' | '\'' | '\\')) => out.push(same),
            Some(other) => out.extend(['\\', other]),
            None => out.push('\\'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn password(line: &str) -> String {
        parse(&format!("[client]\n{line}\n")).password.expect("one is given")
    }

    #[test]
    fn what_client_programs_read_is_read() {
        let text = "# mine\nuser=nobody\n[mysqld]\nuser = mysql\nsocket=/wrong\n\n[client]\n  user = keeper # ours\n\
                    socket=/run/mysqld/mysqld.sock\nport=x\n[client-server]\nport = 3307\n[mysqldump]\nuser=dumper\n\
                    [mysql]\npassword=last\n!includedir /etc/mysql/conf.d/\n";
        let expected = Options {
            user: Some("keeper".to_owned()),
            password: Some("last".to_owned()),
            socket: Some("/run/mysqld/mysqld.sock".to_owned()),
            host: None,
            port: Some(3307),
            includes: true,
        };
        assert!(parse(text) == expected, "{:?}", parse(text));
    }

    #[test]
    fn quotes_escapes_and_comments_are_those_of_option_files() {
        assert_eq!(password("password=simple"), "simple");
        assert_eq!(password("password = two words "), "two words");
        assert_eq!(password("password='it # is'  # really"), "it # is");
        assert_eq!(password("password=cut#here"), "cut");
        assert_eq!(password("password=\"with \\\"quotes\\\"\""), "with \"quotes\"");
        assert_eq!(password("password=a;b"), "a;b");
        assert_eq!(password(r"password=back\\slash\sspace\qunknown"), r"back\slash space\qunknown");
        assert_eq!(password("password="), "");
        assert_eq!(password("password='"), "'");
        assert_eq!(password("password=one\npassword=two"), "two");
    }

    #[test]
    fn a_password_is_never_printed() {
        assert!(!format!("{:?}", parse("[client]\npassword=hunter2\n")).contains("hunter2"));
    }

    proptest! {
        #[test]
        fn no_text_makes_reading_panic(text in "(\\[client\\]|password|=|'|\"|\\\\|#|é|\n| ){0,40}") {
            parse(&text);
        }
    }
}
