//! Where a server is reached that is not spoken with over its standard input and output.

use std::collections::BTreeMap;
use std::fmt;

/// Where a server's MCP endpoint is, and what every request to it carries.
#[derive(Clone, PartialEq, Eq)]
pub struct Upstream {
    /// Where it is.
    pub at: UpstreamAt,
    /// Headers sent with every request, by name. Secrets are among them: [`fmt::Debug`] shows the names alone.
    pub headers: BTreeMap<String, String>,
}

/// The two places where an endpoint may be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum UpstreamAt {
    /// At one of the ports of its process, on loopback.
    Port {
        /// The port's name among the server's `ports`.
        name: String,
        /// The path, from its slash on.
        path: String,
    },
    /// At this address; Ostler starts no process.
    Url(String),
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&String> = self.headers.keys().collect();
        f.debug_struct("Upstream").field("at", &self.at).field("headers", &names).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let headers = BTreeMap::from([("authorization".to_owned(), "Bearer s3cret".to_owned())]);
        let upstream = Upstream { at: UpstreamAt::Url("https://example.org/mcp".into()), headers };
        let shown = format!("{upstream:?}");
        assert!(shown.contains("authorization") && !shown.contains("s3cret"), "{shown}");
    }
}
