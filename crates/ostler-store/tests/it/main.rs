//! Tests of the store, on real files.

mod damage;
mod journal;
mod opening;
mod survival;
mod tables;

use std::path::Path;

use ostler_domain::{Generation, InstanceId};
use ostler_store::{ProcessKey, Store, TreeRecord};
use tempfile::TempDir;

fn dir() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn open(dir: &Path) -> Store {
    Store::open(dir).expect("the store opens")
}

/// A tree with every field filled.
fn tree(mark: &str) -> TreeRecord {
    TreeRecord {
        mark: mark.to_owned(),
        instance: InstanceId { server: "github".parse().expect("a name"), number: 3 },
        generation: Generation(u64::MAX),
        guard: Some(ProcessKey { pid: u32::MAX, start: u64::MAX }),
        leader: Some(ProcessKey { pid: 12, start: 0 }),
        boot_id: "3f0c".to_owned(),
        daemon_id: "d-1".to_owned(),
        started_unix_ms: 1_790_000_000_000,
    }
}

/// The database as any program sees it.
fn raw(dir: &Path) -> rusqlite::Connection {
    rusqlite::Connection::open(dir.join(ostler_store::FILE_NAME)).expect("SQLite opens it")
}
