//! Mount tables as they are found: the same disk seen several ways, covered, hung, foreign, changing while held.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    lab::{Lab, guest_agent::request},
    machine::{Boot, inside::STILL},
    table::{Outcome, Trial, case, compare, compare_in, ends, usual},
};

facts! {
    mount_tables_as_they_are_found_are_frozen_whole_or_refused within 180,
    a_disk_that_lies_on_another_disk_is_frozen_before_it within 120,
}

fn mount_tables_as_they_are_found_are_frozen_whole_or_refused(lab: &Lab) {
    let cases = [
        case(
            "T21",
            "nothing of what was asked for is there: hooks run",
            nothing_to_freeze,
            "an error; none",
            "0; freeze",
        ),
        case("T25", "one disk mounted in five ways", one_disk_many_mounts, "2, frozen once", "2, frozen once"),
        case(
            "T26",
            "another file system mounted over a disk's",
            covered,
            "refused",
            "says 1, and the disk is written to",
        ),
        case("T27", "a disk somebody else froze before", frozen_before, "refused, left frozen", "says 1, thaws it too"),
        case("T28", "a mount whose server does not answer", hung, "2 in time", "2 in time"),
        case("T32", "unmounted while frozen", unmounted, "thawed", "left frozen"),
        case("T33", "mounted, and frozen by somebody else, meanwhile", mounted, "leaves it alone", "thaws it too"),
        case("T34", "asked all it may be while nothing can be read anew", asked_while_frozen, "answers", "answers"),
    ];
    compare_in(lab, &Boot::small(), &usual(), &cases);
}

fn nothing_to_freeze(trial: &Trial) -> Outcome {
    let answer = trial.ask("guest-fsfreeze-freeze-list", json!({"mountpoints": ["/nowhere"]}));
    let said = if answer.is_number() { answer.to_string() } else { "an error".to_owned() };
    let marks = trial.marks();
    ends(format!("{said}; {}", if marks.is_empty() { "none" } else { &marks }))
}

fn one_disk_many_mounts(trial: &Trial) -> Outcome {
    trial.guest.sh(
        "mkdir -p /mnt/again /mnt/root /srv/covered && touch /srv/file && mount --bind /mnt/data /mnt/again && \
         mount --bind / /mnt/root && mount --bind /etc/passwd /srv/file && mount -t tmpfs none /srv/covered && \
         mount --bind /mnt/data /srv/covered",
    );
    trial.freeze();
    let count = trial.thaw();
    assert!(!trial.guest.is_frozen());
    trial.guest.sh("for at in /srv/covered /srv/covered /srv/file /mnt/root /mnt/again; do umount $at; done");
    ends(format!("{count}, frozen once"))
}

/// A process stays behind in what is covered, as processes do.
fn covered(trial: &Trial) -> Outcome {
    trial.guest.start("behind", "cd /mnt/data && echo $$ >/run/behind && exec sleep 1000");
    assert!(trial.guest.becomes("[ -s /run/behind ]", Duration::from_secs(5)));
    trial.guest.sh("mount -t tmpfs none /mnt/data");
    let answer = trial.ask("guest-fsfreeze-freeze", Value::Null);
    let written = trial.guest.writable_within(&["/proc/$(cat /run/behind)/cwd"], STILL);
    trial.thaw();
    trial.guest.sh("umount /mnt/data; kill $(cat /run/behind)");
    match answer["desc"].as_str() {
        Some(why) => ends("refused").with(why),
        None if written => ends(format!("says {answer}, and the disk is written to")),
        None => ends(format!("says {answer}, and all is frozen")),
    }
}

fn frozen_before(trial: &Trial) -> Outcome {
    trial.guest.sh("/sbin/fsfreeze -f /mnt/data");
    let answer = trial.ask("guest-fsfreeze-freeze", Value::Null);
    let said = if answer.is_number() { format!("says {answer}") } else { "refused".to_owned() };
    trial.thaw();
    let left = trial.guest.run("/sbin/fsfreeze -u /mnt/data").0 == 0;
    ends(format!("{said}, {}", if left { "left frozen" } else { "thaws it too" })).with(answer.to_string())
}

