//! The documentation and the example say what the program does.

use std::path::{Path, PathBuf};

use ostler_config::{json_schema, load};
use serde_json::Value;

/// A key of the schema.
pub(crate) struct Key {
    /// Its path, `NAME` standing for a server's name: `servers.NAME.restart.max`.
    pub(crate) path: String,
    schema: Value,
}

/// Every key of a schema that takes a value.
pub(crate) fn keys(schema: &Value) -> Vec<Key> {
    fn walk(schema: &Value, path: &str, into: &mut Vec<Key>) {
        let inner = |name: &str| {
            if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
        };
        let properties = schema["properties"].as_object();
        let named = Some(&schema["additionalProperties"]).filter(|named| named["properties"].is_object());
        if properties.is_none() && named.is_none() {
            into.push(Key { path: path.to_owned(), schema: schema.clone() });
        }
        for (name, schema) in properties.into_iter().flatten() {
            walk(schema, &inner(name), into);
        }
        if let Some(named) = named {
            walk(named, &inner("NAME"), into);
        }
    }
    let mut found = Vec::new();
    walk(schema, "", &mut found);
    found
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The rows of the reference for the keys below a path.
fn rows(all: &[Key], below: &str) -> String {
    let mut text = String::from("| Key | Default | Meaning |\n|---|---|---|\n");
    for key in all {
        // Tables by name have rows of their own, without the keys that the table around them has as well.
        let around = below.strip_suffix("NAME.").unwrap_or("-");
        let Some(name) = key.path.strip_prefix(below).filter(|name| !name.starts_with("NAME.")) else {
            continue;
        };
        if all.iter().any(|other| other.path.strip_prefix(around) == Some(name)) {
            continue;
        }
        let default = match &key.schema["default"] {
            Value::Null => "none".to_owned(),
            value => format!("`{value}`"),
        };
        let mut meaning = key.schema["description"].as_str().unwrap_or_default().to_owned();
        for choice in key.schema["oneOf"].as_array().into_iter().flatten() {
            let (word, doc) = (&choice["const"], choice["description"].as_str().unwrap_or_default());
            meaning.push_str(&format!("<br>`{word}`: {doc}."));
        }
        text.push_str(&format!("| `{name}` | {default} | {meaning} |\n"));
    }
    text
}

/// Where the reference of each section stands in the documentation. `[defaults]` takes a part of a server's
/// keys, and is described by a list.
const SECTIONS: &[&str] = &[
    "gateway.",
    "limits.",
    "sessions.",
    "servers.NAME.",
    "ports.",
    "metrics.",
    "alerts.",
    "registry.",
    "reload.",
    "tasks.",
    "workers.",
    "workers.NAME.",
    "projects.NAME.",
];

/// `UPDATE_DOCS=1 cargo test -p ostler-config` writes the reference anew.
#[test]
fn the_reference_has_every_key_with_its_default_and_meaning() {
    let all = keys(&json_schema());
    let path = repository().join("docs/configuration.md");
    let mut text = std::fs::read_to_string(&path).unwrap();
    for section in SECTIONS {
        let rows = rows(&all, section);
        let (start, end) = (format!("<!-- keys: {section} -->\n"), "<!-- end -->");
        let from = text.find(&start).unwrap_or_else(|| panic!("{start} is missing")) + start.len();
        let to = from + text[from..].find(end).unwrap_or_else(|| panic!("{end} is missing"));
        if std::env::var_os("UPDATE_DOCS").is_some() {
            text.replace_range(from..to, &rows);
        }
        let to = from + text[from..].find(end).unwrap();
        assert_eq!(&text[from..to], rows, "run with UPDATE_DOCS=1 to write it anew");
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    for key in all.iter().filter(|k| k.path.starts_with("defaults.")) {
        let name = key.path.trim_start_matches("defaults.");
        assert!(text.contains(&format!("`{name}`")), "{} is not documented", key.path);
    }
    let covered = |path: &str| path.starts_with("defaults.") || SECTIONS.iter().any(|s| path.starts_with(s));
    assert!(all.iter().all(|k| covered(&k.path)), "a section has no place in the documentation");
    assert_eq!(all.len(), 244, "the schema lost or gained keys: check the documentation's prose");
}

/// Every TOML and JSON block of the documentation loads.
#[test]
fn the_examples_in_the_documentation_load() {
    let text = std::fs::read_to_string(repository().join("docs/configuration.md")).unwrap();
    let mut count = 0;
    for block in text.split("\n```").skip(1).step_by(2) {
        let (language, body) = block.split_once('\n').unwrap_or_default();
        let format = match language {
            "toml" => ostler_config::Format::Toml,
            "json" | "jsonc" => ostler_config::Format::Json,
            _ => continue,
        };
        count += 1;
        let env = |name: &str| matches!(name, "GITHUB_TOKEN" | "HOME").then(|| "/x".to_owned());
        let loaded = ostler_config::load_str("/docs/example", body, format, &env);
        assert!(loaded.is_ok(), "{body}\n{}", loaded.unwrap_err());
    }
    assert!(count >= 4, "only {count} examples were found");
}

#[test]
fn the_quickstart_loads_without_a_warning() {
    let file = repository().join("examples/quickstart/ostler.toml");
    let env = |name: &str| (name == "HOME").then(|| "/home/ann".to_owned());
    let config = load(&[file], &env).unwrap_or_else(|e| panic!("{e}"));
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let names: Vec<_> = config.servers.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["everything", "filesystem", "memory"]);
    for server in &config.servers {
        assert_eq!(server.launch.command, "npx");
        let (_, version) = server.launch.args[1].rsplit_once('@').expect("the package has a version");
        assert!(version.starts_with(|c: char| c.is_ascii_digit()), "{version} is not pinned");
    }
    let folder = Path::new(config.servers[1].launch.args.last().unwrap());
    assert!(folder.join("README.txt").is_file(), "{} is not the example's folder", folder.display());
}

#[test]
fn the_schema_describes_every_key() {
    for key in keys(&json_schema()) {
        assert!(key.schema["type"].is_string(), "{} has no type", key.path);
        assert!(key.schema["description"].as_str().is_some_and(|d| d.len() > 10), "{}", key.path);
    }
}
