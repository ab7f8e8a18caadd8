//! Rules about the repository itself: which crate may see which, which licences
//! a dependency may have, how long a file may be. Read from `cargo metadata`
//! and the files, so that breaking one is a failing test and not an opinion.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Lines of a file before its tests: about what one idea takes.
const LINES: usize = 800;

/// What each crate of the workspace may name, besides the outside world.
const ARROWS: [(&str, &[&str]); 5] = [
    ("engine", &[]),
    ("tunnel", &["engine"]),
    ("dns", &[]),
    ("tunneld", &["dns", "engine", "tunnel"]),
    ("tests", &["dns", "engine", "tunnel", "tunneld"]),
];

/// Outside crates that a crate must not name directly, tests included.
const BANS: [(&str, &[&str]); 2] = [
    // The pure core: no runtime, no system call.
    (
        "engine",
        &[
            "anyhow",
            "boringtun",
            "hickory-proto",
            "hickory-resolver",
            "libc",
            "mio",
            "nix",
            "quinn",
            "rtnetlink",
            "rustix",
            "rustls",
            "socket2",
            "tokio",
            "tun",
        ],
    ),
    // It reaches the network through sockets that the caller makes.
    ("dns", &["boringtun", "rtnetlink", "smoltcp", "tun"]),
];

#[test]
fn crates_see_each_other_only_along_the_arrows() {
    let metadata = metadata();
    let members: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for package in workspace(&metadata) {
        let name = text(package, "name");
        seen.insert(name);
        let Some((_, allowed)) = ARROWS.iter().find(|(member, _)| *member == name) else {
            wrong.push(format!("{name}: a crate that the design does not have"));
            continue;
        };
        for dependency in dependencies(package) {
            if members.contains(dependency) && !allowed.contains(&dependency) {
                wrong.push(format!("{name} -> {dependency}: no such arrow"));
            }
            let banned =
                BANS.iter().find(|(member, _)| *member == name).map_or(&[][..], |ban| ban.1);
            if banned.contains(&dependency) {
                wrong.push(format!("{name} -> {dependency}: banned"));
            }
        }
    }
    assert_eq!(seen, members, "the crates of the workspace");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_crate_takes_the_rules_of_the_workspace() {
    let metadata = metadata();
    for package in workspace(&metadata) {
        let name = text(package, "name");
        let manifest = fs::read_to_string(text(package, "manifest_path")).unwrap();
        let manifest: toml::Table = manifest.parse().unwrap();
        assert_eq!(manifest["lints"]["workspace"].as_bool(), Some(true), "{name}: [lints]");
        assert_eq!(text(package, "license"), "MIT OR Apache-2.0", "{name}: licence");
        assert_eq!(package["publish"], Value::Array(Vec::new()), "{name}: publish = false");
        assert_eq!(text(package, "edition"), "2024", "{name}: edition");
        for (table, dependency) in manifest
            .iter()
            .filter(|(table, _)| table.ends_with("dependencies"))
            .flat_map(|(_, table)| table.as_table().unwrap())
        {
            assert!(
                dependency.get("workspace").is_some(),
                "{name}: `{table}` has its version in the workspace's Cargo.toml"
            );
        }
    }
}

#[test]
fn licences_of_dependencies_are_those_of_deny_toml() {
    let deny: toml::Table = fs::read_to_string(root().join("deny.toml")).unwrap().parse().unwrap();
    let allowed = strings(&deny["licenses"]["allow"]);
    let exceptions: BTreeMap<String, BTreeSet<String>> = deny["licenses"]["exceptions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|exception| {
            (exception["crate"].as_str().unwrap().to_owned(), strings(&exception["allow"]))
        })
        .collect();

    let metadata = metadata();
    let mut wrong = Vec::new();
    for package in metadata["packages"].as_array().unwrap() {
        let name = text(package, "name");
        let Some(licence) = package["license"].as_str() else {
            wrong.push(format!("{name}: no licence"));
            continue;
        };
        let excepted = exceptions.get(name);
        let ok = |id: &str| {
            allowed.contains(id) || excepted.is_some_and(|excepted| excepted.contains(id))
        };
        if !satisfied(licence, &ok) {
            wrong.push(format!("{name}: {licence}"));
        }
    }
    assert!(wrong.is_empty(), "not allowed by deny.toml: {wrong:#?}");
}

