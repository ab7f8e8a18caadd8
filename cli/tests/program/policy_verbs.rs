//! `check`, `fmt` and `explain` as scripts see them: exit codes, what goes to which
//! stream, JSON.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const GOOD: &str = "\
policy 1
set lan = 10.0.0.0/8
block to @lan port 22 id no-ssh
allow to @lan user root
drop udp to 192.0.2.1
default allow
expect block tcp any to 10.0.0.1 port 22
";

/// A directory of its own, gone at the end.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str, files: &[(&str, &[u8])]) -> Self {
        let path = std::env::temp_dir().join(format!("tunneld-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("temporary directory");
        for (name, text) in files {
            fs::write(path.join(name), text).expect("file");
        }
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("a plain path").to_owned()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct Said {
    exit: Option<i32>,
    out: String,
    err: String,
}

fn tunneld(arguments: &[&str]) -> Said {
    let output = Command::new(env!("CARGO_BIN_EXE_tunneld"))
        .args(arguments)
        .output()
        .expect("the program runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    let said =
        Said { exit: output.status.code(), out: text(output.stdout), err: text(output.stderr) };
    // The argument parser quotes what it was given, however long.
    let usage = said.exit == Some(2) || arguments.contains(&"--json");
    for line in said.err.lines().filter(|_| !usage) {
        assert!(line.chars().count() <= 80, "wide: {line}");
    }
    assert!(!said.err.contains('\x1b') && !said.out.contains('\x1b'), "colour without a terminal");
    said
}

#[test]
fn check() {
    let files: &[(&str, &[u8])] = &[
        ("10.policy", GOOD.as_bytes()),
        (".20.policy", b"no policy"),
        ("notes.txt", b"no policy"),
    ];
    let good = Directory::new("check", files);
    let said = tunneld(&["check", &good.path("")]);
    assert_eq!((said.exit, &*said.err), (Some(0), ""));
    assert_eq!(said.out, "valid: 1 file, 3 rules, 1 set, 1 expect passed\n");

    fs::write(good.path("30.policy"), "policy 1\nalow\nallow user nobody-at-all\n").expect("file");
    let said = tunneld(&["check", &good.path("")]);
    assert_eq!((said.exit, &*said.out), (Some(1), ""));
    assert!(said.err.contains("30.policy:2:1\n"), "{}", said.err);
    assert!(said.err.ends_with("\n2 errors in 2 files\n"), "{}", said.err);
    let said = tunneld(&["check", "--syntax", &good.path("30.policy")]);
    assert!(said.err.ends_with("\n1 error in 1 file\n"), "{}", said.err);

    let said = tunneld(&["--json", "check", &good.path("30.policy")]);
    assert_eq!((said.exit, &*said.err), (Some(1), ""));
    let lines: Vec<serde_json::Value> =
        said.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 4, "{}", said.out);
    assert_eq!(lines[0]["code"], "unknown-statement");
    assert_eq!((lines[0]["line"].as_u64(), lines[0]["column"].as_u64()), (Some(2), Some(1)));
    assert_eq!(lines[3]["event"], "check");
    assert_eq!((&lines[3]["valid"], &lines[3]["errors"]), (&false.into(), &3.into()));
}

/// What `run` would read, all of it at once.
#[test]
fn check_a_configuration() {
    const GUARD: &str = "[guard]\nmode = \"open\"\n";
    const BAD: &str = "policy 1\nalow\ndefault block\n";
    const OWN: &str = "[policy]\ndirectory = \".\"\n";
    let directory = Directory::new("config", &[]);
    let file = directory.path("tunneld.toml");
    for (name, config, policy, exit, places) in [
        ("all is well", format!("{OWN}{GUARD}"), GOOD, 0, &[][..]),
        ("the policy", format!("{OWN}{GUARD}"), BAD, 1, &["a.policy:2:1"]),
        ("the guard", OWN.to_owned(), GOOD, 1, &["tunneld.toml:1:1"]),
        (
            "everything",
            format!("{OWN}[device]\nmtu = 7\nnmae = \"x\"\n"),
            BAD,
            1,
            &["tunneld.toml:1:1", "tunneld.toml:4:7", "tunneld.toml:5:1", "a.policy:2:1"],
        ),
        // Nobody knows which policy is meant.
        ("no TOML", "[".to_owned(), BAD, 1, &["tunneld.toml:1:2"]),
        ("no path", format!("[policy]\ndirectory = 3\n{GUARD}"), BAD, 1, &["tunneld.toml:2:13"]),
        ("no key", format!("[policy]\nfile = \"\"\n{GUARD}"), BAD, 1, &["tunneld.toml:2:1"]),
        // What is wrong with the configuration is told in any case.
        (
            "no policy",
            format!("[policy]\ndirectory = \"none\"\n[device]\nmtu = 7\n{GUARD}"),
            GOOD,
            5,
            &["tunneld.toml:4:7"],
        ),
    ] {
        fs::write(&file, config).expect("file");
        fs::write(directory.path("a.policy"), policy).expect("file");
        let said = tunneld(&["--json", "check", "--config", &file]);
        assert_eq!(said.exit, Some(exit), "{name}: {}{}", said.out, said.err);
        let mut lines: Vec<serde_json::Value> =
            said.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        if exit != 5 {
            let sum = lines.pop().expect("a summary");
            assert_eq!((&sum["event"], &sum["valid"]), (&"check".into(), &(exit == 0).into()));
            assert_eq!((&sum["config"], &sum["errors"]), (&(&*file).into(), &places.len().into()));
        }
        let told: Vec<String> = lines
            .iter()
            .map(|fault| {
                let file = Path::new(fault["file"].as_str().expect("a path")).file_name();
                let file = file.expect("a name").to_string_lossy();
                format!("{file}:{}:{}", fault["line"], fault["column"])
            })
            .collect();
        assert_eq!(told, places, "{name}");
        let said = tunneld(&["check", "--config", &file]);
        assert_eq!(said.exit, Some(exit), "{name}: {}", said.err);
        for place in places {
            assert!(said.err.contains(&format!("{place}\n")), "{name}: {}", said.err);
        }
    }
    fs::write(&file, format!("{OWN}{GUARD}")).expect("file");
    let said = tunneld(&["check", "--config", &file]);
    let want = format!("valid: {file}, 1 file, 3 rules, 1 set, 1 expect passed\n");
    assert_eq!((&*said.out, &*said.err), (&*want, ""));
}

#[test]
fn what_cannot_be_read() {
    let directory = Directory::new("unreadable", &[("a.policy", b"policy 1\nallow \xff\n")]);
    for (arguments, exit) in [
        (vec!["check", "/nowhere/policy.d"], 5),
        (vec!["check", "--config", "/nowhere/tunneld.toml"], 5),
        (vec!["check", "--config", "/dev/null", "/nowhere/policy.d"], 2),
        (vec!["check", "--config", "/dev/null", "--syntax"], 2),
        (vec!["fmt", "/nowhere/policy.d"], 5),
        (vec!["explain", "tcp", "any", "192.0.2.1", "--policy", "/nowhere"], 5),
        (vec!["check", &directory.path("a.policy")], 1),
        (vec!["fmt", "--check", &directory.path("a.policy")], 1),
        (vec!["check", "/dev/null"], 1),
        (vec!["check", "--nonsense"], 2),
    ] {
        let said = tunneld(&arguments);
        assert_eq!(said.exit, Some(exit), "{arguments:?}: {}", said.err);
        assert!(said.err.starts_with("error"), "{arguments:?}: {}", said.err);
    }
    fs::remove_file(directory.path("a.policy")).expect("file");
    let said = tunneld(&["check", &directory.path("")]);
    assert_eq!(said.exit, Some(5), "an empty directory: {}", said.err);
}

#[test]
fn fmt() {
    let rough = GOOD.replacen("port 22", "port  22,23", 1);
    let directory = Directory::new(
        "fmt",
        &[("a.policy", rough.as_bytes()), ("b.policy", b"policy 1\n"), ("c.policy", b"alow")],
    );
    let read = |name: &str| fs::read_to_string(directory.path(name)).expect("file");
    let said = tunneld(&["fmt", "--check", &directory.path("")]);
    assert_eq!(said.exit, Some(1));
    assert_eq!(said.out, format!("{}\n", directory.path("a.policy")));
    assert_eq!(read("a.policy"), rough);

    fs::remove_file(directory.path("c.policy")).expect("file");
    assert_eq!(tunneld(&["fmt", &directory.path("")]).exit, Some(0));
    assert_eq!(read("a.policy"), GOOD.replacen("port 22", "port 22 23", 1));
    assert_eq!(tunneld(&["fmt", "--check", &directory.path("")]).exit, Some(0));
    let left = fs::read_dir(Path::new(&directory.path(""))).expect("directory").count();
    assert_eq!(left, 2, "no temporary file stays");
}

#[test]
fn explain() {
    let directory = Directory::new("explain", &[("a.policy", GOOD.as_bytes())]);
    let policy = directory.path("a.policy");
    for (flow, exit, wants) in [
        (vec!["tcp", "any", "10.0.0.1:22"], 1, "verdict     block by no-ssh\n"),
        (vec!["tcp", "any", "10.0.0.1:22"], 1, "app         ECONNREFUSED\n"),
        (
            vec!["tcp", "10.0.0.2", "10.0.0.1:80", "--user", "root"],
            0,
            "verdict     allow by a.policy:4\n",
        ),
        (vec!["tcp", "10.0.0.2", "10.0.0.1:80"], 0, "not known:     user root\n"),
        (vec!["tcp", "any", "[2001:db8::1]:80"], 0, "verdict     allow by default\n"),
        (vec!["udp", "any", "192.0.2.1:53"], 1, "verdict     drop by a.policy:5\n"),
        (vec!["tcp", "any", "192.0.2.1", "--client", "10.0.0.9"], 0, "client      10.0.0.9\n"),
        (vec!["tcp", "::1", "192.0.2.1"], 2, "not of one address family"),
        (vec!["sctp", "any", "192.0.2.1"], 2, "tcp, udp or icmp"),
        (vec!["tcp", "any", "www.example.com:80"], 0, "flow        tcp to www.example.com:80\n"),
        (vec!["tcp", "any", "WWW.example.com"], 0, "name        www.example.com\n"),
        (vec!["tcp", "any", "www..example.com"], 2, "empty"),
        (vec!["tcp", "any", "192.0.2.1", "--app", "/bin/sh"], 2, "not in this version"),
        (vec!["tcp", "any", "192.0.2.1", "--user", "nobody-at-all"], 2, "no user"),
    ] {
        let said = tunneld(&[&["explain"], &flow[..], &["--policy", &policy]].concat());
        assert_eq!(said.exit, Some(exit), "{flow:?}: {}{}", said.out, said.err);
        assert!((said.out + &said.err).contains(wants), "{flow:?}");
    }
    // What a configuration has may be named where it is given.
    let named =
        "policy 1\nroute to 10.0.0.0/8 via office\nblock via office port 22\ndefault allow\n";
    let config = "[[proxy]]\nname = \"office\"\nurl = \"socks5://192.0.2.9:1080\"\n";
    let files = [("b.policy", named.as_bytes()), ("t.toml", config.as_bytes())];
    let directory = Directory::new("explain-named", &files);
    let (named, config) = (directory.path("b.policy"), directory.path("t.toml"));
    let flow = ["explain", "tcp", "any", "10.0.0.1:22", "--policy", &named];
    let said = tunneld(&flow);
    assert_eq!(said.exit, Some(1));
    assert!(said.err.contains("`office`") && said.out.is_empty(), "{}{}", said.out, said.err);
    let said = tunneld(&[&flow[..], &["--config", &config]].concat());
    assert_eq!(said.exit, Some(1), "{}", said.err);
    assert!(said.out.contains("way out     office\n"), "{}", said.out);
    assert!(said.out.contains("verdict     block by b.policy:3\n"), "{}", said.out);

    let said = tunneld(&["explain", "tcp", "any", "192.0.2.1"]);
    assert_eq!(said.exit, Some(3));
    assert!(said.err.starts_with("error: explain: daemon not running\nhelp: "), "{}", said.err);

    let said = tunneld(&["explain", "--json", "tcp", "any", "10.0.0.1:22", "--policy", &policy]);
    let told: serde_json::Value = serde_json::from_str(&said.out).expect("JSON");
    assert_eq!((&told["verdict"], &told["rule"]), (&"block".into(), &"no-ssh".into()));
    assert_eq!(told["rules"][0]["line"], 3);
}
