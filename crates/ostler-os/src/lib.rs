//! Processes: spawning through the guard, exact trees, signals, the sweep, /proc. All unsafe code lives here.
