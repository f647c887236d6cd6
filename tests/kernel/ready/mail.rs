//! `report.d/10-mail`, with a sendmail that keeps what it is given.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use super::put;
use crate::lab::{Daemon, Fs, Lab, Type, until};

facts! {
    a_failure_is_mailed_with_verdict_level_and_a_body_for_people,
    failures_in_a_row_are_one_mail_and_the_next_one_says_how_many_there_were,
    a_sendmail_that_fails_is_in_the_log_and_the_next_mail_comes,
}

struct Mail<'lab> {
    daemon: Daemon<'lab>,
    dir: PathBuf,
    _disk: Fs<'lab>,
}

fn mail<'lab>(lab: &'lab Lab, edits: &[(&str, &str)]) -> Mail<'lab> {
    let disk = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&disk]).start();
    let dir = lab.memory_dir("mail");
    let sendmail = dir.join("sendmail");
    // one file per mail, seen when it is whole
    let script = format!(
        "#!/bin/sh\ncd {}\n[ ! -e broken ] || exit 75\nn=$(ls | wc -l); cat > .new; mv .new mail-$n\n",
        dir.display()
    );
    fs::write(&sendmail, script).expect("memory");
    fs::set_permissions(&sendmail, fs::Permissions::from_mode(0o755)).expect("memory");
    // on a machine it is in the PATH, and its socket where it looks
    let holdstill = dir.join("holdstill");
    let script =
        format!("#!/bin/sh\nexec {} --socket {} \"$@\"\n", crate::lab::daemon::BINARY, daemon.socket().display());
    fs::write(&holdstill, script).expect("memory");
    fs::set_permissions(&holdstill, fs::Permissions::from_mode(0o755)).expect("memory");
    let [sendmail, holdstill] =
        [("sendmail=", sendmail), ("holdstill=", holdstill)].map(|(key, path)| format!("{key}{}", path.display()));
    let usual = [("sendmail=/usr/sbin/sendmail", sendmail.as_str()), ("holdstill=holdstill", &holdstill)];
    put(&daemon.setup().reports_dir(), "report.d/10-mail", &[&usual, edits].concat());
    Mail { daemon, dir, _disk: disk }
}

impl Mail<'_> {
    fn mails(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(&self.dir).expect("memory").flatten().map(|e| e.path()).collect();
        names.retain(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("mail-")));
        names.sort();
        names.iter().map(|path| fs::read_to_string(path).expect("memory")).collect()
    }

    fn mail(&self, number: usize) -> String {
        let there = until(Duration::from_secs(5), || self.mails().len() >= number);
        assert!(there, "{} mails instead of {number}\n{}", self.mails().len(), self.daemon.log());
        self.mails()[number - 1].clone()
    }

    /// Waits until the report of `id` has been told.
    fn told(&self, id: &str) {
        let line = format!("hold={id} reporter=10-mail");
        let told = until(Duration::from_secs(5), || self.daemon.log().contains(&line));
        assert!(told, "{}", self.daemon.log());
    }

    fn held(&self, id: &str) {
        self.daemon.freeze(&["--id", id, "--for", "10s"]);
        self.daemon.thaw();
        self.told(id);
    }

    fn broken(&self, id: &str) {
        self.daemon.freeze(&["--id", id, "--for", "200ms", "--label", "nightly\r\nBcc: all@example.com"]);
        self.told(id);
    }
}

fn a_failure_is_mailed_with_verdict_level_and_a_body_for_people(lab: &Lab) {
    let it = mail(lab, &[]);
    it.held("fine");
    assert!(it.mails().is_empty(), "all was well: {:?}", it.mails());
    it.broken("late");
    let told = it.mail(1);
    let (head, body) = told.split_once("\n\n").expect("a head and a body");
    assert!(head.starts_with("To: root\n"), "{head}");
    assert!(head.contains(": hold BROKEN (deadline)"), "{head}");
    assert!(head.contains("; nightly??Bcc: all@example.com") && head.lines().all(|l| !l.starts_with("Bcc")), "{head}");
    assert!(body.contains("BROKEN: nobody asked to let go before the deadline"), "{body}");
    assert!(body.contains("fs:/mnt/") && body.contains("holdstill history late --json"), "{body}");

    it.daemon.cli(&["freeze", "--id", "never", "--require", "application"]).exits(4);
    assert!(it.mail(2).contains(": NOT HELD"), "{}", it.mail(2));
}

fn failures_in_a_row_are_one_mail_and_the_next_one_says_how_many_there_were(lab: &Lab) {
    let it = mail(lab, &[("when=failures ", "when=all "), ("expect='' ", "expect=application ")]);
    for id in ["a", "b", "c"] {
        it.held(id);
    }
    assert_eq!(it.mails().len(), 1);
    assert!(it.mail(1).contains("held, ONLY filesystem-consistent, application was expected"), "{}", it.mail(1));
    // as if it had been an hour ago
    fs::write("/run/holdstill-mail/low.last", "0").expect("memory");
    it.held("d");
    assert!(it.mail(2).contains("2 more of this kind since the last mail"), "{}", it.mail(2));
}

fn a_sendmail_that_fails_is_in_the_log_and_the_next_mail_comes(lab: &Lab) {
    let it = mail(lab, &[]);
    fs::write(it.dir.join("broken"), "").expect("memory");
    it.broken("first");
    assert!(it.daemon.log().contains("10-mail: it exited with status 75"), "{}", it.daemon.log());
    fs::remove_file(it.dir.join("broken")).expect("memory");
    it.broken("second");
    assert!(it.mail(1).contains("history second"), "{}", it.mail(1));
}
