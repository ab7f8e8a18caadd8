//! What the cache keeps, for whom and for how long.

use std::hint::black_box;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use proptest::prelude::*;

use super::*;
use crate::answer::Answer;
use crate::answer::tests::{asked, record, records, reply};
use crate::message::Over;
use crate::message::tests::{query, query_edns};

fn rule(resolvers: &[u8]) -> Rule {
    let resolvers = resolvers.iter().map(|resolver| ResolverId(*resolver)).collect();
    Rule { resolvers, ..Rule::default() }
}

fn key(name: &str, rule: &Rule) -> Key {
    Key::new(&Query::read(&query(1, name, 1)).expect("a query"), rule)
}

fn ready(name: &str, ttl: u32, address: &str) -> Arc<Ready> {
    let question = asked(name, RecordType::A);
    let answers = vec![record(name, ttl, address)];
    let message = reply(&question, ResponseCode::NoError, answers, vec![]);
    let answer = Answer::read(message, &question, 1).expect("an answer");
    Arc::new(Ready::new(answer, &question, name).expect("short"))
}

fn failure(name: &str) -> Arc<Ready> {
    Arc::new(Ready::failure(&asked(name, RecordType::A), &[]).expect("short"))
}

/// What a query gets from the cache.
fn given(cache: &Cache, query: &[u8], rule: &Rule, now: Instant) -> Option<Message> {
    let query = Query::read(query).expect("a query");
    let mut room = Vec::new();
    cache.give(&Key::new(&query, rule), now, |ready, age| {
        ready.write(&query, Over::Udp, age, &mut room);
    })?;
    Some(Message::from_vec(&room).expect("an answer"))
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn an_answer_is_for_its_question_alone() {
    let cache = Cache::new(100);
    let now = Instant::now();
    let corp = rule(&[1]);
    cache.insert(&key("w.example", &corp), &ready("w.example", 60, "192.0.2.1"), now);
    let with_flags = |at: usize, byte: u8| {
        let mut bytes = query(1, "w.example", 1);
        bytes[at] = byte;
        bytes
    };
    for (case, query, rule, expected) in [
        ("the same", query(9, "w.example", 1), corp.clone(), true),
        ("other letters", query(9, "W.Example", 1), corp.clone(), true),
        ("EDNS", query_edns(9, "w.example", 1, 1_232, false), corp.clone(), true),
        ("DO", query_edns(9, "w.example", 1, 1_232, true), corp.clone(), false),
        ("CD", with_flags(3, 0x10), corp.clone(), false),
        ("no RD", with_flags(2, 0), corp.clone(), true),
        ("another type", query(9, "w.example", 28), corp.clone(), false),
        ("another name", query(9, "x.example", 1), corp.clone(), false),
        ("another resolver", query(9, "w.example", 1), rule(&[0]), false),
        ("more resolvers", query(9, "w.example", 1), rule(&[1, 0]), false),
        ("another form", query(9, "w.example", 1), Rule { form: Form::Or, ..corp.clone() }, false),
        (
            "near addresses pass",
            query(9, "w.example", 1),
            Rule { private: true, ..corp.clone() },
            false,
        ),
    ] {
        let answer = given(&cache, &query, &rule, now);
        assert_eq!(answer.is_some(), expected, "{case}");
        let Some(answer) = answer else { continue };
        assert_eq!(answer.metadata.id, u16::from_be_bytes([query[0], query[1]]), "{case}");
        let asked = Message::from_vec(&query).expect("a query").queries[0].name().to_ascii();
        assert_eq!(answer.queries[0].name().to_ascii(), asked, "{case}");
        assert_eq!(answer.answers[0].name.to_ascii(), asked, "{case}");
    }
}

#[test]
fn the_ttl_counts_down_and_ends() {
    let cache = Cache::new(100);
    let now = Instant::now();
    let rule = rule(&[0]);
    let query = query(1, "w.example", 1);
    cache.insert(&key("w.example", &rule), &ready("w.example", 60, "192.0.2.1"), now);
    let ttl = |after: Duration| {
        given(&cache, &query, &rule, now + after).map(|answer| answer.answers[0].ttl)
    };
    assert_eq!(ttl(seconds(0)), Some(60));
    assert_eq!(ttl(Duration::from_millis(1_900)), Some(59));
    // Popular by now, so its last tenth is for a refresh.
    assert_eq!(ttl(seconds(53)), Some(7));
    assert_eq!(ttl(seconds(54)), None);
    let found = |after| cache.look(&key("w.example", &rule), now + after);
    assert!(matches!(found(seconds(54)), Found::Fresh { refresh: true, gone: 54, .. }));
    assert!(matches!(found(seconds(54)), Found::Fresh { refresh: false, .. }));
    assert_eq!(ttl(seconds(55)), Some(5), "one asks, the others are served");
    assert_eq!(ttl(seconds(60)), None);
    assert!(matches!(found(seconds(60)), Found::Stale(_)));
    assert!(matches!(found(seconds(60) + LONGEST_STALE), Found::Miss));
}

#[test]
fn a_name_that_nobody_asks_is_not_refreshed() {
    let cache = Cache::new(100);
    let now = Instant::now();
    let rule = rule(&[0]);
    let key = key("w.example", &rule);
    cache.insert(&key, &ready("w.example", 60, "192.0.2.1"), now);
    assert!(matches!(
        cache.look(&key, now + seconds(58)),
        Found::Fresh { refresh: false, gone: 58, .. }
    ));
}

#[test]
fn a_failure_revives_what_is_stale() {
    let cache = Cache::new(100);
    let now = Instant::now();
    let rule = rule(&[0]);
    let bytes = query_edns(1, "w.example", 1, 1_232, false);
    let key = key("w.example", &rule);
    cache.insert(&key, &ready("w.example", 60, "192.0.2.1"), now);
    cache.insert(&key, &failure("w.example"), now + seconds(30));
    assert_eq!(
        given(&cache, &bytes, &rule, now + seconds(31)).map(|a| a.answers[0].ttl),
        Some(29),
        "a failed refresh changes nothing while the answer lives"
    );
    let later = now + seconds(1_000);
    cache.insert(&key, &failure("w.example"), later);
    let answer = given(&cache, &bytes, &rule, later + seconds(29)).expect("revived");
    assert_eq!(answer.answers[0].ttl, 30);
    let option = answer.edns.as_ref().expect("EDNS").options().options[0].1.clone();
    let stale = hickory_proto::rr::rdata::opt::EdnsOption::Unknown(15, vec![0, 3]);
    assert_eq!(option, stale);
    assert!(given(&cache, &bytes, &rule, later + seconds(30)).is_none(), "asked again");
    assert!(matches!(cache.look(&key, later + seconds(31)), Found::Stale(_)));
    let fresh = ready("w.example", 60, "192.0.2.9");
    cache.insert(&key, &fresh, later + seconds(40));
    let answer = given(&cache, &bytes, &rule, later + seconds(40)).expect("fresh");
    assert_eq!(answer.answers[0].ttl, 60);
}

#[test]
fn a_failure_is_kept_a_second() {
    let cache = Cache::new(100);
    let now = Instant::now();
    let rule = rule(&[0]);
    let key = key("w.example", &rule);
    cache.insert(&key, &failure("w.example"), now);
    let found = |after| cache.look(&key, now + Duration::from_millis(after));
    assert!(matches!(found(999), Found::Fresh { .. }));
    assert!(matches!(found(1_000), Found::Miss));
}

#[test]
fn no_ttl_no_entry() {
    let now = Instant::now();
    let rule = rule(&[0]);
    for (case, cache, ttl) in [("TTL 0", Cache::new(100), 0), ("no cache", Cache::new(0), 60)] {
        cache.insert(&key("w.example", &rule), &ready("w.example", ttl, "192.0.2.1"), now);
        assert_eq!(cache.held(), Held::default(), "{case}");
    }
}

#[test]
fn a_flush_takes_what_the_resolver_said() {
    let now = Instant::now();
    let ready = ready("w.example", 60, "192.0.2.1");
    let rules = [rule(&[0]), rule(&[1]), rule(&[0, 1]), rule(&[2])];
    for (resolver, left) in [
        (Some(ResolverId(0)), [false, true, false, true]),
        (Some(ResolverId(1)), [true, false, false, true]),
        (Some(ResolverId(7)), [true; 4]),
        (None, [false; 4]),
    ] {
        let cache = Cache::new(1_000);
        for rule in &rules {
            cache.insert(&key("w.example", rule), &ready, now);
        }
        cache.flush(resolver);
        for (rule, left) in rules.iter().zip(left) {
            let found = !matches!(cache.look(&key("w.example", rule), now), Found::Miss);
            assert_eq!(found, left, "{resolver:?} {rule:?}");
        }
        assert_eq!(cache.held().entries, left.iter().filter(|left| **left).count());
    }
}

#[test]
fn a_full_cache_keeps_what_is_asked_for() {
    let cache = Cache::new(1_024);
    let now = Instant::now();
    let rule = rule(&[0]);
    let asked: Vec<String> = (0..100).map(|n| format!("asked{n}.example")).collect();
    for name in &asked {
        cache.insert(&key(name, &rule), &ready(name, 600, "192.0.2.1"), now);
    }
    for n in 0..20_000 {
        let name = format!("n{n}.example");
        cache.insert(&key(&name, &rule), &ready(&name, 600, "192.0.2.1"), now);
        if n % 100 == 0 {
            for name in &asked {
                given(&cache, &query(1, name, 1), &rule, now);
            }
        }
    }
    assert!(cache.held().entries <= 1_024);
    let kept = asked.iter().filter(|name| given(&cache, &query(1, name, 1), &rule, now).is_some());
    assert_eq!(kept.count(), asked.len());
}

#[test]
fn another_size_keeps_what_fits() {
    let now = Instant::now();
    let rule = rule(&[0]);
    let name = |n: usize| format!("n{n}.example");
    let there = |cache: &Cache, n| given(cache, &query(1, &name(n), 1), &rule, now).is_some();
    for (case, before, after, filled, least) in [
        ("the same", 2_000, 2_000, 1_000, 1_000),
        ("more, in as many parts", 2_000, 10_000, 1_000, 1_000),
        ("more, in more parts", 100, 10_000, 100, 100),
        ("fewer, with room", 10_000, 2_000, 200, 200),
        // A part may be full by chance before the others are.
        ("fewer", 10_000, 2_000, 5_000, 1_900),
        ("fewer, in fewer parts", 10_000, 100, 5_000, 90),
        ("few", 1_000, 1, 500, 1),
        ("none", 10_000, 0, 5_000, 0),
        ("some again", 0, 1_000, 0, 0),
    ] {
        let cache = Cache::new(before);
        for n in 0..filled {
            cache.insert(&key(&name(n), &rule), &ready(&name(n), 600, "192.0.2.1"), now);
        }
        // Those that were asked for are the last to go.
        let asked = filled.min(after / 4);
        assert!((0..asked).all(|n| there(&cache, n)), "{case}");
        let given = cache.held().given;
        cache.resize(after, now);
        let held = cache.held();
        // Parts are of one size.
        let most = after.div_ceil(used_for(after)) * used_for(after);
        assert!((least..=most).contains(&held.entries), "{case}: {held:?}");
        assert!(held.bytes <= most * BYTES_PER_ENTRY && held.given == given, "{case}: {held:?}");
        if least == filled {
            assert!((0..filled).all(|n| there(&cache, n)), "{case}");
        }
        let kept = (0..asked).filter(|n| there(&cache, *n)).count();
        assert!(kept * 10 >= asked * 9, "{case}: {kept} of {asked}");
        // And it is a cache of that size from now on.
        for n in filled..filled + 2 * after {
            cache.insert(&key(&name(n), &rule), &ready(&name(n), 600, "192.0.2.1"), now);
        }
        let entries = cache.held().entries;
        assert!(entries <= most && entries * 10 >= after * 9, "{case}: {entries}");
    }
}

/// Whoever asks meanwhile has an answer or none, and never another's.
#[test]
fn it_is_asked_while_it_changes_its_size() {
    let cache = Cache::new(1_000);
    let rule = rule(&[0]);
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..2_u8 {
            let (cache, rule, over) = (&cache, &rule, &over);
            scope.spawn(move || {
                let mut n = 0_u8;
                while !over.load(Ordering::Relaxed) {
                    n = n.wrapping_add(1);
                    let name = format!("n{n}.t{thread}.example");
                    let address = format!("192.0.2.{n}");
                    let now = Instant::now();
                    cache.insert(&key(&name, rule), &ready(&name, 600, &address), now);
                    if let Some(message) = given(cache, &query(1, &name, 1), rule, now) {
                        assert_eq!(message.answers[0].data.to_string(), address);
                    }
                }
            });
        }
        for entries in [10, 10_000, 100, 1_000, 0, 2_000].into_iter().cycle().take(120) {
            cache.resize(entries, Instant::now());
        }
        over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn memory_is_bounded() {
    let cache = Cache::new(10_000);
    let now = Instant::now();
    let rule = rule(&[0]);
    let question = asked("w.example", RecordType::from(65_280));
    let long: Vec<_> = (0..200).map(|_| ("w.example", 600, "TYPE 65280")).collect();
    let message = reply(&question, ResponseCode::NoError, records(&long), vec![]);
    let answer = Answer::read(message, &question, 1).expect("an answer");
    let long = Arc::new(Ready::new(answer, &question, "w.example").expect("short"));
    assert!(long.size() > 3_000);
    for n in 0..12_000 {
        cache.insert(&key(&format!("n{n}.example"), &rule), &long, now);
    }
    let held = cache.held();
    assert!(held.bytes < 16 << 20 && held.entries > 1_000, "{held:?}");
    cache.flush(None);
    assert_eq!(cache.held(), Held::default());
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Insert {
        name: u8,
        resolver: u8,
        ttl: u32,
        fails: bool,
    },
    Flush(Option<u8>),
    /// All fit.
    Resize(usize),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0_u8..6, 0_u8..2, 0_u32..40, proptest::bool::weighted(0.2)).prop_map(
            |(name, resolver, ttl, fails)| Step::Insert { name, resolver, ttl, fails }
        ),
        1 => proptest::option::of(0_u8..2).prop_map(Step::Flush),
        1 => proptest::sample::select(vec![64, 200, 1_000, 5_000]).prop_map(Step::Resize),
        4 => (1_u64..20).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn the_cache_gives_what_was_put_in(steps in proptest::collection::vec(step(), 1..60)) {
        // Names to address, when it was put in and its TTL; the newest counts.
        let mut model = std::collections::HashMap::<(u8, u8), (u8, u64, u32)>::new();
        let cache = Cache::new(1_000);
        let start = Instant::now();
        let mut at = 0;
        for (n, step) in steps.into_iter().enumerate() {
            let now = start + seconds(at);
            match step {
                Step::Insert { name, resolver, ttl, fails: false } => {
                    let text = format!("n{name}.example");
                    let n = u8::try_from(n).expect("few steps");
                    let ready = ready(&text, ttl, &format!("192.0.2.{n}"));
                    cache.insert(&key(&text, &rule(&[resolver])), &ready, now);
                    if ttl > 0 {
                        model.insert((name, resolver), (n, at, ttl));
                    } else {
                        model.remove(&(name, resolver));
                    }
                }
                Step::Insert { name, resolver, .. } => {
                    let text = format!("n{name}.example");
                    if model.contains_key(&(name, resolver)) {
                        cache.insert(&key(&text, &rule(&[resolver])), &failure(&text), now);
                    }
                }
                Step::Flush(resolver) => {
                    cache.flush(resolver.map(ResolverId));
                    model.retain(|(_, of), _| resolver.is_some_and(|resolver| resolver != *of));
                }
                // One of four parts has room for all of them.
                Step::Resize(entries) => cache.resize(entries, now),
                Step::Wait(time) => at += time,
            }
            let now = start + seconds(at);
            for name in 0..6 {
                for resolver in 0..2 {
                    let text = format!("n{name}.example");
                    let found = cache.look(&key(&text, &rule(&[resolver])), now);
                    let put = model.get(&(name, resolver));
                    let address = |ready: &Ready| ready.known.as_ref().map(|k| k.addresses[0].0);
                    let expected = put.map(|(n, ..)| std::net::IpAddr::from([192, 0, 2, *n]));
                    match (found, put) {
                        (Found::Miss, None) => {}
                        (Found::Fresh { ready, gone, .. }, Some((_, since, ttl))) => {
                            prop_assert_eq!(address(&ready), expected);
                            prop_assert_eq!(u64::from(gone), at - since);
                            prop_assert!(gone < *ttl);
                        }
                        (Found::Stale(ready) | Found::Revived(ready), Some((_, since, ttl))) => {
                            prop_assert_eq!(address(&ready), expected);
                            prop_assert!(at - since >= u64::from(*ttl));
                        }
                        (found, put) => prop_assert!(false, "{found:?} where {put:?} was put"),
                    }
                }
            }
        }
        let held = cache.held();
        prop_assert_eq!(held.entries, model.len());
    }
}

/// Time that this thread ran: other work on the machine does not count.
pub(crate) fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let ran = stat.split(' ').next().and_then(|ns| ns.parse().ok());
    Duration::from_nanos(ran.expect("nanoseconds"))
}

