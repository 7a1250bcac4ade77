//! Opening: a private directory, a private file, a sound database.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::{BUSY_TIMEOUT, FILE_NAME, Store, StoreError, schema};

/// How often the switch to the write-ahead log is tried against other processes that open the file in the
/// same moment. Each try waits up to [`BUSY_TIMEOUT`].
const WAL_TRIES: u32 = 8;

/// The size to which the write-ahead log is cut back, in bytes.
const WAL_BYTES_MAX: i64 = 4 << 20;

/// SQLite's page cache, in KiB. The tables are small and the daemon's memory is counted in megabytes.
const CACHE_KIB: i64 = 256;

/// See [`Store::open`].
pub(crate) fn open(state_dir: &Path) -> Result<Store, StoreError> {
    private_directory(state_dir)?;
    let path = state_dir.join(FILE_NAME);
    private_file(&path).map_err(|source| StoreError::File { path: path.clone(), source })?;

    let failed = |doing| StoreError::sqlite(&path, doing);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut conn = Connection::open_with_flags(&path, flags).map_err(failed("opening"))?;
    conn.busy_timeout(BUSY_TIMEOUT).map_err(failed("opening"))?;
    // Before anything is written: a file that is not ours, or too new, stays as it is.
    // In one transaction, or another process that is making its tables just now would look like a stranger.
    let look = conn.transaction().map_err(failed("opening"))?;
    schema::check(&look, &path)?;
    drop(look);
    write_ahead(&conn, &path)?;
    conn.pragma_update(None, "synchronous", "NORMAL").map_err(failed("opening"))?;
    conn.pragma_update(None, "journal_size_limit", WAL_BYTES_MAX).map_err(failed("opening"))?;
    conn.pragma_update(None, "cache_size", -CACHE_KIB).map_err(failed("opening"))?;
    sound(&conn, &path)?;
    schema::migrate(&mut conn, &path)?;
    Ok(Store { conn, path })
}

pub(crate) fn private_directory(dir: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::Directory { path: dir.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    let mode = fs::metadata(dir).map_err(failed)?.permissions().mode() & 0o777;
    // Reading is the file's own matter (0600), and a directory of the user's may have reasons for its mode.
    if mode & 0o022 != 0 {
        return Err(StoreError::Exposed { path: dir.to_owned(), mode });
    }
    Ok(())
}

/// Makes sure the file exists with mode 0600; SQLite gives its companions the same mode.
///
/// The file is made under another name and linked into place. It must never be opened here: closing it
/// would drop the locks that another connection of this process holds on it (POSIX locks belong to the
/// process, see "How To Corrupt An SQLite Database File", section 2.2).
pub(crate) fn private_file(path: &Path) -> io::Result<()> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    if !path.try_exists()? {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let fresh = path.with_added_extension(format!("new-{}-{number}", std::process::id()));
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        let linked = fs::hard_link(&fresh, path);
        fs::remove_file(&fresh)?;
        match linked {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    if fs::metadata(path)?.permissions().mode() & 0o777 != 0o600 {
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
    }
    Ok(())
}

/// Switches to the write-ahead log. SQLite answers "busy" at once, without the usual wait, when another
/// process is switching too; so wait for that one's lock, then try again.
fn write_ahead(conn: &Connection, path: &Path) -> Result<(), StoreError> {
    let failed = || StoreError::sqlite(path, "switching to the write-ahead log");
    for _ in 1..WAL_TRIES {
        let mode = conn.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0));
        match mode {
            Ok(_) => return Ok(()),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
                conn.execute_batch("BEGIN IMMEDIATE; ROLLBACK").map_err(failed())?;
            }
            Err(error) => return Err(failed()(error)),
        }
    }
    let last = conn.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0));
    last.map(drop).map_err(failed())
}

/// Reads the whole file once: damage is better found now than by the reaper, half-way.
fn sound(conn: &Connection, path: &Path) -> Result<(), StoreError> {
    let found: String = conn
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(StoreError::sqlite(path, "checking"))?;
    if found == "ok" { Ok(()) } else { Err(StoreError::Corrupt { path: path.to_owned(), detail: found }) }
}
