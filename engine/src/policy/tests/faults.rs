//! What is wrong with a text: its place, its help, over several files.

use super::*;

#[test]
fn faults_of_one_line() {
    for (text, want) in [
        ("alow tcp", "unknown-statement a.policy:2:1"),
        ("allow prot tcp", "unknown-clause a.policy:2:7"),
        ("allow 10.0.0.1", "unknown-clause a.policy:2:7"),
        ("allow tcp, udp", "unknown-clause a.policy:2:10"),
        ("allow not tcp", "unknown-clause a.policy:2:7"),
        ("allow tcp tcp", "repeated a.policy:2:11"),
        ("allow tcp udp", "repeated a.policy:2:11"),
        ("allow to 10.0.0.1 tcp to 10.0.0.2", "repeated a.policy:2:23"),
        ("allow to", "missing a.policy:2:9"),
        ("allow to port 80", "missing a.policy:2:10"),
        ("allow to not", "missing a.policy:2:13"),
        ("allow to 10.0.0.1,", "trailing-comma a.policy:2:18"),
        ("allow to 10.0.0.1, port 80", "trailing-comma a.policy:2:18"),
        ("allow to , 10.0.0.1", "unexpected a.policy:2:10"),
        ("allow to 10.0.0.1,,10.0.0.2", "unexpected a.policy:2:19"),
        ("allow to not any", "not-any a.policy:2:14"),
        ("allow from not 10.0.0.1 any", "not-any a.policy:2:25"),
        ("allow egress not any", "not-any a.policy:2:18"),
        ("allow to default", "reserved-word a.policy:2:10"),
        ("allow user not root not alice", "unknown-clause a.policy:2:21"),
        ("allow to 10.0.0.1/8", "host-bits a.policy:2:10"),
        ("allow to 10.0.0.256", "bad-address a.policy:2:10"),
        ("allow from multicast", "bad-item a.policy:2:12"),
        ("allow to bücher.example", "bad-character a.policy:2:10"),
        ("allow to \"bücher.example\"", "bad-domain a.policy:2:10"),
        ("allow to a..b", "bad-domain a.policy:2:10"),
        ("allow to @", "bad-name a.policy:2:10"),
        ("allow to @nothing", "unknown-set a.policy:2:10"),
        ("allow port 80-70", "bad-port a.policy:2:12"),
        ("allow port http", "bad-port a.policy:2:12"),
        ("allow icmp port 80", "clause-not-allowed a.policy:2:12"),
        ("allow egress a-device-name-too-long", "bad-name a.policy:2:14"),
        ("allow user nobody-here", "unknown-user a.policy:2:12"),
        ("allow user 4294967295", "bad-item a.policy:2:12"),
        ("allow cgroup user.slice", "bad-path a.policy:2:14"),
        ("allow app curl", "bad-path a.policy:2:11"),
        ("allow id a:1", "bad-name a.policy:2:10"),
        ("allow id", "missing a.policy:2:9"),
        ("allow id port 80", "reserved-word a.policy:2:10"),
        ("allow id \"default\"", "bad-name a.policy:2:10"),
        ("block udp protected", "clause-not-allowed a.policy:2:11"),
        ("route from 10.0.0.1 via direct", "clause-not-allowed a.policy:2:7"),
        ("route egress eth0 via direct", "clause-not-allowed a.policy:2:7"),
        ("route to 10.0.0.0/8", "missing a.policy:2:20"),
        ("route to 10.0.0.0/8 via", "missing a.policy:2:24"),
        ("route via direct via direct", "repeated a.policy:2:18"),
        ("ask to 10.0.0.1 else block", "missing a.policy:2:17"),
        ("ask to 10.0.0.1 within 2 else block", "bad-duration a.policy:2:24"),
        ("resolve a.example using corp or lab and upstream", "unexpected a.policy:2:37"),
        ("resolve a.example using crop", "unknown-resolver a.policy:2:25"),
        ("resolve a.example using corp else corp", "repeated a.policy:2:35"),
        ("resolve a.example using none else corp", "unexpected a.policy:2:30"),
        ("resolve a.example using corp else none", "reserved-word a.policy:2:35"),
        ("resolve a.example using none private", "unexpected a.policy:2:30"),
        ("resolve a.example using", "missing a.policy:2:24"),
        ("resolve a.example", "missing a.policy:2:18"),
        ("resolve using corp", "missing a.policy:2:9"),
        ("resolve not a.example using corp", "unexpected a.policy:2:9"),
        ("resolve any using corp", "reserved-word a.policy:2:9"),
        ("resolve @nothing using corp", "unknown-set a.policy:2:9"),
        ("resolve a.example using corp via direct", "unexpected a.policy:2:30"),
        ("allow resolver crop", "unknown-resolver a.policy:2:16"),
        ("route resolver none via direct", "reserved-word a.policy:2:16"),
        ("set s = not 10.0.0.1", "unexpected a.policy:2:9"),
        ("route via not direct", "unexpected a.policy:2:11"),
        ("expect block tcp any to *.a.example", "bad-item a.policy:2:25"),
        ("resolve 10.0.0.1 using a", "bad-item a.policy:2:9"),
        ("default allow id x", "unexpected a.policy:2:15"),
        ("set a 10.0.0.1", "unexpected a.policy:2:7"),
        ("set a =", "missing a.policy:2:8"),
        ("set a = @b", "bad-item a.policy:2:9"),
        ("set a = any", "reserved-word a.policy:2:9"),
        ("set a = file lists/lan.txt", "bad-path a.policy:2:14"),
        ("set a = file \"/etc/hosts\"", "bad-path a.policy:2:14"),
        ("set a = file \"../hosts\"", "bad-path a.policy:2:14"),
        ("set a = file \"nothing.txt\"", "set-file a.policy:2:14"),
        ("set a = file \"lists/lan.txt\" 10.0.0.1", "unexpected a.policy:2:30"),
        ("expect maybe tcp any to 10.0.0.1", "unexpected a.policy:2:8"),
        ("expect block sctp any to 10.0.0.1", "unexpected a.policy:2:14"),
        ("expect block tcp any 10.0.0.1", "unexpected a.policy:2:22"),
        ("expect block tcp any to 10.0.0.1 port 1-2", "bad-port a.policy:2:39"),
        ("expect block icmp any to 10.0.0.1 port 1", "clause-not-allowed a.policy:2:40"),
        ("expect block tcp any to 10.0.0.1 port 1 port 2", "repeated a.policy:2:41"),
        ("expect block tcp ::1 to 10.0.0.1", "expect-failed a.policy:2:18"),
        ("expect block tcp 10.0.0.2 to 10.0.0.1 client 10.0.0.3", "expect-failed a.policy:2:18"),
        ("expect allow tcp any to 10.0.0.1", "expect-failed a.policy:2:1"),
        ("allow user \"root", "bad-quote a.policy:2:12"),
        ("allow user ro\\ot", "bad-character a.policy:2:12"),
        ("policy 1", "repeated a.policy:2:1"),
    ] {
        let loaded = line(text);
        let found = said(&loaded);
        assert!(loaded.is_err(), "{text}: {found:?}");
        assert!(found.iter().any(|found| found == want), "{text}: {found:?}");
        // What follows from a fault is not reported as another.
        assert!(found.len() <= 2, "{text}: {found:?}");
    }
}

