//! How long a large policy takes; run by hand.

use super::*;
use crate::cpu_time::cpu_time;

/// `cargo test --profile ci -p engine -- --ignored --nocapture figures`
#[test]
#[ignore = "a measurement, not a test"]
fn figures() {
    for (kind, rules, items) in [
        (Kind::Mixed, 10, 0),
        (Kind::Mixed, 10_000, 0),
        (Kind::Mixed, 100_000, 0),
        (Kind::Distinct, 100_000, 0),
        (Kind::Few, 100_000, 0),
        (Kind::Sets, 100_000, 0),
        (Kind::Mixed, 10, 1_000_000),
    ] {
        measure(kind, rules, items);
    }
}

/// What the rules of a policy are like.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Clauses of all kinds, some prefixes wide.
    Mixed,
    /// Each rule an address and a port of its own.
    Distinct,
    /// A thousand prefixes and a thousand ports, over and over.
    Few,
    /// Two hundred sets of fifty addresses, over and over.
    Sets,
}

fn measure(kind: Kind, rules: u32, items: u32) {
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
    if let Kind::Sets = kind {
        for set in 0..200 {
            text += &format!("set s{set} =");
            (0..50).for_each(|_| {
                text += &format!(" {}", address(random(1 << 16) << 16 | random(1 << 16)))
            });
            text.push('\n');
        }
    }
    let mut few = || (0..1_000).map(|_| random(1 << 16)).collect::<Vec<_>>();
    let (prefixes, ports) = (few(), few());
    for _ in 0..rules {
        let n = random(1 << 16) << 16 | random(1 << 16);
        let clauses = match (kind, random(5)) {
            (Kind::Distinct, _) => format!("tcp to {} port {}", address(n), random(65_536)),
            (Kind::Few, _) => {
                let prefix = address(prefixes[random(1_000) as usize] << 16);
                format!("tcp to {prefix}/16 port {}", ports[random(1_000) as usize])
            }
            (Kind::Sets, _) => {
                format!("tcp to @s{} from {} port {}", random(200), address(n), random(65_536))
            }
            (Kind::Mixed, 0) => format!("tcp to {}/24 port {}", address(n & !255), random(65_536)),
            (Kind::Mixed, 1) => {
                format!("from {}/24 to {}", address(n & !255), address(random(u32::MAX)))
            }
            (Kind::Mixed, 2) => {
                format!("to {} port {} user {}", address(n), random(65_536), random(5_000))
            }
            (Kind::Mixed, 3) => format!("from {}", address(n)),
            (Kind::Mixed, _) => {
                format!("udp to {}/16 port {}", address(n & !0xffff), random(65_536))
            }
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
            facts.egress = Fact::answered(Some(crate::Egress { address: source, device }));
            facts.name = Fact::Unknown;
            facts.owner =
                Fact::answered(Some(Owner { uid: random(5_000), cgroup: None, of_proxy: false }));
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
        "{rules} rules {kind:?}, {items} items: load {load:?}, {} MB, judge {judge:?}, {} warnings, {decided:?}",
        (policy.rules.index.heap_bytes() + policy.routes.index.heap_bytes()) / 1_000_000,
        warnings.len(),
    );
}

/// The same for names: `cargo test --profile ci -p engine -- --ignored --nocapture figures`
#[test]
#[ignore = "a measurement, not a test"]
fn figures_of_names() {
    for (items, below, rules) in
        [(10_u32, 0, 0), (10_000, 50, 0), (1_000_000, 0, 0), (1_000_000, 100, 0), (10, 0, 100_000)]
    {
        measure_names(items, below, rules);
    }
}

/// A list of so many names, of which a share of `below` in 100 has `*.` in front, and so many
/// rules about a domain each.
fn measure_names(items: u32, below: u32, rules: u32) {
    const TOPS: [&str; 4] = ["com", "net", "org", "example"];
    let mut seed = 7_u64;
    let mut random = |limit: u32| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((seed >> 33) as u32) % limit
    };
    let mut listed: Vec<String> = Vec::new();
    let mut list = String::new();
    for n in 0..items {
        let top = TOPS[random(4) as usize];
        let name = match random(3) {
            0 => format!("host{n}.{top}"),
            1 => format!("a{}.host{n}.{top}", random(100)),
            _ => format!("a{}.b.site{n}.{top}", random(100)),
        };
        let lead = if random(100) < below { "*." } else { "" };
        list += &format!("{lead}{name}\n");
        listed.push(name);
    }
    let mut bench = bench();
    bench.files.insert("list.txt", list);
    let mut text = String::from(
        "policy 1\nset list = file \"list.txt\"\nblock to @list\nresolve @list using none\n\
         resolve *.corp.example using corp\ndefault allow\n",
    );
    for n in 0..rules {
        let lead = if n % 2 == 0 { "*." } else { "" };
        text += &format!("allow tcp to {lead}a{}.unlisted{n}.example port {}\n", n % 7, n % 1000);
    }
    let source = Source { name: "p".into(), text };
    let before = cpu_time();
    let (policy, _) = Policy::load(&[source], &bench).expect("a good policy");
    let load = cpu_time() - before;
    let flows: Vec<Facts> = (0..200_000_u32)
        .map(|n| {
            let known = &listed[random(items) as usize];
            let name = match random(4) {
                0 => known.clone(),
                1 => format!("www.{known}"),
                2 => format!("www.host{n}.unlisted.example"),
                _ => format!("a.b.c.d{n}.com"),
            };
            let destination = "192.0.2.1:443".parse().expect("address");
            let client = "198.18.0.1:1".parse().expect("address");
            let mut facts = Facts::new(Protocol::Tcp, client, destination, true);
            facts.name = Fact::answered(Some(crate::Name::asked(name.into())));
            facts
        })
        .collect();
    let before = cpu_time();
    let mut blocked = 0;
    for facts in &flows {
        let Judgement::Decided(decision) = policy.judge(facts) else { panic!("all is known") };
        blocked += usize::from(decision.verdict == Verdict::Block);
    }
    let judge = (cpu_time() - before) / flows.len() as u32;
    let before = cpu_time();
    let mut none = 0;
    for name in flows.iter().filter_map(|facts| facts.name.known().map(|name| &*name.text)) {
        none += usize::from(policy.resolution(name).form == Form::None);
    }
    let resolution = (cpu_time() - before) / flows.len() as u32;
    assert_eq!(blocked, none, "one list, twice");
    println!(
        "{items} names, {below} in 100 with all below, {rules} rules: load {load:?}, {} kB in the rules' index, \
         judge {judge:?}, resolution {resolution:?}, {blocked} of {} listed",
        policy.rules.index.heap_bytes() / 1_000,
        flows.len(),
    );
}
