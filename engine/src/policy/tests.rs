//! Tables over whole policies: what loads, what is refused and where.

use std::collections::HashMap;

use super::*;
use crate::{Fact, Owner, Protocol};

/// Users and files out of tables.
struct Bench {
    files: HashMap<&'static str, String>,
}

impl Environment for Bench {
    fn uid(&self, user: &str) -> Option<u32> {
        [("root", 0), ("alice", 1000), ("unknown", 65_534)]
            .iter()
            .find(|(name, _)| *name == user)
            .map(|(_, uid)| *uid)
    }

    fn read(&self, _: &str, path: &str) -> Result<String, ReadError> {
        self.files.get(path).cloned().ok_or(ReadError::Missing)
    }
}

fn bench() -> Bench {
    let files = [
        ("lists/lan.txt", "10.0.0.0/8\n192.168.0.0/16 # home\n\nfd00::/8\n"),
        ("lists/ads.txt", "ads.example\n0.0.0.0 a.example b.example\n203.0.113.0/24\n"),
        ("lists/bad.txt", "10.0.0.1/8\nok.example\n-bad\n"),
        ("lists/empty.txt", "# nothing\n"),
    ];
    Bench { files: files.map(|(name, text)| (name, text.to_owned())).into() }
}

type Loaded = Result<(Policy, Vec<Diagnostic>), Vec<Diagnostic>>;

fn load(texts: &[&str]) -> Loaded {
    let sources: Vec<Source> = texts
        .iter()
        .zip(["a.policy", "b.policy", "c.policy"])
        .map(|(text, name)| Source { name: name.into(), text: (*text).into() })
        .collect();
    Policy::load(&sources, &bench())
}

/// `code file:line:column` of everything that was said.
fn said(loaded: &Loaded) -> Vec<String> {
    let diagnostics = match loaded {
        Ok((_, warnings)) => warnings,
        Err(diagnostics) => diagnostics,
    };
    diagnostics
        .iter()
        .map(|d| format!("{} {}:{}:{}", d.code, d.place.source, d.place.line, d.place.column))
        .collect()
}

/// Loads one line between a format and a default.
fn line(line: &str) -> Loaded {
    load(&[&format!("policy 1\n{line}\ndefault block\n")])
}

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
        ("resolve", "resolve *.corp.example using corp", LATER),
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
        ("resolver", "allow resolver corp", LATER),
        ("user", "allow user alice 1001", HONOURED),
        ("app", "allow app /usr/bin/curl", LATER),
        ("cgroup", "allow cgroup /user.slice", HONOURED),
        ("protected", "allow udp protected", LATER),
        ("id", "allow id web", HONOURED),
        ("not", "allow to not 10.0.0.1", HONOURED),
        ("any", "allow to any", HONOURED),
        ("multicast", "allow to multicast", HONOURED),
        ("broadcast", "allow to broadcast", HONOURED),
        ("unknown", "allow user unknown", HONOURED),
        ("unknown-name", "allow to unknown-name", LATER),
        ("within", "ask to 10.0.0.1 within 500ms else drop", LATER),
        ("else", "resolve a.example using corp else upstream", LATER),
        ("using", "resolve * using upstream", LATER),
        ("and", "resolve a.example using corp and upstream private", LATER),
        ("or", "resolve a.example @a using corp or upstream", LATER),
        ("private", "resolve a.example using corp private", LATER),
        ("none", "resolve a.example using none", LATER),
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
        ("allow to ads.example", 10),
        ("allow to 10.0.0.1 *.ads.example", 19),
        ("allow to unknown-name", 10),
        ("allow tcp resolver corp", 11),
        ("allow tcp app /usr/bin/curl", 11),
        ("allow udp protected", 11),
        ("allow tcp via wg0", 15),
        ("route to 10.0.0.0/8 via wg0, direct", 25),
        ("route resolver corp via direct", 7),
        ("resolve *.a.example using none", 1),
        ("ask tcp within 2s else drop", 1),
        ("expect block tcp any to ads.example", 25),
        ("expect block tcp any to 10.0.0.1 app /usr/bin/curl", 38),
        ("expect block tcp any to 10.0.0.1 via wg0", 38),
    ] {
        let want = format!("{} a.policy:2:{column}", code::NOT_IN_THIS_VERSION);
        assert_eq!(said(&line(text)), [want], "{text}");
    }
}

