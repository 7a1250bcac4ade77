//! Files that are damaged, foreign or from the future: named, explained and left as they are.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use ostler_store::{FILE_NAME, SCHEMA_VERSION, Store, StoreError};

use crate::{dir, open, raw, tree};

/// Opening must fail, name the file, tell the way out and leave every byte as it was.
fn refused(dir: &Path) -> StoreError {
    let file = dir.join(FILE_NAME);
    let before = fs::read(&file).expect("reads");
    let error = Store::open(dir).expect_err("it is refused");
    let text = error.to_string();
    assert!(text.contains(&file.display().to_string()), "{text}");
    assert!(text.contains("aside"), "{text}");
    assert_eq!(fs::read(&file).expect("reads"), before, "the file was changed");
    error
}

#[test]
fn a_file_that_is_no_database() {
    let dir = dir();
    fs::write(dir.path().join(FILE_NAME), "# not a database\n".repeat(1000)).expect("writes");
    let error = refused(dir.path());
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
}

#[test]
fn damage_inside_the_tables() {
    let dir = dir();
    let mut store = open(dir.path());
    for number in 0..500 {
        store.trees_insert(&tree(&format!("mark-{number}"))).expect("inserts");
    }
    drop(store);
    let file = fs::File::options().write(true).open(dir.path().join(FILE_NAME)).expect("opens");
    let pages = file.metadata().expect("has a size").len() / 4096;
    assert!(pages > 5, "the rows are in the file: {pages} pages");
    for page in 1..pages {
        file.write_all_at(&[0xff; 64], page * 4096).expect("writes");
    }
    let error = refused(dir.path());
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
}

#[test]
fn a_file_that_was_cut_short() {
    let dir = dir();
    let mut store = open(dir.path());
    for number in 0..500 {
        store.trees_insert(&tree(&format!("mark-{number}"))).expect("inserts");
    }
    drop(store);
    let file = fs::File::options().write(true).open(dir.path().join(FILE_NAME)).expect("opens");
    file.set_len(file.metadata().expect("has a size").len() / 2).expect("cuts");
    let error = refused(dir.path());
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
}

#[test]
fn a_database_of_another_program() {
    let dir = dir();
    raw(dir.path()).execute_batch("CREATE TABLE notes (text)").expect("writes");
    let error = refused(dir.path());
    assert!(matches!(error, StoreError::Foreign { .. }), "{error:?}");
}

#[test]
fn a_file_from_the_future() {
    let dir = dir();
    drop(open(dir.path()));
    raw(dir.path()).pragma_update(None, "user_version", SCHEMA_VERSION + 1).expect("writes");
    let error = refused(dir.path());
    let newer = SCHEMA_VERSION + 1;
    assert!(matches!(error, StoreError::TooNew { found, .. } if found == newer), "{error:?}");
    assert!(error.to_string().contains("newer Ostler"), "{error}");
}

#[test]
fn a_row_that_makes_no_sense() {
    let dir = dir();
    let mut store = open(dir.path());
    for (column, value) in [("server", "'../etc'"), ("number", "-1"), ("leader_pid", "99999999999")] {
        store.trees_insert(&tree("m")).expect("inserts");
        raw(dir.path()).execute(&format!("UPDATE trees SET {column} = {value}"), []).expect("writes");
        let error = store.trees_all().expect_err("it is no record");
        assert!(matches!(error, StoreError::Corrupt { .. }), "{column}: {error:?}");
        store.trees_remove("m").expect("removes");
    }
}

#[test]
fn a_database_that_another_process_keeps_locked() {
    let dir = dir();
    drop(open(dir.path()));
    let other = raw(dir.path());
    let mut store = open(dir.path());
    other.execute_batch("BEGIN IMMEDIATE").expect("locks");
    assert_eq!(store.trees_all().expect("readers do not wait"), []);
    let error = store.trees_insert(&tree("m")).expect_err("the writer waits in vain");
    assert!(matches!(error, StoreError::Busy { .. }), "{error:?}");
    other.execute_batch("ROLLBACK").expect("unlocks");
    store.trees_insert(&tree("m")).expect("inserts");
}
