//! The floors of the house: a crate may only depend on crates of lower floors.

use cargo_metadata::MetadataCommand;

/// The floor of each crate, from the ground up (`docs/ARCHITECTURE.md`).
const FLOORS: [(&str, u32); 11] = [
    ("ostler-domain", 0),
    ("ostler-config", 1),
    ("ostler-os", 1),
    ("ostler-store", 1),
    ("ostler-mcp", 1),
    ("ostler-worker", 2),
    ("ostler-supervisor", 3),
    ("ostler-api", 3),
    ("ostler-gateway", 4),
    ("ostler-cli", 4),
    ("ostler", 5),
];

fn floor(name: &str) -> Option<u32> {
    FLOORS.iter().find(|(known, _)| *known == name).map(|(_, floor)| *floor)
}

#[test]
fn arrows_only_point_down() {
    let metadata = MetadataCommand::new()
        .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .no_deps()
        .exec()
        .expect("cargo metadata");
    let mut wrong = Vec::new();
    for package in metadata.packages.iter().filter(|package| package.name.starts_with("ostler")) {
        let Some(from) = floor(&package.name) else {
            assert_eq!(package.name.as_str(), "ostler-testkit", "a crate without a floor: give it one here");
            continue;
        };
        let ours = package.dependencies.iter().filter(|d| d.kind == cargo_metadata::DependencyKind::Normal);
        for dependency in ours.filter(|dependency| dependency.name.starts_with("ostler")) {
            match floor(&dependency.name) {
                Some(to) if to < from => {}
                to => wrong.push(format!("{} (floor {from}) -> {} ({to:?})", package.name, dependency.name)),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_command_line_knows_the_api_only_and_the_core_knows_nothing() {
    let metadata = MetadataCommand::new()
        .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .no_deps()
        .exec()
        .expect("cargo metadata");
    let dependencies = |name: &str| -> Vec<String> {
        let package =
            metadata.packages.iter().find(|package| package.name == name).expect("the crate is there");
        let normal = package.dependencies.iter().filter(|d| d.kind == cargo_metadata::DependencyKind::Normal);
        normal.map(|dependency| dependency.name.clone()).collect()
    };
    let ours = |name: &str| -> Vec<String> {
        dependencies(name).into_iter().filter(|dependency| dependency.starts_with("ostler")).collect()
    };
    assert_eq!(ours("ostler-cli"), ["ostler-api"]);
    assert_eq!(ours("ostler-worker"), ["ostler-os"], "a worker must be able to stand without the daemon");
    assert_eq!(dependencies("ostler-domain"), ["thiserror"]);
    for name in ["ostler-mcp", "ostler-config", "ostler-store"] {
        assert!(!dependencies(name).contains(&"tokio".to_owned()), "{name} knows a runtime");
    }
}
