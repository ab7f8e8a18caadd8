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
        ("not nothing", "set a = file \"lists/empty.txt\"\nblock to not @a", vec![]),
    ] {
        let loaded = line(text);
        assert!(loaded.is_ok(), "{name}: {loaded:?}");
        assert_eq!(said(&loaded), want, "{name}");
    }
}
