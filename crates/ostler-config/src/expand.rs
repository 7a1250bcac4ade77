//! `${...}` in values: environment variables and the folders clients name.

use std::ops::Range;
use std::path::Path;

/// Reads an environment variable.
pub(crate) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Whose rules a value follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Style {
    /// `ostler.toml`: what is not known is an error, `$${` stands for a plain `${`.
    Ostler,
    /// Another tool's file: `${NAME}` is a variable too (Claude Code), and what is not known stays as it is.
    Foreign,
}

/// What `${...}` may refer to.
pub(crate) struct Variables<'a> {
    pub(crate) style: Style,
    /// `${workspaceFolder}`.
    pub(crate) folder: &'a Path,
    pub(crate) env: Env<'a>,
}

/// Why a `${...}` has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// An environment variable that is not set, without a default.
    Unset(String),
    /// Something only the client that owns the file can answer, such as `input:token`.
    ClientOnly(String),
    /// Not a variable.
    Unknown(String),
    /// No closing brace.
    Open,
}

/// A value with its variables replaced.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Expanded {
    pub(crate) text: String,
    /// Variables of a foreign file that were left as they are, with their places.
    pub(crate) left: Vec<(Range<usize>, String)>,
}

/// Replaces every `${...}` once; what a variable holds is not looked at again.
///
/// # Errors
///
/// The place in the text and the reason, for the first variable that has no value.
pub(crate) fn expand(text: &str, variables: &Variables<'_>) -> Result<Expanded, (Range<usize>, Trouble)> {
    let mut out = Expanded::default();
    let mut at = 0;
    while let Some(found) = text[at..].find("${") {
        let start = at + found;
        if variables.style == Style::Ostler && text[at..start].ends_with('$') {
            out.text.push_str(&text[at..start - 1]);
            out.text.push_str("${");
            at = start + 2;
            continue;
        }
        out.text.push_str(&text[at..start]);
        let Some(length) = text[start..].find('}') else {
            if variables.style == Style::Ostler {
                return Err((start..text.len(), Trouble::Open));
            }
            out.text.push_str(&text[start..]);
            return Ok(out);
        };
        at = start + length + 1;
        match variables.value(&text[start + 2..at - 1]) {
            Ok(value) => out.text.push_str(&value),
            Err(Trouble::Unknown(name)) if variables.style == Style::Foreign => {
                out.text.push_str(&text[start..at]);
                out.left.push((start..at, name));
            }
            Err(trouble) => return Err((start..at, trouble)),
        }
    }
    out.text.push_str(&text[at..]);
    Ok(out)
}

impl Variables<'_> {
    fn value(&self, inner: &str) -> Result<String, Trouble> {
        let folder = || self.folder.display().to_string();
        match inner {
            "workspaceFolder" => return Ok(folder()),
            "workspaceFolderBasename" => {
                return Ok(self.folder.file_name().map(|n| n.display().to_string()).unwrap_or_default());
            }
            "userHome" => return (self.env)("HOME").ok_or_else(|| Trouble::Unset("HOME".into())),
            "pathSeparator" | "/" => return Ok(std::path::MAIN_SEPARATOR.to_string()),
            _ => {}
        }
        match inner.split_once(':') {
            Some(("env", name)) => {
                self.variable(name).ok_or_else(|| Trouble::Unset(before_default(name).to_owned()))
            }
            Some(("input" | "command" | "config", _)) => Err(Trouble::ClientOnly(inner.to_owned())),
            _ if self.style == Style::Foreign && is_name(before_default(inner)) => {
                self.variable(inner).ok_or_else(|| Trouble::Unknown(inner.to_owned()))
            }
            _ => Err(Trouble::Unknown(inner.to_owned())),
        }
    }

    /// `NAME` or `NAME:-default`; the default counts when the variable is unset or empty, as in a shell.
    fn variable(&self, spec: &str) -> Option<String> {
        let value = (self.env)(before_default(spec));
        match spec.split_once(":-") {
            Some((_, default)) => Some(value.filter(|v| !v.is_empty()).unwrap_or_else(|| default.to_owned())),
            None => value,
        }
    }
}

fn before_default(spec: &str) -> &str {
    spec.split_once(":-").map_or(spec, |(name, _)| name)
}

/// Whether a text can be a variable's name.
pub(crate) fn is_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(style: Style, text: &str) -> Result<String, Trouble> {
        let env = |name: &str| match name {
            "HOME" => Some("/home/ann".to_owned()),
            "TOKEN" => Some("${env:HOME}".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        let variables = Variables { style, folder: Path::new("/src/shop"), env: &env };
        expand(text, &variables).map(|e| e.text).map_err(|(_, trouble)| trouble)
    }

    #[test]
    fn variables_are_replaced_once() {
        for (text, expected) in [
            ("plain $HOME {x} }", "plain $HOME {x} }"),
            ("${env:HOME}/a/${env:HOME}", "/home/ann/a//home/ann"),
            ("${env:TOKEN}", "${env:HOME}"),
            ("${env:NONE:-x:-y}", "x:-y"),
            ("${env:EMPTY:-x}", "x"),
            ("${env:EMPTY}", ""),
            ("${env:NONE:-}", ""),
            ("${workspaceFolder}/${workspaceFolderBasename}", "/src/shop/shop"),
            ("${userHome}${/}x", "/home/ann/x"),
        ] {
            assert_eq!(check(Style::Ostler, text).as_deref(), Ok(expected), "{text}");
            assert_eq!(check(Style::Foreign, text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_has_no_value_is_named() {
        for (text, trouble) in [
            ("a ${env:NONE}", Trouble::Unset("NONE".into())),
            ("${input:token}", Trouble::ClientOnly("input:token".into())),
        ] {
            assert_eq!(check(Style::Ostler, text), Err(trouble.clone()), "{text}");
            assert_eq!(check(Style::Foreign, text), Err(trouble), "{text}");
        }
        assert_eq!(check(Style::Ostler, "${HOME}"), Err(Trouble::Unknown("HOME".into())));
        assert_eq!(check(Style::Ostler, "${env:HOME"), Err(Trouble::Open));
    }

    #[test]
    fn the_two_styles_differ_in_what_they_leave_alone() {
        assert_eq!(check(Style::Ostler, "$${HOME} $$${HOME}").as_deref(), Ok("${HOME} $${HOME}"));
        assert_eq!(
            check(Style::Foreign, "${HOME} ${NONE} ${NONE:-x} ${a b} ${").as_deref(),
            Ok("/home/ann ${NONE} x ${a b} ${")
        );
    }
}
