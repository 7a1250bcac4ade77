//! Files to desired state: ostler.toml and every mcpServers JSON, with errors that point at the place.