#[test]
fn a_domain_in_a_set_is_refused_where_it_stands_if_a_to_uses_the_set() {
    for (name, text, want) in [
        (
            "used in to",
            "set s = 10.0.0.1 a.example\nblock to @s",
            vec!["not-in-this-version a.policy:2:18"],
        ),
        ("used in from alone", "set s = 10.0.0.1 a.example\nblock from @s", vec![]),
        (
            "nothing but domains",
            "set s = a.example\nblock from @s",
            vec!["domain-here a.policy:3:12"],
        ),
        (
            "in its file",
            "set s = file \"lists/ads.txt\"\nblock to @s",
            vec!["not-in-this-version lists/ads.txt:1:1"],
        ),
        ("its file in from", "set s = file \"lists/ads.txt\"\nblock from @s", vec![]),
        ("in the list itself", "block from a.example", vec!["domain-here a.policy:2:12"]),
        ("beside others", "block from a.example 10.0.0.1", vec!["domain-here a.policy:2:12"]),
    ] {
        assert_eq!(said(&line(text)), want, "{name}");
    }
}

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
        ("resolve a.example using a or b and c", "unexpected a.policy:2:32"),
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
        ("set lan = 10.0.0.0/8\nallow to lan", "did you mean the set `@lan`?"),
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
fn warnings() {
    for (name, text, want) in [
        ("none", "allow tcp\nallow udp", vec![]),
        ("the same", "allow tcp to 10.0.0.1\nblock to 10.0.0.1 tcp", vec!["shadowed a.policy:3:1"]),
        (
            "a wider one",
            "block to 10.0.0.0/8\nallow tcp to 10.1.0.0/16 port 80",
            vec!["shadowed a.policy:3:1"],
        ),
        ("everything", "block to any\nallow tcp", vec!["shadowed a.policy:3:1"]),
        ("no clause", "block\nallow tcp", vec!["shadowed a.policy:3:1"]),
        ("a narrower one", "block to 10.1.0.0/16\nallow to 10.0.0.0/8", vec![]),
        ("another dimension", "block from 10.0.0.0/8\nallow to 10.0.0.0/8", vec![]),
        ("from any asks for a source", "block from any\nallow tcp", vec![]),
        (
            "negated",
            "block to not 10.0.0.0/8\nallow to 192.0.2.0/24",
            vec!["shadowed a.policy:3:1"],
        ),
        (
            "both negated",
            "block to not 10.1.0.0/16\nallow to not 10.0.0.0/8",
            vec!["shadowed a.policy:3:1"],
        ),
        ("plain and negated", "block to 10.0.0.0/8\nallow to not 10.0.0.0/8", vec![]),
        ("ports", "block tcp port 1-100\nallow tcp port 22 80", vec!["shadowed a.policy:3:1"]),
        ("ports without protocol", "block tcp port 80\nallow port 80", vec![]),
        (
            "egress",
            "block egress eth0 wg0 10.0.0.1\nallow egress wg0 10.0.0.1",
            vec!["shadowed a.policy:3:1"],
        ),
        ("egress in part", "block egress eth0\nallow egress eth0 10.0.0.1", vec![]),
        ("users", "block user alice 0 unknown\nallow user unknown", vec!["shadowed a.policy:3:1"]),
        ("unknown is no user", "block user not alice\nallow user unknown", vec![]),
        ("cgroups", "block cgroup /a\nallow cgroup /a/b", vec!["shadowed a.policy:3:1"]),
        ("routes", "route via direct\nroute tcp via direct", vec!["shadowed a.policy:3:1"]),
        ("a route is no rule", "route via direct\nallow tcp", vec![]),
        ("unused set", "set a = 10.0.0.1", vec!["unused-set a.policy:2:5"]),
        (
            "set of nothing",
            "set a = file \"lists/empty.txt\"\nblock to @a",
            vec!["shadowed a.policy:3:1"],
        ),
        ("not nothing", "set a = file \"lists/empty.txt\"\nblock to not @a", vec![]),
    ] {
        let loaded = line(text);
        assert!(loaded.is_ok(), "{name}: {loaded:?}");
        assert_eq!(said(&loaded), want, "{name}");
    }
}

