//! Tests of the pure core, by calling it.

mod model;
mod scenarios;
mod support;
mod table;
mod words;
