//! What is wrong with a configuration: where, what was expected, what was probably meant.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet, normalize_untrusted_str};

use crate::source::Place;

/// The most problems that are rendered at once; the rest are counted.
pub const MAX_RENDERED: usize = 50;

/// The most problems that are looked for; a configuration with as many is refused, warnings or not.
pub const MAX_FOUND: usize = 1000;

/// The longest expectation that is written beside the mark; longer ones get a line of their own.
const LABEL_CHARS: usize = 60;

/// How much of a long line is shown on each side of the mark, and the longest mark, in bytes.
const CLIP_BYTES: usize = 256;

/// Whether a problem keeps the configuration from being used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Severity {
    /// It does: nothing is started.
    Error,
    /// It does not, but the result may not be what was meant.
    Warning,
}

/// One problem of a configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// The file, as the user named it; `environment` for a variable.
    pub file: String,
    /// Line, from 1; 0 when the file as a whole is the problem, as when it cannot be read.
    pub line: usize,
    /// Column in characters, from 1; 0 when the file as a whole is the problem.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What was expected at the place.
    pub expected: Option<String>,
    /// The nearest valid name, where the place holds an unknown one.
    pub nearest: Option<String>,
    /// What to do about it.
    pub help: Option<String>,
    place: Option<Place>,
    other: Option<(Place, String)>,
}

/// A problem that keeps a configuration from being used.
pub type ConfigError = Diagnostic;

/// A problem that does not, but that the user should hear of.
pub type ConfigWarning = Diagnostic;

impl Diagnostic {
    fn new(severity: Severity, file: String, place: Option<Place>, message: String) -> Self {
        let (line, column) = place.as_ref().map_or((0, 0), |p| {
            let line = p.line();
            (line.number, line.column)
        });
        let (expected, nearest, help, other) = (None, None, None, None);
        Self { severity, file, line, column, message, expected, nearest, help, place, other }
    }

    /// A problem at a place.
    pub(crate) fn at(place: Place, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, place.source.name.clone(), Some(place), message.into())
    }

    /// A problem of a whole file.
    pub(crate) fn of_file(file: String, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, file, None, message.into())
    }

    pub(crate) fn expected(mut self, what: impl Into<String>) -> Self {
        self.expected = Some(what.into());
        self
    }

    pub(crate) fn nearest(mut self, name: Option<&str>) -> Self {
        self.nearest = name.map(str::to_owned);
        self
    }

    pub(crate) fn help(mut self, what: impl Into<String>) -> Self {
        self.help = Some(what.into());
        self
    }

    /// A second place that explains the first, such as the other definition of a name.
    pub(crate) fn other(mut self, place: Place, label: impl Into<String>) -> Self {
        self.other = Some((place, label.into()));
        self
    }

    /// The problem as a person reads it: file, line and column, the source line with the place marked, what
    /// was expected, and the nearest valid name. With terminal colours only when asked.
    pub fn render(&self, color: bool) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let expected = self.expected.as_ref().map(|e| format!("expected {e}"));
        let beside = expected.as_ref().filter(|e| e.chars().count() <= LABEL_CHARS);
        let group = Group::with_title(level.primary_title(self.message.as_str()));
        let mut group = match &self.place {
            Some(place) => mark(group, place, beside.map(String::as_str), AnnotationKind::Primary),
            None => group.element(Origin::path(normalize_untrusted_str(&self.file))),
        };
        if let Some((place, label)) = &self.other {
            group = mark(group, place, Some(label), AnnotationKind::Context);
        }
        if let (Some(expected), None) = (&expected, beside) {
            group = group.element(Level::NOTE.message(normalize_untrusted_str(expected)));
        }
        if let Some(nearest) = &self.nearest {
            group = group
                .element(Level::HELP.message(normalize_untrusted_str(&format!("did you mean `{nearest}`?"))));
        }
        if let Some(help) = &self.help {
            group = group.element(Level::HELP.message(normalize_untrusted_str(help)));
        }
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        renderer.render(&[group])
    }
}

