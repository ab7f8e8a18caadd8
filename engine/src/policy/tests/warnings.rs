//! What is probably not meant.

use super::*;

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
        (
            "a domain in another",
            "block to *.example\nallow to a.example *.b.example",
            vec!["shadowed a.policy:3:1"],
        ),
        ("a domain above", "block to a.example\nallow to *.a.example", vec![]),
        ("names and addresses", "block to *.example\nallow to a.example 10.0.0.1", vec![]),
        (
            "both",
            "block to *.example 10.0.0.0/8\nallow to a.example 10.0.0.1",
            vec!["shadowed a.policy:3:1"],
        ),
        ("a name has addresses", "block to 10.0.0.0/8\nallow to a.example", vec![]),
        (
            "another name",
            "block to not a.example\nallow to b.example",
            vec!["shadowed a.policy:3:1"],
        ),
        ("not the name", "block to not a.example\nallow to *.example", vec![]),
        ("a flow has one name", "block to not a.example\nallow to unknown-name", vec![]),
        (
            "no name",
            "block to unknown-name a.example\nallow to unknown-name",
            vec!["shadowed a.policy:3:1"],
        ),
        (
            "a name in a set",
            "set s = *.example\nblock to @s\nallow to a.example",
            vec!["shadowed a.policy:4:1"],
        ),
        ("resolvers", "block resolver corp lab\nallow resolver lab", vec!["shadowed a.policy:3:1"]),
        ("several resolvers", "block resolver not corp\nallow resolver lab", vec![]),
        (
            "a part of a list is empty",
            "set a = file \"lists/empty.txt\"\nblock to @a b.example",
            vec![],
        ),
        (
            "names of a rule before",
            "resolve *.a.example using corp\nresolve b.a.example *.c.a.example using lab",
            vec!["shadowed a.policy:3:1"],
        ),
        (
            "one is left",
            "resolve *.a.example using corp\nresolve b.a.example c.example using lab",
            vec![],
        ),
        (
            "all names",
            "resolve * using corp\nresolve a.example using lab",
            vec!["shadowed a.policy:3:1"],
        ),
        (
            "all names twice",
            "resolve * using corp\nresolve a.b * using lab",
            vec!["shadowed a.policy:3:1"],
        ),
        (
            "addresses of names",
            "set a = 10.0.0.0/8 a.example\nset b = 10.1.0.0/16\nresolve @a using corp\nresolve @b using lab",
            vec!["shadowed a.policy:5:1"],
        ),
        (
            "no names",
            "set a = file \"lists/empty.txt\"\nresolve @a using corp",
            vec!["shadowed a.policy:3:1"],
        ),
        ("used by resolve", "set a = a.example\nresolve @a using none", vec![]),
        (
            "a set without its @",
            "set lan = 10.0.0.0/8\nblock to lan @lan",
            vec!["plain-domain a.policy:3:10"],
        ),
        ("a clause's word", "allow to 10.0.0.1 tpc", vec!["plain-domain a.policy:2:19"]),
        ("a plain domain", "resolve intranet using corp", vec![]),
        ("not nothing", "set a = file \"lists/empty.txt\"\nblock to not @a", vec![]),
    ] {
        let loaded = line(text);
        assert!(loaded.is_ok(), "{name}: {loaded:?}");
        assert_eq!(said(&loaded), want, "{name}");
    }
}