#[test]
fn expects() {
    for (name, text, want) in [
        ("verdict of the default", "expect block tcp any to 192.0.2.1 port 1", None),
        ("a rule", "allow tcp to 192.0.2.1\nexpect allow tcp any to 192.0.2.1", None),
        ("port given", "allow port 80\nexpect allow tcp any to 192.0.2.1 port 80", None),
        ("port not given", "allow port 80\nexpect block tcp any to 192.0.2.1", None),
        ("mapped", "allow to 192.0.2.1\nexpect allow tcp any to ::ffff:192.0.2.1", None),
        ("source", "allow from 10.0.0.0/8\nexpect allow tcp 10.0.0.1 to 192.0.2.1", None),
        ("source as egress", "allow egress 10.0.0.1\nexpect allow tcp 10.0.0.1 to 192.0.2.1", None),
        ("device unknown", "block egress not eth0\nexpect block tcp any to 192.0.2.1", None),
        (
            "client",
            "allow client 10.0.0.1\nexpect allow tcp any to 192.0.2.1 client 10.0.0.1",
            None,
        ),
        ("no client", "allow client any\nexpect block tcp 10.0.0.1 to 192.0.2.1", None),
        ("user", "allow user alice\nexpect allow tcp any to 192.0.2.1 user alice", None),
        ("user by uid", "allow user alice\nexpect allow tcp any to 192.0.2.1 user 1000", None),
        ("no user", "allow user not root\nexpect block tcp any to 192.0.2.1", None),
        ("user unknown", "allow user unknown\nexpect allow tcp any to 192.0.2.1", None),
        ("via", "allow via direct\nexpect allow tcp any to 192.0.2.1 via direct", None),
        (
            "depends",
            "allow from 10.0.0.0/8 id lan\nexpect allow tcp any to 192.0.2.1",
            Some((
                "expect-depends",
                "the verdict depends on the source: from 0.0.0.0 `default` \
                blocks it",
            )),
        ),
        (
            "depends, and a rule is in the way",
            "block from 10.0.0.0/8 id lan\nallow\nexpect allow tcp any to 192.0.2.1",
            Some((
                "expect-depends",
                "the verdict depends on the source: from 10.0.0.0 the rule \
                `lan` blocks it",
            )),
        ),
        (
            "another rule, the same verdict",
            "allow from 10.0.0.0/8\nallow\nexpect allow tcp any to 192.0.2.1",
            None,
        ),
        (
            "only the other family",
            "block from fd00::/8\nallow\nexpect allow tcp any to 192.0.2.1",
            None,
        ),
        (
            "wrong",
            "drop to 192.0.2.1\nexpect allow tcp any to 192.0.2.1",
            Some(("expect-failed", "expected `allow`, but the rule `a.policy:2` drops it")),
        ),
        (
            "wrong by default",
            "expect allow tcp any to 192.0.2.1",
            Some(("expect-failed", "expected `allow`, but `default` blocks it")),
        ),
    ] {
        let loaded = line(text);
        let got = loaded.as_ref().err().map(|found| (found[0].code, found[0].message.as_str()));
        assert_eq!(got, want, "{name}");
    }
    let (policy, _) =
        line("expect block tcp any to 192.0.2.1\nexpect block udp any to ::1").expect("both hold");
    assert_eq!(policy.summary().expects, 2);
}

