//! What a driver is asked to measure, and what it answers: a line of JSON each, on its standard input and output.

use std::time::{Duration, Instant};

use bench_gateway::histogram::Histogram;
use serde::{Deserialize, Serialize};

/// What is submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A function that gives back its argument.
    Noop,
    /// The program `true`.
    True,
}

/// One measurement.
#[derive(Clone, Debug, Deserialize)]
pub struct Cell {
    /// What is submitted.
    pub kind: Kind,
    /// How many tasks are under way at any time, each submitted when another's result is there.
    pub window: usize,
    /// If not 0: this many tasks are submitted at once, and the next so many when all their results are there.
    #[serde(default)]
    pub batch: usize,
    /// Seconds measured.
    pub seconds: f64,
    /// Seconds of load before the measured ones.
    pub warmup: f64,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Tasks whose result came within the measured time; of batches, those that were submitted within it.
    pub tasks: u64,
    /// The same per second; of batches, per second that they took.
    pub per_s: f64,
    /// Median time from submitting to the result; of batches, from submitting the first to the last result.
    pub p50_us: f64,
    /// What 99 of 100 did not exceed.
    pub p99_us: f64,
    /// The longest.
    pub max_us: f64,
    /// Results that were wrong or did not come.
    pub errors: u64,
    /// The first of them.
    pub first_error: Option<String>,
}

/// What is measured, while it is.
pub struct Tally {
    /// From when.
    pub from: Instant,
    /// Until when.
    pub until: Instant,
    latencies: Histogram,
    /// Seconds that whole batches took; 0 where there are none.
    batches_s: f64,
    tasks: u64,
    errors: u64,
    first_error: Option<String>,
}

/// A driver that failed this often measures no longer.
const MOST_ERRORS: u64 = 100;

impl Tally {
    /// Begins now with the warm-up.
    #[must_use]
    pub fn begin(cell: &Cell) -> Self {
        let from = Instant::now() + Duration::from_secs_f64(cell.warmup);
        let until = from + Duration::from_secs_f64(cell.seconds);
        Self {
            from,
            until,
            latencies: Histogram::default(),
            batches_s: 0.0,
            tasks: 0,
            errors: 0,
            first_error: None,
        }
    }

    /// Whether no more is to be submitted.
    #[must_use]
    pub fn is_over(&self, now: Instant) -> bool {
        now >= self.until || self.errors >= MOST_ERRORS
    }

    /// A task, submitted at `begun`, has its result.
    pub fn ended(&mut self, begun: Instant, ended: Instant) {
        if ended >= self.from && ended <= self.until {
            self.latencies.record(ended - begun);
            self.tasks += 1;
        }
    }

    /// So many tasks, submitted at `begun`, have theirs. One batch may take longer than all the measured time.
    pub fn batch_ended(&mut self, begun: Instant, ended: Instant, tasks: usize) {
        if begun >= self.from && begun <= self.until {
            self.latencies.record(ended - begun);
            self.batches_s += (ended - begun).as_secs_f64();
            self.tasks += tasks as u64;
        }
    }

    /// One has not, or a wrong one.
    pub fn fail(&mut self, reason: String) {
        self.errors += 1;
        self.first_error.get_or_insert(reason);
    }

    /// What came of it.
    #[must_use]
    pub fn measured(self, cell: &Cell) -> Measured {
        Measured {
            tasks: self.tasks,
            per_s: self.tasks as f64 / if self.batches_s > 0.0 { self.batches_s } else { cell.seconds },
            p50_us: self.latencies.quantile_us(0.5),
            p99_us: self.latencies.quantile_us(0.99),
            max_us: self.latencies.max_us(),
            errors: self.errors,
            first_error: self.first_error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_in_the_measured_time_counts_wherever_it_began() {
        let cell = Cell { kind: Kind::Noop, window: 1, batch: 0, seconds: 2.0, warmup: 1.0 };
        let mut tally = Tally::begin(&cell);
        let at = |ms: u64| tally.from - Duration::from_secs(1) + Duration::from_millis(ms);
        let times = [(0, 999), (500, 1_500), (2_000, 3_000), (2_999, 3_001)].map(|(a, b)| (at(a), at(b)));
        assert!(!tally.is_over(at(2_999)) && tally.is_over(at(3_000)));
        for (begun, ended) in times {
            tally.ended(begun, ended);
        }
        tally.fail("the first".to_owned());
        tally.fail("the second".to_owned());
        let measured = tally.measured(&cell);
        assert_eq!((measured.tasks, measured.errors), (2, 2));
        assert!((measured.per_s - 1.0).abs() < 1e-9);
        assert!((measured.max_us - 1e6).abs() < 1.0, "{}", measured.max_us);
        assert_eq!(measured.first_error.as_deref(), Some("the first"));
    }

    #[test]
    fn a_batch_counts_if_it_began_in_the_measured_time_however_long_it_took() {
        let cell = Cell { kind: Kind::Noop, window: 1, batch: 100, seconds: 1.0, warmup: 1.0 };
        let mut tally = Tally::begin(&cell);
        let from = tally.from;
        tally.batch_ended(from - Duration::from_millis(1), from + Duration::from_millis(1), 100);
        tally.batch_ended(from, from + Duration::from_secs(4), 100);
        let measured = tally.measured(&cell);
        assert_eq!(measured.tasks, 100);
        assert!((measured.per_s - 25.0).abs() < 1e-9, "{}", measured.per_s);
    }
}
