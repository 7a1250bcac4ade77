//! Where configuration text comes from, and places in it.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The largest configuration file that is read, in bytes. Claude Code keeps its history in the same file as
/// its servers, and that file reaches several megabytes.
pub const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// Folders in which editors keep a project's settings: the project is the folder above.
const SETTINGS_FOLDERS: &[&str] = &[".vscode", ".cursor", ".zed", ".roo", ".gemini", ".claude"];

/// How a configuration file is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// `ostler.toml`.
    Toml,
    /// Any of the JSON shapes in which MCP clients list servers; comments and trailing commas are tolerated.
    Json,
}

impl Format {
    /// The format of a file: by its extension, and by its first character when that says nothing.
    pub fn of(path: &Path, text: &str) -> Self {
        match path.extension().and_then(|e| e.to_str()) {
            Some("toml") => Self::Toml,
            Some("json" | "jsonc" | "json5") => Self::Json,
            _ if text.trim_start_matches('\u{feff}').trim_start().starts_with(['{', '/']) => Self::Json,
            _ => Self::Toml,
        }
    }
}

/// A text that configuration was read from: a file, or one environment variable.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// What messages call it: the path as the user gave it.
    pub(crate) name: String,
    /// The whole text.
    pub(crate) text: String,
    /// The folder that relative paths start from; absolute.
    pub(crate) dir: PathBuf,
}

impl Source {
    /// A file's text. A byte order mark is dropped, so that positions count what an editor shows.
    pub(crate) fn file(path: &Path, text: &str) -> Arc<Self> {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let dir = absolute.parent().unwrap_or(Path::new("/")).to_owned();
        let text = text.strip_prefix('\u{feff}').unwrap_or(text).to_owned();
        Arc::new(Self { name: path.display().to_string(), text, dir })
    }

    /// An environment variable, shown as the assignment that set it.
    pub(crate) fn variable(name: &str, value: &str) -> Arc<Self> {
        Arc::new(Self {
            name: "environment".into(),
            text: format!("{name}={value}"),
            dir: PathBuf::from("/"),
        })
    }

    /// The project a settings file belongs to: its folder, or the one above `.vscode`, `.cursor` and the like.
    pub(crate) fn project_dir(&self) -> &Path {
        let name = self.dir.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        match self.dir.parent() {
            Some(parent) if SETTINGS_FOLDERS.contains(&name) => parent,
            _ => &self.dir,
        }
    }
}

/// A stretch of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) source: Arc<Source>,
    /// Byte offsets; may lie anywhere, so users go through [`Place::line`].
    range: Range<usize>,
}

/// The line a place starts on, ready to be shown.
pub(crate) struct Line<'a> {
    /// Its number, from 1.
    pub(crate) number: usize,
    /// Its text without the line break.
    pub(crate) text: &'a str,
    /// The place within the text, in bytes; at most to the line's end.
    pub(crate) mark: Range<usize>,
    /// The place's first character, from 1.
    pub(crate) column: usize,
}

impl Place {
    pub(crate) fn new(source: &Arc<Source>, range: Range<usize>) -> Self {
        Self { source: source.clone(), range }
    }

    /// The first line of the place. Offsets outside the text, or inside a character, are moved to the
    /// nearest ones that are not: a parser's odd span must not take the message down.
    pub(crate) fn line(&self) -> Line<'_> {
        let text = self.source.text.as_str();
        let start = text.floor_char_boundary(self.range.start);
        let end = text.ceil_char_boundary(self.range.end).max(start);
        let from = text[..start].rfind('\n').map_or(0, |i| i + 1);
        let to = text[start..].find('\n').map_or(text.len(), |i| start + i);
        let line = &text[from..to];
        let line = line.strip_suffix('\r').unwrap_or(line);
        let first = (start - from).min(line.len());
        Line {
            number: text[..from].matches('\n').count() + 1,
            text: line,
            mark: first..(end - from).clamp(first, line.len()),
            column: line[..first].chars().count() + 1,
        }
    }

    /// A part of a text value's place, `inner` being offsets into `value`. Exact where the source spells the
    /// value as it is; the whole place where escapes make the two differ.
    pub(crate) fn within(&self, value: &str, inner: Range<usize>) -> Self {
        let spelled = self.source.text.get(self.range.clone()).unwrap_or_default();
        let quote = spelled.len().saturating_sub(value.len()) / 2;
        if spelled.get(quote..quote + value.len()) == Some(value) {
            let start = self.range.start + quote;
            Self { source: self.source.clone(), range: start + inner.start..start + inner.end }
        } else {
            self.clone()
        }
    }

    /// `file:line:column`.
    pub(crate) fn display(&self) -> String {
        let line = self.line();
        format!("{}:{}:{}", self.source.name, line.number, line.column)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_its_line_and_column_in_characters() {
        let source = Source::file(Path::new("a.toml"), "first\r\nä = \"ö\"\r\n");
        let start = source.text.find('=').expect("the text has one");
        let place = Place::new(&source, start..start + 1);
        let line = place.line();
        assert_eq!((line.number, line.column, line.text), (2, 3, "ä = \"ö\""));
        assert_eq!(&line.text[line.mark], "=");
    }

    #[test]
    fn odd_offsets_are_moved_to_legal_ones() {
        let source = Source::file(Path::new("a.toml"), "ä");
        for (start, end) in [(0, 1), (1, 1), (1, 900), (900, 3), (2, 2)] {
            let place = Place::new(&source, start..end);
            assert_eq!(place.line().number, 1);
        }
    }

    #[test]
    fn the_project_of_an_editor_settings_file_is_the_folder_above() {
        let project = |path: &str| Source::file(Path::new(path), "").project_dir().to_owned();
        assert_eq!(project("/home/ann/shop/.vscode/mcp.json"), Path::new("/home/ann/shop"));
        assert_eq!(project("/home/ann/shop/.mcp.json"), Path::new("/home/ann/shop"));
    }
}
