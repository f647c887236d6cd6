//! A hook's settings: `NN-name.toml` beside it. Every key has a safe default; one that does not exist is an error that
//! names its neighbour.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use toml::{Table, Value};

use super::{Error, Phase, convention::Convention, unusable, usable::read_guarded};
use crate::guest::databases::Engine;

/// What a settings file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// of each phase
    pub timeout: Option<Duration>,
    pub required: Option<bool>,
    pub user: Option<String>,
    /// besides `thaw`, which comes for whatever was started
    pub phases: Option<Vec<Phase>>,
    /// running engines that this hook brings to a consistent point
    pub holds: Vec<Engine>,
    /// these are no hook's settings, but other agents' scripts
    pub convention: Option<Convention>,
    /// where those are, if not where their agent keeps them
    pub path: Option<PathBuf>,
    /// what VMware's tools.conf calls `scriptArg`
    pub argument: Option<String>,
}

/// Longest settings file that is read, in bytes.
const LONGEST: u64 = 64 * 1024;

/// As for every duration of the configuration. `thaw` has nothing else that ends it.
const LONGEST_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

const KEYS: [&str; 9] = ["timeout", "required", "user", "phases", "prepare", "holds", "convention", "path", "argument"];

const EXAMPLE: &str =
    "the keys are timeout = \"5s\", required = true, user = \"root\", phases = [\"prepare\", \"freeze\"]";

impl Settings {
    /// # Errors
    /// `Unusable`: it cannot be read, others could write it, or what it says makes no sense.
    pub fn read(path: &Path) -> Result<Settings, Error> {
        Settings::parse(path, &read_guarded(path, LONGEST)?)
    }

    /// Would they be taken, once they lie at `path`?
    ///
    /// # Errors
    /// As [`Settings::read`].
    pub fn examine(&self, path: &Path) -> Result<(), Error> {
        Settings::parse(path, &self.to_toml()).map(|_| ())
    }

    fn parse(path: &Path, text: &str) -> Result<Settings, Error> {
        let wrong = |why: String| unusable(path, why, EXAMPLE);
        let table: Table = text.parse().map_err(|error: toml::de::Error| {
            wrong(format!("it is not valid TOML: {}", error.to_string().trim_end().replace('\n', " ")))
        })?;
        let mut settings = Settings::default();
        let mut prepare = None;
        for (key, value) in &table {
            let flag = || value.as_bool().ok_or_else(|| wrong(format!("`{key}` must be true or false, not {value}")));
            let text = |example: &str| {
                let text = value.as_str().filter(|text| !text.is_empty());
                text.ok_or_else(|| wrong(format!("`{key}` must be text such as \"{example}\", not {value}")))
            };
            match key.as_str() {
                "required" => settings.required = Some(flag()?),
                "prepare" => prepare = Some(flag()?),
                "phases" => settings.phases = Some(phases(value).map_err(wrong)?),
                "holds" => settings.holds = engines(value).map_err(wrong)?,
                "user" => settings.user = Some(text("postgres")?.to_owned()),
                "argument" => settings.argument = Some(text("nightly")?.to_owned()),
                "path" => settings.path = Some(absolute(text("/etc/qemu/fsfreeze-hook.d")?).map_err(wrong)?),
                "convention" => {
                    let name = text("vmware")?;
                    let found = Convention::named(name).ok_or_else(|| {
                        let why = format!("there is no convention `{name}`");
                        unusable(path, why, neighbour_hint(name, Convention::ALL.iter().map(|known| known.as_str())))
                    });
                    settings.convention = Some(found?);
                }
                "timeout" => settings.timeout = Some(limit(text("5s")?).map_err(wrong)?),
                unknown => {
                    let hint = neighbour_hint(unknown, KEYS.into_iter());
                    return Err(unusable(path, format!("unknown key `{unknown}`"), hint));
                }
            }
        }
        match (prepare, &settings.phases) {
            (Some(true), None) => settings.phases = Some(vec![Phase::Prepare, Phase::Freeze]),
            (Some(_), Some(_)) => return Err(wrong("`prepare` and `phases` are both set".to_owned())),
            (Some(false) | None, _) => {}
        }
        match (settings.convention, &settings.phases, &settings.path, &settings.argument) {
            (Some(convention), Some(_), _, _) => {
                return Err(wrong(format!("the convention {} has its own phases", convention.as_str())));
            }
            (Some(convention), None, _, Some(_)) if convention != Convention::Vmware => {
                return Err(wrong(format!(
                    "only the convention vmware takes an `argument`, {} does not",
                    convention.as_str()
                )));
            }
            (None, _, Some(_), _) => return Err(wrong("`path` is set without a `convention`".to_owned())),
            (None, _, None, Some(_)) => return Err(wrong("`argument` is set without a `convention`".to_owned())),
            (Some(_) | None, _, _, _) => {}
        }
        Ok(settings)
    }

