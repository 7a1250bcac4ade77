//! The whole daemon, as its users meet it: real processes, real sockets, directories of the test's own.

mod adhoc;
mod alerts;
mod audit;
mod bad_input;
mod chaos;
mod cli;
mod client;
mod crash;
mod crosstalk;
mod events;
mod floors;
mod health;
mod hogs;
mod log_files;
mod order;
mod orphans;
mod own_server;
mod pool;
mod ports;
mod pressure;
mod reload;
mod run_many;
mod sessions;
mod support;
mod tls;
mod upstream;
