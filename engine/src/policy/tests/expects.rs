//! Tests that stand in a policy.

use super::*;

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
        ("a name", "block to *.example\nallow\nexpect block tcp any to a.example port 80", None),
        (
            "a name in a set",
            "set s = 10.0.0.0/8 a.example\nallow to @s\nexpect allow tcp any to A.Example.",
            None,
        ),
        ("another name", "allow to a.example\nexpect block tcp any to b.example", None),
        (
            "a name has no known address",
            "allow to 10.0.0.0/8 not-it.example\nexpect block tcp any to a.example",
            None,
        ),
        ("nor is it another", "allow to not 10.0.0.0/8\nexpect block tcp any to a.example", None),
        (
            "a name and a source",
            "allow from fd00::/8 to a.example\nexpect allow tcp fd00::1 to a.example",
            None,
        ),
        (
            "a name, and the version of its address counts",
            "allow from 0.0.0.0/0 to a.example\nexpect allow tcp any to a.example",
            Some((
                "expect-depends",
                "the verdict depends on the source: from :: `default` blocks it",
            )),
        ),
        ("no name", "allow to unknown-name\nexpect allow tcp any to 192.0.2.1", None),
        ("no resolver", "allow resolver not corp\nexpect block tcp any to a.example", None),
        (
            "a wrong name",
            "block to a.example id ads\nallow\nexpect allow tcp any to a.example",
            Some(("expect-failed", "expected `allow`, but the rule `ads` blocks it")),
        ),
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
