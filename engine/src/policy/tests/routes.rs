//! Routes with several ways out: what loads, what is chosen, what is said.

use super::*;
use crate::{WayId, WayKind, WayNames};

fn routed(text: &str) -> Loaded {
    with_ways(&["wg0", "office"], &format!("policy 1\n{text}\ndefault block\n"))
}

fn flow(to: &str, port: u16) -> Facts {
    let to = std::net::SocketAddr::new(to.parse().expect("address"), port);
    let mut facts = Facts::new(Protocol::Tcp, "198.18.0.1:1".parse().expect("client"), to, true);
    facts.name = Fact::Unknown;
    facts
}

#[test]
fn the_first_route_that_matches_counts() {
    let text = "set corp = 10.0.0.0/8 *.corp.example\n\
        route to @corp via wg0, office\n\
        route client 192.168.50.0/24 via office\n\
        route resolver corp via wg0\n\
        route tcp port 22 via office, direct\n\
        route user alice via office";
    let (policy, _) = routed(text).expect("a good policy");
    let names = |facts: &Facts| match policy.route(facts) {
        Routing::Ways(ways) => {
            ways.iter().map(|way| policy.way_name(*way)).collect::<Vec<_>>().join(" ")
        }
        Routing::Needs(need) => format!("{need:?}"),
    };
    let owned = |owner: Option<Owner>| {
        let mut facts = flow("203.0.113.1", 80);
        facts.owner = Fact::answered(owner);
        facts
    };
    let named = |name: &str, resolver: u8| {
        let mut facts = owned(None);
        facts.name = Fact::answered(Some(crate::Name::asked(name.into())));
        facts.resolvers = ResolverId::new(resolver).expect("few").into();
        facts
    };
    let alice = Owner { uid: 1000, cgroup: None, of_proxy: false };
    let mut client = Facts::new(
        Protocol::Udp,
        "192.168.50.7:1".parse().expect("client"),
        "203.0.113.1:80".parse().expect("destination"),
        false,
    );
    client.name = Fact::Unknown;
    let mut unnamed = owned(None);
    unnamed.name = Fact::Unasked;
    for (name, facts, want) in [
        ("an address", flow("10.1.2.3", 22), "wg0 office"),
        ("a name", named("a.corp.example", 0), "wg0 office"),
        ("a resolver", named("b.example", 1), "wg0"),
        ("another resolver", named("b.example", 0), "direct"),
        ("a port", flow("203.0.113.1", 22), "office direct"),
        ("whose is it", flow("203.0.113.1", 80), "Owner"),
        ("alice", owned(Some(alice)), "office"),
        ("nobody", owned(None), "direct"),
        ("a client", client, "office"),
        ("a name that nobody asked for", unnamed, "Name"),
    ] {
        assert_eq!(names(&facts), want, "{name}");
    }
    assert!(policy.needs_owner());
}

#[test]
fn the_first_usable_way_is_taken() {
    let way = |number| WayId::new(number).expect("few");
    let (a, b, direct) = (way(1), way(2), WayId::DIRECT);
    for (name, ways, usable, want) in [
        ("the first", vec![a, b], vec![a, b], (a, true)),
        ("failover", vec![a, b], vec![b], (b, true)),
        ("none: the first, for the rules", vec![a, b], vec![direct], (a, false)),
        ("direct where it is written", vec![a, direct], vec![direct], (direct, true)),
        ("direct alone is tried", vec![direct], vec![], (direct, true)),
        ("direct among others is not", vec![direct, a], vec![], (direct, false)),
    ] {
        assert_eq!(choose(&ways, |way| usable.contains(&way)), want, "{name}");
    }
}

#[test]
fn a_verdict_asks_for_the_way() {
    let (policy, _) =
        routed("allow via wg0 id a\nblock via direct id b\nallow id c").expect("good");
    for (via, want) in [(Some(1), "a"), (Some(0), "b"), (Some(2), "c"), (None, "c")] {
        let via = via.map(|number| WayId::new(number).expect("few"));
        let mut facts = flow("203.0.113.1", 80);
        facts.via = via;
        let Judgement::Decided(decision) = policy.judge(&facts) else {
            panic!("a fact is missing")
        };
        assert_eq!(policy.rule_name(decision.rule), want, "{via:?}");
    }
}

