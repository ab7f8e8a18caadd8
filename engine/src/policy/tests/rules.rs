//! Rules that were loaded: their names, the facts that they ask for.

use super::*;

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
        facts.owner =
            Fact::answered(Some(Owner { uid: 0, cgroup: Some(path.into()), of_proxy: false }));
        let Judgement::Decided(decision) = policy.judge(&facts) else { panic!("owner is known") };
        assert_eq!(decision.verdict, want, "{path}");
    }
}

#[test]
fn a_policy_is_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Policy>();
}
