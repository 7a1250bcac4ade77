//! Tests of the pure core, by calling it.

mod alerts;
mod graph;
mod health;
mod model;
mod pool;
mod ports;
mod pressure;
mod replicas;
mod scenarios;
mod support;
mod table;
mod words;
