//! What holds for every policy and every text.

use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::diagnostic::{Findings, SourceId};
use super::*;
use super::{parse, reference};
use crate::{DeviceName, Egress, Fact, Name, Owner, Protocol, ResolverSet, WayKind};

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
const PREFIXES: [&str; 15] = [
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
    "@mixed",
];
/// Items of `to`.
const DOMAINS: [&str; 9] = [
    "example",
    "*.example",
    "a.example",
    "*.a.example",
    "b.a.example",
    "*.c.b.a.example",
    "other",
    "@names",
    "@mixed",
];
const NAMES: [&str; 8] = [
    "example",
    "a.example",
    "x.example",
    "b.a.example",
    "d.c.b.a.example",
    "other",
    "xother",
    "www.other",
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
        prop_oneof![
            2 => addresses("to", &["multicast", "broadcast"]),
            3 => list("to", &[&DOMAINS[..], &["unknown-name", "10.1.0.0/16", "@one"]].concat()),
        ]
        .boxed(),
        list("resolver", &reference::RESOLVERS),
        list("egress", &egress),
        list("port", &PORT_ITEMS),
        list("user", &USERS),
        list("cgroup", &CGROUPS),
        select(reference::WAYS.to_vec()).prop_map(|way| format!("via {way}")).boxed(),
    ];
    (select(vec!["allow", "block", "drop"]), subsequence((0..10).collect::<Vec<usize>>(), 0..=4))
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

fn route() -> BoxedStrategy<String> {
    let clauses: Vec<BoxedStrategy<String>> = vec![
        select(vec!["tcp", "udp", "icmp"]).prop_map(str::to_owned).boxed(),
        addresses("client", &[]),
        list("to", &[&DOMAINS[..], &["unknown-name", "10.1.0.0/16", "@one"]].concat()),
        list("resolver", &reference::RESOLVERS),
        list("user", &USERS),
        list("cgroup", &CGROUPS),
    ];
    let ways = subsequence(reference::WAYS.to_vec(), 1..=3).prop_shuffle();
    (ways, subsequence((0..6).collect::<Vec<usize>>(), 0..=3))
        .prop_flat_map(move |(ways, chosen)| {
            let chosen: Vec<_> = chosen.iter().map(|at| clauses[*at].clone()).collect();
            (Just(ways), chosen).prop_map(|(ways, clauses)| {
                format!("route {} via {}", clauses.join(" "), ways.join(", "))
            })
        })
        .boxed()
}

fn resolve() -> BoxedStrategy<String> {
    let items: Vec<&'static str> = DOMAINS
        .iter()
        .chain(&["@one", "1.10.in-addr.arpa", "*.2.1.10.in-addr.arpa", "*.arpa"])
        .copied()
        .collect();
    let using = select(vec!["corp", "corp else upstream", "lab or corp private", "none"]);
    let items = prop_oneof![
        12 => subsequence(items, 1..4),
        1 => Just(vec!["*"]),
    ];
    (items, using)
        .prop_map(|(names, using)| format!("resolve {} using {using}", names.join(" ")))
        .boxed()
}

fn reverse_or_not() -> BoxedStrategy<String> {
    let reverse = select(vec![
        "3.2.1.10.in-addr.arpa",
        "1.10.in-addr.arpa",
        "0.10.in-addr.arpa",
        "10.in-addr.arpa",
        "9.9.2.10.in-addr.arpa",
        "x.1.10.in-addr.arpa",
        "in-addr.arpa",
    ]);
    prop_oneof![select(NAMES.to_vec()), reverse].prop_map(str::to_owned).boxed()
}

