//! One file: parsed, every key known, every value with the line it stands on. Values are not judged yet.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use toml::de::{DeTable, DeValue};

use super::{
    Error, Source,
    keys::{self, Form, SECTIONS, Section},
};

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub value: toml::Value,
    pub at: Source,
}

/// Key name → value, of one table.
pub(super) type Table = BTreeMap<String, Entry>;

/// One row of a `[[section]]`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub at: Source,
    pub table: Table,
}

/// What one file says.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Fragment {
    /// section → its table; present even when empty (`[listen.tcp]` alone means something)
    pub tables: BTreeMap<&'static str, Row>,
    /// section → its rows
    pub rows: BTreeMap<&'static str, Vec<Row>>,
}

pub(super) fn read(path: &Path) -> Result<Fragment, Error> {
    let text = fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    parse(&text, path)
}

/// Parses the text of the file at `path` (for messages only).
pub(super) fn parse(text: &str, path: &Path) -> Result<Fragment, Error> {
    let reader = Reader { text, path: path.to_owned() };
    let root = DeTable::parse(text).map_err(|error| Error::Syntax {
        at: reader.at(error.span().map_or(0, |span| span.start)),
        why: error.message().to_owned(),
    })?;
    let mut fragment = Fragment::default();
    reader.table("", root.get_ref(), &mut fragment)?;
    Ok(fragment)
}

struct Reader<'a> {
    text: &'a str,
    path: PathBuf,
}

impl Reader<'_> {
    fn at(&self, offset: usize) -> Source {
        let line = self.text.as_bytes()[..offset.min(self.text.len())].iter().filter(|b| **b == b'\n').count() + 1;
        Source::File { path: self.path.clone(), line }
    }

    fn table(&self, within: &'static str, table: &DeTable<'_>, fragment: &mut Fragment) -> Result<(), Error> {
        for (name, value) in table {
            let at = self.at(name.span().start);
            let dotted =
                if within.is_empty() { name.get_ref().to_string() } else { format!("{within}.{}", name.get_ref()) };
            if let Some(section) = keys::section(&dotted) {
                self.section(section, value.get_ref(), at, fragment)?;
            } else if key_of(within, name.get_ref()) {
                let entry = Entry { value: owned(value.get_ref()), at };
                let row = fragment.tables.get_mut(within).expect("its section was entered before");
                row.table.insert(name.get_ref().to_string(), entry);
            } else {
                return Err(unknown(within, name.get_ref(), at));
            }
        }
        Ok(())
    }

    fn section(
        &self,
        section: &'static Section,
        value: &DeValue<'_>,
        at: Source,
        to: &mut Fragment,
    ) -> Result<(), Error> {
        let wrong = |wanted: &str, at: Source| Error::Invalid {
            key: section.name.to_owned(),
            at,
            why: format!("it is {}, not {}", wanted, named(value.type_str())),
            hint: String::new(),
        };
        match (section.form, value) {
            (Form::Table | Form::OptionalTable, DeValue::Table(table)) => {
                to.tables.entry(section.name).or_insert_with(|| Row { at, table: Table::new() });
                self.table(section.name, table, to)
            }
            (Form::Rows, DeValue::Array(items)) => {
                let rows = to.rows.entry(section.name).or_default();
                for item in items.iter() {
                    let at = self.at(item.span().start);
                    let DeValue::Table(table) = item.get_ref() else {
                        return Err(wrong(&format!("a list of tables, [[{}]]", section.name), at));
                    };
                    rows.push(self.row(section, table, at)?);
                }
                Ok(())
            }
            (Form::Table | Form::OptionalTable, _) => Err(wrong(&format!("a table, [{}]", section.name), at)),
            (Form::Rows, _) => Err(wrong(&format!("a list of tables, [[{}]]", section.name), at)),
        }
    }

    fn row(&self, section: &'static Section, table: &DeTable<'_>, at: Source) -> Result<Row, Error> {
        let mut row = Row { at, table: Table::new() };
        for (name, value) in table {
            let at = self.at(name.span().start);
            if !key_of(section.name, name.get_ref()) {
                return Err(unknown(section.name, name.get_ref(), at));
            }
            row.table.insert(name.get_ref().to_string(), Entry { value: owned(value.get_ref()), at });
        }
        Ok(row)
    }
}

fn key_of(section: &str, name: &str) -> bool {
    keys::section(section).is_some_and(|s| s.keys.iter().any(|k| k.name == name))
}

