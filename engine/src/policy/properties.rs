//! What holds for every policy and every text.

use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::diagnostic::{Findings, SourceId};
use super::*;
use super::{parse, reference};
use crate::{DeviceName, Egress, Fact, Owner, Protocol};

const ADDRESSES: [&str; 14] = [
    "10.0.0.0",
    "10.1.0.0",
    "10.1.2.3",
    "10.1.2.4",
    "192.0.2.1",
    "0.0.0.0",
    "255.255.255.255",
    "224.0.0.251",
    "2001:db8::",
    "2001:db8::1",
    "2001:db9::1",
    "ff02::fb",
    "::",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
];
const PREFIXES: [&str; 14] = [
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.3",
    "10.1.2.2/31",
    "192.0.2.0/24",
    "0.0.0.0/0",
    "128.0.0.0/1",
    "2001:db8::/32",
    "2001:db8::1",
    "::/0",
    "8000::/1",
    "@one",
    "@two",
    "@empty",
];
const PORTS: [u16; 7] = [0, 22, 80, 443, 8000, 8100, 65535];
const PORT_ITEMS: [&str; 6] = ["22", "80", "0-443", "8000-8100", "65535", "0-65535"];
const USERS: [&str; 5] = ["0", "1000", "1001", "4294967294", "unknown"];
const CGROUPS: [&str; 6] = ["/", "/a", "/a/b", "/ab", "/c.slice/d", "unknown"];
const CGROUP_FACTS: [&str; 7] = ["/", "/a", "/a/b/c", "/ab", "/a/bc", "/c.slice", "/c.slice/d"];
const DEVICES: [&str; 3] = ["eth0", "wg0", "lo"];

fn list(word: &'static str, items: &[&'static str]) -> BoxedStrategy<String> {
    let most = items.len().min(4);
    (any::<bool>(), subsequence(items.to_vec(), 1..=most))
        .prop_map(move |(not, items)| {
            let not = if not { " not" } else { "" };
            format!("{word}{not} {}", items.join(" "))
        })
        .boxed()
}

fn addresses(word: &'static str, special: &[&'static str]) -> BoxedStrategy<String> {
    let all: Vec<&'static str> = PREFIXES.iter().chain(special).copied().collect();
    let any = Just(format!("{word} any"));
    prop_oneof![9 => list(word, &all), 1 => any].boxed()
}

fn rule() -> BoxedStrategy<String> {
    let egress: Vec<&'static str> = PREFIXES.iter().chain(&DEVICES).copied().collect();
    let clauses: Vec<BoxedStrategy<String>> = vec![
        select(vec!["tcp", "udp", "icmp"]).prop_map(str::to_owned).boxed(),
        addresses("from", &[]),
        addresses("client", &[]),
        addresses("to", &["multicast", "broadcast"]),
        list("egress", &egress),
        list("port", &PORT_ITEMS),
        list("user", &USERS),
        list("cgroup", &CGROUPS),
        Just("via direct".to_owned()).boxed(),
    ];
    (select(vec!["allow", "block", "drop"]), subsequence((0..9).collect::<Vec<usize>>(), 0..=4))
        .prop_flat_map(move |(verdict, chosen)| {
            let chosen: Vec<_> = chosen.iter().map(|at| clauses[*at].clone()).collect();
            (Just(verdict), chosen).prop_map(|(verdict, clauses)| {
                let mut clauses = clauses;
                if clauses.iter().any(|clause| clause == "icmp") {
                    clauses.retain(|clause| !clause.starts_with("port"));
                }
                format!("{verdict} {}", clauses.join(" "))
            })
        })
        .boxed()
}

fn policy_text() -> BoxedStrategy<String> {
    let rules = proptest::collection::vec(rule(), 0..24);
    (rules, select(vec!["allow", "block", "drop"]))
        .prop_map(|(rules, default)| {
            format!(
                "policy 1\nset one = 10.0.0.0/15 2001:db8::/64\nset two = 10.1.2.3 192.0.2.1\n\
                 set empty = 203.0.113.7\n{}\ndefault {default}\n",
                rules.join("\n")
            )
        })
        .boxed()
}

fn fact<T: fmt::Debug + Clone + 'static>(known: BoxedStrategy<T>) -> BoxedStrategy<Fact<T>> {
    prop_oneof![4 => known.prop_map(Fact::Known), 1 => Just(Fact::Unknown)].boxed()
}

fn address() -> BoxedStrategy<IpAddr> {
    select(ADDRESSES.to_vec()).prop_map(|text| text.parse().expect("address")).boxed()
}

