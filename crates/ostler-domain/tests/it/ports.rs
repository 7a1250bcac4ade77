//! Ports: names, ranges, and that none is ever given twice.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ostler_domain::Now;
use ostler_domain::ports::{
    Allocator, PortError, PortFigures, PortRange, PortWish, QUARANTINE, is_port_name, port_refs,
    port_variable, substitute,
};
use proptest::prelude::*;

use crate::support::{at, secs};

fn range(text: &str) -> PortRange {
    text.parse().unwrap()
}

/// As many free ports as are named.
fn autos(names: &str) -> BTreeMap<String, PortWish> {
    names.split_whitespace().map(|name| (name.to_owned(), PortWish::Auto)).collect()
}

fn numbers(given: Result<BTreeMap<String, u16>, PortError>) -> Vec<u16> {
    given.unwrap_or_else(|e| panic!("{e}")).into_values().collect()
}

#[test]
fn ranges_are_two_ports() {
    assert_eq!(range("8001-9000"), PortRange::default());
    assert_eq!((range(" 1 - 65535 ").count(), range("5-5").count()), (65_535, 1));
    for text in ["", "8001", "0-5", "9-8", "1-65536", "-1-5", "+1-5", "1-2-3", "a-b", "1 2-3"] {
        let error = text.parse::<PortRange>().unwrap_err().to_string();
        assert!(error.contains(&format!("`{text}`")), "{error}");
    }
    assert!(range("1-5").overlaps(range("5-9")) && !range("1-4").overlaps(range("5-9")));
}

#[test]
fn names_stand_in_texts_and_variables() {
    for name in ["viewer", "a", "http_2"] {
        assert!(is_port_name(name), "{name}");
    }
    for name in ["", "Web", "2a", "a-b", "_a", &"a".repeat(33)] {
        assert!(!is_port_name(name), "{name}");
    }
    assert_eq!(port_variable("http_2"), "PORT_HTTP_2");
    let refs: Vec<_> = port_refs("{port.a}:{port.b c}{port.}{port.open").map(|(_, name)| name).collect();
    assert_eq!(refs, ["a", "b c", ""]);
    let number = |name: &str| (name == "a").then_some(80);
    assert_eq!(substitute("x{port.a}y{port.b}{port.a}ä{port.a", number), "x80y{port.b}80ä{port.a");
}

#[test]
fn ports_are_given_in_turn_and_returned_ones_last() {
    let mut ports = Allocator::new(range("10-13"), None, []);
    assert_eq!(numbers(ports.allocate(&autos("x y"), &"a.1", at(0))), [10, 11]);
    assert_eq!(ports.release(&"a.1"), [10, 11]);
    assert_eq!(numbers(ports.allocate(&autos("x y z"), &"a.2", at(0))), [12, 13, 10]);
    assert_eq!(ports.holder(13), Some(&"a.2"));
    assert_eq!(ports.held().count(), 3);
}

#[test]
fn when_none_is_left_the_error_has_the_figures() {
    let mut ports = Allocator::new(range("10-13"), Some(range("20-20")), [12, 99]);
    let given = numbers(ports.allocate(&autos("a b c"), &"x.1", at(0)));
    assert_eq!(given, [10, 11, 13], "12 is reserved");
    ports.stolen(11, at(0));
    assert_eq!(numbers(ports.allocate(&autos("a"), &"x.2", at(15))), [20], "the further range");
    ports.stolen(10, at(19));
    let error = ports.allocate(&autos("web"), &"x.3", at(20)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no port is free for `web`: of the 5 in 10-13 and 20-20, 2 are held, 1 reserved as fixed ports and 2 in \
         quarantine (the next is free in 40 s); stop something, widen ports.range or set ports.expand"
    );
    assert_eq!(numbers(ports.allocate(&autos("web"), &"x.3", at(60))), [11], "quarantine is over");
}

#[test]
fn a_fixed_port_is_given_once_and_to_nobody_else() {
    let mut ports = Allocator::new(range("10-12"), None, [11]);
    let fixed = |port| BTreeMap::from([("p".to_owned(), PortWish::Fixed(port))]);
    assert_eq!(numbers(ports.allocate(&fixed(11), &"db.1", at(0))), [11]);
    assert_eq!(numbers(ports.allocate(&fixed(5000), &"db.2", at(0))), [5000]);
    let error = ports.allocate(&fixed(11), &"db.3", at(0)).unwrap_err();
    assert_eq!(error.to_string(), "port 11 for `p` is held by db.1: stop that, or ask for \"auto\"");
    assert_eq!(ports.stolen(11, at(0)), Some("db.1"));
    assert_eq!(numbers(ports.allocate(&fixed(11), &"db.1", at(1))), [11], "no other will do");
    // A port that is no longer reserved is still not given while it is held.
    ports.configure(range("11-11"), None, []);
    assert!(ports.allocate(&autos("x"), &"y.1", at(0)).is_err());
}

#[test]
fn all_wishes_or_none() {
    let mut ports = Allocator::new(range("10-11"), None, []);
    assert!(ports.allocate(&autos("a b c"), &"x.1", at(0)).is_err());
    assert_eq!(ports.held().count(), 0);
    let mut wishes = autos("a");
    wishes.insert("z".into(), PortWish::Fixed(10));
    let given = ports.allocate(&wishes, &"x.1", at(0)).unwrap();
    assert_eq!((given["a"], given["z"]), (11, 10), "the fixed one is not in the free one's way");
}