#[test]
fn a_file_is_about_one_idea() {
    let mut wrong = Vec::new();
    for path in files("rs") {
        let text = fs::read_to_string(root().join(&path)).unwrap();
        let lines = text.lines().take_while(|line| !line.starts_with("mod tests")).count();
        // A file of tests is behind the code it tests.
        let is_tests = path.ends_with("tests.rs");
        if lines > LINES && !is_tests {
            wrong.push(format!("{}: {lines} lines before its tests", path.display()));
        }
        if !text.starts_with("//!") {
            wrong.push(format!("{}: does not say in its first line what it is", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn nothing_names_the_machine_it_was_written_on() {
    // Put together here, so that this file does not hold what it looks for.
    let places: Vec<String> =
        ["work", "root", "home"].iter().map(|place| format!("/{place}/")).collect();
    let mut wrong = Vec::new();
    for path in files("") {
        // What is no text has no such line.
        let Ok(text) = fs::read_to_string(root().join(&path)) else {
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            let named = places.iter().any(|place| {
                line.match_indices(place.as_str()).any(|(at, _)| {
                    // A place of the file system, not a part of some longer path.
                    !line[..at].ends_with(|before: char| {
                        before.is_alphanumeric() || "._-}*".contains(before)
                    })
                })
            });
            if named {
                wrong.push(format!("{}:{}: {line}", path.display(), number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_warning_has_a_code_that_is_documented() {
    let docs = fs::read_to_string(root().join("docs/messages.md")).unwrap();
    let mut seen = 0;
    for path in files("rs").iter().filter(|path| !path.starts_with("tests")) {
        let text = fs::read_to_string(root().join(path)).unwrap();
        for rest in text.split("code = \"").skip(1) {
            let code = rest.split('"').next().expect("a first part");
            assert!(docs.contains(&format!("| `{code}` |")), "{}: {code}", path.display());
            seen += 1;
        }
    }
    assert!(seen > 0, "warnings carry codes");
}

#[test]
fn scripts_can_be_run() {
    use std::os::unix::fs::PermissionsExt as _;
    for script in ["tests/run", ".ci/run"] {
        let mode = fs::metadata(root().join(script)).unwrap().permissions().mode();
        assert_eq!(mode & 0o111, 0o111, "{script} is executable");
        let checked = Command::new("bash").arg("-n").arg(root().join(script)).output().unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("as documented").to_owned()
}

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(root())
        .output()
        .expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("as documented")
}

fn workspace(metadata: &Value) -> impl Iterator<Item = &Value> {
    let members: BTreeSet<&str> = metadata["workspace_members"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    metadata["packages"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(move |package| members.contains(text(package, "id")))
}

/// The names that a crate depends on: to run, to build and to test.
fn dependencies(package: &Value) -> impl Iterator<Item = &str> {
    package["dependencies"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|dependency| text(dependency, "name"))
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("no `{field}` in {value}"))
}

fn strings(list: &toml::Value) -> BTreeSet<String> {
    list.as_array()
        .expect("a list")
        .iter()
        .map(|item| item.as_str().expect("text").to_owned())
        .collect()
}

/// Files that git knows or would add, whose name ends in `extension`.
fn files(extension: &str) -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let list = String::from_utf8(output.stdout).expect("UTF-8");
    let found: Vec<PathBuf> = list
        .lines()
        .map(PathBuf::from)
        .filter(|path| extension.is_empty() || path.extension().is_some_and(|end| end == extension))
        .filter(|path| root().join(path).is_file())
        .collect();
    assert!(!found.is_empty(), "git lists the files of the repository");
    found
}

/// Whether an SPDX expression holds when `ok` says so of each licence in it.
fn satisfied(expression: &str, ok: &impl Fn(&str) -> bool) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut words = &words[..];
    let holds = any_of(&mut words, ok);
    assert!(words.is_empty(), "not an SPDX expression: {expression}");
    holds
}

fn any_of(words: &mut &[&str], ok: &impl Fn(&str) -> bool) -> bool {
    let mut holds = all_of(words, ok);
    while let [first, rest @ ..] = *words
        && *first == "OR"
    {
        *words = rest;
        holds |= all_of(words, ok);
    }
    holds
}

fn all_of(words: &mut &[&str], ok: &impl Fn(&str) -> bool) -> bool {
    let mut holds = one(words, ok);
    while let [first, rest @ ..] = *words
        && *first == "AND"
    {
        *words = rest;
        holds &= one(words, ok);
    }
    holds
}

fn one(words: &mut &[&str], ok: &impl Fn(&str) -> bool) -> bool {
    match *words {
        ["(", rest @ ..] => {
            *words = rest;
            let holds = any_of(words, ok);
            let [")", rest @ ..] = *words else { panic!("`)` expected at {words:?}") };
            *words = rest;
            holds
        }
        [licence, "WITH", exception, rest @ ..] => {
            *words = rest;
            ok(&format!("{licence} WITH {exception}"))
        }
        [licence, rest @ ..] => {
            *words = rest;
            ok(licence)
        }
        [] => panic!("an SPDX expression ends too early"),
    }
}

#[test]
fn spdx_expressions_are_read() {
    let ok = |id: &str| matches!(id, "MIT" | "Unicode-3.0");
    for (expression, holds) in [
        ("MIT", true),
        ("GPL-2.0", false),
        ("GPL-2.0 OR MIT", true),
        ("MIT/GPL-2.0", true),
        ("(MIT OR GPL-2.0) AND Unicode-3.0", true),
        ("MIT AND GPL-2.0", false),
        ("Apache-2.0 WITH LLVM-exception OR MIT", true),
        ("Apache-2.0 WITH LLVM-exception", false),
    ] {
        assert_eq!(satisfied(expression, &ok), holds, "{expression}");
    }
}
