//! What other agents ask, in their own words, and the exit status each understands. Pure.

use crate::{
    cli::{Adapted, IfNotHeld},
    error::Failure,
};

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// hold: the snapshot comes next
    Before,
    /// let go: the snapshot is cut
    After,
    /// could it hold? touches nothing
    Try,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Came {
    Held,
    /// there is nothing here that we would hold for this agent
    Nothing,
    /// what this agent asked us to hold before is held still, or is being prepared
    HeldAlready(String),
    NotHeld(Failure),
    Ready,
    NotReady(String),
    /// held until this moment, and let go
    Unbroken,
    /// it was let go too early, or is not proven to have been held
    Broken(String),
    /// it was let go before all was held, of which whoever asked to hold was told
    NeverHeld(String),
    /// nothing is held for this agent
    NotOurs,
    /// it is our own hold that runs the adapter as a hook, for it lies among the agent's scripts
    OurOwn,
    /// nobody answered what came of it
    Unknown(Failure),
}

/// The AWS Data Lifecycle Manager's words for failure, as the user guide of EBS lists them.
mod dlm {
    pub const PRE_FAILED: u8 = 201;
    pub const POST_FAILED: u8 = 202;
    pub const LET_GO_BEFORE_POST: u8 = 203;
    pub const PRE_AGAIN: u8 = 204;
    pub const POST_WITHOUT_PRE: u8 = 205;
    pub const NOT_READY: u8 = 206;
}

/// Azure's script framework: "a warning", which does not stop a backup.
const AZURE_WARNING: u8 = 2;
const FAILED: u8 = 1;
/// A word that is not in the agent's convention.
pub const MALFORMED: u8 = 2;

/// What `word` means in the convention of `agent`.
pub fn asked(agent: Adapted, word: &str) -> Option<Asked> {
    let (before, after) = match agent {
        Adapted::QemuGa => ("freeze", &["thaw"][..]),
        // the code says freezeFail, the comments in tools.conf freezefail
        Adapted::Vmware => ("freeze", &["thaw", "freezeFail", "freezefail"][..]),
        Adapted::Nutanix => ("pre_freeze", &["post_thaw"][..]),
        Adapted::Google | Adapted::Azure => ("pre", &["post"][..]),
        Adapted::AwsDlm => ("pre-script", &["post-script"][..]),
        // its hooks are commands of anybody's choice: there is nothing to translate
        Adapted::Velero => return None,
    };
    match word {
        word if word == before => Some(Asked::Before),
        word if after.contains(&word) => Some(Asked::After),
        "dry-run" if agent == Adapted::AwsDlm => Some(Asked::Try),
        _ => None,
    }
}

impl Came {
    /// The exit status this agent takes for it.
    pub fn status(&self, agent: Adapted, if_not_held: IfNotHeld) -> u8 {
        match agent {
            Adapted::AwsDlm => self.dlm(if_not_held),
            Adapted::Azure => self.plain(if_not_held, AZURE_WARNING),
            Adapted::QemuGa | Adapted::Vmware | Adapted::Nutanix | Adapted::Google | Adapted::Velero => {
                self.plain(if_not_held, 0)
            }
        }
    }

    fn plain(&self, if_not_held: IfNotHeld, goes_on: u8) -> u8 {
        match self {
            Came::Held | Came::Nothing | Came::Ready | Came::Unbroken | Came::OurOwn => 0,
            // these agents also call after a failed `before`, or without any
            Came::NeverHeld(_) | Came::NotOurs => 0,
            Came::HeldAlready(_) | Came::NotHeld(_) => match if_not_held {
                IfNotHeld::Fail => FAILED,
                IfNotHeld::GoOn => goes_on,
            },
            Came::NotReady(_) | Came::Broken(_) | Came::Unknown(_) => FAILED,
        }
    }

    fn dlm(&self, if_not_held: IfNotHeld) -> u8 {
        match self {
            Came::Held | Came::Nothing | Came::Ready | Came::Unbroken | Came::OurOwn => 0,
            Came::NotHeld(_) if if_not_held == IfNotHeld::GoOn => 0,
            Came::NotHeld(_) => dlm::PRE_FAILED,
            Came::HeldAlready(_) => dlm::PRE_AGAIN,
            Came::NotReady(_) => dlm::NOT_READY,
            Came::Broken(_) => dlm::LET_GO_BEFORE_POST,
            Came::NeverHeld(_) | Came::Unknown(_) => dlm::POST_FAILED,
            Came::NotOurs => dlm::POST_WITHOUT_PRE,
        }
    }

