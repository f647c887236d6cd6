//! A password on its way from a file to a server, shown to nobody in between.

use std::fmt;

/// A password. Its `Debug` is three dots; there is no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub(in crate::step) fn new(password: impl Into<String>) -> Secret {
        Secret(password.into())
    }

    /// For the library that logs in, and nobody else.
    pub(in crate::step) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_printed() {
        let target = crate::step::database::Target {
            password: Some(Secret::new("hunter2")),
            ..crate::step::database::Target::discovered(crate::step::database::Engine::Mysql, "/run/s.sock".into())
        };
        assert!(!format!("{target:?}").contains("hunter2"));
        assert_eq!(format!("{:?}", target.password), "Some(…)");
    }
}
