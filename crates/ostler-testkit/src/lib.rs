//! For tests: a fake MCP server, evil children, counting processes by an inherited mark; with the feature `sim` the
//! simulation, which runs the real supervisor on an operating system made of seeded dice.

pub mod dice;
pub mod evil;
pub mod fake;
pub mod mark;
pub mod program;
#[cfg(feature = "sim")]
pub mod sim;
