//! What is written is read back, and the limits hold.

use ostler_domain::Traits;
use ostler_store::{
    ProcessKey, SessionChange, SessionRecord, StoreError, TEXT_MAX, TRAITS_MAX, TREES_MAX, TreeRecord,
};
use proptest::prelude::*;

use crate::{dir, open, raw, tree};

#[test]
fn a_tree_grows_from_its_spawn_to_its_end() {
    let dir = dir();
    let mut store = open(dir.path());
    let mut expected = TreeRecord { guard: None, leader: None, ..tree("m1") };
    store.trees_insert(&expected).expect("inserts");
    assert_eq!(store.trees_all().expect("reads"), [expected.clone()]);

    expected.guard = Some(ProcessKey { pid: 7, start: 70 });
    expected.leader = Some(ProcessKey { pid: 8, start: u64::MAX });
    assert!(store.trees_set_guard("m1", ProcessKey { pid: 7, start: 70 }).expect("updates"));
    assert!(store.trees_set_leader("m1", ProcessKey { pid: 8, start: u64::MAX }).expect("updates"));
    drop(store);
    let mut store = open(dir.path());
    assert_eq!(store.trees_all().expect("reads"), [expected]);

    assert!(store.trees_remove("m1").expect("removes"));
    assert!(!store.trees_remove("m1").expect("removes"), "it is gone already");
    assert!(!store.trees_set_guard("m1", ProcessKey { pid: 7, start: 70 }).expect("updates"));
    assert!(!store.trees_set_leader("m1", ProcessKey { pid: 7, start: 70 }).expect("updates"));
    assert_eq!(store.trees_all().expect("reads"), []);
}

#[test]
fn trees_come_oldest_first_and_changes_touch_one() {
    let dir = dir();
    let mut store = open(dir.path());
    for (mark, started_unix_ms) in [("b", 2), ("a", 3), ("c", 1)] {
        store.trees_insert(&TreeRecord { started_unix_ms, leader: None, ..tree(mark) }).expect("inserts");
    }
    store.trees_set_leader("b", ProcessKey { pid: 1, start: 1 }).expect("updates");
    let found: Vec<_> = store
        .trees_all()
        .expect("reads")
        .into_iter()
        .map(|tree| (tree.mark, tree.leader.is_some()))
        .collect();
    assert_eq!(found, [("c".to_owned(), false), ("b".to_owned(), true), ("a".to_owned(), false)]);
}

#[test]
fn a_mark_is_used_once() {
    let dir = dir();
    let mut store = open(dir.path());
    store.trees_insert(&tree("m")).expect("inserts");
    let again = store.trees_insert(&TreeRecord { daemon_id: "d-2".to_owned(), ..tree("m") });
    assert!(matches!(&again, Err(StoreError::Duplicate { mark }) if mark == "m"), "{again:?}");
    assert_eq!(store.trees_all().expect("reads"), [tree("m")]);
}

#[test]
fn the_ledger_is_bounded_and_says_so() {
    let dir = dir();
    let mut store = open(dir.path());
    fill(
        dir.path(),
        "INSERT INTO trees (mark, server, number, generation, boot_id, daemon_id, started_unix_ms)
         SELECT 'm' || value, 's', 1, 1, 'b', 'd', value FROM numbers",
        TREES_MAX - 1,
    );
    store.trees_insert(&tree("last")).expect("one more fits");
    let full = store.trees_insert(&tree("too many")).expect_err("the limit holds");
    assert!(matches!(full, StoreError::Full), "{full:?}");
    assert!(full.to_string().contains("TREES_MAX = 10000"), "{full}");
    store.trees_remove("m1").expect("removes");
    store.trees_insert(&tree("too many")).expect("room again");
}

#[test]
fn texts_are_bounded() {
    let dir = dir();
    let mut store = open(dir.path());
    let long = "x".repeat(TEXT_MAX + 1);
    for record in [
        tree(&long),
        TreeRecord { boot_id: long.clone(), ..tree("m") },
        TreeRecord { daemon_id: long.clone(), ..tree("m") },
    ] {
        let refused = store.trees_insert(&record);
        assert!(matches!(refused, Err(StoreError::TooLong { len: 257, .. })), "{refused:?}");
    }
    let refused = store.traits_put(&long, Traits::default(), 0);
    assert!(matches!(refused, Err(StoreError::TooLong { .. })), "{refused:?}");
    store.trees_insert(&tree(&long[1..])).expect("the limit itself fits");
}

