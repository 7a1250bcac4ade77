//! Finding and reading configuration: `ostler up FILE...`, `ostler config ...`.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;

use ostler_cli::{ConfigCommand, Exit};
use ostler_config::{Config, ConfigErrors};

/// Runs `ostler config ...`.
pub(crate) fn run(command: ConfigCommand) -> Exit {
    match command {
        ConfigCommand::Check { files } => match sources(&files).and_then(|files| load(&files)) {
            Some(config) => {
                let names = config.servers.iter().map(|server| server.name.to_string()).collect::<Vec<_>>();
                say(&format!("ok: {} servers ({})\n", names.len(), names.join(", ")));
                Exit::Done
            }
            None => Exit::Usage,
        },
        ConfigCommand::Schema => {
            say(&format!("{:#}\n", ostler_config::json_schema()));
            Exit::Done
        }
    }
}

/// Writes to standard output, whose reader may be gone.
pub(crate) fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Writes to standard error, whose reader may be gone.
pub(crate) fn complain(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// These files, or the usual one where none is named; says so where there is none.
pub(crate) fn sources(files: &[PathBuf]) -> Option<Vec<PathBuf>> {
    let files = if files.is_empty() { usual().into_iter().collect() } else { files.to_vec() };
    if files.is_empty() {
        complain(
            "error: no configuration: there is no ostler.toml here and none in the user's configuration\n\
             hint: name a file: `ostler up FILE`; any JSON with `mcpServers` will do\n",
        );
        return None;
    }
    Some(files)
}

/// Reads these files, with what the environment says.
pub(crate) fn read(files: &[PathBuf]) -> Result<Config, ConfigErrors> {
    let look_up = |name: &str| std::env::var(name).ok();
    let names: Vec<String> = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect();
    ostler_config::load_with(files, &look_up, &names)
}

/// The same; prints what is wrong with them, or what is odd.
pub(crate) fn load(files: &[PathBuf]) -> Option<Config> {
    let color = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    match read(files) {
        Ok(config) => {
            for warning in &config.warnings {
                complain(&format!("{}\n", warning.render(color)));
            }
            Some(config)
        }
        Err(errors) => {
            complain(&format!("{}\n", errors.render(color)));
            None
        }
    }
}

/// `ostler.toml` here, else `ostler/ostler.toml` in the user's configuration directory.
fn usual() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")));
    let candidates = [Some(PathBuf::from("ostler.toml")), home.map(|dir| dir.join("ostler/ostler.toml"))];
    candidates.into_iter().flatten().find(|path| path.is_file())
}
