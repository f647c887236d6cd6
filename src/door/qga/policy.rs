//! What the administrator has forbidden the stock agent stays forbidden when we own its port: one reads here what that
//! agent would have been started with. Called once, when the port is opened.
//!
//! ```text
//!   /etc/qemu/qemu-ga.conf  (QGA_CONF, -c FILE)   block-rpcs  blacklist  allow-rpcs  in [general]
//!   /etc/sysconfig/qemu-ga                        BLACKLIST_RPC  BLOCK_RPCS  FILTER_RPC_ARGS  (RHEL, SUSE)
//!   /etc/default/qemu-guest-agent                 DAEMON_ARGS  (Debian)
//!   qemu-guest-agent.service and its drop-ins     ExecStart=
//! ```
//!
//! The rules are qemu-ga's (10.0): lists add up; with any list of allowed commands all others are forbidden; what is blocked
//! is forbidden even when allowed. Every command can be, guest-ping and the freeze included. Two spellings that agent
//! trips over are taken as they were meant where that forbids more: spaces around a blocked name, and `blacklist` beside
//! `block-rpcs`.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt, fs, io,
    path::{Path, PathBuf},
};

mod words;

use words::{Choice, Variables};

/// Completes "Command X has been disabled: …", in qemu-ga's words.
pub const WHY: &str = "the command is not allowed";

/// Where RHEL has its own.
const CONFIGS: [&str; 2] = ["/etc/qemu/qemu-ga.conf", "/etc/qemu-kvm/qemu-ga.conf"];

/// Later ones override.
const ENVIRONMENTS: [&[&str]; 2] =
    [&["/usr/etc/sysconfig/qemu-ga", "/etc/sysconfig/qemu-ga"], &["/etc/default/qemu-guest-agent"]];

const UNITS: [&str; 2] = ["qemu-guest-agent.service", "qemu-ga.service"];

/// Earlier ones mask.
const UNIT_DIRECTORIES: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verb {
    Block,
    /// these and no others
    Allow,
}

/// One list somebody wrote, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub verb: Verb,
    pub commands: Vec<String>,
    /// "/etc/qemu/qemu-ga.conf: block-rpcs"
    pub source: String,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.verb {
            Verb::Block => "blocks",
            Verb::Allow if self.commands.is_empty() => return write!(f, "{}: nothing is allowed", self.source),
            Verb::Allow => "allows only",
        };
        write!(f, "{} {verb} {}", self.source, self.commands.join(", "))
    }
}

/// What hosts may ask of this guest's agent. The default forbids nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<Rule>,
}

impl Policy {
    /// Reads all there is below `root`. A file that is there and cannot be read allows nothing: what it forbids is not known.
    pub fn read(root: &Path) -> Policy {
        Policy::read_with(root, std::env::var_os("QGA_CONF"))
    }

    fn read_with(root: &Path, qga_conf: Option<OsString>) -> Policy {
        let mut reader = Reader { root, rules: Vec::new(), configs: qga_conf.into_iter().map(PathBuf::from).collect() };
        let mut variables = Variables::new();
        for files in ENVIRONMENTS {
            reader.environment(files, &mut variables);
        }
        reader.unit(&variables);
        if reader.configs.is_empty() {
            reader.configs.extend(CONFIGS.map(PathBuf::from));
        }
        for path in std::mem::take(&mut reader.configs) {
            reader.config(&path);
        }
        Policy { rules: reader.rules }
    }

    /// Whether hosts may use it.
    pub fn allows(&self, command: &str) -> bool {
        let named = |rule: &Rule| rule.commands.iter().any(|name| name == command);
        let mut allowing = self.rules.iter().filter(|rule| rule.verb == Verb::Allow).peekable();
        let blocked = self.rules.iter().any(|rule| rule.verb == Verb::Block && named(rule));
        !blocked && (allowing.peek().is_none() || allowing.any(named))
    }

    /// Every list found, for whoever wonders why a command is refused.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }
}

struct Reader<'a> {
    root: &'a Path,
    rules: Vec<Rule>,
    /// files to read in place of the usual ones
    configs: Vec<PathBuf>,
}