#[test]
fn faults() {
    for (text, want) in [
        ("allow tcp via wg9", "unknown-way a.policy:2:15"),
        ("route to 10.0.0.0/8 via wg9, direct", "unknown-way a.policy:2:25"),
        ("route to 10.0.0.0/8 via direct, offic", "unknown-way a.policy:2:33"),
        ("expect block tcp any to 10.0.0.1 via wg9", "unknown-way a.policy:2:38"),
        ("route via wg0, office, wg0", "repeated a.policy:2:24"),
    ] {
        assert_eq!(said(&routed(text)), [want], "{text}");
    }
    let found = routed("route via offic").expect_err("no such way");
    assert_eq!(found[0].help.as_deref(), Some("did you mean `office`?"));
    let found = routed("route via vpn").expect_err("no such way");
    let help = "`[[wireguard]]` or `[[proxy]]` in the configuration makes one";
    assert_eq!(found[0].help.as_deref(), Some(help));
}

#[test]
fn a_way_that_no_route_names_is_told() {
    for (text, want) in [
        (
            "route to 10.0.0.0/8 via wg0\nroute to 10.0.0.1 via office",
            vec!["shadowed a.policy:3:1"],
        ),
        ("route to 10.0.0.0/8 via wg0, office", vec![]),
        ("route to 10.0.0.0/8 via wg0", vec!["unused-way a.policy:1:1"]),
        ("allow via office\nroute to 10.0.0.0/8 via wg0", vec!["unused-way a.policy:1:1"]),
    ] {
        let loaded = routed(text);
        assert!(loaded.is_ok(), "{text}: {loaded:?}");
        assert_eq!(said(&loaded), want, "{text}");
    }
}

#[test]
fn expects_say_the_way() {
    for (name, text, want) in [
        (
            "the first",
            "route to 10.0.0.0/8 via wg0, office\nexpect block tcp any to 10.0.0.1 via wg0",
            None,
        ),
        (
            "no route",
            "expect block tcp any to 10.0.0.1 via direct\nroute udp via wg0, office",
            None,
        ),
        (
            "a rule on it",
            "route to a.example via wg0, office\nallow via wg0\n\
             expect allow tcp any to a.example via wg0\nexpect block tcp any to b.example",
            None,
        ),
        (
            "another",
            "route to 10.0.0.0/8 via wg0, office\nexpect block tcp any to 10.0.0.1 via office",
            Some("expected `via office`, but it goes `via wg0`: the route `a.policy:2` says so"),
        ),
        (
            "none",
            "route udp via wg0, office\nexpect block tcp any to 10.0.0.1 via wg0",
            Some("expected `via wg0`, but it goes `via direct`: no route matches"),
        ),
    ] {
        let message = match routed(text) {
            Ok(_) => None,
            Err(found) => Some(found[0].message.clone()),
        };
        assert_eq!(message.as_deref(), want, "{name}");
    }
}

#[test]
fn explanations_say_the_way_and_what_is_usable() {
    let (policy, _) =
        routed("route to 10.0.0.0/8 via wg0, office\nallow via wg0\nallow via office")
            .expect("a good policy");
    let flow = Hypothesis {
        protocol: Protocol::Tcp,
        source: AssumedSource::Any,
        destination: Some("10.0.0.1".parse().expect("address")),
        name: None,
        others: Vec::new(),
        resolvers: ResolverSet::EMPTY,
        port: None,
        client: None,
        uid: None,
        egress: None,
    };
    let (wg0, office) = (policy.ways().id("wg0"), policy.ways().id("office"));
    for (usable, via, rule, errno) in [
        (vec![wg0, office], "wg0", "a.policy:3", None),
        (vec![office], "office", "a.policy:4", None),
        (vec![], "wg0", "a.policy:3", Some("ENETUNREACH")),
    ] {
        let told =
            policy.explain_with(&flow, |way| usable.contains(&Some(way))).expect("no source");
        assert_eq!((&*told.via, &*told.rule), (via, rule), "{usable:?}");
        assert_eq!(told.has_no_way_out(), usable.is_empty());
        assert_eq!(told.error.and_then(|error| error.errno), errno);
        let ways: Vec<_> = told.ways.iter().map(|way| (&*way.name, way.usable)).collect();
        assert_eq!(ways, [("wg0", usable.contains(&wg0)), ("office", !usable.is_empty())]);
    }
    let elsewhere = Hypothesis { destination: Some("192.0.2.1".parse().expect("address")), ..flow };
    let told = policy.explain_with(&elsewhere, |_| false).expect("no source");
    assert_eq!((&*told.via, told.has_no_way_out()), ("direct", false));
}

#[test]
fn a_policy_without_rules_may_name_ways() {
    let names = WayNames::default().configured([("wg0", WayKind::Link)]).expect("few");
    let policy = Policy::allow_all().with_ways(names);
    assert_eq!(policy.route(&flow("10.0.0.1", 1)), Routing::Ways(&[WayId::DIRECT]));
    assert_eq!(policy.way_name(WayId::new(1).expect("few")), "wg0");
}
