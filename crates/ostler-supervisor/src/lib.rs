//! Drivers: instances, their connections and the sessions that use them.
