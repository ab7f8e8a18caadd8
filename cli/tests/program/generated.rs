//! What is made of the command line and the configuration: manual pages, completions, the
//! schema. They are given to the programs that read them, where those are here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// A directory of its own, gone at the end.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tunneld-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("temporary directory");
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn tunneld(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tunneld")).args(arguments).output().expect("it runs")
}

/// What it printed, where nothing went wrong.
fn printed(arguments: &[&str]) -> String {
    let output = tunneld(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{arguments:?}: {stderr}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Runs a reader over a file: `None` where this host has no such program.
fn read_by(program: &str, arguments: &[&str], file: &Path) -> Option<Output> {
    match Command::new(program).args(arguments).arg(file).output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("SKIPPED: no {program} here");
            None
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

#[test]
fn manual_pages_are_read_without_a_warning() {
    let directory = Directory::new("man");
    assert_eq!(printed(&["man", "--dir", directory.0.to_str().expect("a plain path")]), "");
    let pages: Vec<PathBuf> =
        fs::read_dir(&directory.0).expect("pages").map(|e| e.expect("a page").path()).collect();
    assert!(pages.len() > 5, "{pages:?}");
    for page in &pages {
        let name = page.file_name().and_then(|name| name.to_str()).expect("a plain name");
        for (program, arguments) in [
            ("groff", &["-man", "-ww", "-z", "-K", "utf8", "-T", "utf8"][..]),
            // It also wants a date, which a page that is made on demand hasn't.
            ("mandoc", &["-T", "lint", "-W", "error"]),
        ] {
            let Some(read) = read_by(program, arguments, page) else { continue };
            let said = String::from_utf8_lossy(&read.stderr);
            assert!(read.status.success() && said.is_empty(), "{program} {name}: {said}");
        }
    }
    let page = |name: &str| fs::read_to_string(directory.0.join(name)).expect(name);
    assert_eq!(page("tunneld.1"), printed(&["man"]));
    assert_eq!(page("tunneld-exec.1"), printed(&["man", "exec"]));
    assert!(page("tunneld-exec.1").contains("\\fB126\\fR\nCMD not executable"));
}

#[test]
fn what_is_asked_for_wrongly_is_said() {
    for (arguments, exit, said) in [
        (&["man", "exek"][..], 2, "error: no page: unknown verb `exek`\nhelp: "),
        (&["man", "--dir", "/nowhere/at/all"], 5, "error: /nowhere/at/all/tunneld.1: No such"),
        (&["completions", "tcsh"], 2, "error: invalid value 'tcsh'"),
        (&["schema", "dns"], 2, "error: unexpected argument 'dns'"),
    ] {
        let output = tunneld(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(exit), "{arguments:?}: {stderr}");
        assert!(stderr.starts_with(said), "{arguments:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn shells_read_their_completions() {
    let directory = Directory::new("completions");
    for (shell, arguments) in [("bash", &["-n"][..]), ("zsh", &["-n"]), ("fish", &["--no-execute"])]
    {
        let script = printed(&["completions", shell]);
        for word in ["exec", "host-loopback", "completions", "json"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
        let file = directory.0.join(shell);
        fs::write(&file, &script).expect("file");
        let Some(read) = read_by(shell, arguments, &file) else { continue };
        let said = String::from_utf8_lossy(&read.stderr);
        assert!(read.status.success() && said.is_empty(), "{shell}: {said}");
    }
    // bash completes with it.
    let asked = "source \"$0\"; COMP_WORDS=(tunneld exe); COMP_CWORD=1; \
                 _tunneld tunneld exe tunneld; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let file = directory.0.join("bash");
    let Some(read) = read_by("bash", &["-c", asked], &file) else { return };
    assert_eq!(String::from_utf8_lossy(&read.stdout), "exec\n");
}

#[test]
fn json_is_objects() {
    let schema: Value = serde_json::from_str(&printed(&["schema"])).expect("JSON");
    assert_eq!(schema["$schema"], "http://json-schema.org/draft-07/schema#");
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(schema["properties"]["device"]["properties"]["mtu"]["default"], 1500);
    let directory = Directory::new("json");
    let directory = directory.0.to_str().expect("a plain path");
    for (arguments, event) in [
        (&["--json", "man"][..], Some("page")),
        (&["man", "exec", "--json"], Some("page")),
        (&["man", "--json", "--dir", directory], Some("page")),
        (&["completions", "bash", "--json"], Some("completions")),
        (&["schema", "--json"], None),
    ] {
        let text = printed(arguments);
        assert!(!text.is_empty(), "{arguments:?}");
        for line in text.lines() {
            let object: Value = serde_json::from_str(line).expect(line);
            assert_eq!(object["event"].as_str(), event, "{arguments:?}");
        }
    }
}