    /// The file that says this.
    pub fn to_toml(&self) -> String {
        let mut table = Table::new();
        let mut put = |key: &str, value: Value| table.insert(key.to_owned(), value);
        if let Some(convention) = self.convention {
            put("convention", convention.as_str().into());
        }
        if let Some(path) = &self.path {
            put("path", path.to_string_lossy().into_owned().into());
        }
        if let Some(argument) = &self.argument {
            put("argument", argument.as_str().into());
        }
        if let Some(timeout) = self.timeout {
            put("timeout", humantime::format_duration(timeout).to_string().into());
        }
        if let Some(required) = self.required {
            put("required", required.into());
        }
        if let Some(user) = &self.user {
            put("user", user.as_str().into());
        }
        if !self.holds.is_empty() {
            put("holds", self.holds.iter().map(|engine| Value::from(engine.to_string())).collect::<Vec<_>>().into());
        }
        if let Some(phases) = &self.phases {
            put("phases", phases.iter().map(|phase| Value::from(phase.as_str())).collect::<Vec<_>>().into());
        }
        table.to_string()
    }
}

fn phases(value: &Value) -> Result<Vec<Phase>, String> {
    let known = |word: &Value| {
        [Phase::Prepare, Phase::Freeze, Phase::Thaw].into_iter().find(|p| word.as_str() == Some(p.as_str()))
    };
    let words = value
        .as_array()
        .ok_or_else(|| format!("`phases` must be a list such as [\"prepare\", \"freeze\"], not {value}"))?;
    words
        .iter()
        .map(|word| known(word).ok_or_else(|| format!("`phases` has {word}; there are prepare, freeze and thaw")))
        .collect()
}

fn engines(value: &Value) -> Result<Vec<Engine>, String> {
    let words = value.as_array().ok_or_else(|| format!("`holds` must be a list such as [\"redis\"], not {value}"))?;
    let known = |word: &Value| word.as_str().and_then(Engine::named).ok_or_else(|| not_an_engine(&word.to_string()));
    words.iter().map(known).collect()
}

/// Why it is none, and which there are.
pub fn not_an_engine(word: &str) -> String {
    let all: Vec<String> = Engine::ALL.iter().map(ToString::to_string).collect();
    format!("{word} is no engine that is looked for; there are {}", all.join(", "))
}

fn limit(text: &str) -> Result<Duration, String> {
    let limit = humantime::parse_duration(text).map_err(|error| format!("`timeout` is not a duration: {error}"))?;
    match limit {
        Duration::ZERO => Err("`timeout` must be longer than nothing".to_owned()),
        limit if limit > LONGEST_LIMIT => Err("`timeout` is more than 24h".to_owned()),
        limit => Ok(limit),
    }
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err(format!("`path` must be absolute, not {text}")) }
}

/// "did you mean …?", or the whole choice when nothing is near.
pub fn neighbour_hint<'a>(wrong: &str, choice: impl Iterator<Item = &'a str>) -> String {
    let choice: Vec<&str> = choice.collect();
    let near = choice.iter().map(|right| (strsim::jaro_winkler(wrong, right), right));
    match near.max_by(|a, b| a.0.total_cmp(&b.0)) {
        Some((likeness, right)) if likeness > 0.7 => format!("did you mean `{right}`?"),
        Some(_) => format!("there are: {}", choice.join(", ")),
        None => "there are none".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Settings, String> {
        Settings::parse(Path::new("/h/10-a.toml"), text).map_err(|error| format!("{error} / {}", error.hint()))
    }

    #[test]
    fn prepare_is_the_short_form_of_two_phases() {
        let both = Some(vec![Phase::Prepare, Phase::Freeze]);
        assert_eq!(parse("prepare = true").expect("fine").phases, both);
        assert_eq!(parse("phases = [\"prepare\", \"freeze\"]").expect("fine").phases, both);
        assert_eq!(parse("prepare = false").expect("fine").phases, None);
        assert!(parse("prepare = true\nphases = [\"freeze\"]").unwrap_err().contains("both set"));
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        for (text, why) in [
            ("phases = [\"fry\"]", "there are prepare, freeze and thaw"),
            ("phases = \"freeze\"", "must be a list"),
            ("timeout = \"580000000000y\"", "more than 24h"),
            ("convention = \"vmwear\"", "did you mean `vmware`?"),
            ("path = \"/x\"", "without a `convention`"),
            ("convention = \"qemu\"\npath = \"x\"", "must be absolute"),
            ("convention = \"qemu\"\nargument = \"x\"", "only the convention vmware"),
            ("convention = \"qemu\"\nprepare = true", "has its own phases"),
            ("user = \"\"", "must be text"),
            ("holds = [\"reddis\"]", "no engine that is looked for; there are postgresql,"),
            ("holds = \"redis\"", "must be a list"),
        ] {
            let said = parse(text).expect_err(text);
            assert!(said.contains(why), "{text}: {said}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            millis in proptest::option::of(1u64..86_400_000), required in proptest::option::of(any::<bool>()),
            user in proptest::option::of("[a-z]{1,8}"), prepare in any::<bool>(), argument in "[ -~]{1,20}",
        ) {
            let own = Settings {
                timeout: millis.map(Duration::from_millis), required, user,
                phases: prepare.then(|| vec![Phase::Prepare]), holds: vec![Engine::Redis], ..Settings::default()
            };
            prop_assert_eq!(parse(&own.to_toml()).expect("it was written by us"), own.clone());
            let foreign = Settings {
                convention: Some(Convention::Vmware), path: Some("/x y".into()), argument: Some(argument), phases: None, ..own
            };
            prop_assert_eq!(parse(&foreign.to_toml()).expect("it was written by us"), foreign);
        }
    }
}