#[test]
fn names_of_rules() {
    let (policy, _) = load(&[
        "policy 1\nallow tcp to 10.0.0.1 id web\nblock \\\n udp\n",
        "policy 1\n\ndrop icmp\ndefault allow",
    ])
    .expect("a good policy");
    let facts = |protocol, destination: &str| {
        let destination = destination.parse().expect("address");
        Facts::new(protocol, "192.0.2.1:1".parse().expect("address"), destination, true)
    };
    for (protocol, want) in [
        (Protocol::Tcp, (Verdict::Allow, "web")),
        (Protocol::Udp, (Verdict::Block, "a.policy:3")),
        (Protocol::Icmp, (Verdict::Drop, "b.policy:3")),
    ] {
        let Judgement::Decided(decision) = policy.judge(&facts(protocol, "10.0.0.1:80")) else {
            panic!("nothing to ask for");
        };
        assert_eq!((decision.verdict, policy.rule_name(decision.rule)), want);
    }
    let judged = policy.judge(&facts(Protocol::Tcp, "10.0.0.2:80"));
    let decision = Decision { verdict: Verdict::Allow, rule: RuleId::DEFAULT };
    assert_eq!(judged, Judgement::Decided(decision));
    assert_eq!(policy.rule_name(decision.rule), "default");
    let judged = Policy::allow_all().judge(&facts(Protocol::Tcp, "10.0.0.2:80"));
    assert_eq!(judged, Judgement::Decided(decision));
}

#[test]
fn a_fact_is_asked_for_only_where_it_matters() {
    let source = Judgement::Needs(Need::Source);
    let owner = Judgement::Needs(Need::Owner);
    for (name, rules, want) in [
        ("no rule", "", None),
        ("a rule about another destination", "block from 10.0.0.0/8 to 10.0.0.0/8", None),
        ("source", "block from 10.0.0.0/8", Some(source)),
        ("egress device", "block egress eth0", Some(source)),
        ("negated source", "block from not 10.0.0.0/8", Some(source)),
        ("source of the other family", "block from fd00::/8", None),
        ("owner", "block user 1000", Some(owner)),
        ("cgroup", "block cgroup /a", Some(owner)),
        ("owner first", "block from 10.0.0.0/8 user 1000", Some(owner)),
        ("in the order of the rules", "block from 10.0.0.0/8\nblock user 1000", Some(source)),
        ("decided before", "allow to 192.0.2.1\nblock from 10.0.0.0/8", None),
        ("another protocol", "block udp from 10.0.0.0/8", None),
        ("another port", "block port 22 user 1000", None),
    ] {
        let (policy, _) = line(rules).expect(name);
        let address = |text: &str| text.parse().expect("address");
        let (client, far) = (address("198.18.0.1:1"), address("192.0.2.1:80"));
        let facts = Facts::new(Protocol::Tcp, client, far, true);
        let judged = policy.judge(&facts);
        assert_eq!(Some(judged).filter(|j| !matches!(j, Judgement::Decided(_))), want, "{name}");
        // A forwarded flow has its source from the start.
        let facts = Facts::new(Protocol::Tcp, client, far, false);
        if rules.contains(" from ") && !rules.contains("user") {
            assert!(matches!(policy.judge(&facts), Judgement::Decided(_)), "{name}");
        }
    }
    let (policy, _) = line("block user alice").expect("a good policy");
    assert!(policy.needs_owner());
    assert!(!Policy::allow_all().needs_owner());
}

#[test]
fn cgroups_count_with_all_below() {
    let (policy, _) = line("allow cgroup /a/b /c").expect("a good policy");
    for (path, want) in [
        ("/", Verdict::Block),
        ("/a", Verdict::Block),
        ("/a/b", Verdict::Allow),
        ("/a/b/c/d", Verdict::Allow),
        ("/a/bc", Verdict::Block),
        ("/c", Verdict::Allow),
        ("/cc", Verdict::Block),
    ] {
        let address = |text: &str| text.parse().expect("address");
        let (client, far) = (address("198.18.0.1:1"), address("192.0.2.1:80"));
        let mut facts = Facts::new(Protocol::Tcp, client, far, true);
        facts.owner = Fact::Known(Owner { uid: 0, cgroup: Some(path.into()) });
        let Judgement::Decided(decision) = policy.judge(&facts) else { panic!("owner is known") };
        assert_eq!(decision.verdict, want, "{path}");
    }
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

#[test]
fn a_policy_is_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Policy>();
}

