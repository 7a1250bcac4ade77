//! Pressure: how near a limit is, whether one more process may be started, and what makes room, in which order.
//!
//! ```text
//!   share of the limit   ···· warning ········ critical ········ 1
//!                          │  alert            │  refuse new processes      (admit)
//!                          │                   │  1. retire spares          (relieve)
//!                          │                   │  2. stop idle instances, the largest first
//!                          │                   │  3. restart what is over its own limit
//!                          │                   │  4. only with `emergency`: leased, then busy ones
//! ```
//!
//! | file | subject |
//! |---|---|
//! | `gauge.rs` | levels, with hysteresis |
//! | `admit.rs` | whether one more may be started, and the words of a refusal |
//! | `relieve.rs` | what makes room |
//! | `own.rs` | one instance against its own limits, where nothing but measuring holds it to them |

mod admit;
mod gauge;
mod own;
mod relieve;

pub use admit::{Load, Refusal, Used, admit};
pub use gauge::{Gauge, HYSTERESIS, Level, Thresholds};
pub use own::{CPU_SAMPLES, Over, OwnLimits, OwnSample, OwnUse, Verdict};
pub use relieve::{Action, Candidate, Measure, Need, Occupation, Relief, relieve};
