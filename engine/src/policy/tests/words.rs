//! Which words of the language are honoured, and which are refused where.

use super::*;

/// Every word of the language, in a line where it is used, and what becomes of it.
#[test]
fn each_word_is_honoured_or_refused() {
    const HONOURED: &str = "";
    const LATER: &str = code::NOT_IN_THIS_VERSION;
    let table = [
        ("policy", "policy 1", code::REPEATED),
        ("set", "set a = 10.0.0.0/8\nallow to @a", HONOURED),
        ("file", "set a = file \"lists/lan.txt\"\nallow to @a", HONOURED),
        ("route", "route to 10.0.0.0/8 via direct", HONOURED),
        ("resolve", "resolve *.corp.example using corp", HONOURED),
        ("allow", "allow", HONOURED),
        ("block", "block", HONOURED),
        ("drop", "drop", HONOURED),
        ("ask", "ask within 2s else block", LATER),
        ("default", "expect block tcp any to 192.0.2.1", HONOURED),
        ("expect", "expect block udp 192.0.2.1 to 192.0.2.2 port 53 user alice", HONOURED),
        ("tcp", "allow tcp", HONOURED),
        ("udp", "allow udp", HONOURED),
        ("icmp", "allow icmp", HONOURED),
        ("from", "allow from 10.0.0.1", HONOURED),
        ("client", "allow client 10.0.0.1", HONOURED),
        ("egress", "allow egress eth0 10.0.0.1", HONOURED),
        ("to", "allow to 10.0.0.1", HONOURED),
        ("port", "allow port 80 8000-8100", HONOURED),
        ("via", "allow via direct", HONOURED),
        ("resolver", "allow resolver corp upstream", HONOURED),
        ("user", "allow user alice 1001", HONOURED),
        ("app", "allow app /usr/bin/curl", LATER),
        ("cgroup", "allow cgroup /user.slice", HONOURED),
        ("protected", "allow udp protected", HONOURED),
        ("id", "allow id web", HONOURED),
        ("not", "allow to not 10.0.0.1", HONOURED),
        ("any", "allow to any", HONOURED),
        ("multicast", "allow to multicast", HONOURED),
        ("broadcast", "allow to broadcast", HONOURED),
        ("unknown", "allow user unknown", HONOURED),
        ("unknown-name", "allow to unknown-name", HONOURED),
        ("within", "ask to 10.0.0.1 within 500ms else drop", LATER),
        ("else", "resolve a.example using corp else upstream", HONOURED),
        ("using", "resolve * using upstream", HONOURED),
        ("and", "resolve a.example using corp and upstream private", HONOURED),
        ("or", "set a = b.example\nresolve a.example @a using corp or upstream", HONOURED),
        ("private", "resolve a.example using corp private", HONOURED),
        ("none", "resolve a.example using none", HONOURED),
    ];
    let words = [&parse::STATEMENTS[..], &parse::CLAUSES, &parse::OTHERS, &["none"]].concat();
    for word in words {
        assert!(table.iter().any(|(tested, ..)| *tested == word), "no line for `{word}`");
    }
    for (word, text, want) in table {
        let loaded = line(text);
        match loaded {
            Ok(_) => assert_eq!(want, HONOURED, "`{word}` is honoured"),
            Err(found) => {
                let codes: Vec<_> = found.iter().map(|d| d.code).collect();
                assert_eq!(codes, [want], "`{word}`: {found:#?}");
            }
        }
    }
}

#[test]
fn refused_in_this_version_at_its_place() {
    for (text, column) in [
        ("allow tcp app /usr/bin/curl", 11),
        ("ask tcp within 2s else drop", 1),
        ("expect block tcp any to 10.0.0.1 app /usr/bin/curl", 38),
    ] {
        let want = format!("{} a.policy:2:{column}", code::NOT_IN_THIS_VERSION);
        assert_eq!(said(&line(text)), [want], "{text}");
    }
}

#[test]
fn where_domains_match_nothing() {
    for (name, text, want) in [
        ("in to", "set s = 10.0.0.1 a.example\nblock to @s", vec![]),
        ("beside addresses", "set s = 10.0.0.1 a.example\nblock from @s", vec![]),
        (
            "nothing but domains",
            "set s = a.example\nblock from @s",
            vec!["domain-here a.policy:3:12"],
        ),
        ("its file in to", "set s = file \"lists/ads.txt\"\nblock to @s", vec![]),
        ("its file in from", "set s = file \"lists/ads.txt\"\nblock from @s", vec![]),
        ("in the list itself", "block from a.example", vec!["domain-here a.policy:2:12"]),
        ("beside others", "block from a.example 10.0.0.1", vec!["domain-here a.policy:2:12"]),
    ] {
        assert_eq!(said(&line(text)), want, "{name}");
    }
}