/// `cargo test --profile ci -p engine -- --ignored --nocapture figures`
#[test]
#[ignore = "a measurement, not a test"]
fn figures() {
    for (rules, sets) in [(10, 0), (10_000, 0), (100_000, 0), (10, 1_000_000)] {
        measure(rules, sets);
    }
}

/// Time that this thread ran: other work on the machine does not count.
fn cpu_time() -> std::time::Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let ran = stat.split(' ').next().and_then(|ns| ns.parse().ok());
    std::time::Duration::from_nanos(ran.expect("nanoseconds"))
}

fn measure(rules: u32, items: u32) {
    let mut seed = 99_u64;
    let mut random = |below: u32| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((seed >> 33) as u32) % below
    };
    let address = |n: u32| std::net::Ipv4Addr::from(n);
    let mut text = String::from("policy 1\n");
    let mut bench = bench();
    if items > 0 {
        let mut list = String::new();
        for _ in 0..items {
            let length = match random(100) {
                0..70 => 32,
                70..94 => 24,
                _ => 16 + random(8),
            };
            let mask = u32::MAX << (32 - length);
            let n = (random(1 << 16) << 16 | random(1 << 16)) & mask;
            list += &format!("{}/{length}\n", address(n));
        }
        bench.files.insert("list.txt", list);
        text.push_str("set list = file \"list.txt\"\nblock to @list\nallow tcp from @list\n");
    }
    for _ in 0..rules {
        let n = random(1 << 16) << 16 | random(1 << 16);
        let clauses = match random(5) {
            0 => format!("tcp to {}/24 port {}", address(n & !255), random(65_536)),
            1 => format!("from {}/24 to {}", address(n & !255), address(random(u32::MAX))),
            2 => format!("to {} port {} user {}", address(n), random(65_536), random(5_000)),
            3 => format!("from {}", address(n)),
            _ => format!("udp to {}/16 port {}", address(n & !0xffff), random(65_536)),
        };
        text += &format!("block {clauses}\n");
    }
    text.push_str("default allow\n");
    let source = Source { name: "p".into(), text };
    let before = cpu_time();
    let (policy, warnings) = Policy::load(&[source], &bench).expect("a good policy");
    let load = cpu_time() - before;
    let device = crate::DeviceName::new("eth0").expect("device");
    let flows: Vec<Facts> = (0..100_000)
        .map(|_| {
            let ip = |n: u32| std::net::IpAddr::V4(address(n));
            let destination = (ip(random(1 << 16) << 16 | random(1 << 16)), random(65_536) as u16);
            let client = (ip(random(1 << 30)), 1);
            let mut facts = Facts::new(Protocol::Tcp, client.into(), destination.into(), true);
            let source = ip(random(1 << 16) << 16 | random(1 << 16));
            facts.egress = Fact::Known(crate::Egress { address: source, device });
            facts.owner = Fact::Known(Owner { uid: random(5_000), cgroup: None });
            facts
        })
        .collect();
    let before = cpu_time();
    let mut decided = [0_usize; 2];
    for facts in &flows {
        let Judgement::Decided(decision) = policy.judge(facts) else { panic!("all is known") };
        decided[usize::from(decision.verdict == Verdict::Allow)] += 1;
    }
    let judge = (cpu_time() - before) / flows.len() as u32;
    println!(
        "{rules} rules, {items} items: load {load:?}, {} MB, judge {judge:?}, {} warnings, {decided:?}",
        (policy.rules.index.heap_bytes() + policy.routes.index.heap_bytes()) / 1_000_000,
        warnings.len(),
    );
}