#[test]
fn help_says_what_would_be_right() {
    for (text, want) in [
        ("alow tcp", "did you mean `allow`?"),
        ("allow prot 80", "did you mean `port`?"),
        ("allow 10.0.0.1", "write `to 10.0.0.1` or `from 10.0.0.1`"),
        ("allow tcp via drect", "did you mean `direct`?"),
        ("allow to default", "as an item it stands in quotes: \"default\""),
        ("set lans = 10.0.0.0/8\nallow to @lan", "did you mean `@lans`?"),
        ("resolve a.example using crop", "did you mean `corp`?"),
        (
            "resolve a.example using home",
            "`[[resolver]]` with `name = \"home\"` in tunneld.toml makes it",
        ),
        (
            "route from 10.0.0.1 via direct",
            "`client` is the source address as the app or the client sent it",
        ),
    ] {
        let found = line(text).expect_err(text);
        let help: Vec<_> = found.iter().filter_map(|d| d.help.as_deref()).collect();
        assert!(help.contains(&want), "{text}: {help:?}");
    }
}

#[test]
fn faults_over_several_files() {
    const HEAD: &str = "policy 1\n";
    for (name, texts, want) in [
        ("none", vec!["policy 1\nallow\n", "policy 1\ndefault block\n"], vec![]),
        ("no default", vec!["policy 1\nallow\n", HEAD], vec!["missing-default b.policy:1:9"]),
        ("no file", vec![], vec!["missing-default :1:1"]),
        ("empty file", vec!["", "policy 1\ndefault block\n"], vec!["format a.policy:1:1"]),
        ("comment file", vec!["# c\n", "policy 1\ndefault block\n"], vec!["format a.policy:2:1"]),
        (
            "two defaults",
            vec!["policy 1\ndefault block", "policy 1\ndefault block"],
            vec!["duplicate-default b.policy:2:9"],
        ),
        (
            "a broken default is one",
            vec!["policy 1\ndefault blok"],
            vec!["unexpected a.policy:2:9"],
        ),
        (
            "set twice",
            vec![
                "policy 1\nset a = 10.0.0.1\nallow to @a",
                "policy 1\nset a = 10.0.0.2\ndefault block",
            ],
            vec!["duplicate-set b.policy:2:5"],
        ),
        (
            "set from a later file",
            vec!["policy 1\nallow to @a", "policy 1\nset a = 10.0.0.2\ndefault block"],
            vec![],
        ),
        (
            "id twice",
            vec!["policy 1\nallow tcp id a", "policy 1\nroute udp via direct id a\ndefault block"],
            vec!["duplicate-id b.policy:2:25"],
        ),
        ("newer format", vec!["policy 2\nnew words\n"], vec!["format a.policy:1:8"]),
        ("no format", vec!["allow\ndefault block"], vec!["format a.policy:1:1"]),
        ("odd format", vec!["policy one\ndefault block"], vec!["format a.policy:1:8"]),
        (
            "a set that a newer file may have",
            vec!["policy 1\nallow to @a", "policy 2\n"],
            vec!["format b.policy:1:8"],
        ),
        (
            "all at once",
            vec!["policy 1\nalow\nblok\nallow to x/y", "policy 1\nset = 1\n"],
            vec![
                "unknown-statement a.policy:2:1",
                "unknown-statement a.policy:3:1",
                "bad-address a.policy:4:10",
                "missing b.policy:2:5",
                "bad-address b.policy:2:7",
                "missing-default b.policy:2:8",
            ],
        ),
    ] {
        assert_eq!(said(&load(&texts)), want, "{name}");
    }
    let twice = load(&["policy 1\nallow tcp id a\nallow udp id a\ndefault block"]);
    let twice = twice.expect_err("an id twice");
    assert_eq!(twice[0].related[0].place.line, 2);
}

