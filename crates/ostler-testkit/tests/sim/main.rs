//! The simulation.

mod by_hand;
mod schedules;