impl Reader<'_> {
    fn text(&mut self, path: &Path) -> Option<String> {
        match fs::read(self.root.join(path.strip_prefix("/").unwrap_or(path))) {
            Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => None,
            Err(error) => {
                let source = format!("{} cannot be read ({error})", path.display());
                self.rules.push(Rule { verb: Verb::Allow, commands: Vec::new(), source });
                None
            }
        }
    }

    fn add(&mut self, verb: Verb, list: &str, source: String) {
        if list.is_empty() {
            return;
        }
        let commands = list.split(',');
        let commands = match verb {
            Verb::Block => commands.map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect(),
            // to the letter: qemu-ga does not allow " guest-exec" either
            Verb::Allow => commands.map(str::to_owned).collect(),
        };
        // A unit that passes on a variable says what the variable said.
        if !self.rules.iter().any(|rule| rule.verb == verb && rule.commands == commands) {
            self.rules.push(Rule { verb, commands, source });
        }
    }

    fn arguments(&mut self, arguments: &[String], source: &str) {
        for choice in words::choices(arguments) {
            match choice {
                Choice::Block(list) => self.add(Verb::Block, &list, source.to_owned()),
                Choice::Allow(list) => self.add(Verb::Allow, &list, source.to_owned()),
                Choice::Config(path) => self.configs.push(path.into()),
            }
        }
    }

    fn environment(&mut self, files: &[&str], variables: &mut Variables) {
        let mut own = Variables::new();
        let mut last = "";
        for file in files {
            if let Some(text) = self.text(Path::new(file)) {
                words::assign(&text, &mut own);
                last = file;
            }
        }
        for (name, value) in &own {
            let source = format!("{last}: {name}");
            match name.as_str() {
                "BLACKLIST_RPC" | "BLOCK_RPCS" => self.add(Verb::Block, value, source),
                "FILTER_RPC_ARGS" | "DAEMON_ARGS" => {
                    let arguments: Vec<String> = value.split_whitespace().map(str::to_owned).collect();
                    self.arguments(&arguments, &source);
                }
                "QGA_CONF" => self.configs.push(value.into()),
                _ => {}
            }
        }
        variables.append(&mut own);
    }

    fn unit(&mut self, variables: &Variables) {
        for unit in UNITS {
            let mut commands: Vec<(String, PathBuf)> = Vec::new();
            let fragment = UNIT_DIRECTORIES.iter().map(|dir| Path::new(dir).join(unit));
            let fragment = fragment.into_iter().find_map(|path| Some((self.text(&path)?, path)));
            let drop_ins: Vec<_> =
                self.drop_ins(unit).into_iter().filter_map(|path| Some((self.text(&path)?, path))).collect();
            for (text, path) in fragment.into_iter().chain(drop_ins) {
                for value in words::joined(&text).lines().filter_map(|line| {
                    line.trim().strip_prefix("ExecStart")?.trim_start().strip_prefix('=').map(str::trim)
                }) {
                    match value {
                        "" => commands.clear(),
                        value => commands.push((value.to_owned(), path.clone())),
                    }
                }
            }
            for (command, path) in commands {
                let source = format!("{}: ExecStart", path.display());
                self.arguments(&words::words(&command, variables), &source);
            }
        }
    }

    /// In the order of their names, whatever directory they are in.
    fn drop_ins(&self, unit: &str) -> Vec<PathBuf> {
        let mut found: BTreeMap<OsString, PathBuf> = BTreeMap::new();
        for dir in UNIT_DIRECTORIES {
            let dir = Path::new(dir).join(format!("{unit}.d"));
            let entries = fs::read_dir(self.root.join(dir.strip_prefix("/").expect("they are absolute")));
            for entry in entries.into_iter().flatten().flatten() {
                let name = entry.file_name();
                if Path::new(&name).extension().is_some_and(|end| end == "conf") {
                    found.entry(name.clone()).or_insert_with(|| dir.join(name));
                }
            }
        }
        found.into_values().collect()
    }

    fn config(&mut self, path: &Path) {
        let Some(text) = self.text(path) else { return };
        for (key, value) in general(&text) {
            let source = format!("{}: {key}", path.display());
            match key.as_str() {
                "block-rpcs" | "blacklist" => self.add(Verb::Block, &value, source),
                "allow-rpcs" => self.add(Verb::Allow, &value, source),
                _ => {}
            }
        }
    }
}

