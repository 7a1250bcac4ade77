//! HTTP: the MCP endpoints and the management API.