#[test]
fn only_the_holder_gives_back() {
    let mut ports = Allocator::new(range("10-10"), None, []);
    numbers(ports.allocate(&autos("a"), &"x generation 2", at(0)));
    assert!(!ports.release_one(10, &"x generation 1"));
    assert!(ports.release(&"x generation 1").is_empty());
    assert!(ports.release_one(10, &"x generation 2"));
}

#[derive(Clone, Debug)]
enum Step {
    Allocate { holder: u8, autos: usize, fixed: Option<u16> },
    Release(u8),
    ReleaseOne(u16, u8),
    Stolen(u16),
    Wait(u64),
    Configure(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let port = 8_u16..34;
    prop_oneof![
        6 => (0_u8..12, 0_usize..4, prop::option::weighted(0.3, port.clone()))
            .prop_map(|(holder, autos, fixed)| Step::Allocate { holder, autos, fixed }),
        3 => (0_u8..12).prop_map(Step::Release),
        1 => (port.clone(), 0_u8..12).prop_map(|(p, h)| Step::ReleaseOne(p, h)),
        2 => port.prop_map(Step::Stolen),
        2 => (0_u64..70).prop_map(Step::Wait),
        1 => any::<bool>().prop_map(Step::Configure),
    ]
}

/// The ranges and reserved ports, small or wide.
fn setting(wide: bool) -> (PortRange, Option<PortRange>, Vec<u16>) {
    if wide { (range("10-20"), Some(range("30-32")), vec![12, 31]) } else { (range("14-18"), None, vec![]) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_port_is_given_twice_and_none_is_lost(steps in prop::collection::vec(step(), 1..100)) {
        let (mut usual, mut expand, mut reserved) = setting(true);
        let mut ports = Allocator::new(usual, expand, reserved.clone());
        let mut held: BTreeMap<u16, u8> = BTreeMap::new();
        let mut barred: BTreeMap<u16, Now> = BTreeMap::new();
        let mut now = at(0);
        for step in steps {
            let in_ranges = |p: u16| usual.contains(p) || expand.is_some_and(|r| r.contains(p));
            match step {
                Step::Allocate { holder, autos: count, fixed } => {
                    let mut wishes = autos(&["a", "b", "c", "d"][..count].join(" "));
                    wishes.extend(fixed.map(|port| ("fixed".to_owned(), PortWish::Fixed(port))));
                    let free = |p: &u16| in_ranges(*p) && !held.contains_key(p) && !reserved.contains(p)
                        && Some(*p) != fixed && barred.get(p).is_none_or(|until| *until <= now);
                    let possible = (1..100).filter(free).count() >= count
                        && fixed.is_none_or(|p| !held.contains_key(&p));
                    match ports.allocate(&wishes, &holder, now) {
                        Ok(given) => {
                            prop_assert!(possible);
                            prop_assert_eq!(given.keys().collect::<Vec<_>>(), wishes.keys().collect::<Vec<_>>());
                            for (name, port) in &given {
                                let right = if name == "fixed" { Some(*port) == fixed } else { free(port) };
                                prop_assert!(right, "{} for {}", port, name);
                            }
                            for port in given.into_values() {
                                prop_assert_eq!(held.insert(port, holder), None, "{} is given twice", port);
                            }
                        }
                        Err(PortError::Exhausted { figures, .. }) => {
                            prop_assert!(!possible);
                            prop_assert_eq!(figures.free, 0);
                            prop_assert_eq!(
                                figures.held + figures.quarantined + figures.reserved, figures.total
                            );
                        }
                        Err(PortError::Held { port, .. }) => prop_assert!(held.contains_key(&port)),
                    }
                }
                Step::Release(holder) => {
                    let theirs: Vec<u16> = held.iter().filter(|(_, h)| **h == holder).map(|(p, _)| *p).collect();
                    prop_assert_eq!(ports.release(&holder), theirs.clone());
                    held.retain(|_, h| *h != holder);
                }
                Step::ReleaseOne(port, holder) => {
                    let theirs = held.get(&port) == Some(&holder);
                    prop_assert_eq!(ports.release_one(port, &holder), theirs);
                    if theirs { held.remove(&port); }
                }
                Step::Stolen(port) => {
                    if in_ranges(port) { barred.insert(port, now.after(QUARANTINE)); }
                    prop_assert_eq!(ports.stolen(port, now), held.remove(&port));
                }
                Step::Wait(seconds) => now = now.after(secs(seconds)),
                Step::Configure(wide) => {
                    (usual, expand, reserved) = setting(wide);
                    ports.configure(usual, expand, reserved.clone());
                }
            }
            prop_assert_eq!(ports.held().map(|(p, h)| (p, *h)).collect::<Vec<_>>(),
                held.iter().map(|(p, h)| (*p, *h)).collect::<Vec<_>>());
        }
        let holders: BTreeSet<u8> = held.values().copied().collect();
        holders.iter().for_each(|holder| drop(ports.release(holder)));
        let figures = ports.figures();
        prop_assert_eq!(figures.held, 0, "every port returns");
        ports.allocate(&BTreeMap::new(), &0, now.after(Duration::from_secs(3600))).unwrap();
        let figures = ports.figures();
        prop_assert_eq!(figures, PortFigures { free: figures.total - figures.reserved, quarantined: 0, ..figures });
    }
}