/// The keys of a GLib key file's group `[general]`, the last of a name, its escapes undone.
fn general(text: &str) -> BTreeMap<String, String> {
    let mut group = "";
    let mut found = BTreeMap::new();
    for line in text.lines().map(str::trim_start).filter(|line| !line.starts_with('#')) {
        if let Some(header) = line.strip_prefix('[') {
            group = header.trim_end().strip_suffix(']').unwrap_or_default();
        } else if let Some((key, value)) = line.split_once('=').filter(|_| group == "general") {
            let value = value.trim_start().replace("\\s", " ").replace("\\t", "\t").replace("\\\\", "\\");
            found.insert(key.trim_end().to_owned(), value);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files and what they say.
    fn policy(files: &[(&str, &str)]) -> Policy {
        let root = tempfile::tempdir().expect("a directory");
        for (path, text) in files {
            let path = root.path().join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().expect("below the root")).expect("created");
            fs::write(path, text).expect("written");
        }
        Policy::read_with(root.path(), None)
    }

    fn forbids(policy: &Policy) -> Vec<&'static str> {
        let some = ["guest-ping", "guest-sync", "guest-info", "guest-fsfreeze-freeze", "guest-exec", "guest-file-open"];
        some.into_iter().filter(|command| !policy.allows(command)).collect()
    }

    const CONF: &str = "/etc/qemu/qemu-ga.conf";
    const SYSCONFIG: &str = "/etc/sysconfig/qemu-ga";
    const DEFAULT: &str = "/etc/default/qemu-guest-agent";

    #[test]
    fn where_nothing_is_written_nothing_is_forbidden() {
        assert_eq!(policy(&[]), Policy::default());
        assert!(forbids(&Policy::default()).is_empty());
        assert!(
            forbids(&policy(&[(CONF, "[general]\nverbose=1\nallow-rpcs=\n"), (SYSCONFIG, "BLOCK_RPCS=\n")])).is_empty()
        );
    }

    #[test]
    fn the_configuration_file_blocks_by_either_key_and_in_its_own_group_only() {
        let text = "[other]\nblock-rpcs=guest-ping\n[general]\n# block-rpcs=guest-info\nblacklist = guest-exec , guest-file-open  \n\
                    block-rpcs=guest-nothing\nblock-rpcs=guest-fsfreeze-freeze\n";
        assert_eq!(forbids(&policy(&[(CONF, text)])), ["guest-fsfreeze-freeze", "guest-exec", "guest-file-open"]);
        assert!(forbids(&policy(&[(CONF, "[ general ]\nblock-rpcs=guest-exec\n")])).is_empty(), "another group");
        assert_eq!(
            forbids(&policy(&[("/etc/qemu-kvm/qemu-ga.conf", "[general]\nblock-rpcs=guest-exec")])),
            ["guest-exec"]
        );
    }

    #[test]
    fn a_list_of_allowed_commands_forbids_all_others_and_blocking_is_stronger() {
        let text = "[general]\nallow-rpcs=guest-ping,guest-sync,guest-exec\nblock-rpcs=guest-exec\n";
        let found = policy(&[(CONF, text)]);
        assert_eq!(forbids(&found), ["guest-info", "guest-fsfreeze-freeze", "guest-exec", "guest-file-open"]);
        let lists = policy(&[(CONF, text), (SYSCONFIG, "FILTER_RPC_ARGS=\"--allow-rpcs=guest-info,guest-exec\"\n")]);
        assert_eq!(forbids(&lists), ["guest-fsfreeze-freeze", "guest-exec", "guest-file-open"], "lists add up");
        let spaced = policy(&[(CONF, "[general]\nallow-rpcs=guest-ping, guest-sync\n")]);
        assert!(spaced.allows("guest-ping") && !spaced.allows("guest-sync"), "as qemu-ga reads it");
    }

    #[test]
    fn red_hats_variables_of_every_age_count() {
        for text in [
            "BLACKLIST_RPC=guest-exec,guest-file-open\n",
            "# comment\nBLOCK_RPCS=\"guest-exec, guest-file-open\"\n",
            "FILTER_RPC_ARGS=\"--block-rpcs=guest-exec,guest-file-open\"\n",
            "FILTER_RPC_ARGS='-b guest-exec --blacklist guest-file-open'\n",
        ] {
            assert_eq!(forbids(&policy(&[(SYSCONFIG, text)])), ["guest-exec", "guest-file-open"], "{text}");
        }
        let shipped = ("/usr/etc/sysconfig/qemu-ga", "FILTER_RPC_ARGS=\"--block-rpcs=guest-exec\"\n");
        assert_eq!(forbids(&policy(&[shipped])), ["guest-exec"]);
        assert!(
            forbids(&policy(&[shipped, (SYSCONFIG, "FILTER_RPC_ARGS=\n")])).is_empty(),
            "the administrator's own counts"
        );
    }

    #[test]
    fn debians_arguments_count() {
        let text = "DAEMON_ARGS=\"-b guest-exec\"\nDAEMON_ARGS=\"$DAEMON_ARGS --block-rpcs=guest-file-open -v\"\n";
        assert_eq!(forbids(&policy(&[(DEFAULT, text)])), ["guest-exec", "guest-file-open"]);
        assert_eq!(forbids(&policy(&[(DEFAULT, "DAEMON_ARGS=\"--allow-rpcs=guest-ping\"")])).len(), 5);
    }

    #[test]
    fn a_unit_is_read_with_its_drop_ins_and_what_they_reset() {
        let shipped =
            ("/lib/systemd/system/qemu-guest-agent.service", "[Service]\nExecStart=-/usr/sbin/qemu-ga -b guest-ping\n");
        assert_eq!(forbids(&policy(&[shipped])), ["guest-ping"]);
        let dropped = (
            "/etc/systemd/system/qemu-guest-agent.service.d/10-local.conf",
            "[Service]\nExecStart=\nExecStart=/usr/sbin/qemu-ga \\\n  --block-rpcs=guest-exec \\\n  $FILTER_RPC_ARGS --allow-rpcs=${UNSET}\n",
        );
        assert_eq!(forbids(&policy(&[shipped, dropped])), ["guest-exec"]);
        let masked = ("/etc/systemd/system/qemu-guest-agent.service", "");
        assert!(forbids(&policy(&[shipped, masked])).is_empty());
    }

    #[test]
    fn another_configuration_file_takes_the_place_of_the_usual_one() {
        let usual = (CONF, "[general]\nblock-rpcs=guest-exec\n");
        let other = ("/etc/other.conf", "[general]\nblock-rpcs=guest-ping\n");
        let named = (SYSCONFIG, "FILTER_RPC_ARGS=\"-c /etc/other.conf\"\n");
        assert_eq!(forbids(&policy(&[usual, other, named])), ["guest-ping"]);
        assert_eq!(forbids(&policy(&[usual, other, (SYSCONFIG, "QGA_CONF=/etc/other.conf\n")])), ["guest-ping"]);
    }

    #[test]
    fn a_file_that_cannot_be_read_allows_nothing_and_says_so() {
        let found = policy(&[(&format!("{CONF}/a-directory"), "")]);
        assert_eq!(forbids(&found).len(), 6);
        assert!(
            found.rules()[0].to_string().starts_with("/etc/qemu/qemu-ga.conf cannot be read ("),
            "{}",
            found.rules()[0]
        );
    }

    #[test]
    fn every_rule_says_where_it_was_written() {
        let found =
            policy(&[(CONF, "[general]\nblock-rpcs=guest-exec\n"), (SYSCONFIG, "FILTER_RPC_ARGS=-aguest-ping\n")]);
        let said: Vec<String> = found.rules().iter().map(Rule::to_string).collect();
        assert_eq!(
            said,
            [
                "/etc/sysconfig/qemu-ga: FILTER_RPC_ARGS allows only guest-ping",
                "/etc/qemu/qemu-ga.conf: block-rpcs blocks guest-exec",
            ]
        );
    }
}