fn facts() -> BoxedStrategy<Facts> {
    let device = select(DEVICES.to_vec()).prop_map(|name| DeviceName::new(name).expect("device"));
    // The kernel gives a flow a source of its destination's family.
    let egress = (address(), device).prop_map(|(address, device)| Egress { address, device });
    let uid = select(vec![0, 1000, 1001, 4_294_967_294, 7]);
    let cgroup = proptest::option::of(select(CGROUP_FACTS.to_vec()));
    let owner = (uid, cgroup)
        .prop_map(|(uid, cgroup)| Owner { uid, cgroup: cgroup.map(std::sync::Arc::from) });
    (
        select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Icmp]),
        address(),
        address(),
        select(PORTS.to_vec()),
        any::<bool>(),
        fact(egress.boxed()),
        fact(owner.boxed()),
    )
        .prop_map(|(protocol, client, destination, port, local, egress, owner)| {
            let mut facts = Facts::new(
                protocol,
                SocketAddr::new(client, 40_000),
                SocketAddr::new(destination, port),
                local,
            );
            facts.owner = owner;
            let family = facts.destination().is_ipv4();
            let other = egress.known().is_some_and(|e| e.address.is_ipv4() != family);
            facts.egress = if other { Fact::Unknown } else { egress };
            facts
        })
        .boxed()
}

fn load(text: &str) -> (Policy, parse::File) {
    let source = Source { name: "p".into(), text: text.into() };
    let loaded = Policy::load(&[source], &NoEnvironment);
    let (policy, _) = loaded.unwrap_or_else(|errors| panic!("{text}\n{errors:#?}"));
    let file = parse::parse(text, SourceId(0), &mut Findings::new());
    (policy, file)
}

/// Judges as the engine does: asks for a fact when it is named.
fn pull(policy: &Policy, truth: &Facts) -> (Decision, Vec<Need>) {
    let mut facts = reference::unasked(truth);
    let mut asked = Vec::new();
    loop {
        match policy.judge(&facts) {
            Judgement::Decided(decision) => return (decision, asked),
            Judgement::Needs(Need::Owner) => {
                assert_eq!(facts.owner, Fact::Unasked, "owner asked twice");
                facts.owner = truth.owner.clone();
                asked.push(Need::Owner);
            }
            Judgement::Needs(Need::Source) => {
                assert_eq!(facts.egress, Fact::Unasked, "source asked twice");
                facts.egress = truth.egress.clone();
                asked.push(Need::Source);
            }
        }
    }
}

fn number(rule: RuleId) -> Option<usize> {
    (rule != RuleId::DEFAULT).then_some(rule.0 as usize)
}

fn same(text: &str, facts: &Facts, policy: &Policy, file: &parse::File) {
    let (verdict, rule) = reference::judge(file, facts);
    let want = Judgement::Decided(Decision {
        verdict,
        rule: rule.map_or(RuleId::DEFAULT, |rule| RuleId(rule as u32)),
    });
    assert_eq!(policy.judge(facts), want, "{text}\n{facts:?}");
    let (decision, _) = pull(policy, facts);
    assert_eq!(Judgement::Decided(decision), want, "asked one by one: {text}\n{facts:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn the_index_says_what_the_rules_say(
        text in policy_text(),
        facts in proptest::collection::vec(facts(), 24),
    ) {
        let (policy, file) = load(&text);
        for facts in facts {
            same(&text, &facts, &policy, &file);
        }
    }

    #[test]
    fn a_shadowed_rule_never_matches(
        text in policy_text(),
        facts in proptest::collection::vec(facts(), 24),
    ) {
        let source = Source { name: "p".into(), text: text.clone() };
        let (policy, warnings) =
            Policy::load(&[source], &NoEnvironment).expect("a good policy");
        let shadowed: Vec<usize> = warnings
            .iter()
            .filter(|warning| warning.code == code::SHADOWED)
            .map(|warning| warning.place.line)
            .collect();
        for facts in facts {
            let (decision, _) = pull(&policy, &facts);
            let line = policy.rules.rules.get(decision.rule.0 as usize).map(|rule| rule.line);
            prop_assert!(
                !shadowed.iter().any(|shadowed| Some(*shadowed as u32) == line),
                "{text}\n{facts:?}\n{shadowed:?}"
            );
        }
    }

    #[test]
    fn an_open_source_is_every_source(
        text in policy_text(),
        protocol in select(vec![Protocol::Tcp, Protocol::Udp]),
        destination in address(),
        port in proptest::option::of(select(PORTS.to_vec())),
        uid in proptest::option::of(select(vec![0, 1000])),
    ) {
        let (policy, _) = load(&text);
        let source = AssumedSource::Any;
        let open = Hypothesis { protocol, source, destination, port, client: None, uid, egress: None };
        let from = |address: IpAddr| {
            let source = AssumedSource::Address(address);
            policy.suppose(&Hypothesis { source, ..open }).expect("a source is given")
        };
        match policy.suppose(&open) {
            Ok(decision) => {
                for address in ADDRESSES {
                    let address: IpAddr = address.parse().expect("address");
                    if address.is_ipv4() == destination.is_ipv4() {
                        prop_assert_eq!(from(address).verdict, decision.verdict, "{}", text);
                    }
                }
                policy.explain(&open).expect("the same source");
            }
            Err(Dependence { one, other }) => {
                prop_assert_ne!(one.1.verdict, other.1.verdict);
                for (address, decision) in [one, other] {
                    prop_assert_eq!(from(address), decision, "{} {}", address, text);
                    let source = AssumedSource::Address(address);
                    let told = policy.explain(&Hypothesis { source, ..open }).expect("given");
                    prop_assert_eq!(told.verdict, decision.verdict);
                    let matched = told.rules.iter().position(|rule| rule.matched);
                    prop_assert_eq!(matched, number(decision.rule));
                }
            }
        }
    }

    #[test]
    fn canonical_form_says_the_same(
        text in policy_text(),
        noise in proptest::collection::vec(
            select(vec![" ", "  ", "\t", " \\\n", " \\\r\n   ", " \\\n\\\n "]), 1..40),
        ends in proptest::collection::vec(
            select(vec!["\n", "\r\n", " # c\n", "\n\n", "\n  #x\\\n", " \\\n\n"]), 1..20),
    ) {
        let mut noisy = String::new();
        for (line, end) in text.lines().zip(ends.iter().cycle()) {
            for (word, gap) in line.split(' ').zip(noise.iter().cycle()) {
                noisy.push_str(word);
                noisy.push_str(gap);
            }
            noisy.push_str(end);
        }
        let read = |text: &str| {
            let mut findings = Findings::new();
            let file = parse::parse(text, SourceId(0), &mut findings);
            (file.statements, file.clauses, findings.has_errors())
        };
        let form = |text: &str| format(&Source { name: "p".into(), text: text.into() });
        let once = form(&noisy).expect("a good policy");
        prop_assert_eq!(read(&once), read(&noisy), "{:?}", noisy);
        prop_assert_eq!(form(&once), Ok(once.clone()));
        prop_assert_eq!(once.matches('#').count(), noisy.matches('#').count());
    }

    #[test]
    fn no_text_panics(text in any::<String>()) {
        all_readers(&text);
    }

    #[test]
    fn no_heap_of_words_panics(
        words in proptest::collection::vec(
            prop_oneof![
                select([&parse::STATEMENTS[..], &parse::CLAUSES, &parse::OTHERS].concat())
                    .prop_map(str::to_owned),
                select(vec![
                    "1", "2", ",", "=", "\"", "\\", "#", "\n", "\r\n", "\\\n", "\0", "@", "@a",
                    "*", "10.0.0.0/8", "10.0.0.1/8", "::/0", "a.example", "443", "9-1", "direct",
                    "/a", "2s", "\u{feff}", "ü", "\"x y\"", "none", "policy 1\n", "default block\n",
                ]).prop_map(str::to_owned),
            ],
            0..60,
        ),
        glue in select(vec!["", " "]),
    ) {
        all_readers(&words.join(glue));
        all_readers(&format!("policy 1\n{}", words.join(glue)));
    }
}

