//! What people read about the configuration, printed from the table of keys: the shipped file and the manual page. Tests
//! compare them with what `packaging/` ships.

use std::fmt::Write;

use super::keys::{Default, Form, SECTIONS, Section};

const WIDTH: usize = 100;

/// `packaging/etc/holdstill/holdstill.toml`: every key, commented out, at its default.
pub fn shipped_file() -> String {
    let mut out = String::from(
        "# holdstill: what it does unless told otherwise.\n#\n\
         # Every key is here. A line beginning with # and no space is a key at its default, or an example where it says so:\n\
         # remove the # to set it. Better still, leave this file alone and put what you change into\n\
         # /etc/holdstill/holdstill.toml.d/NAME.toml. Files there (and in /run/holdstill/ and /usr/lib/holdstill/, weaker) are\n\
         # applied in the order of their names; `holdstill config` shows what is in force and where it came from.\n\
         # A key that does not exist stops the daemon.\n",
    );
    for section in SECTIONS {
        let commented = if section.form == Form::Table { "" } else { "#" };
        out.push('\n');
        wrap(&mut out, "# ", section.about);
        let _ = writeln!(out, "{commented}{}", heading(section));
        for key in section.keys {
            out.push('\n');
            wrap(&mut out, "# ", key.about);
            let status = match key.default {
                Default::Is(_) => "default below",
                Default::Unset(_) => "not set by default; an example below",
                Default::Required(_) => "required here; an example below",
            };
            wrap(&mut out, "# ", &format!("Type: {}; {status}.", key.kind.describe()));
            let _ = writeln!(out, "#{} = {}", key.name, key.default.shown());
        }
    }
    out
}

/// `packaging/usr/share/man/man5/holdstill.toml.5`.
pub fn man_page() -> String {
    let mut out = String::from(
        ".TH HOLDSTILL.TOML 5 \"\" \"holdstill\" \"File Formats\"\n\
         .SH NAME\nholdstill.toml \\- configuration of holdstill(1)\n\
         .SH SYNOPSIS\n.nf\n/etc/holdstill/holdstill.toml\n/etc/holdstill/holdstill.toml.d/*.toml\n\
         /run/holdstill/holdstill.toml.d/*.toml\n/usr/lib/holdstill/holdstill.toml.d/*.toml\n.fi\n\
         .SH DESCRIPTION\nThe main file is the first of /etc/holdstill/holdstill.toml, /run/holdstill/holdstill.toml and\n\
         /usr/lib/holdstill/holdstill.toml. Drop-ins are applied over it in the order of their file names; of several with\n\
         the same name the one in /etc masks those in /run and /usr/lib. Tables are merged key by key, lists are replaced as\n\
         a whole, and [[database]] entries are merged by name. With\n.B \\-\\-config\nthe given file is read alone.\n.PP\n\
         The format is TOML. A key that does not exist, or a value that cannot be used, is an error that names the file and\n\
         line; nothing is held with half a configuration.\n.B holdstill config\nprints every value in force and where it\n\
         came from. Durations are strings with a unit: \"500ms\", \"90s\", \"1m 30s\".\n",
    );
    for section in SECTIONS {
        let _ = writeln!(out, ".SH {}\n{}", roff(&heading(section)), roff(section.about));
        for key in section.keys {
            let _ = writeln!(out, ".TP\n\\fB{} = {}\\fR", roff(key.name), roff(key.default.shown()));
            let status = match key.default {
                Default::Is(_) => "This is the default.",
                Default::Unset(_) => "Not set by default; this is an example.",
                Default::Required(_) => "Required; this is an example.",
            };
            let _ = writeln!(out, "{}\n.br\nType: {}. {status}", roff(key.about), roff(&key.kind.describe()));
        }
    }
    out.push_str(".SH SEE ALSO\n.BR holdstill (1)\n");
    out
}

fn heading(section: &Section) -> String {
    match section.form {
        Form::Table | Form::OptionalTable => format!("[{}]", section.name),
        Form::Rows => format!("[[{}]]", section.name),
    }
}

/// Breaks `text` into lines beginning with `prefix`.
fn wrap(out: &mut String, prefix: &str, text: &str) {
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && line.len() + 1 + word.len() > WIDTH - prefix.len() {
            let _ = writeln!(out, "{prefix}{line}");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    let _ = writeln!(out, "{prefix}{line}");
}

/// Text as roff(7) prints it unchanged.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    match text.starts_with(['.', '\'']) {
        true => format!("\\&{text}"),
        false => text,
    }
}
