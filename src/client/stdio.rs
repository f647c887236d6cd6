//! Does our own output lie on a file system that is, or is about to be, held? Writing there would wait for the release
//! that we are there to bring about.

use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt};

use crate::{
    error::{Failure, reason},
    guest::Dev,
    hold::RefusalKind,
    proto,
};

/// What stdout and stderr stand on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    on: BTreeSet<Dev>,
}

impl Standing {
    /// Reads `/proc/self`; looks at no path on a disk.
    pub fn of_this_process() -> Standing {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut on = BTreeSet::new();
        for fd in [1, 2] {
            // follows the link to the open file itself: no path is walked
            let Ok(metadata) = fs::metadata(format!("/proc/self/fd/{fd}")) else { continue };
            if !metadata.is_file() {
                continue;
            }
            // st_dev: the same as mountinfo's, but not on btrfs subvolumes; and known for files on detached mounts
            let dev = metadata.dev();
            on.insert(Dev {
                major: u32::try_from(nix::sys::stat::major(dev)).unwrap_or(0),
                minor: u32::try_from(nix::sys::stat::minor(dev)).unwrap_or(0),
            });
            let fdinfo = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
            on.extend(mount_id(&fdinfo).and_then(|id| device(&mountinfo, id)));
        }
        Standing { on }
    }

    /// A regular file, wherever it is: worth asking about.
    pub fn on_a_disk(&self) -> bool {
        !self.on.is_empty()
    }

    /// # Errors
    /// Exit 2, if one of them is on a file system this plan or hold holds.
    pub fn refuse_if_held(&self, report: &proto::Report) -> Result<(), Failure> {
        let Some(mount) = report.steps.iter().find_map(|step| self.stands_on(step)) else { return Ok(()) };
        let message =
            format!("stdout or stderr is a file on {mount}, which is to be held: writing there would never return");
        Err(Failure::local(RefusalKind::InvalidArgument, reason::MALFORMED, message)
            .hint("send the output elsewhere, or let `holdstill run -- CMD` keep it until after the release"))
    }

    fn stands_on<'a>(&self, step: &'a proto::Step) -> Option<&'a str> {
        let Some(proto::step::Detail::Filesystem(fs)) = &step.detail else { return None };
        let held = match step.outcome() {
            proto::StepOutcome::Planned | proto::StepOutcome::Done | proto::StepOutcome::UndoFailed => true,
            proto::StepOutcome::Unspecified
            | proto::StepOutcome::Skipped
            | proto::StepOutcome::Failed
            | proto::StepOutcome::Undone => false,
        };
        (held && self.on.contains(&Dev { major: fs.major, minor: fs.minor })).then_some(&fs.mount)
    }
}

/// `mnt_id` of proc_pid_fdinfo(5).
fn mount_id(fdinfo: &str) -> Option<u64> {
    fdinfo.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()
}

/// The third field of the mount with this id, proc_pid_mountinfo(5).
fn device(mountinfo: &str, id: u64) -> Option<Dev> {
    let line = mountinfo.lines().find(|line| line.split(' ').next().and_then(|f| f.parse().ok()) == Some(id))?;
    let (major, minor) = line.split(' ').nth(2)?.split_once(':')?;
    Some(Dev { major: major.parse().ok()?, minor: minor.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(outcome: proto::StepOutcome) -> proto::Report {
        let detail = proto::Filesystem { mount: "/var".into(), major: 254, minor: 1, ..Default::default() };
        proto::Report {
            steps: vec![proto::Step {
                outcome: outcome.into(),
                detail: Some(proto::step::Detail::Filesystem(detail)),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn the_mount_of_a_descriptor_leads_to_its_device() {
        let mountinfo = "21 1 254:1 / / rw - ext4 /dev/root rw\n121 21 0:51 /@ /data rw shared:3 - btrfs /dev/vdb rw\n";
        let fdinfo = "pos:\t0\nflags:\t0100001\nmnt_id:\t121\nino:\t12\n";
        assert_eq!(mount_id(fdinfo), Some(121));
        assert_eq!(device(mountinfo, 121), Some(Dev { major: 0, minor: 51 }));
        assert_eq!(device(mountinfo, 2), None, "not by prefix");
    }

    #[test]
    fn output_on_a_file_system_to_be_held_is_refused_with_exit_2_and_sent_to_run() {
        let standing = Standing { on: BTreeSet::from([Dev { major: 254, minor: 1 }]) };
        let failure = standing.refuse_if_held(&plan(proto::StepOutcome::Planned)).expect_err("it stands on /var");
        assert_eq!(failure.exit.code(), 2);
        assert!(failure.message.contains("on /var") && failure.hint.contains("holdstill run"));
        standing.refuse_if_held(&plan(proto::StepOutcome::Skipped)).expect("that one is left alone");
        Standing::default().refuse_if_held(&plan(proto::StepOutcome::Planned)).expect("a terminal stands on nothing");
    }
}
