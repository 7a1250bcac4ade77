//! For tests: a fake MCP server, evil children, counting processes by an inherited mark.

pub mod evil;
pub mod fake;
pub mod mark;
pub mod program;
