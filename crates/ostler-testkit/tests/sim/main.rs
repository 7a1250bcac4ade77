//! The simulation.

mod schedules;
