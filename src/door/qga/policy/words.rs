//! The little of shell, systemd and getopt that an agent's settings are written in: assignments, words with quotes and
//! variables, options with their arguments. Called by `policy`.

use std::collections::BTreeMap;

pub(super) type Variables = BTreeMap<String, String>;

/// Reads the assignments of an environment file or a sourced script into `variables`. Anything else in it is passed over.
pub(super) fn assign(text: &str, variables: &mut Variables) {
    for line in joined(text).lines().map(str::trim_start).filter(|line| !line.starts_with(['#', ';'])) {
        let line = line.strip_prefix("export ").unwrap_or(line);
        let Some((name, value)) = line.split_once('=') else { continue };
        let (name, earlier) = match name.strip_suffix('+') {
            Some(name) => (name, variables.get(name).cloned().unwrap_or_default()),
            None => (name, String::new()),
        };
        if !name.is_empty() && name.chars().all(is_name) {
            let value = earlier + &words(value, variables).join(" ");
            variables.insert(name.to_owned(), value);
        }
    }
}

/// Lines that end in a backslash continue on the next.
pub(super) fn joined(text: &str) -> String {
    text.replace("\r\n", "\n").replace("\\\n", " ")
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Splits into words: quotes taken off, `$NAME` and `${NAME}` replaced (by nothing if unknown), an unquoted `$NAME` split
/// again, all from a `#` at the start of a word left out.
pub(super) fn words(text: &str, variables: &Variables) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match (quote, c) {
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, '#') if word.is_none() => break,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (Some(q), c) if c == q => quote = None,
            (None, '\\') => word.get_or_insert_default().extend(rest.next()),
            (Some('"'), '\\') => {
                let kept = rest.next_if(|next| matches!(next, '"' | '\\' | '$' | '`')).unwrap_or('\\');
                word.get_or_insert_default().push(kept);
            }
            (None | Some('"'), '$') => {
                let braced = rest.next_if_eq(&'{').is_some();
                let name: String = std::iter::from_fn(|| rest.next_if(|next| is_name(*next))).collect();
                let closed = braced && rest.next_if_eq(&'}').is_some();
                let value = variables.get(&name).map_or("", String::as_str);
                if quote.is_some() || closed || !value.contains(char::is_whitespace) {
                    word.get_or_insert_default().push_str(value);
                } else {
                    words.extend(word.take());
                    words.extend(value.split_whitespace().map(str::to_owned));
                }
            }
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// What concerns us among qemu-ga's options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Choice {
    Block(String),
    Allow(String),
    Config(String),
}

/// Reads a command line as getopt_long(3) does: options anywhere, long ones abbreviated, arguments attached or following.
pub(super) fn choices(arguments: &[String]) -> Vec<Choice> {
    let mut found = Vec::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if argument == "--" {
            break;
        } else if let Some(long) = argument.strip_prefix("--") {
            let (name, attached) = long.split_once('=').map_or((long, None), |(name, value)| (name, Some(value)));
            let Some(option) = long_option(name) else { continue };
            if let Some(value) = attached.map(str::to_owned).or_else(|| rest.next().cloned()) {
                found.extend(choice(option, value));
            }
        } else if let Some(cluster) = argument.strip_prefix('-') {
            for (at, option) in cluster.char_indices() {
                match option {
                    'b' | 'a' | 'c' | 'm' | 'p' | 'l' | 'f' | 't' | 's' => {
                        let attached = &cluster[at + 1..];
                        let value = if attached.is_empty() { rest.next().cloned() } else { Some(attached.to_owned()) };
                        found.extend(value.and_then(|value| choice(option, value)));
                        break;
                    }
                    'F' => break, // its optional argument can only be attached
                    _ => {}
                }
            }
        }
    }
    found
}

/// Those that take an argument, by their short names; any beginning of a name will do.
fn long_option(name: &str) -> Option<char> {
    let known = [
        ("block-rpcs", 'b'),
        ("blacklist", 'b'),
        ("allow-rpcs", 'a'),
        ("config", 'c'),
        ("method", 'm'),
        ("path", 'p'),
        ("logfile", 'l'),
        ("pidfile", 'f'),
        ("statedir", 't'),
    ];
    known.iter().find(|(long, _)| !name.is_empty() && long.starts_with(name)).map(|(_, short)| *short)
}

fn choice(option: char, value: String) -> Option<Choice> {
    match option {
        'b' => Some(Choice::Block(value)),
        'a' => Some(Choice::Allow(value)),
        'c' => Some(Choice::Config(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn assigned(text: &str) -> Variables {
        let mut variables = Variables::new();
        assign(text, &mut variables);
        variables
    }

    #[test]
    fn assignments_are_read_as_a_shell_and_as_systemd_would() {
        let found = assigned(
            "# A=no\n;B=no\nexport A='one two'\r\nB=\"a \\\"b\\\" \\x\" # said\nC=one, two\nD=a\\\n b\nnot an assignment\n\
             E=\"$A ${B} $UNKNOWN\"\nE+=\" more\"\nF=\n",
        );
        let value = |name: &str| found.get(name).map(String::as_str);
        assert_eq!(value("A"), Some("one two"));
        assert_eq!(value("B"), Some(r#"a "b" \x"#));
        assert_eq!((value("C"), value("D"), value("F")), (Some("one, two"), Some("a b"), Some("")));
        assert_eq!(value("E"), Some(r#"one two a "b" \x  more"#));
        assert_eq!(found.len(), 6);
    }

    #[test]
    fn an_unquoted_variable_is_split_into_words_and_a_braced_one_is_not() {
        let variables = assigned("ARGS='--verbose -b x'\nLIST='a b'");
        assert_eq!(
            words("qemu-ga $ARGS --bl=${LIST} '$ARGS'", &variables),
            ["qemu-ga", "--verbose", "-b", "x", "--bl=a b", "$ARGS"]
        );
    }

    #[test]
    fn options_are_found_in_every_spelling_getopt_takes() {
        let found = |line: &str| choices(&words(line, &Variables::new()));
        let block = |list: &str| Choice::Block(list.into());
        assert_eq!(
            found("--block-rpcs=x --block-rpcs y --blacklist z --bl=w --b v"),
            ["x", "y", "z", "w", "v"].map(block)
        );
        assert_eq!(found("-bx -b y -vdb z -rbw"), ["x", "y", "z", "w"].map(block));
        assert_eq!(
            found("-a x -p -b --allow=y stray -c /f --config=/g"),
            [
                Choice::Allow("x".into()),
                Choice::Allow("y".into()),
                Choice::Config("/f".into()),
                Choice::Config("/g".into())
            ]
        );
        assert_eq!(found("-F/bin/b -Fb --method virtio-serial -- -b x"), []);
        assert_eq!(found("-b"), []);
    }

    proptest! {
        #[test]
        fn no_text_makes_reading_panic(text in "([A-Z]{1,2}\\+?=|-{0,2}[abFc]|[\"'\\\\$#{}\n= é]|list){0,16}") {
            let variables = assigned(&text);
            choices(&words(&text, &variables));
        }
    }
}