/// `cargo nextest run --cargo-profile ci -p dns --run-ignored only --no-capture figures`
///
/// The profile has debug assertions and overflow checks on; release is faster.
#[test]
#[ignore = "a measurement, not a test"]
fn figures() {
    const NAMES: usize = 10_000;
    let rule = rule(&[0]);
    let now = Instant::now();
    let resident = || {
        let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
        let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok());
        pages.expect("pages") * 4_096
    };
    let names: Vec<String> = (0..NAMES).map(|n| format!("host{n}.some.domain.example")).collect();
    let queries: Vec<Vec<u8>> = names.iter().map(|n| query_edns(7, n, 1, 1_232, false)).collect();
    let before = resident();
    let cache = Cache::new(NAMES + NAMES / 4);
    for name in &names {
        cache.insert(&key(name, &rule), &ready(name, 3_600, "192.0.2.1"), now);
    }
    let held = cache.held();
    println!(
        "{} names: {} KiB resident, {} KiB by the cache's count",
        held.entries,
        resident().saturating_sub(before) / 1_024,
        held.bytes / 1_024
    );
    let mut room = Vec::with_capacity(2_048);
    let rounds = 30;
    let count = rounds * NAMES as u128;
    let started = cpu_time();
    for _ in 0..rounds {
        for bytes in &queries {
            black_box(Query::read(black_box(bytes)).expect("a query").name());
        }
    }
    println!("{} ns to read a query", (cpu_time() - started).as_nanos() / count);
    let started = cpu_time();
    for _ in 0..rounds {
        for bytes in &queries {
            let query = Query::read(black_box(bytes)).expect("a query");
            let key = Key::new(&query, &rule);
            let given = cache.give(&key, now, |ready, age| {
                ready.write(&query, Over::Udp, age, &mut room);
            });
            assert!(given.is_some());
            black_box(&room);
        }
    }
    println!("{} ns a hit, {NAMES} names", (cpu_time() - started).as_nanos() / count);
    let started = cpu_time();
    for _ in 0..rounds * NAMES as u128 {
        let query = Query::read(black_box(&queries[7])).expect("a query");
        let key = Key::new(&query, &rule);
        let given = cache.give(&key, now, |ready, age| {
            ready.write(&query, Over::Udp, age, &mut room);
        });
        assert!(given.is_some());
        black_box(&room);
    }
    println!("{} ns a hit, one name", (cpu_time() - started).as_nanos() / count);

    let cache = Cache::new(NAMES);
    let one = ready("w.example", 3_600, "192.0.2.1");
    let keys: Vec<Key> = (0..50 * NAMES).map(|n| key(&format!("n{n}.example"), &rule)).collect();
    for (what, keys) in keys.chunks(NAMES * 10).enumerate() {
        let started = cpu_time();
        for key in keys {
            cache.insert(key, &one, now);
        }
        let taken = (cpu_time() - started).as_nanos() / keys.len() as u128;
        println!("insert {what}: {taken} ns with {} entries", cache.held().entries);
    }
}