fn policy_text() -> BoxedStrategy<String> {
    let line = prop_oneof![5 => rule(), 1 => route()];
    let rules = proptest::collection::vec(line, 0..24);
    (rules, select(vec!["allow", "block", "drop"]))
        .prop_map(|(rules, default)| {
            format!(
                "policy 1\nset one = 10.0.0.0/15 2001:db8::/64\nset two = 10.1.2.3 192.0.2.1\n\
                 set empty = 203.0.113.7\nset names = *.b.a.example other\n\
                 set mixed = 10.1.0.0/16 a.example *.c.b.a.example\n{}\ndefault {default}\n",
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
    let egress =
        (address(), device).prop_map(|(address, device)| Arc::new(Egress { address, device }));
    let name = prop_oneof![2 => select(NAMES.to_vec()).prop_map(Some), 1 => Just(None)];
    let resolvers = (0..8_u64).prop_map(ResolverSet::from_bits);
    let uid = select(vec![0, 1000, 1001, 4_294_967_294, 7]);
    let cgroup = proptest::option::of(select(CGROUP_FACTS.to_vec()));
    let owner = (uid, cgroup).prop_map(|(uid, cgroup)| {
        Arc::new(Owner { uid, cgroup: cgroup.map(Arc::from), of_proxy: false })
    });
    (
        select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Icmp]),
        address(),
        address(),
        select(PORTS.to_vec()),
        any::<bool>(),
        fact(egress.boxed()),
        fact(owner.boxed()),
        (name, resolvers, (0..4_u8)),
    )
        .prop_map(|(protocol, client, destination, port, local, egress, owner, named)| {
            let mut facts = Facts::new(
                protocol,
                SocketAddr::new(client, 40_000),
                SocketAddr::new(destination, port),
                local,
            );
            facts.owner = owner;
            facts.name = Fact::answered(named.0.map(|name| Name::asked(name.into())));
            facts.resolvers = named.1;
            // One more than there are: none.
            facts.via = WayId::new(named.2).filter(|way| way.number() < 3);
            let family = facts.destination().is_ipv4();
            let other = egress.known().is_some_and(|e| e.address.is_ipv4() != family);
            facts.egress = if other { Fact::Unknown } else { egress };
            facts
        })
        .boxed()
}

/// The resolvers that the reference knows, and neither users nor files.
struct Resolving;

impl Environment for Resolving {
    fn uid(&self, _: &str) -> Option<u32> {
        None
    }

    fn read(&self, _: &str, _: &str) -> Result<String, ReadError> {
        Err(ReadError::Missing)
    }

    fn resolvers(&self) -> Resolvers {
        let names = reference::RESOLVERS.into_iter().skip(1);
        Resolvers::default().configured(names).expect("few")
    }

    fn ways(&self) -> WayNames {
        let names = reference::WAYS.into_iter().skip(1).map(|name| (name, WayKind::Link));
        WayNames::default().configured(names).expect("few")
    }

    fn secret(&self) -> u128 {
        11
    }
}

fn load(text: &str) -> (Policy, parse::File) {
    let source = Source { name: "p".into(), text: text.into() };
    let loaded = Policy::load(&[source], &Resolving);
    let (policy, _) = loaded.unwrap_or_else(|errors| panic!("{text}\n{errors:#?}"));
    let file = parse::parse(text, SourceId(0), &mut Findings::new());
    (policy, file)
}

/// Judges as the engine does: asks for a fact when it is named.
fn pull(policy: &Policy, truth: &Facts) -> (Decision, Vec<Need>) {
    pull_from(policy, truth, reference::unasked(truth))
}

/// From facts of which some were not asked for.
fn pull_from(policy: &Policy, truth: &Facts, mut facts: Facts) -> (Decision, Vec<Need>) {
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
            Judgement::Needs(Need::Name) => {
                assert_eq!(facts.name, Fact::Unasked, "name asked twice");
                facts.name = truth.name.clone();
                asked.push(Need::Name);
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
    let ways = reference::route(file, facts);
    assert_eq!(policy.route(facts), Routing::Ways(&ways), "{text}\n{facts:?}");
    let asked = match policy.route(&reference::unasked(facts)) {
        Routing::Needs(Need::Owner) => policy.route(facts),
        Routing::Needs(need) => panic!("routes ask for no {need:?}: {text}"),
        Routing::Ways(ways) => Routing::Ways(ways),
    };
    assert_eq!(asked, Routing::Ways(&ways), "asked one by one: {text}\n{facts:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// What is decided without a name holds for every name; and a name is asked for last.
    #[test]
    fn a_name_is_needed_where_it_changes_the_result(
        text in policy_text(),
        facts in proptest::collection::vec(facts(), 12),
    ) {
        let (policy, file) = load(&text);
        for facts in facts {
            let mut unnamed = reference::unasked(&facts);
            unnamed.name = Fact::Unasked;
            let (decision, asked) = pull_from(&policy, &facts, unnamed.clone());
            let same_as_asked = reference::judge(&file, &facts).0;
            prop_assert_eq!(decision.verdict, same_as_asked, "{}\n{:?}", text, facts);
            if let Some(at) = asked.iter().position(|need| *need == Need::Name) {
                prop_assert_eq!(at, asked.len() - 1, "{}\n{:?}", text, facts);
                prop_assert!(policy.needs_name());
            }
            let foregone = policy.foregone(&unnamed);
            prop_assert!(foregone.is_none_or(|verdict| verdict == decision.verdict));
            unnamed.owner = facts.owner.clone();
            let routing = policy.route(&unnamed);
            for name in NAMES.map(Some).into_iter().chain([None]) {
                let mut named = facts.clone();
                named.name =
                    Fact::answered(name.map(|name| Name::asked(name.into())));
                let told = reference::judge(&file, &named).0;
                if !asked.contains(&Need::Name) {
                    prop_assert_eq!(told, decision.verdict, "{:?}\n{}\n{:?}", name, text, facts);
                }
                let ways = reference::route(&file, &named);
                match routing {
                    Routing::Ways(routed) => prop_assert_eq!(routed, &ways, "{}", text),
                    Routing::Needs(need) => prop_assert_eq!(need, Need::Name),
                }
                for via in [0, 1, 2, 3] {
                    named.via = WayId::new(via).filter(|way| way.number() < 3);
                    let told = reference::judge(&file, &named).0;
                    prop_assert!(foregone.is_none_or(|verdict| verdict == told), "{}", text);
                }
            }
        }
    }
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
            Policy::load(&[source], &Resolving).expect("a good policy");
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
        destination in proptest::option::of(address()),
        name in proptest::option::of(select(NAMES.to_vec())),
        port in proptest::option::of(select(PORTS.to_vec())),
        uid in proptest::option::of(select(vec![0, 1000])),
    ) {
        let (policy, _) = load(&text);
        let open = Hypothesis {
            protocol,
            source: AssumedSource::Any,
            destination,
            name: name.map(Arc::from),
            others: Vec::new(),
            resolvers: ResolverSet::EMPTY,
            port,
            client: None,
            uid,
            egress: None,
        };
        let from = |address: IpAddr| {
            let source = AssumedSource::Address(address);
            policy.suppose(&Hypothesis { source, ..open.clone() }).expect("a source is given")
        };
        match policy.suppose(&open) {
            Ok(decision) => {
                for address in ADDRESSES {
                    let address: IpAddr = address.parse().expect("address");
                    if destination.is_none_or(|to| to.is_ipv4() == address.is_ipv4()) {
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
                    let told = policy.explain(&Hypothesis { source, ..open.clone() });
                    let told = told.expect("a source is given");
                    prop_assert_eq!(told.verdict, decision.verdict);
                    let matched = told.rules.iter().position(|rule| rule.matched);
                    prop_assert_eq!(matched, number(decision.rule));
                }
            }
        }
    }

    #[test]
    fn a_name_is_answered_by_its_first_rule(
        rules in proptest::collection::vec(resolve(), 1..12),
        names in proptest::collection::vec(reverse_or_not(), 24),
    ) {
        let text = format!(
            "policy 1\nset names = *.b.a.example other\nset mixed = 10.1.0.0/16 a.example\n\
             set one = 10.0.0.0/15 2001:db8::/64\n{}\ndefault block\n",
            rules.join("\n")
        );
        let source = Source { name: "p".into(), text: text.clone() };
        let (policy, warnings) = Policy::load(&[source], &Resolving).expect("a good policy");
        let file = parse::parse(&text, SourceId(0), &mut Findings::new());
        for name in names {
            let want = reference::resolution(&file, &name).map(|at| format!("p:{}", at + 5));
            let told = policy.resolution(&name);
            prop_assert_eq!(told.rule, want.as_deref().unwrap_or(""), "{} {}", name, text);
            let line = told.rule.trim_start_matches("p:").parse::<usize>();
            let shadowed = |warning: &&Diagnostic| {
                warning.code == code::SHADOWED && Ok(warning.place.line) == line
            };
            prop_assert!(warnings.iter().find(shadowed).is_none(), "{} {}", name, text);
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
                    "a", "b", "upstream", "corp", "1", "2", ",", "=", "\"", "\\", "#", "\n", "\r\n", "\\\n", "\0", "@", "@a",
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
    set::read_list(text, SourceId(0), &domains::NameHasher::new(3), &mut Findings::new());
    Policy::allow_all().resolution(text);
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
        facts.owner = Fact::answered(Some(Owner { uid: random(5), cgroup: None, of_proxy: false }));
        let device = DeviceName::new("eth0").expect("device");
        let egress = Egress { address: address(random(1 << 20)), device };
        facts.egress = Fact::answered(Some(egress));
        same("many rules", &facts, &policy, &file);
    }
}