#[test]
fn malformed_texts() {
    let megabyte = "x".repeat(1 << 20);
    let items = "10.0.0.1/8 ".repeat(1 << 16);
    for (name, text, loads) in [
        ("CRLF", "policy 1\r\nallow tcp\r\ndefault block\r\n".to_owned(), true),
        ("byte order mark", "\u{feff}policy 1\ndefault block".to_owned(), true),
        ("no line break at the end", "policy 1\ndefault block".to_owned(), true),
        ("NUL", "policy 1\0\ndefault block".to_owned(), false),
        ("only NUL", "\0".repeat(100), false),
        ("only quotes", "\"".repeat(1001), false),
        ("only backslashes", "\\".repeat(1001), false),
        ("only joins", "\\\n".repeat(1001), false),
        ("only commas", ",".repeat(100_000), false),
        ("megabyte word", format!("policy 1\n{megabyte}\ndefault block"), false),
        ("megabyte item", format!("policy 1\nallow to {megabyte}\ndefault block"), false),
        ("megabyte quote", format!("policy 1\nallow user \"{megabyte}\"\ndefault block"), false),
        ("megabyte comment", format!("policy 1\n#{megabyte}\ndefault block"), true),
        ("megabyte list", format!("policy 1\nallow to {items}\ndefault block"), false),
        ("many lines", format!("policy 1\n{}default block", "x\n".repeat(100_000)), false),
        ("old Mac line breaks", "policy 1\rdefault block\r".to_owned(), false),
    ] {
        let loaded = load(&[&text]);
        assert_eq!(loaded.is_ok(), loads, "{name}");
        if let Err(found) = loaded {
            assert!(found.len() <= 1_001, "{name}");
            assert!(found.iter().all(|d| d.message.len() < 400), "{name}");
        }
    }
}
