//! The level a hold reaches, from what it did.

use crate::proto::{self, Consistency};

/// What a hold can claim, from what it did.
#[derive(Debug, Clone, Default)]
pub struct Achieved {
    /// every file system in scope is (will be) frozen
    pub filesystems_complete: bool,
    /// the claim of every database found or configured
    pub claims: Vec<proto::Claim>,
    /// required hooks that succeeded (will run); a failed one fails the hold
    pub required_hooks: usize,
    /// something that should be held is not: an unreachable optional database, a known engine nobody can hold
    pub capped: bool,
}

impl Achieved {
    pub fn level(&self) -> Consistency {
        let good = |claim: &proto::Claim| match claim {
            proto::Claim::Exact | proto::Claim::Bounded => true,
            proto::Claim::Unspecified | proto::Claim::Recoverable | proto::Claim::Uncovered => false,
        };
        if !self.filesystems_complete {
            return Consistency::Crash;
        }
        let somebody_asked = !self.claims.is_empty() || self.required_hooks > 0;
        if somebody_asked && !self.capped && self.claims.iter().all(good) {
            Consistency::Application
        } else {
            Consistency::Filesystem
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_claimed_only_when_everything_it_needs_is_there() {
        use proto::Claim;
        let full = Achieved { filesystems_complete: true, claims: vec![Claim::Bounded], ..Achieved::default() };
        assert_eq!(full.level(), Consistency::Application);
        let cases = [
            (Achieved { claims: vec![], ..full.clone() }, Consistency::Filesystem),
            (Achieved { claims: vec![], required_hooks: 1, ..full.clone() }, Consistency::Application),
            (Achieved { claims: vec![Claim::Exact, Claim::Uncovered], ..full.clone() }, Consistency::Filesystem),
            (Achieved { capped: true, ..full.clone() }, Consistency::Filesystem),
            (Achieved { filesystems_complete: false, ..full.clone() }, Consistency::Crash),
        ];
        for (achieved, level) in cases {
            assert_eq!(achieved.level(), level, "{achieved:?}");
        }
    }
}
