//! `import` as people use it: twelve files as they are found, each with what becomes of it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const FILES: [&str; 12] = [
    "comments",
    "corp-split",
    "kill-switch",
    "mtu",
    "odd",
    "phone",
    "provider",
    "road-warriors",
    "site",
    "table-off",
    "two-dns",
    "v6-only",
];

/// A directory of its own, gone at the end.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tunneld-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    /// A copy of a file for its owner alone.
    fn copy(&self, name: &str) -> PathBuf {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/import");
        let to = self.0.join(format!("{name}.conf"));
        fs::copy(from.join(format!("{name}.conf")), &to).expect("a file");
        fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).expect("a mode");
        to
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn tunneld(arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_tunneld");
    Command::new(program).args(arguments).output().expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn shown(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

#[test]
fn files_as_people_have_them() {
    let directory = Directory::new("import-shown");
    for name in FILES {
        let file = directory.copy(name);
        let output = tunneld(&["import", shown(&file), "--name", "wg0"]);
        assert_eq!(output.status.code(), Some(0), "{name}: {}", text(&output.stderr));
        let said =
            format!("{}\n==== standard error ====\n{}", text(&output.stdout), text(&output.stderr));
        insta::assert_snapshot!(name, said);
    }
}

/// What is written is a configuration and a policy that a daemon takes, whose expectations
/// hold, and says all that the file says of WireGuard.
#[test]
fn what_is_written_is_valid() {
    let directory = Directory::new("import-written");
    for name in FILES {
        let file = directory.copy(name);
        let output = directory.0.join(name);
        let written =
            tunneld(&["import", shown(&file), "--name", "wg0", "--output", shown(&output)]);
        assert_eq!(written.status.code(), Some(0), "{name}: {}", text(&written.stderr));
        let (config, policy) = (output.join("tunneld.toml"), output.join("policy.d/wg0.policy"));
        let want = format!("{}\n{}\n", config.display(), policy.display());
        assert_eq!(text(&written.stdout), want);
        let mode = fs::metadata(&config).expect("a file").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{name}");
        let check = tunneld(&["check", "--config", shown(&config)]);
        assert_eq!(check.status.code(), Some(0), "{name}: {}", text(&check.stderr));
        assert!(text(&check.stdout).contains("expect"), "{name}: {}", text(&check.stdout));
        let fmt = tunneld(&["fmt", "--check", shown(&policy)]);
        assert_eq!(fmt.status.code(), Some(0), "{name} is not canonical");
        // Every key of the file is in it, and none in the policy or among what is told.
        let config = fs::read_to_string(&config).expect("a file");
        let policy = fs::read_to_string(&policy).expect("a file");
        let told = text(&written.stderr);
        let conf = fs::read_to_string(&file).expect("a file");
        let keys = conf.lines().filter_map(|line| {
            let (key, value) = line.split_once('=')?;
            let is_key = key.to_ascii_lowercase().trim().ends_with("key");
            value.split_whitespace().next().filter(|value| is_key && value.ends_with('='))
        });
        let keys: Vec<&str> = keys.filter(|key| key.len() == 44).collect();
        assert!(keys.len() >= 2, "{name}: {keys:?}");
        for key in keys {
            assert!(config.contains(key), "{name}: {key}");
            assert!(!policy.contains(key) && !told.contains(key), "{name}: {key}");
        }
    }
}

#[test]
fn nothing_is_overwritten() {
    let directory = Directory::new("import-over");
    let file = directory.copy("provider");
    let output = directory.0.join("etc");
    let import = || tunneld(&["import", shown(&file), "--output", shown(&output)]);
    assert_eq!(import().status.code(), Some(0));
    let config = fs::read_to_string(output.join("tunneld.toml")).expect("a file");
    let again = import();
    assert_eq!(again.status.code(), Some(5));
    assert!(text(&again.stderr).contains("nothing is overwritten"), "{}", text(&again.stderr));
    fs::remove_dir_all(output.join("policy.d")).expect("a directory");
    assert_eq!(import().status.code(), Some(5));
    assert!(!output.join("policy.d").exists());
    assert_eq!(fs::read_to_string(output.join("tunneld.toml")).expect("a file"), config);
}

#[test]
fn an_object_for_programs() {
    let directory = Directory::new("import-json");
    let file = directory.copy("kill-switch");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("a mode");
    let output = tunneld(&["import", "--json", shown(&file)]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&object["event"], &object["name"]), (&"import".into(), &"kill-switch".into()));
    assert!(object["config"].as_str().is_some_and(|text| text.contains("[[wireguard.peer]]")));
    assert!(object["policy"].as_str().is_some_and(|text| text.contains("id kill-switch")));
    assert_eq!(object["dropped"][0]["key"], "PostUp");
    assert_eq!(object["dropped"][0]["line"], 6);
    let notes = object["notes"].to_string();
    assert!(notes.contains("others may read the key"), "{notes}");
    assert!(object["written"].is_null());
}

#[test]
fn faults_are_told_at_once_and_show_no_key() {
    let directory = Directory::new("import-bad");
    let file = directory.0.join("wg0.conf");
    let key = "gI6EdUSYvn8ugXOt8QQD6Yc+JyiZxIhp3GInSWRfWGE=";
    fs::write(&file, format!("[Interface]\nPrivateKey = {key}x\nMTU = {key}\nAdress = 10.0.0.1\n"))
        .expect("a file");
    let output = tunneld(&["import", shown(&file)]);
    assert_eq!((output.status.code(), &*output.stdout), (Some(1), &b""[..]));
    let told = text(&output.stderr);
    assert_eq!(told.matches("error[configuration]").count(), 4, "{told}");
    assert!(!told.contains(&key[..30]) && told.contains("did you mean `Address`?"), "{told}");
    for (arguments, exit, want) in [
        (vec!["import", "--name", "any", shown(&file)], 2, "`any` is a word of policies"),
        (vec!["import", "--name", "a b", shown(&file)], 2, "not a name for a tunnel"),
        (vec!["import", "--name", "tunneld0", shown(&file)], 2, "the name of the TUN device"),
        (vec!["import", "--name", "wg0", shown(&directory.0)], 5, "not a file"),
        (vec!["import", "/nonexistent.conf"], 5, "No such file"),
    ] {
        let output = tunneld(&arguments);
        assert_eq!(output.status.code(), Some(exit), "{arguments:?}");
        assert!(text(&output.stderr).contains(want), "{}", text(&output.stderr));
    }
}
