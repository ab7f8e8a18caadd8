//! Several names of one address.

use std::sync::Arc;

use super::*;

/// Two names lead to one address, or a third one too.
#[test]
fn where_names_disagree() {
    let (good, bad) = ("good.example", "bad.example");
    for (case, rules, names, disagree) in [
        ("another verdict", "block to bad.example", vec![good, bad], true),
        ("whichever was asked last", "block to bad.example", vec![bad, good], true),
        ("a third one", "block to bad.example", vec![good, "a.example", bad], true),
        ("one alone", "block to bad.example", vec![good], false),
        ("none", "block to bad.example", vec![], false),
        ("the same", "block to *.example", vec![good, bad], false),
        ("by other rules", "allow to good.example", vec![good, bad], false),
        ("another port's", "block to bad.example port 80", vec![good, bad], false),
        ("not by TCP", "block udp to bad.example", vec![good, bad], false),
        ("refused anyway", "allow udp to bad.example\nblock tcp", vec![good, bad], false),
        ("another way out", "route to bad.example via office", vec![good, bad], true),
        (
            "a tunnel without a name",
            "route to bad.example via office\nroute via wg0",
            vec![good, bad],
            false,
        ),
    ] {
        let text = format!("policy 1\n{rules}\ndefault allow\n");
        let (policy, _) = with_ways(&["wg0", "office"], &text)
            .unwrap_or_else(|faults| panic!("{case}: {faults:?}"));
        let mut names = names.into_iter().map(Arc::from);
        let flow = Hypothesis {
            protocol: Protocol::Tcp,
            source: AssumedSource::Address("192.0.2.1".parse().expect("address")),
            destination: Some("203.0.113.9".parse().expect("address")),
            name: names.next(),
            others: names.collect(),
            resolvers: ResolverSet::EMPTY,
            port: Some(443),
            client: None,
            uid: None,
            egress: None,
        };
        let known = flow.others.len() + usize::from(flow.name.is_some());
        assert_eq!(policy.names_disagree(&flow, |_| true), disagree, "{case}");
        if disagree {
            let flow = flow.unnamed();
            assert_eq!((flow.name.is_none(), flow.others.len()), (true, known), "{case}");
            let told = policy.explain(&flow).expect("a source is given");
            assert!(told.peek && told.verdict == Verdict::Allow, "{case}");
        }
    }
}
