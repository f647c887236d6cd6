//! The level a hold reaches, from what it did, and whether that is enough.

use crate::proto::{self, Consistency, FreezeBy};

/// What a hold can claim, from what it did.
#[derive(Debug, Clone, Default)]
pub struct Achieved {
    pub filesystems: Filesystems,
    /// the claim of every database found or configured
    pub claims: Vec<proto::Claim>,
    /// required hooks that succeeded (will run); a failed one fails the hold
    pub required_hooks: usize,
    /// something that should be held is not: an unreachable optional database, a known engine nobody can hold
    pub capped: bool,
}

/// What became (will become) of the file systems in scope.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Filesystems {
    /// all are frozen
    Complete,
    #[default]
    Incomplete,
    /// the caller freezes them, after we have answered: of that nothing is proven here
    Callers,
}

/// What a hold must reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Required {
    pub level: Consistency,
    /// what is left of `require = "application"` where the caller freezes: every database exact or bounded, every
    /// required hook
    pub applications: bool,
}

/// Does the caller freeze the file systems itself?
pub fn caller_freezes(spec: &proto::HoldSpec) -> bool {
    match spec.freeze_by() {
        FreezeBy::Unspecified | FreezeBy::Agent => false,
        FreezeBy::Caller => true,
    }
}

impl Required {
    /// The stricter of configuration and request. Where the caller freezes no level above `crash` can be proven: the
    /// configured one then counts for databases and hooks only, and a request for one is a contradiction, to be refused.
    pub fn of(configured: Consistency, spec: &proto::HoldSpec) -> Required {
        match caller_freezes(spec) {
            false => Required { level: configured.max(spec.require()), applications: false },
            true => Required {
                level: spec.require().max(Consistency::Crash),
                applications: configured == Consistency::Application,
            },
        }
    }
}

impl Achieved {
    pub fn level(&self) -> Consistency {
        match self.filesystems {
            Filesystems::Incomplete | Filesystems::Callers => Consistency::Crash,
            Filesystems::Complete if self.applications() => Consistency::Application,
            Filesystems::Complete => Consistency::Filesystem,
        }
    }

    /// Somebody asked for more than file systems, and all of that is (will be) held.
    fn applications(&self) -> bool {
        let good = |claim: &proto::Claim| match claim {
            proto::Claim::Exact | proto::Claim::Bounded => true,
            proto::Claim::Unspecified | proto::Claim::Recoverable | proto::Claim::Uncovered => false,
        };
        let somebody_asked = !self.claims.is_empty() || self.required_hooks > 0;
        somebody_asked && !self.capped && self.claims.iter().all(good)
    }

    /// If it is less than `required`: what was wanted, and what there is of it, for a sentence.
    pub fn lacks(&self, required: Required) -> Option<(String, &'static str)> {
        let level = self.level();
        if level < required.level {
            return Some((format!("{} consistency", level_text(required.level)), level_text(level)));
        }
        (required.applications && !self.applications())
            .then(|| ("a hold of every database and hook".to_owned(), "part of that"))
    }
}

/// "application", as people and the command line write it.
pub fn level_text(level: Consistency) -> &'static str {
    match level {
        Consistency::Unspecified | Consistency::None => "no",
        Consistency::Crash => "crash",
        Consistency::Filesystem => "filesystem",
        Consistency::Application => "application",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Achieved {
        let claims = vec![proto::Claim::Bounded];
        Achieved { filesystems: Filesystems::Complete, claims, ..Achieved::default() }
    }

    #[test]
    fn a_level_is_claimed_only_when_everything_it_needs_is_there() {
        use proto::Claim;
        assert_eq!(full().level(), Consistency::Application);
        let cases = [
            (Achieved { claims: vec![], ..full() }, Consistency::Filesystem),
            (Achieved { claims: vec![], required_hooks: 1, ..full() }, Consistency::Application),
            (Achieved { claims: vec![Claim::Exact, Claim::Uncovered], ..full() }, Consistency::Filesystem),
            (Achieved { capped: true, ..full() }, Consistency::Filesystem),
            (Achieved { filesystems: Filesystems::Incomplete, ..full() }, Consistency::Crash),
            (Achieved { filesystems: Filesystems::Callers, ..full() }, Consistency::Crash),
        ];
        for (achieved, level) in cases {
            assert_eq!(achieved.level(), level, "{achieved:?}");
        }
    }

    #[test]
    fn where_the_caller_freezes_the_configured_level_counts_for_databases_and_hooks_only() {
        let asked = |freeze_by: FreezeBy, require: Consistency| {
            let (freeze_by, require) = (freeze_by.into(), require.into());
            proto::HoldSpec { freeze_by, require, ..Default::default() }
        };
        let lacks = |achieved: Achieved, configured, spec: &proto::HoldSpec| {
            achieved.lacks(Required::of(configured, spec)).map(|(wanted, got)| format!("{wanted}, {got}"))
        };
        let callers = || Achieved { filesystems: Filesystems::Callers, ..full() };
        let theirs = asked(FreezeBy::Caller, Consistency::Unspecified);
        assert_eq!(lacks(callers(), Consistency::Filesystem, &theirs), None, "the shipped configuration");
        assert_eq!(lacks(callers(), Consistency::Application, &theirs), None);
        let part = Achieved { capped: true, ..callers() };
        assert_eq!(lacks(part.clone(), Consistency::Filesystem, &theirs), None);
        assert_eq!(
            lacks(part, Consistency::Application, &theirs).as_deref(),
            Some("a hold of every database and hook, part of that")
        );
        for level in [Consistency::Filesystem, Consistency::Application] {
            let wanted = format!("{} consistency, crash", level_text(level));
            assert_eq!(lacks(callers(), Consistency::Crash, &asked(FreezeBy::Caller, level)), Some(wanted));
            assert_eq!(lacks(full(), level, &asked(FreezeBy::Unspecified, level)), None);
        }
    }
}
