//! Load generator and floor proxy of the gateway benchmark.
fn main() {}
