//! Where the evil child is: a program that misbehaves as told (see `src/bin/ostler-evil.rs`).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Overrides where the evil child is.
pub const EVIL_VARIABLE: &str = "OSTLER_EVIL";

/// The evil child's program, up to date. Cargo builds a package's programs for that package's own tests only, so
/// for others it is built here, once per test process, into the same target directory.
///
/// # Panics
/// When it can neither be built nor found.
pub fn path() -> PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| std::env::var_os(EVIL_VARIABLE).map_or_else(build, PathBuf::from)).clone()
}

fn build() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its program");
    // <target>/<profile>/deps/<test>-<hash>, or <target>/<profile>/<program>
    let folder = test.parent().expect("a program is in a folder");
    let profile =
        if folder.ends_with("deps") { folder.parent().expect("deps is in a folder") } else { folder };
    let program = profile.join("ostler-evil");
    let target = profile.parent().expect("a profile is in the target directory");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--bin", "ostler-evil", "--manifest-path"]);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).arg("--target-dir").arg(target);
    if profile.ends_with("release") {
        command.arg("--release");
    }
    let built = command.status().is_ok_and(|status| status.success());
    assert!(built || program.exists(), "`{command:?}` failed and `{}` is not there", program.display());
    program
}
