//! A latency histogram with a fixed relative error and no allocation while recording.

use std::time::Duration;

/// Linear steps within each power of two: 128 steps bound the error of a quantile to 0.8 %.
const STEPS: u64 = 128;
const STEPS_BITS: u32 = STEPS.trailing_zeros();
/// Powers of two above the linear start: enough for values of up to 2^40 ns, about 18 minutes.
const OCTAVES: u64 = 40 - STEPS_BITS as u64;

/// Counts of durations in log-linear buckets of nanoseconds.
#[derive(Clone)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    sum_ns: u128,
    max_ns: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        let buckets = vec![0; usize::try_from((OCTAVES + 1) * STEPS).unwrap_or(usize::MAX)];
        Self { buckets, count: 0, sum_ns: 0, max_ns: 0 }
    }
}

impl Histogram {
    /// Adds one duration. What exceeds the range is counted in the last bucket; the maximum stays exact.
    pub fn record(&mut self, elapsed: Duration) {
        let ns = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        let index = bucket_of(ns).min(self.buckets.len() - 1);
        self.buckets[index] += 1;
        self.count += 1;
        self.sum_ns += u128::from(ns);
        self.max_ns = self.max_ns.max(ns);
    }

    /// Adds all of `other`, as if it had been recorded here.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.sum_ns += other.sum_ns;
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    /// How many durations were recorded.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The duration, in microseconds, that the share `quantile` (0 to 1) of all recorded ones does not exceed.
    /// It is the middle of its bucket, thus within 0.8 %. Zero when nothing was recorded.
    pub fn quantile_us(&self, quantile: f64) -> f64 {
        let wanted = ((self.count as f64 * quantile).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return middle_of(index) / 1_000.0;
            }
        }
        0.0
    }

    /// The mean in microseconds, exact. Zero when nothing was recorded.
    pub fn mean_us(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum_ns as f64 / self.count as f64 / 1_000.0 }
    }

    /// The longest duration in microseconds, exact.
    pub fn max_us(&self) -> f64 {
        self.max_ns as f64 / 1_000.0
    }
}

/// Values below `STEPS` have a bucket each; above, each power of two is cut into `STEPS` equal ones.
fn bucket_of(ns: u64) -> usize {
    if ns < STEPS {
        return ns as usize;
    }
    let shift = ns.ilog2() - STEPS_BITS;
    let step = (ns >> shift) - STEPS;
    ((u64::from(shift) + 1) * STEPS + step) as usize
}

/// The middle, in nanoseconds, of the values that `bucket_of` sends to `index`.
fn middle_of(index: usize) -> f64 {
    let index = index as u64;
    if index < STEPS {
        return index as f64;
    }
    let shift = index / STEPS - 1;
    let start = (STEPS + index % STEPS) << shift;
    start as f64 + (1u64 << shift) as f64 / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_within_its_bucket_by_the_promised_error() {
        for exponent in 0..39 {
            for ns in [1u64 << exponent, (1u64 << exponent) + 1, (1u64 << exponent) * 3 / 2] {
                let middle = middle_of(bucket_of(ns));
                let error = (middle - ns as f64).abs() / ns as f64;
                assert!(error <= 0.008, "{ns} ns became {middle} ns");
            }
        }
    }

    #[test]
    fn quantiles_of_a_known_series() {
        let mut all = Histogram::default();
        let mut half = Histogram::default();
        for us in 1..=500 {
            all.record(Duration::from_micros(us));
            half.record(Duration::from_micros(us + 500));
        }
        all.merge(&half);
        assert_eq!(all.count(), 1_000);
        assert!((all.quantile_us(0.5) - 500.0).abs() < 5.0, "{}", all.quantile_us(0.5));
        assert!((all.quantile_us(0.99) - 990.0).abs() < 9.0, "{}", all.quantile_us(0.99));
        assert!((all.mean_us() - 500.5).abs() < 1e-9);
        assert!((all.max_us() - 1_000.0).abs() < 1e-9);
    }

    #[test]
    fn an_empty_one_answers_zero() {
        assert!(Histogram::default().quantile_us(0.5).abs() < f64::EPSILON);
        assert!(Histogram::default().mean_us().abs() < f64::EPSILON);
    }
}
