//! PostgreSQL's connection service file (`pg_service.conf`), as libpq reads it: groups of `key=value`.

use std::fmt;

/// What a service says; what we have no use for (`dbname`, `options`, `sslmode` …) is left out.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Service {
    /// a host, or the directory of a socket
    pub host: Option<String>,
    pub port: Option<u16>,
    pub user: Option<String>,
    pub password: Option<String>,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("host", &self.host).field("user", &self.user).finish_non_exhaustive()
    }
}

/// The service of this name; `None`: it is not in this file. A key given twice counts once, the first time.
pub(super) fn find(text: &str, name: &str) -> Option<Service> {
    let mut found: Option<Service> = None;
    let mut ours = false;
    for line in text.lines() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(group) = line.strip_prefix('[') {
            if found.is_some() {
                break;
            }
            ours = group.strip_suffix(']').is_some_and(|group| group == name);
            if ours {
                found = Some(Service::default());
            }
        } else if let (true, Some(service), Some((key, value))) = (ours, found.as_mut(), line.split_once('=')) {
            let value = || Some(value.to_owned());
            match key {
                "host" | "hostaddr" => service.host = service.host.take().or_else(value),
                "port" => service.port = service.port.or_else(|| value()?.parse().ok()),
                "user" => service.user = service.user.take().or_else(value),
                "password" => service.password = service.password.take().or_else(value),
                _ => {}
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_found_by_its_name_and_ends_where_the_next_begins() {
        let text = "# ours\nuser=nobody\n[billing]\nhost=/srv/billing\n[orders]\n host=/srv/orders\nport=5433\nuser=keeper\n\
                    password=a=b c\ndbname=orders\nuser=second\n\n[orders]\nhost=/wrong\n";
        let orders = find(text, "orders").expect("it is there");
        let expected = Service {
            host: Some("/srv/orders".to_owned()),
            port: Some(5433),
            user: Some("keeper".to_owned()),
            password: Some("a=b c".to_owned()),
        };
        assert!(orders == expected, "{orders:?}");
        assert_eq!(find(text, "billing").and_then(|s| s.host).as_deref(), Some("/srv/billing"));
        assert_eq!(find(text, "order"), None);
    }
}
