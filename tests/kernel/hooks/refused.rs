//! A hook that could not be run, or that others could change, refuses the hold while preparing: nothing has been touched.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::Path,
    time::Duration,
};

use super::story::{Story, story};
use crate::lab::{Lab, Writer};

facts! {
    what_cannot_be_run_is_refused,
    what_others_could_change_is_refused,
    settings_that_do_not_fit_are_refused,
    a_directory_where_only_owners_remove_may_lie_above,
    more_hooks_than_anybody_could_undo_are_refused,
}

/// Hooks that would tell if they were started, and somebody who would notice a freeze.
struct Asked<'lab> {
    writer: Writer,
    it: Story<'lab>,
}

fn asked(lab: &Lab) -> Asked<'_> {
    let it = story(lab);
    Asked { writer: lab.writer(&it.disks[0]), it }
}

impl Asked<'_> {
    /// After `spoil` was let loose on the directory and its second hook, a hold is refused with a sentence that has
    /// `word` in it. And without: it is not, so that it was this.
    fn refused(&self, what: &str, word: &str, spoil: impl Fn(&Path, &Path)) {
        self.it.clear();
        self.it.hook("a").prepares().hook("b");
        let (dir, hook) = (self.it.daemon().setup().hooks_dir(), self.it.path_of("b"));
        spoil(&dir, &hook);
        let answer = self.it.daemon().cli(&["freeze"]);
        assert_eq!((answer.code, answer.reason()), (Some(4), "HOOK_UNUSABLE"), "{what}: {answer:?}");
        answer.says(word).says(dir.to_str().expect("ASCII"));
        let ready = self.it.daemon().cli(&["check"]);
        ready.exits(4).says(word);
        assert_eq!(self.it.daemon().phase(), "idle", "{what}");
        assert_eq!(self.it.told(), "", "{what}: a hook was started");
        assert!(self.writer.longest() < Duration::from_millis(500), "{what}: a refusal made a writer wait");
    }

    fn well(&self) {
        self.it.clear();
        self.it.hook("a").hook("b");
        self.it.daemon().freeze(&[]);
        self.it.daemon().thaw();
        self.it.expect("a freeze, b freeze, b thaw asked, a thaw asked");
    }
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("memory");
}

fn begins(hook: &Path, with: &str) {
    fs::write(hook, with).expect("memory");
}

fn what_cannot_be_run_is_refused(lab: &Lab) {
    let it = asked(lab);
    it.refused("not executable", "not executable", |_, hook| mode(hook, 0o644));
    it.refused("executable, but not for its owner", "not executable", |_, hook| mode(hook, 0o655));
    it.refused("CRLF", "CRLF", |_, hook| begins(hook, "#!/bin/sh\r\nexit 0\r\n"));
    it.refused("no interpreter", "/opt/no/such", |_, hook| begins(hook, "#!/opt/no/such\n"));
    it.refused("no interpreter for env", "nosuchshell", |_, hook| begins(hook, "#!/usr/bin/env nosuchshell\n"));
    it.refused("byte order mark", "byte order mark", |_, hook| begins(hook, "\u{feff}#!/bin/sh\n"));
    it.refused("no #!", "#!", |_, hook| begins(hook, "exit 0\n"));
    it.refused("empty", "empty", |_, hook| begins(hook, ""));
    it.refused("a directory", "directory", |dir, _| fs::create_dir(dir.join("50-dir")).expect("memory"));
    it.refused("a link to nowhere", "nowhere", |dir, _| symlink("/no/such", dir.join("50-link")).expect("memory"));
    it.well();
}

fn what_others_could_change_is_refused(lab: &Lab) {
    const NOBODY: Option<u32> = Some(65534);
    let it = asked(lab);
    it.refused("another owner", "belongs to uid 65534", |_, hook| chown(hook, NOBODY, None).expect("root"));
    it.refused("a directory of another owner", "belongs to uid 65534", |dir, _| {
        chown(dir, NOBODY, None).expect("root")
    });
    it.it.clear();
    chown(it.it.daemon().setup().hooks_dir(), Some(0), None).expect("root");
    for (what, bits) in [("group", 0o775), ("others", 0o757)] {
        it.refused(&format!("writable by {what}"), "written by others", |_, hook| mode(hook, bits));
        it.refused(&format!("in a directory writable by {what}"), "written by others", |dir, _| mode(dir, bits));
        it.refused(&format!("below a directory writable by {what}"), "written by others", |dir, _| {
            mode(dir.parent().expect("it lies somewhere"), bits);
        });
        mode(it.it.daemon().setup().hooks_dir().parent().expect("it lies somewhere"), 0o755);
        it.refused(&format!("settings writable by {what}"), "written by others", |_, hook| {
            let settings = hook.with_file_name("11-b.toml");
            fs::write(&settings, "required = false\n").expect("memory");
            mode(&settings, bits);
        });
    }
    // a sticky directory keeps others from removing a file, not from adding one
    it.refused("in a sticky directory", "written by others", |dir, _| mode(dir, 0o1777));
    let elsewhere = lab.memory_dir("elsewhere");
    it.refused("a link to where others can write", elsewhere.to_str().expect("ASCII"), |_, hook| {
        fs::rename(hook, elsewhere.join("script")).expect("the same tmpfs");
        symlink(elsewhere.join("script"), hook).expect("memory");
        mode(&elsewhere, 0o777);
    });
    it.well();
}

fn settings_that_do_not_fit_are_refused(lab: &Lab) {
    let it = asked(lab);
    let settings = |text: &'static str| {
        move |_: &Path, hook: &Path| fs::write(hook.with_file_name("11-b.toml"), text).expect("memory")
    };
    it.refused("a misspelt key", "timeout", settings("timeuot = \"5s\"\n"));
    it.refused("no duration", "not a duration", settings("timeout = \"soon\"\n"));
    it.refused("no time at all", "longer than nothing", settings("timeout = \"0s\"\n"));
    it.refused("no yes or no", "true or false", settings("required = \"yes\"\n"));
    it.refused("no TOML", "TOML", settings("timeout is short"));
    it.refused("settings of nobody", "no such hook", |dir, _| {
        fs::write(dir.join("77-nobody.toml"), "required = false\n").expect("memory");
    });
    it.well();
}

fn a_directory_where_only_owners_remove_may_lie_above(lab: &Lab) {
    let it = asked(lab);
    let dir = it.it.daemon().setup().hooks_dir();
    mode(dir.parent().expect("it lies somewhere"), 0o1777);
    it.well();
}

fn more_hooks_than_anybody_could_undo_are_refused(lab: &Lab) {
    let asked = asked(lab);
    asked.it.hook("a").prepares();
    for n in 1..=256 {
        asked.it.daemon().setup().hook(&format!("50-{n}"), "");
    }
    let answer = asked.it.daemon().cli(&["freeze"]);
    assert_eq!((answer.code, answer.reason()), (Some(4), "HOOK_UNUSABLE"), "{answer:?}");
    answer.says("use 257 hooks: there is room for 256");
    assert_eq!(asked.it.told(), "", "a hook was started");
}