fn all_readers(text: &str) {
    let source = Source { name: "p".into(), text: text.into() };
    let sources = [source];
    if let Err(diagnostics) = Policy::load(&sources, &NoEnvironment) {
        for diagnostic in diagnostics {
            let Place { span, excerpt, .. } = diagnostic.place;
            assert!(text.get(span).is_some(), "{text:?}");
            assert!(excerpt.text.get(excerpt.highlight).is_some(), "{text:?}");
        }
    }
    let sound = check_syntax(&sources).is_ok();
    assert_eq!(format(&sources[0]).is_ok(), sound, "{text:?}");
    set::read_list(text, SourceId(0), &mut Findings::new());
}

/// Far more rules than a chunk of the index holds, and lists that overlap in most ways.
#[test]
fn many_rules_say_what_they_say() {
    let mut seed = 7_u64;
    let mut random = |below: u32| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as u32 % below
    };
    let mut text = String::from("policy 1\n");
    for _ in 0..20_000 {
        let verdict = ["allow", "block", "drop"][random(3) as usize];
        let list = |random: &mut dyn FnMut(u32) -> u32| {
            let length = 17 + random(16);
            let address = 0x0a00_0000 + random(1 << 20);
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            let not = if random(40) == 0 { "not " } else { "" };
            format!("{not}{}/{length}", std::net::Ipv4Addr::from(address & mask))
        };
        let mut line = verdict.to_owned();
        if random(2) == 0 {
            line += &format!(" to {}", list(&mut random));
        }
        if random(2) == 0 {
            line += &format!(" from {}", list(&mut random));
        }
        if random(3) == 0 {
            let first = random(60_000);
            line += &format!(" port {first}-{}", first + random(500));
        }
        if random(20) == 0 {
            line += &format!(" user {}", random(4));
        }
        if line.len() > 30 {
            text.push_str(&line);
            text.push('\n');
        }
    }
    text.push_str("default drop\n");
    let (policy, file) = load(&text);
    assert!(policy.summary().rules > 8_192);
    for _ in 0..300 {
        let address = |n: u32| IpAddr::from((0x0a00_0000 + n).to_be_bytes());
        let mut facts = Facts::new(
            Protocol::Tcp,
            SocketAddr::new(address(random(1 << 20)), 1),
            SocketAddr::new(address(random(1 << 20)), random(65_536) as u16),
            random(2) == 0,
        );
        facts.owner = Fact::Known(Owner { uid: random(5), cgroup: None });
        let device = DeviceName::new("eth0").expect("device");
        facts.egress = Fact::Known(Egress { address: address(random(1 << 20)), device });
        same("many rules", &facts, &policy, &file);
    }
}
