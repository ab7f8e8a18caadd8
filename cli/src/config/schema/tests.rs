//! Tests of the schema: it says what the reader does.

use std::path::Path;

use super::super::{Config, parse};
use super::*;

fn keys() -> Vec<String> {
    let honoured = KEYS.iter().filter(|key| key.honoured);
    let mut keys: Vec<String> = honoured.map(|k| format!("{}.{}", k.table, k.name)).collect();
    keys.sort();
    keys
}

/// `table.key` and its schema.
fn described() -> Vec<(String, Value)> {
    let schema = schema();
    let tables = schema["properties"].as_object().expect("tables");
    let mut found = Vec::new();
    for (table, schema) in tables {
        // One in double brackets has no defaults.
        let Some(keys) = schema["properties"].as_object() else { continue };
        for (key, schema) in keys {
            found.push((format!("{table}.{key}"), schema.clone()));
        }
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    found
}

#[test]
fn every_honoured_key_is_described_and_no_other() {
    let described = described();
    let names: Vec<&str> = described.iter().map(|(name, _)| &**name).collect();
    assert_eq!(names, keys());
    for (name, schema) in &described {
        let text = schema["description"].as_str().unwrap_or_default();
        assert!(text.contains(". Used by "), "{name}: {text}");
        assert!(!text.contains('\n'), "{name}: {text}");
        assert!(text.contains("Default: ") || text.contains("No default: "), "{name}: {text}");
    }
}

/// The defaults written out are the configuration that an empty file is.
#[test]
fn defaults_are_the_readers() {
    let mut text = String::new();
    for (name, schema) in described() {
        if let Some(default) = schema.get("default") {
            // A string, a number, a list and a boolean look alike in JSON and TOML.
            text.push_str(&format!("{name} = {default}\n"));
            let faults = faults(default, &schema, &name);
            assert!(faults.is_empty(), "{faults:?}");
        } else {
            assert!(["guard.mode", "policy.directory"].contains(&&*name), "{name}: no default");
        }
    }
    let read = parse(Path::new("t.toml"), &text).expect("no faults");
    assert_eq!(read, Config::default());
}

#[test]
fn the_documented_example_is_valid_and_faults_are_found() {
    let docs = include_str!("../../../../docs/configuration.md");
    let block = docs.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
    let schema = schema();
    let judge = |text: &str| faults(&toml(text), &schema, "");
    assert_eq!(judge(block.expect("a block")), Vec::<String>::new());
    for (text, want) in [
        ("path.hold = \"1s\"", "path is not expected"),
        ("device.queues = 0", ".device.queues: none of anyOf"),
        ("device.queues = \"some\"", ".device.queues: none of anyOf"),
        ("device.mtu = 1279", ".device.mtu: minimum"),
        ("device.mtu = \"1500\"", ".device.mtu: type"),
        ("device.capture = []", ".device.capture: none of anyOf"),
        ("host.table = 254", ".host.table: not"),
        ("host.table = 4294967296", ".host.table: maximum"),
        ("guard.mode = \"closed\"", ".guard.mode: enum"),
        ("guard.local = [3]", ".guard.local: type"),
        ("control.admins = [true]", ".control.admins: none of anyOf"),
        ("control.admins = [4294967295]", ".control.admins: none of anyOf"),
        ("control.web = \"127.0.0.1:80\"", ".control.web: maxLength"),
        ("limits = 3", ".limits: type"),
    ] {
        let found = judge(text);
        let want =
            if want.starts_with('.') { want.to_owned() } else { ".path is not expected".into() };
        assert_eq!(found, [want], "{text}");
        parse(Path::new("t.toml"), text).expect_err(text);
    }
    for text in [
        "device.queues = 64\ndevice.capture = [\"10.0.0.0/8\"]",
        "device.capture = \"none\"\ncontrol.admins = [\"root\", 0, 4294967294]",
        "host.table = 4294967295\nguard.local = []",
    ] {
        assert_eq!(judge(text), Vec::<String>::new(), "{text}");
        parse(Path::new("t.toml"), text).expect(text);
    }
}

fn toml(text: &str) -> Value {
    let table: toml::Table = text.parse().expect("TOML");
    serde_json::to_value(table).expect("JSON")
}

/// What is wrong with `value`, by the keywords that the schema uses.
fn faults(value: &Value, schema: &Value, at: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut check = |right: bool, keyword: &str| {
        if !right {
            found.push(format!("{at}: {keyword}"));
        }
    };
    let length = value.as_str().map(|text| text.chars().count() as u64);
    let items = value.as_array().map(|items| items.len() as u64);
    let mut below = Vec::new();
    for (keyword, wanted) in schema.as_object().expect("an object") {
        let bound = wanted.as_u64().unwrap_or_default();
        match keyword.as_str() {
            "type" => {
                let fits = match wanted.as_str() {
                    Some("object") => value.is_object(),
                    Some("array") => value.is_array(),
                    Some("string") => value.is_string(),
                    Some("boolean") => value.is_boolean(),
                    Some("integer") => value.is_i64() || value.is_u64(),
                    other => panic!("type {other:?}"),
                };
                check(fits, keyword);
                if !fits {
                    return found;
                }
            }
            "enum" => check(wanted.as_array().is_some_and(|all| all.contains(value)), keyword),
            "const" => check(wanted == value, "enum"),
            "minimum" => check(value.as_i64().is_none_or(|v| v >= bound as i64), keyword),
            "maximum" => check(value.as_i64().is_none_or(|v| v <= bound as i64), keyword),
            "minLength" => check(length.is_none_or(|length| length >= bound), keyword),
            "maxLength" => check(length.is_none_or(|length| length <= bound), keyword),
            "minItems" => check(items.is_none_or(|items| items >= bound), keyword),
            "maxItems" => check(items.is_none_or(|items| items <= bound), keyword),
            "not" => check(!faults(value, wanted, at).is_empty(), keyword),
            "anyOf" => {
                let mut all = wanted.as_array().into_iter().flatten();
                check(all.any(|one| faults(value, one, at).is_empty()), "none of anyOf");
            }
            "items" => {
                for item in value.as_array().into_iter().flatten() {
                    below.extend(faults(item, wanted, at));
                }
            }
            "properties" => {
                for (key, value) in value.as_object().into_iter().flatten() {
                    let at = format!("{at}.{key}");
                    match wanted.get(key) {
                        Some(schema) => below.extend(faults(value, schema, &at)),
                        None => below.push(format!("{at} is not expected")),
                    }
                }
            }
            "additionalProperties" => assert_eq!(*wanted, json!(false)),
            "$schema" | "title" | "description" | "default" | "format" | "pattern" => {}
            other => panic!("{at}: the keyword {other}"),
        }
    }
    found.extend(below);
    found
}
