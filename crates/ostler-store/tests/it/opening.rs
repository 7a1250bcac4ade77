//! Opening: modes, versions, several at once.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Barrier;
use std::thread;

use ostler_domain::Traits;
use ostler_store::{FILE_NAME, SCHEMA_VERSION, Store, StoreError};

use crate::{dir, open, raw, tree};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it exists").permissions().mode() & 0o777
}

#[test]
fn directory_and_files_are_private() {
    let dir = dir();
    let state = dir.path().join("a/b");
    let mut store = open(&state);
    store.trees_insert(&tree("m")).expect("inserts");
    assert_eq!(store.path(), state.join(FILE_NAME));
    assert_eq!(mode(&state), 0o700);
    for suffix in ["", "-wal", "-shm"] {
        assert_eq!(mode(&state.join(format!("{FILE_NAME}{suffix}"))), 0o600, "{suffix}");
    }
    let names: Vec<_> =
        fs::read_dir(&state).expect("lists").map(|entry| entry.expect("reads").file_name()).collect();
    assert_eq!(names.len(), 3, "nothing else is left: {names:?}");
}

#[test]
fn a_file_that_others_may_read_is_made_private() {
    let dir = dir();
    drop(open(dir.path()));
    let file = dir.path().join(FILE_NAME);
    fs::set_permissions(&file, Permissions::from_mode(0o644)).expect("chmod");
    drop(open(dir.path()));
    assert_eq!(mode(&file), 0o600);
}

#[test]
fn a_directory_that_others_may_write_is_refused() {
    let dir = dir();
    for open_mode in [0o770, 0o707, 0o777] {
        fs::set_permissions(dir.path(), Permissions::from_mode(open_mode)).expect("chmod");
        let error = Store::open(dir.path()).expect_err("others could exchange the file");
        assert!(matches!(error, StoreError::Exposed { mode, .. } if mode == open_mode), "{error:?}");
        assert!(error.to_string().contains("chmod 700"), "{error}");
        assert!(!dir.path().join(FILE_NAME).exists(), "nothing was made");
    }
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("chmod");
    drop(open(dir.path()));
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let dir = dir();
    let file = dir.path().join("file");
    fs::write(&file, "").expect("writes");
    let error = Store::open(&file.join("state")).expect_err("a file is no directory");
    assert!(matches!(error, StoreError::Directory { .. }), "{error:?}");
    assert!(error.to_string().contains("file/state"), "{error}");
}

/// The tables of version 1, as they were released. Never change this.
const VERSION_1: &str = "
    CREATE TABLE trees (mark TEXT PRIMARY KEY NOT NULL, server TEXT NOT NULL, number INTEGER NOT NULL,
        generation INTEGER NOT NULL, guard_pid INTEGER, guard_start INTEGER, leader_pid INTEGER,
        leader_start INTEGER, boot_id TEXT NOT NULL, daemon_id TEXT NOT NULL, started_unix_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    INSERT INTO trees VALUES ('old', 'github', 3, 1, NULL, NULL, NULL, NULL, 'b', 'd', 9);
    PRAGMA application_id = 1330861132;
    PRAGMA user_version = 1;";

#[test]
fn an_older_file_is_brought_up_to_date_with_its_rows() {
    let dir = dir();
    raw(dir.path()).execute_batch(VERSION_1).expect("writes version 1");
    for _ in 0..2 {
        let mut store = open(dir.path());
        assert_eq!(store.trees_all().expect("reads")[0].mark, "old");
        store.traits_put("id", Traits::default(), 1).expect("the newer table is there");
    }
    let version: u32 =
        raw(dir.path()).pragma_query_value(None, "user_version", |row| row.get(0)).expect("has a version");
    assert_eq!(version, SCHEMA_VERSION);
}

#[test]
fn a_step_that_fails_leaves_the_older_version_whole() {
    let dir = dir();
    // The second step makes the table `traits` and then an index of this name.
    let clash = format!("{VERSION_1} CREATE TABLE traits_by_age (x);");
    raw(dir.path()).execute_batch(&clash).expect("writes");
    let error = Store::open(dir.path()).expect_err("the step fails");
    assert!(error.to_string().starts_with("bringing its tables up to date failed"), "{error}");
    let conn = raw(dir.path());
    let version: u32 =
        conn.pragma_query_value(None, "user_version", |row| row.get(0)).expect("has a version");
    let traits: u32 = conn
        .query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'traits'", [], |row| row.get(0))
        .expect("counts");
    assert_eq!((version, traits), (1, 0));
}

#[test]
fn many_may_open_a_new_store_at_once() {
    const OPENERS: usize = 8;
    for _ in 0..5 {
        let dir = dir();
        let start = Barrier::new(OPENERS);
        thread::scope(|scope| {
            for opener in 0..OPENERS {
                let (start, path) = (&start, dir.path());
                scope.spawn(move || {
                    start.wait();
                    let mut store = open(path);
                    for round in 0..5 {
                        store.trees_insert(&tree(&format!("{opener}-{round}"))).expect("inserts");
                    }
                });
            }
        });
        assert_eq!(open(dir.path()).trees_all().expect("reads").len(), OPENERS * 5);
    }
}

#[test]
fn a_store_may_move_to_its_own_thread() {
    let dir = dir();
    let mut store = open(dir.path());
    let trees = thread::spawn(move || store.trees_all().expect("reads")).join().expect("runs");
    assert_eq!(trees, []);
}

#[test]
fn it_uses_the_write_ahead_log() {
    let dir = dir();
    let _store = open(dir.path());
    let mode: String =
        raw(dir.path()).pragma_query_value(None, "journal_mode", |row| row.get(0)).expect("has a mode");
    assert_eq!(mode, "wal");
}