/// Adds the line of a place, with the place marked. Only that line is handed over, and only the part near the
/// mark when it is long: a file may be megabytes, all on one line.
fn mark<'a>(group: Group<'a>, place: &'a Place, label: Option<&'a str>, kind: AnnotationKind) -> Group<'a> {
    let line = place.line();
    let path = normalize_untrusted_str(&place.source.name);
    let (text, span) = clip(line.text, line.mark);
    let mut annotation = kind.span(span);
    if let Some(label) = label {
        annotation = annotation.label(normalize_untrusted_str(label));
    }
    let clipped = matches!(text, Cow::Owned(_));
    let snippet = Snippet::source(text).line_start(line.number).annotation(annotation);
    if clipped {
        group.element(Origin::path(path).line(line.number).char_column(line.column)).element(snippet)
    } else {
        group.element(snippet.path(path))
    }
}

/// The part of a line within [`CLIP_BYTES`] of the mark, and the mark in it; borrowed when that is all of it.
fn clip(text: &str, mark: Range<usize>) -> (Cow<'_, str>, Range<usize>) {
    let end = text.floor_char_boundary(mark.end.min(mark.start + CLIP_BYTES));
    if text.len() <= 4 * CLIP_BYTES {
        return (Cow::Borrowed(text), mark.start..end);
    }
    let from = text.floor_char_boundary(mark.start.saturating_sub(CLIP_BYTES));
    let to = text.ceil_char_boundary((end + CLIP_BYTES).min(text.len()));
    (Cow::Owned(text[from..to].to_owned()), mark.start - from..end - from)
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Diagnostic {}

/// Everything that is wrong with a configuration, at once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigErrors {
    /// What keeps it from being used; at least one.
    pub errors: Vec<ConfigError>,
    /// What else was noticed.
    pub warnings: Vec<ConfigWarning>,
}

impl ConfigErrors {
    /// All errors, then all warnings, as a person reads them; at most [`MAX_RENDERED`] of them.
    pub fn render(&self, color: bool) -> String {
        let all: Vec<_> = self.errors.iter().chain(&self.warnings).collect();
        let mut texts: Vec<_> = all.iter().take(MAX_RENDERED).map(|d| d.render(color)).collect();
        if let Some(more) = all.len().checked_sub(MAX_RENDERED).filter(|n| *n > 0) {
            texts.push(format!("and {more} more problems"));
        }
        texts.join("\n\n")
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for ConfigErrors {}

/// Collects problems while a configuration is read, so that all are told at once.
#[derive(Default, Debug)]
pub(crate) struct Findings {
    pub(crate) errors: Vec<Diagnostic>,
    pub(crate) warnings: Vec<Diagnostic>,
}

impl Findings {
    /// Notes an error; the same one of the same place once.
    pub(crate) fn error(&mut self, diagnostic: Diagnostic) {
        if !self.errors.contains(&diagnostic) {
            self.errors.push(diagnostic);
        }
    }

    /// Notes a warning; the same one of the same place once.
    pub(crate) fn warning(&mut self, mut diagnostic: Diagnostic) {
        diagnostic.severity = Severity::Warning;
        if !self.warnings.contains(&diagnostic) {
            self.warnings.push(diagnostic);
        }
    }

    /// Whether there are so many problems that looking for more serves no one: each costs a walk through the
    /// file. Whoever stops for it need not say so, as the configuration is then refused.
    pub(crate) fn full(&self) -> bool {
        self.errors.len() + self.warnings.len() >= MAX_FOUND
    }
}

/// The candidate a misspelt name most likely meant, if one is close: at most a third of it is different, or one
/// letter of a short one.
pub(crate) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = name.to_lowercase().replace('-', "_");
    let length = name.chars().count();
    // A name of one letter is one step from every other such name, which says nothing.
    let allowed = (length / 3).max(1).min(length.saturating_sub(1));
    candidates
        .into_iter()
        .map(|c| (strsim::damerau_levenshtein(&lower, &c.to_lowercase().replace('-', "_")), c))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, c)| c)
}