/// Like a network mount whose server has gone: whatever touches it waits. Nobody serves this one from the beginning.
fn hung(trial: &Trial) -> Outcome {
    let serve = "exec 5<>/dev/fuse; mkdir -p /mnt/hung && \
                 mount -t fuse -o fd=5,rootmode=40000,user_id=0,group_id=0 hung /mnt/hung && echo $$ >/run/hung && \
                 exec sleep 1000";
    trial.guest.start("hung", serve);
    assert!(trial.guest.becomes("[ -s /run/hung ]", Duration::from_secs(5)), "{}", trial.guest.output("hung"));
    let answer = trial.host(|host| {
        host.send(request("guest-fsfreeze-freeze", Value::Null).as_bytes());
        host.answer_within(Duration::from_secs(10))
    });
    let frozen = trial.guest.is_frozen();
    // without its server every wait ends, with an error
    trial.guest.run("kill $(cat /run/hung); umount -l /mnt/hung");
    match answer {
        Some(answer) if frozen => ends(format!("{} in time", answer["return"])),
        Some(answer) => ends("refused").with(answer.to_string()),
        None => ends("hangs"),
    }
}

fn unmounted(trial: &Trial) -> Outcome {
    trial.freeze();
    trial.guest.sh("umount -l /mnt/data");
    let answer = trial.thaw();
    // mounting the device again reaches the same file system, in whatever state it was left
    trial.guest.sh("mount -t ext4 /dev/vdb /mnt/data");
    let thawed = trial.guest.writable_within(&["/mnt/data"], STILL);
    ends(if thawed { "thawed" } else { "left frozen" }).with(format!("says {answer}"))
}

fn mounted(trial: &Trial) -> Outcome {
    trial.guest.sh("mkdir -p /tmp/new && truncate -s 8M /tmp/new.img && /sbin/mke2fs -q -F -t ext4 /tmp/new.img");
    trial.freeze();
    trial.guest.sh("mount -o loop -t ext4 /tmp/new.img /tmp/new && /sbin/fsfreeze -f /tmp/new");
    let answer = trial.thaw();
    let left = trial.guest.run("/sbin/fsfreeze -u /tmp/new").0 == 0;
    trial.guest.sh("umount /tmp/new");
    ends(if left { "leaves it alone" } else { "thaws it too" }).with(format!("says {answer}"))
}

/// What is not in memory is read from the frozen disk again; nothing may be written for it.
fn asked_while_frozen(trial: &Trial) -> Outcome {
    trial.freeze();
    for _ in 0..3 {
        trial.guest.sh("echo 3 >/proc/sys/vm/drop_caches");
        assert_eq!(trial.status(), json!("frozen"));
        assert_eq!(trial.ask("guest-ping", Value::Null), json!({}));
        assert!(trial.ask("guest-info", Value::Null)["supported_commands"].is_array());
        assert_eq!(trial.ask("guest-get-osinfo", Value::Null)["class"], "CommandNotFound");
    }
    assert!(trial.guest.is_frozen(), "answering let go");
    assert_eq!(trial.thaw(), json!(2));
    ends("answers")
}

/// The disk below is also mounted a second time, after the one that lies on it: whoever goes by the order of the mount
/// table alone freezes it first, and then waits for it.
fn a_disk_that_lies_on_another_disk_is_frozen_before_it(lab: &Lab) {
    fn run(trial: &Trial) -> Outcome {
        trial.guest.sh("truncate -s 8M /mnt/data/inner.img && /sbin/mke2fs -q -F -t ext4 /mnt/data/inner.img && \
             mkdir -p /mnt/inner /mnt/again && mount -o loop -t ext4 /mnt/data/inner.img /mnt/inner && \
             mount --bind /mnt/data /mnt/again && echo some >/mnt/inner/dirt");
        trial.host(|host| {
            host.send(request("guest-fsfreeze-freeze", Value::Null).as_bytes());
            match host.answer_within(Duration::from_secs(8)) {
                Some(answer) => {
                    let thawed = host.thaw();
                    ends(format!("freezes {}, thaws {thawed}", answer["return"]))
                }
                None => ends("waits for itself for ever"),
            }
        })
    }
    let what = "a disk image mounted, on a disk that is frozen first";
    compare(lab, &case("T22", what, run, "freezes 3, thaws 3", "waits for itself for ever"));
}
