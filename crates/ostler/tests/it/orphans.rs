//! The orphan proof: whatever a server does and whoever is killed, no process of it stays.
//!
//! Every server's processes are counted by a mark they inherit, so that none can hide. The servers are the evil
//! children of the testkit and a real one behind `npx`; the ends are the ways in which an instance, its client,
//! its guard or the daemon can go.
//!
//! | file | subject |
//! |---|---|
//! | `zoo.rs` | the servers, and when each is at its worst |
//! | `world.rs` | a daemon with all of them, and what must hold of it |
//! | `client.rs` | a client that can vanish at any moment |
//! | `matrix.rs` | every server, in both scopes, after every end |
//! | `life.rs` | SIGKILL at each state of an instance's life |
//! | `moments.rs` | ends at random moments, from a seed |

mod client;
mod life;
mod matrix;
mod moments;
mod world;
mod zoo;
