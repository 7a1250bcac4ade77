//! Where this package's programs are. Cargo builds a package's programs for that package's own tests only, so
//! for others they are built here, once per test process, into the same target directory.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The program `name` of this package, up to date; or what the environment variable `variable` names.
///
/// # Panics
/// When it can neither be built nor found.
pub fn program(name: &str, variable: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return path.into();
    }
    static FOLDER: OnceLock<(PathBuf, bool)> = OnceLock::new();
    let (folder, built) = FOLDER.get_or_init(build);
    let path = folder.join(name);
    assert!(*built || path.exists(), "`cargo build` failed and `{}` is not there", path.display());
    path
}

/// Builds all programs; where they are, and whether that succeeded.
fn build() -> (PathBuf, bool) {
    let test = std::env::current_exe().expect("a test knows its program");
    // <target>/<profile>/deps/<test>-<hash>, or <target>/<profile>/<program>
    let folder = test.parent().expect("a program is in a folder");
    let profile =
        if folder.ends_with("deps") { folder.parent().expect("deps is in a folder") } else { folder };
    let target = profile.parent().expect("a profile is in the target directory");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--bins", "--manifest-path"]);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).arg("--target-dir").arg(target);
    if profile.ends_with("release") {
        command.arg("--release");
    }
    let built = command.status().is_ok_and(|status| status.success());
    (profile.to_owned(), built)
}
