//! What one copy proves of when it was cut: its state, and what its raw superblock adds or takes away.

use std::fmt;

use serde_json::{Value, json};

use crate::{guest::superblock::Raw, hold::receipt::State};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    None,
    Aborted,
    Prepared,
    /// a machine was started from a copy cut during that hold, and wrote on
    Restored,
    Released,
    /// it says `frozen`, and its file system shows that it was not cut while it was
    Outside,
    ConsistentWithHold,
    CutInside,
    Proven,
}

impl Grade {
    const ALL: [Grade; 9] = [
        Grade::None,
        Grade::Aborted,
        Grade::Prepared,
        Grade::Restored,
        Grade::Released,
        Grade::Outside,
        Grade::ConsistentWithHold,
        Grade::CutInside,
        Grade::Proven,
    ];

    /// By the word that is printed.
    pub fn named(word: &str) -> Option<Grade> {
        Grade::ALL.into_iter().find(|grade| grade.to_string() == word)
    }

    /// Was this copy cut while all was held, as far as it can tell?
    pub fn is_held(self) -> bool {
        self >= Grade::ConsistentWithHold
    }
}

impl fmt::Display for Grade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Grade::None => "none",
            Grade::Aborted => "aborted",
            Grade::Prepared => "prepared",
            Grade::Restored => "restored",
            Grade::Released => "released",
            Grade::Outside => "outside",
            Grade::ConsistentWithHold => "consistent-with-hold",
            Grade::CutInside => "cut-inside",
            Grade::Proven => "proven",
        })
    }
}

/// Whether what the superblock says is of the moment of the copy, or of now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mounted {
    /// nobody has written since it was looked at: an image, or a read-only mount
    Still,
    /// it is in use
    ReadWrite,
}

/// `recorded`: what the receipt says of the file system when the hold was prepared.
pub fn grade(state: State, raw: Option<&Raw>, mounted: Mounted, recorded: &Value) -> (Grade, String) {
    match state {
        State::Prepared => (Grade::Prepared, "cut before all was held".to_owned()),
        State::Aborted => (Grade::Aborted, "cut after a hold that failed".to_owned()),
        State::Released => (Grade::Released, "cut after the hold was released".to_owned()),
        State::Restored => (Grade::Restored, RESTORED.to_owned()),
        State::Frozen => frozen(raw, mounted, recorded),
    }
}

const RESTORED: &str =
    "a machine was started from a copy cut during that hold; what was written since is not part of it";

/// The state is `frozen`: does the raw superblock say more?
fn frozen(raw: Option<&Raw>, mounted: Mounted, recorded: &Value) -> (Grade, String) {
    let weak = |why: &str| (Grade::ConsistentWithHold, format!("frozen; {why}"));
    let outside = |why: &str| (Grade::Outside, format!("it says frozen, but {why}"));
    let Some(raw) = raw else {
        return weak("its raw superblock cannot be read, so the moments next to the freeze are not excluded");
    };
    let Some(ext) = raw.ext else {
        return match (raw.log_tree, mounted) {
            (true, Mounted::Still) => outside(
                "its log tree has something that was synced since: cut before the freeze was complete or after the thaw, or mounted since",
            ),
            (true, Mounted::ReadWrite) | (false, _) => weak(
                "this type keeps no mark of a clean freeze, so the moment before it was complete and the one after the thaw are not excluded",
            ),
        };
    };
    if !ext.has_journal {
        return weak("an ext file system without a journal keeps no mark of a clean freeze");
    }
    if recorded["mount_count"] != json!(ext.mount_count) || recorded["mount_time"] != json!(ext.mount_time) {
        return weak("it has been mounted since, which rewrote the journal's mark (mount copies with ro,noload)");
    }
    if ext.needs_recovery {
        return outside(
            "its journal needs recovery: cut in the moment before its freeze was complete, or after the thaw",
        );
    }
    (Grade::CutInside, "frozen, and its journal was clean: cut while it was held".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::superblock::Ext;

    fn ext4(has_journal: bool, needs_recovery: bool, mount_count: u16) -> Raw {
        let ext = Ext { has_journal, needs_recovery, mount_count, mount_time: 9 };
        Raw { fs_type: "ext4", uuid: String::new(), label: String::new(), ext: Some(ext), log_tree: false, devices: 1 }
    }

    fn btrfs(log_tree: bool) -> Raw {
        Raw { fs_type: "btrfs", uuid: String::new(), label: String::new(), ext: None, log_tree, devices: 1 }
    }

    #[test]
    fn a_frozen_copy_is_worth_what_its_superblock_leaves_of_it() {
        use Grade::{ConsistentWithHold, CutInside, Outside};
        use Mounted::{ReadWrite, Still};
        let recorded = json!({"mount_count": 3, "mount_time": 9});
        let cases = [
            (Some(ext4(true, false, 3)), Still, CutInside),
            (Some(ext4(true, true, 3)), Still, Outside),
            (Some(ext4(true, true, 4)), ReadWrite, ConsistentWithHold),
            (Some(ext4(false, false, 3)), Still, ConsistentWithHold),
            (Some(btrfs(false)), Still, ConsistentWithHold),
            (Some(btrfs(true)), Still, Outside),
            (Some(btrfs(true)), ReadWrite, ConsistentWithHold),
            (None, Still, ConsistentWithHold),
        ];
        for (raw, mounted, expected) in cases {
            assert_eq!(grade(State::Frozen, raw.as_ref(), mounted, &recorded).0, expected, "{raw:?} {mounted:?}");
        }
    }

    #[test]
    fn what_is_not_frozen_is_never_graded_as_held() {
        let clean = ext4(true, false, 3);
        let recorded = json!({"mount_count": 3, "mount_time": 9});
        for state in [State::Prepared, State::Released, State::Aborted, State::Restored] {
            assert!(!grade(state, Some(&clean), Mounted::Still, &recorded).0.is_held(), "{state}");
        }
    }
}