/// What the table holds, of its own: keys and tables below it.
fn children(within: &str) -> Vec<(&'static str, &'static [&'static str])> {
    let keys = keys::section(within).into_iter().flat_map(|s| s.keys).map(|k| (k.name, k.also));
    let tables = SECTIONS.iter().filter_map(|s| {
        let name = if within.is_empty() { s.name } else { s.name.strip_prefix(within)?.strip_prefix('.')? };
        (!name.contains('.')).then_some((name, &[] as &[_]))
    });
    keys.chain(tables).collect()
}

fn unknown(within: &str, key: &str, at: Source) -> Error {
    let known = children(within);
    let place = match keys::section(within).map(|s| s.form) {
        None => "outside any table".to_owned(),
        Some(Form::Table | Form::OptionalTable) => format!("in [{within}]"),
        Some(Form::Rows) => format!("in [[{within}]]"),
    };
    let names = known.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    Error::UnknownKey {
        key: key.to_owned(),
        place: place.into(),
        at,
        meant: neighbour(within, key, &known),
        known: names.into(),
    }
}

/// The key somebody probably meant: nearest in spelling here, then by the words people try, then the same key elsewhere.
fn neighbour(within: &str, key: &str, known: &[(&'static str, &'static [&'static str])]) -> Option<String> {
    let like = |word: &str| strsim::jaro_winkler(&key.to_ascii_lowercase(), word);
    let words =
        known.iter().flat_map(|(name, also)| std::iter::once((*name, *name)).chain(also.iter().map(|a| (*name, *a))));
    let best = words.map(|(name, word)| (name, like(word))).max_by(|a, b| a.1.total_cmp(&b.1));
    if let Some((name, score)) = best
        && score >= 0.82
    {
        return Some(format!("`{name}`"));
    }
    let elsewhere = SECTIONS.iter().find(|s| s.name != within && s.keys.iter().any(|k| k.name == key))?;
    Some(match elsewhere.form {
        Form::Table | Form::OptionalTable => format!("`{key}` in [{}]", elsewhere.name),
        Form::Rows => format!("`{key}` in [[{}]]", elsewhere.name),
    })
}

fn owned(value: &DeValue<'_>) -> toml::Value {
    match value {
        DeValue::String(text) => toml::Value::String(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(&number.as_str().replace('_', ""), number.radix())
            .map_or_else(|_| toml::Value::String(number.as_str().to_owned()), toml::Value::Integer),
        DeValue::Float(number) => toml::Value::Float(number.as_str().replace('_', "").parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(yes) => toml::Value::Boolean(*yes),
        DeValue::Datetime(time) => toml::Value::Datetime(*time),
        DeValue::Array(items) => toml::Value::Array(items.iter().map(|item| owned(item.get_ref())).collect()),
        DeValue::Table(table) => {
            toml::Value::Table(table.iter().map(|(k, v)| (k.get_ref().to_string(), owned(v.get_ref()))).collect())
        }
    }
}

/// A TOML type with its article.
pub(super) fn named(kind: &str) -> String {
    match kind {
        "integer" => "a number".to_owned(),
        "float" => "a number with a fraction".to_owned(),
        "boolean" => "true or false".to_owned(),
        "array" => "a list".to_owned(),
        other => format!("a {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse(text, Path::new("/etc/holdstill/holdstill.toml")).expect_err("it is wrong").to_string()
    }

    #[test]
    fn a_misspelt_key_names_its_place_and_its_neighbour() {
        assert_eq!(
            error("[hold]\nmax = \"5s\"\nquisce = \"1s\"\n"),
            "unknown key `quisce` in [hold] (/etc/holdstill/holdstill.toml:3); did you mean `quiesce`?"
        );
    }

    #[test]
    fn a_word_people_try_leads_to_the_real_one() {
        assert!(
            error("[hold]\ndeadline_sec = 60")
                .ends_with("in [hold] (/etc/holdstill/holdstill.toml:2); did you mean `max`?")
        );
        assert!(error("[[database]]\npassword = \"x\"").ends_with("did you mean `password_file`?"));
    }

    #[test]
    fn a_key_in_the_wrong_table_is_sent_to_the_right_one() {
        assert!(error("[receipt]\ndiscover = true").ends_with("did you mean `discover` in [databases]?"));
        assert_eq!(
            error("max_stall = \"5s\""),
            "unknown key `max_stall` outside any table (/etc/holdstill/holdstill.toml:1); did you mean `max_stall` in [hold]?"
        );
    }

    #[test]
    fn a_misspelt_table_is_named_too() {
        assert!(error("[filesystem]\ninclude = []").contains("unknown key `filesystem` outside any table"));
        assert!(error("[filesystem]\n").ends_with("did you mean `filesystems`?"));
    }

    #[test]
    fn a_key_like_nothing_gets_the_list_of_what_is_known() {
        let error = parse("[receipt]\nzzz = 1", Path::new("a")).expect_err("unknown");
        assert_eq!(
            (error.to_string().as_str(), error.hint().as_str()),
            ("unknown key `zzz` in [receipt] (a:2)", "known there: enabled")
        );
    }

    #[test]
    fn a_table_written_as_a_list_and_the_reverse_are_refused() {
        assert!(error("[[hold]]\nmax = \"1s\"").contains("it is a table, [hold], not a list"));
        assert!(error("[database]\nname = \"a\"").contains("it is a list of tables, [[database]], not a table"));
        assert!(error("hold = 3").contains("it is a table, [hold], not a number"));
    }

    #[test]
    fn broken_toml_is_told_with_its_line() {
        assert!(error("[hold]\nmax = \n").starts_with("failed to read /etc/holdstill/holdstill.toml:2: "));
        assert!(error("[hold]\nmax = \"1s\"\nmax = \"2s\"").contains(":3: "));
    }

    #[test]
    fn inline_tables_and_dotted_keys_are_the_same_thing() {
        let written = parse("[hold]\nmax = \"5s\"", Path::new("a")).expect("fine");
        let value = |f: &Fragment| f.tables["hold"].table["max"].value.clone();
        for text in ["hold.max = \"5s\"", "hold = { max = \"5s\" }"] {
            assert_eq!(value(&parse(text, Path::new("a")).expect("fine")), value(&written));
        }
    }
}
