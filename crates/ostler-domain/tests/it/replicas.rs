//! How many replicas there are to be.

use ostler_domain::replicas::{ReplicasSpec, Scaler, Seen, Step};
use proptest::prelude::*;

fn seen(replicas: usize, calls: usize) -> Seen {
    Seen { replicas, starting: 0, calls }
}

#[test]
fn one_more_from_four_fifths_and_one_less_from_a_fifth() {
    let (spec, mut scaler) = (ReplicasSpec { calls: 10, ..ReplicasSpec::default() }, Scaler::default());
    assert_eq!(scaler.decide(&spec, seen(1, 7)), Step::Stay);
    assert_eq!(scaler.decide(&spec, seen(1, 8)), Step::Up(1));
    assert_eq!(scaler.decide(&spec, Seen { starting: 1, ..seen(2, 20) }), Step::Stay, "one is coming");
    assert_eq!(scaler.decide(&spec, seen(2, 20)), Step::Up(1));
    assert_eq!(scaler.decide(&spec, seen(4, 400)), Step::Stay, "there are as many as there may be");
    assert_eq!(scaler.decide(&spec, seen(4, 8)), Step::Stay, "once may be chance");
    assert_eq!(scaler.decide(&spec, seen(4, 8)), Step::Down);
    assert_eq!(scaler.decide(&spec, seen(3, 6)), Step::Stay);
    assert_eq!(scaler.decide(&spec, seen(3, 7)), Step::Stay, "not in a row");
    assert_eq!(scaler.decide(&spec, seen(1, 0)), Step::Stay);
}

#[test]
fn the_bounds_hold_after_they_were_changed() {
    let mut scaler = Scaler::default();
    let spec = ReplicasSpec { min: 3, max: 5, ..ReplicasSpec::default() };
    assert_eq!(scaler.decide(&spec, seen(0, 0)), Step::Up(3));
    assert_eq!(scaler.decide(&spec, seen(6, 24)), Step::Down);
}

proptest! {
    /// Under a load that does not change, the number comes to rest within its bounds, and stays.
    #[test]
    fn a_steady_load_comes_to_rest(
        calls in 0_usize..200, each in 1_usize..20, min in 1_usize..4, more in 0_usize..12, first in 0_usize..16,
        up in 0.3_f64..1.0, down in 0.0_f64..0.9,
    ) {
        let spec = ReplicasSpec { min, max: min + more, calls: each, up, down, ..ReplicasSpec::default() };
        let (mut scaler, mut replicas, mut last_move) = (Scaler::default(), first, 0);
        for look in 0..200 {
            match scaler.decide(&spec, seen(replicas, calls)) {
                Step::Up(more) => (replicas, last_move) = (replicas + more, look),
                Step::Down => (replicas, last_move) = (replicas - 1, look),
                Step::Stay => {}
            }
        }
        prop_assert!((spec.min..=spec.max).contains(&replicas), "{replicas}");
        prop_assert!(last_move < 100, "it goes up and down for ever: {replicas}");
    }
}
