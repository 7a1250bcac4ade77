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
mod task_order;
mod task_queue;
mod task_sim;
mod task_workers;
mod words;