#[test]
fn traits_are_remembered_in_every_shape() {
    let dir = dir();
    let mut store = open(dir.path());
    let answers = [None, Some(false), Some(true)];
    let mut all = Vec::new();
    for legacy in answers {
        for modern in answers {
            for asks_back in [false, true] {
                all.push(Traits { legacy, modern, asks_back });
            }
        }
    }
    for (index, traits) in all.iter().enumerate() {
        assert_eq!(store.traits_put(&format!("id-{index}"), *traits, 5).expect("puts"), 0);
    }
    drop(store);
    let mut store = open(dir.path());
    for (index, traits) in all.iter().enumerate() {
        assert_eq!(store.traits_get(&format!("id-{index}")).expect("gets"), Some(*traits));
    }
    let newer = Traits { asks_back: true, ..Traits::default() };
    store.traits_put("id-17", newer, 6).expect("puts");
    assert_eq!(store.traits_get("id-17").expect("gets"), Some(newer));
    assert_eq!(store.traits_get("unknown").expect("gets"), None);
}

#[test]
fn the_longest_unchanged_are_forgotten_at_the_limit() {
    let dir = dir();
    let mut store = open(dir.path());
    fill(
        dir.path(),
        "INSERT INTO traits (identity, asks_back, updated_unix_ms) SELECT 'id-' || value, 0, value FROM numbers",
        TRAITS_MAX,
    );
    let some = Traits { asks_back: true, ..Traits::default() };
    assert_eq!(store.traits_put("id-1", some, 1_000_000).expect("puts"), 0, "a change is no addition");
    // The clock was set back: the newcomer looks older than all, and stays nevertheless.
    assert_eq!(store.traits_put("new", some, 0).expect("puts"), 1);
    assert_eq!(store.traits_get("new").expect("gets"), Some(some));
    assert_eq!(store.traits_get("id-1").expect("gets"), Some(some));
    assert_eq!(store.traits_get("id-2").expect("gets"), None, "the longest unchanged");
    assert!(store.traits_get("id-3").expect("gets").is_some());
    let count: u32 =
        raw(dir.path()).query_row("SELECT count(*) FROM traits", [], |row| row.get(0)).expect("counts");
    assert_eq!(count, TRAITS_MAX);
}

/// Runs an insert over the table `numbers(value)` from 1 to `count`.
fn fill(dir: &std::path::Path, insert: &str, count: u32) {
    let (into, select) = insert.split_at(insert.find("SELECT").expect("a select"));
    let numbers = format!(
        "WITH RECURSIVE numbers(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM numbers WHERE value < {count})"
    );
    let rows = raw(dir).execute(&format!("{into} {numbers} {select}"), []).expect("fills");
    assert_eq!(rows, count as usize);
}

prop_compose! {
    fn keys()(pid in any::<u32>(), start in any::<u64>()) -> ProcessKey {
        ProcessKey { pid, start }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_record_comes_back_as_it_was(
        mark in ".{0,60}", number in any::<u32>(), generation in any::<u64>(), started_unix_ms in any::<u64>(),
        guard in prop::option::of(keys()), leader in prop::option::of(keys()), boot_id in ".{0,60}",
    ) {
        let dir = dir();
        let mut store = open(dir.path());
        let mut record = TreeRecord { mark, guard, leader, boot_id, started_unix_ms, ..tree("") };
        record.instance.number = number;
        record.generation.0 = generation;
        store.trees_insert(&record).expect("inserts");
        prop_assert_eq!(store.trees_all().expect("reads"), [record]);
    }
}

fn session(number: u64) -> SessionRecord {
    SessionRecord {
        number,
        id: format!("#{number}"),
        principal: "local".to_owned(),
        name: Some("one".to_owned()),
        isolated: true,
        owned: false,
        restarts: 0,
        created_unix_ms: 1_790_000_000_000,
        heard_unix_ms: u64::MAX,
    }
}

#[test]
fn sessions_are_written_together_changed_and_struck_out() {
    let dir = dir();
    let mut store = open(dir.path());
    let put = |number| SessionChange::Put(session(number));
    assert_eq!(store.sessions_write(&[put(2), put(1), put(3)]).expect("writes"), 0);
    let later = SessionRecord { owned: true, restarts: 2, heard_unix_ms: 5, ..session(2) };
    let changes = [SessionChange::Put(later.clone()), SessionChange::Remove(3), SessionChange::Remove(9)];
    assert_eq!(store.sessions_write(&changes).expect("writes"), 0);
    drop(store);
    assert_eq!(open(dir.path()).sessions_all().expect("reads"), [session(1), later]);
}

/// One that does not fit keeps nobody else out.
#[test]
fn a_session_that_is_too_long_is_left_out_and_counted() {
    let dir = dir();
    let mut store = open(dir.path());
    let long = SessionRecord { principal: "x".repeat(TEXT_MAX + 1), ..session(1) };
    let changes = [SessionChange::Put(long), SessionChange::Put(session(2))];
    assert_eq!(store.sessions_write(&changes).expect("writes"), 1);
    assert_eq!(store.sessions_all().expect("reads"), [session(2)]);
}
