//! The configuration as its users meet it: files in, a desired state or errors out.

mod documentation;
mod errors;
mod overrides;
mod own_file;
mod random;
mod reload;
mod shapes;
mod tasks;

use ostler_config::{Config, ConfigErrors, Format, load_str};

/// The environment of the tests.
fn env(name: &str) -> Option<String> {
    match name {
        "HOME" => Some("/home/ann".into()),
        "TOKEN" => Some("s3cret".into()),
        _ => None,
    }
}

/// Reads a text as `/etc/ostler.toml`.
fn toml(text: &str) -> Result<Config, ConfigErrors> {
    load_str("/etc/ostler.toml", text, Format::Toml, &env)
}

/// Reads a text as the JSON file of this name.
fn json(name: &str, text: &str) -> Result<Config, ConfigErrors> {
    load_str(name, text, Format::Json, &env)
}

/// The only server of a configuration that is expected to load.
fn only(config: Result<Config, ConfigErrors>) -> ostler_domain::ServerSpec {
    let mut config = config.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(config.servers.len(), 1, "{:?}", config.servers);
    config.servers.remove(0)
}

/// The messages of a configuration's warnings.
fn warnings(config: &Config) -> Vec<&str> {
    config.warnings.iter().map(|w| w.message.as_str()).collect()
}
