//! Sessions as arguments of tools: a model can pass an argument, and cannot set a header.
//!
//! Each tool of a server that has instances for single sessions is shown with one optional argument more ([`list`]), which
//! is taken out of a call before the server sees it ([`argument`]); and two tools of Ostler's are shown beside the
//! server's, and answered by Ostler ([`answer`]).

pub mod answer;
pub mod argument;
pub mod list;

use std::collections::{BTreeMap, BTreeSet};

use self::list::Page;

/// The argument that names a session.
pub const ARGUMENT: &str = "session_id";
/// The same, for a tool that has an argument of that name itself; understood by every other tool as well.
pub const OTHER_ARGUMENT: &str = "ostler_session";
/// The tool that makes a session.
pub const CREATE: &str = "create_session";
/// The tool that ends one.
pub const CLEAN_UP: &str = "cleanup_session";

/// Most tools of one page that is read, and most of a server of which it is remembered that they have an argument of these
/// names themselves. A longer page is passed on as it is; of a server with more, no `session_id` is Ostler's, nor any tool.
pub const MAX_TOOLS: usize = 10_000;

/// Which of the two arguments a tool has itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct OwnArguments {
    /// [`ARGUMENT`].
    argument: bool,
    /// [`OTHER_ARGUMENT`].
    other: bool,
}

/// What of these names a server has itself, as its `tools/list` said.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OwnNames {
    known: bool,
    /// There are tools of which nothing is known: more than [`MAX_TOOLS`], or in a page that could not be read.
    has_more: bool,
    /// Tools with arguments of these names of their own.
    arguments: BTreeMap<Box<str>, OwnArguments>,
    /// Which of the two tools it has itself.
    tools: BTreeSet<Box<str>>,
}

impl OwnNames {
    /// Learns from a page of `tools/list`. What was known of the tools of other pages stays.
    pub fn learn(&mut self, page: &Page<'_>) {
        self.known = true;
        for tool in &page.tools {
            if tool.name == CREATE || tool.name == CLEAN_UP {
                self.tools.insert(tool.name.as_str().into());
            }
            self.remember(&tool.name, tool.own);
        }
    }

    /// A page could not be read: any of its tools may have any of these names.
    pub fn miss_page(&mut self) {
        self.known = true;
        self.has_more = true;
    }

    fn remember(&mut self, tool: &str, own: OwnArguments) {
        if own == OwnArguments::default() {
            self.arguments.remove(tool);
        } else if self.arguments.len() < MAX_TOOLS || self.arguments.contains_key(tool) {
            self.arguments.insert(tool.into(), own);
        } else {
            self.has_more = true;
        }
    }

    /// Takes over what was heard in another listing, of which something may be missing.
    pub fn add(&mut self, heard: &Self) {
        self.known = true;
        self.has_more |= heard.has_more;
        self.tools.extend(heard.tools.iter().cloned());
        for (tool, own) in &heard.arguments {
            self.remember(tool, *own);
        }
    }

    /// Whether the server has listed its tools. Before that, any of these names may be its own.
    pub fn is_known(&self) -> bool {
        self.known
    }

    /// Whether it has tools of which nothing is known.
    pub fn has_more(&self) -> bool {
        self.has_more
    }

    /// Whether a tool is Ostler's: one of the two, which the server does not have itself.
    pub fn is_ostlers(&self, tool: &str) -> bool {
        (tool == CREATE || tool == CLEAN_UP) && !self.has_more && !self.tools.contains(tool)
    }

    /// The arguments of this tool that name a session; the one that is shown first.
    fn arguments_of(&self, tool: &str) -> impl Iterator<Item = &'static str> + use<> {
        let own = self.arguments.get(tool).copied().unwrap_or_default();
        let free = [(ARGUMENT, own.argument || self.has_more), (OTHER_ARGUMENT, own.other)];
        free.into_iter().filter(|(_, is_own)| !is_own).map(|(name, _)| name)
    }
}