    /// For people, where anybody reads it; empty if all is as it should be. While held nothing may be written: what our
    /// output lies on may be what is held.
    pub fn sentence(&self) -> String {
        match self {
            Came::Held | Came::Ready | Came::Unbroken => String::new(),
            Came::Nothing => "nothing is held here for its snapshot, so nothing is claimed of it".into(),
            Came::NotOurs => "nothing is held for this agent".into(),
            Came::OurOwn => "a hook of the hold that is going on: there is nothing to do".into(),
            Came::HeldAlready(why) | Came::NotReady(why) | Came::Broken(why) | Came::NeverHeld(why) => why.clone(),
            Came::NotHeld(failure) | Came::Unknown(failure) => match failure.hint.as_str() {
                "" => failure.message.clone(),
                hint => format!("{} (hint: {hint})", failure.message),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hold::RefusalKind;

    const ALL: [Adapted; 6] =
        [Adapted::QemuGa, Adapted::Vmware, Adapted::Nutanix, Adapted::Google, Adapted::Azure, Adapted::AwsDlm];

    fn failure() -> Failure {
        Failure::local(RefusalKind::FailedPrecondition, "DATABASE_UNREACHABLE", "failed to reach it").hint("start it")
    }

    #[test]
    fn each_agent_is_understood_in_its_own_words_only() {
        let words = ["freeze", "thaw", "freezeFail", "freezefail", "pre_freeze", "post_thaw", "pre", "post"];
        let words = words.into_iter().chain(["pre-script", "post-script", "dry-run", "", "FREEZE"]);
        let understood: Vec<(Adapted, &str, Asked)> = words
            .flat_map(|word| ALL.map(|agent| asked(agent, word).map(|asked| (agent, word, asked))))
            .flatten()
            .collect();
        use Adapted::{AwsDlm, Azure, Google, Nutanix, QemuGa, Vmware};
        let expected = [
            (QemuGa, "freeze", Asked::Before),
            (Vmware, "freeze", Asked::Before),
            (QemuGa, "thaw", Asked::After),
            (Vmware, "thaw", Asked::After),
            (Vmware, "freezeFail", Asked::After),
            (Vmware, "freezefail", Asked::After),
            (Nutanix, "pre_freeze", Asked::Before),
            (Nutanix, "post_thaw", Asked::After),
            (Google, "pre", Asked::Before),
            (Azure, "pre", Asked::Before),
            (Google, "post", Asked::After),
            (Azure, "post", Asked::After),
            (AwsDlm, "pre-script", Asked::Before),
            (AwsDlm, "post-script", Asked::After),
            (AwsDlm, "dry-run", Asked::Try),
        ];
        assert_eq!(understood, expected);
    }

    #[test]
    fn only_what_is_held_or_has_nothing_to_hold_lets_a_snapshot_go_on_unless_the_administrator_says_so() {
        for agent in ALL {
            for came in [Came::Held, Came::Nothing] {
                assert_eq!(came.status(agent, IfNotHeld::Fail), 0, "{agent:?} {came:?}");
            }
            for came in [Came::NotHeld(failure()), Came::HeldAlready("by a".into())] {
                assert_ne!(came.status(agent, IfNotHeld::Fail), 0, "{agent:?} {came:?}");
            }
            let goes_on = Came::NotHeld(failure()).status(agent, IfNotHeld::GoOn);
            assert_eq!(goes_on, if agent == Adapted::Azure { 2 } else { 0 }, "{agent:?}");
            for if_not_held in [IfNotHeld::Fail, IfNotHeld::GoOn] {
                for came in [Came::Broken("the deadline passed".into()), Came::Unknown(failure())] {
                    assert_ne!(came.status(agent, if_not_held), 0, "{agent:?} {came:?}");
                }
            }
        }
    }

    #[test]
    fn the_data_lifecycle_manager_is_told_which_of_its_six_it_was() {
        let told = |came: Came| came.status(Adapted::AwsDlm, IfNotHeld::Fail);
        let text = || String::from("it is so");
        assert_eq!(told(Came::NotHeld(failure())), 201);
        assert_eq!((told(Came::Unknown(failure())), told(Came::NeverHeld(text()))), (202, 202));
        assert_eq!(told(Came::Broken(text())), 203);
        assert_eq!(told(Came::HeldAlready(text())), 204);
        assert_eq!(told(Came::NotOurs), 205);
        assert_eq!(told(Came::NotReady(text())), 206);
        assert_eq!((told(Came::Ready), told(Came::Unbroken)), (0, 0));
    }

    #[test]
    fn what_is_not_as_it_should_be_is_one_line_with_its_cure() {
        assert_eq!(Came::NotHeld(failure()).sentence(), "failed to reach it (hint: start it)");
        assert!(Came::Held.sentence().is_empty() && Came::Unbroken.sentence().is_empty());
    }
}
