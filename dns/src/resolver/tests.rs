//! Time is virtual here unless a test uses sockets.

use std::collections::HashMap;

use hickory_proto::op::Message;
use hickory_proto::rr::Record;
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use tokio::time::sleep;

use super::*;
use crate::answer::tests::{record, records, reply};
use crate::ask::Reply;
use crate::event::Said;
use crate::message::tests::{query, query_edns};
use crate::name::is_within;
use crate::server::Transport;

mod properties;
mod sockets;

/// What a scripted resolver says, and after which time.
#[derive(Debug, Clone)]
enum Say {
    Code(ResponseCode),
    Data(Vec<Record>),
    Fail(Failure),
    Panic,
    Silence,
}

fn data(address: &str) -> Say {
    Say::Data(vec![record("w.example", 60, address)])
}

const NO_NAME: Say = Say::Code(ResponseCode::NXDomain);
const NO_DATA: Say = Say::Code(ResponseCode::NoError);
const SERVFAIL: Say = Say::Code(ResponseCode::ServFail);

/// Resolvers by number that say one thing to every question.
#[derive(Debug, Default)]
struct Scripted {
    says: Mutex<HashMap<u8, (u64, Say)>>,
    asked: Mutex<Vec<(u8, String)>>,
    tunnels: u64,
}

impl Scripted {
    fn say(&self, resolver: u8, after: u64, say: Say) {
        self.says.lock().expect("not poisoned").insert(resolver, (after, say));
    }

    fn asked(&self) -> Vec<(u8, String)> {
        std::mem::take(&mut *self.asked.lock().expect("not poisoned"))
    }
}

impl Upstreams for Scripted {
    async fn ask(
        &self,
        resolver: ResolverId,
        question: &Question,
        _: Duration,
    ) -> Result<Reply, Failure> {
        let name = question.name.to_ascii().trim_end_matches('.').to_owned();
        self.asked.lock().expect("not poisoned").push((resolver.0, name));
        let says = self.says.lock().expect("not poisoned").get(&resolver.0).cloned();
        let (after, say) = says.unwrap_or((0, Say::Silence));
        if after > 0 {
            sleep(Duration::from_millis(after)).await;
        }
        let message = match say {
            Say::Code(code) => {
                let soa = records(&[("example", 900, "SOA 300")]);
                reply(question, code, vec![], soa)
            }
            Say::Data(answers) => reply(question, ResponseCode::NoError, answers, vec![]),
            Say::Fail(failure) => return Err(failure),
            Say::Panic => panic!("a resolver that breaks"),
            Say::Silence => std::future::pending().await,
        };
        Ok(Reply {
            message,
            server: ([192, 0, 2, 53], 53).into(),
            transport: Transport::Udp,
            took: Duration::from_millis(after),
        })
    }

    fn is_tunnel(&self, resolver: ResolverId) -> bool {
        self.tunnels & resolver.set() != 0
    }
}

/// One rule for names within a zone; no other.
#[derive(Debug, Clone)]
struct OneRule(&'static str, Rule);

impl Plan for OneRule {
    fn rule(&self, name: &str) -> Rule {
        if is_within(name, self.0) { self.1.clone() } else { Rule::default() }
    }
}

fn using(form: Form, resolvers: &[u8]) -> OneRule {
    let resolvers = resolvers.iter().map(|resolver| ResolverId(*resolver)).collect();
    OneRule("example", Rule { form, resolvers, private: false, specific: true })
}

fn resolver(plan: OneRule, says: &[(u8, u64, Say)]) -> Arc<Resolver<Scripted>> {
    let scripted = Scripted::default();
    for (resolver, after, say) in says {
        scripted.say(*resolver, *after, say.clone());
    }
    Resolver::new(Settings::default(), Arc::new(plan), scripted)
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The code, the addresses, and the extended errors of an answer.
fn in_short(bytes: &[u8]) -> (ResponseCode, Vec<String>, Vec<u16>) {
    let message = Message::from_vec(bytes).expect("an answer");
    let addresses = message.answers.iter().map(|record| record.data.to_string()).collect();
    let options = message.edns.iter().flat_map(|edns| edns.options().options.clone());
    let errors = options.filter_map(|option| match option {
        (EdnsCode::Unknown(15), EdnsOption::Unknown(_, data)) => message::u16_at(&data, 0),
        _ => None,
    });
    (message.metadata.response_code, addresses, errors.collect())
}

fn ttl(bytes: &[u8]) -> u32 {
    Message::from_vec(bytes).expect("an answer").answers[0].ttl
}

fn a_query() -> Vec<u8> {
    query_edns(7, "w.example", 1, 1_232, false)
}

impl Resolver<Scripted> {
    async fn a(self: &Arc<Self>) -> Answer {
        self.resolve(a_query(), Over::Udp).await
    }

    fn warm(&self) -> Option<Vec<u8>> {
        let mut room = Vec::new();
        self.cached(&a_query(), Over::Udp, now(), &mut room).map(|_| room)
    }
}

#[tokio::test(start_paused = true)]
async fn each_form_answers_as_it_says() {
    use ResponseCode as Code;
    let one = "192.0.2.1";
    let two = "192.0.2.2";
    let addresses = |addresses: &[&str]| -> Vec<String> {
        addresses.iter().map(|address| (*address).to_owned()).collect()
    };
    for (case, form, says, code, expected, errors, after) in [
        ("one", Form::One, &[(1, 20, data(one))][..], Code::NoError, &[one][..], &[][..], 20),
        ("one fails", Form::One, &[(1, 20, SERVFAIL)], Code::ServFail, &[], &[22], 20),
        ("one is silent", Form::One, &[(1, 0, Say::Silence)], Code::ServFail, &[], &[22], 4_800),
        (
            "else",
            Form::Else,
            &[(1, 20, Say::Fail(Failure::ConnectionRefused)), (2, 10, data(two))],
            Code::NoError,
            &[two],
            &[],
            30,
        ),
        (
            "else, no name",
            Form::Else,
            &[(1, 20, NO_NAME), (2, 10, data(two))],
            Code::NXDomain,
            &[],
            &[],
            20,
        ),
        ("or", Form::Or, &[(1, 20, NO_NAME), (2, 30, data(two))], Code::NoError, &[two], &[], 30),
        (
            "or, no data and no name",
            Form::Or,
            &[(1, 20, NO_NAME), (2, 30, NO_DATA)],
            Code::NoError,
            &[],
            &[],
            30,
        ),
        (
            "and",
            Form::And,
            &[(1, 20, data(one)), (2, 30, data(two))],
            Code::NoError,
            &[one, two],
            &[],
            30,
        ),
        (
            "and, the slower too late",
            Form::And,
            &[(1, 20, data(one)), (2, 3_000, data(two))],
            Code::NoError,
            &[one],
            &[],
            1_020,
        ),
        (
            "and, all fail",
            Form::And,
            &[(1, 20, SERVFAIL), (2, 30, Say::Fail(Failure::Unreachable))],
            Code::ServFail,
            &[],
            &[22],
            30,
        ),
    ] {
        let resolvers: Vec<u8> = says.iter().map(|(resolver, ..)| *resolver).collect();
        let resolver = resolver(using(form, &resolvers), says);
        let started = now();
        let answer = resolver.a().await;
        assert_eq!(in_short(&answer.bytes), (code, addresses(expected), errors.to_vec()), "{case}");
        assert_eq!((now() - started).as_millis(), after, "{case}");
        let learned = answer.learned.map_or(0, |learned| learned.addresses.len());
        assert_eq!(learned, expected.len(), "{case}");
        assert!(resolver.warm().is_some(), "{case}: kept");
        let asked = resolver.upstreams().asked();
        assert!(asked.iter().all(|(resolver, _)| resolvers.contains(resolver)), "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_merged_answer_tells_who_gave_what() {
    let both =
        Say::Data(records(&[("w.example", 60, "192.0.2.1"), ("w.example", 60, "192.0.2.2")]));
    let resolver = resolver(using(Form::And, &[3, 0]), &[(3, 20, data("192.0.2.1")), (0, 9, both)]);
    let answer = resolver.a().await;
    let address = |text: &str| text.parse::<IpAddr>().expect("an address");
    let learned = answer.learned.expect("addresses");
    assert_eq!(&*learned.name, "w.example");
    assert_eq!(learned.ttl, Duration::from_secs(60));
    assert_eq!(learned.addresses, [(address("192.0.2.1"), 0b1001), (address("192.0.2.2"), 0b0001)]);
    let Some(Event::Disagreement { answers, name, .. }) = answer.events.first() else {
        panic!("no disagreement: {:?}", answer.events);
    };
    assert_eq!(&**name, "w.example");
    assert_eq!(answers[0], (ResolverId(3), Said::Addresses(vec![address("192.0.2.1")])));
    assert_eq!(answers[1].0, ResolverId(0));
    assert!(!Message::from_vec(&answer.bytes).expect("an answer").metadata.authentic_data);
}

#[tokio::test(start_paused = true)]
async fn what_is_a_disagreement() {
    for (case, says, expected) in [
        ("the same", [data("192.0.2.1"), data("192.0.2.1")], false),
        ("others", [data("192.0.2.1"), data("192.0.2.2")], true),
        ("data and none", [data("192.0.2.1"), NO_NAME], true),
        ("both none", [NO_DATA, NO_NAME], false),
        ("data and a failure", [data("192.0.2.1"), SERVFAIL], false),
    ] {
        let [one, two] = says;
        let resolver = resolver(using(Form::And, &[1, 2]), &[(1, 5, one), (2, 9, two)]);
        let events = resolver.a().await.events;
        let told = events.iter().any(|event| matches!(event, Event::Disagreement { .. }));
        assert_eq!(told, expected, "{case}: {events:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_unsure_negative_is_held_briefly() {
    for (case, says, held) in
        [("both negative", [NO_NAME, NO_NAME], 300), ("a failure", [NO_NAME, SERVFAIL], 5)]
    {
        let [one, two] = says;
        let resolver = resolver(using(Form::Or, &[1, 2]), &[(1, 5, one), (2, 9, two)]);
        let answer = Message::from_vec(&resolver.a().await.bytes).expect("an answer");
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain, "{case}");
        assert_eq!(answer.authorities[0].ttl, held, "{case}");
        sleep(Duration::from_secs(6)).await;
        assert_eq!(resolver.warm().is_some(), held > 5, "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_blocked_name_is_asked_of_nobody() {
    let resolver = resolver(using(Form::None, &[]), &[]);
    let expected = (ResponseCode::NXDomain, vec![], vec![15]);
    assert_eq!(in_short(&resolver.a().await.bytes), expected);
    assert_eq!(in_short(&resolver.warm().expect("at once")), expected);
    assert_eq!(resolver.upstreams().asked(), []);
}

#[tokio::test(start_paused = true)]
async fn special_names_are_answered_here() {
    use ResponseCode as Code;
    let resolver = resolver(using(Form::One, &[1]), &[(0, 1, data("192.0.2.1"))]);
    for (name, kind, code, expected) in [
        ("localhost", 1, Code::NoError, &["127.0.0.1"][..]),
        ("a.LocalHost", 28, Code::NoError, &["::1"]),
        ("localhost", 15, Code::NoError, &[]),
        ("1.0.0.127.in-addr.arpa", 12, Code::NoError, &["localhost."]),
        ("1.1.168.192.in-addr.arpa", 12, Code::NXDomain, &[]),
        ("printer", 1, Code::Refused, &[]),
        ("_dns.resolver.arpa", 64, Code::NoError, &[]),
    ] {
        let answer = resolver.resolve(query(9, name, kind), Over::Udp).await;
        let (answered, data, _) = in_short(&answer.bytes);
        assert_eq!((answered, &data[..]), (code, &expected.map_owned()[..]), "{name}");
        assert_eq!(answer.learned, None, "{name}");
    }
    assert_eq!(resolver.upstreams().asked(), []);
    resolver.set_search(&[("lan".to_owned(), ResolverId::UPSTREAM)]);
    resolver.resolve(query(9, "lan", 1), Over::Udp).await;
    assert_eq!(resolver.upstreams().asked(), [(0, "lan".to_owned())]);
}

trait Owned {
    fn map_owned(&self) -> Vec<String>;
}

impl Owned for &[&str] {
    fn map_owned(&self) -> Vec<String> {
        self.iter().map(|text| (*text).to_owned()).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn equal_questions_are_asked_once() {
    let resolver = resolver(using(Form::One, &[1]), &[(1, 50, data("192.0.2.1"))]);
    let askers = (0..100_u16).map(|id| {
        let name = if id % 2 == 0 { "w.example" } else { "W.Example" };
        let resolver = Arc::clone(&resolver);
        async move { (id, name, resolver.resolve(query(id, name, 1), Over::Udp).await) }
    });
    for (id, name, answer) in futures_util::future::join_all(askers).await {
        let message = Message::from_vec(&answer.bytes).expect("an answer");
        assert_eq!(message.metadata.id, id);
        assert_eq!(message.queries[0].name().to_ascii(), format!("{name}."));
        assert_eq!(message.answers[0].name.to_ascii(), format!("{name}."));
    }
    assert_eq!(resolver.upstreams().asked().len(), 1);
    let statistics = resolver.statistics();
    assert_eq!((statistics.misses, statistics.joined), (1, 99));
}

#[tokio::test(start_paused = true)]
async fn too_much_in_flight_fails_at_once() {
    let scripted = Scripted::default();
    // A quarter of them for one resolver.
    let settings = Settings { in_flight: 8, ..Settings::default() };
    let resolver = Resolver::new(settings, Arc::new(using(Form::One, &[1])), scripted);
    let ask = |n: u16| {
        let resolver = Arc::clone(&resolver);
        tokio::spawn(async move {
            let started = now();
            let query = query(n, &format!("n{n}.example"), 1);
            let answer = resolver.resolve(query, Over::Udp).await;
            (in_short(&answer.bytes).0, (now() - started).as_millis())
        })
    };
    let asked: Vec<_> = (0..3).map(ask).collect();
    let answers = futures_util::future::join_all(asked).await;
    let answers: Vec<_> = answers.into_iter().map(|answer| answer.expect("no panic")).collect();
    let servfail = ResponseCode::ServFail;
    assert_eq!(answers, [(servfail, 4_800), (servfail, 4_800), (servfail, 0)]);
    assert_eq!(resolver.statistics().overloaded, 1);
    let again = ask(7).await.expect("no panic");
    assert_eq!(again, (servfail, 4_800), "there is room again");
}

#[tokio::test(start_paused = true)]
async fn a_stale_answer_stands_in() {
    let resolver = resolver(using(Form::One, &[1]), &[(1, 5, data("192.0.2.1"))]);
    assert_eq!(ttl(&resolver.a().await.bytes), 60);
    sleep(Duration::from_secs(3_600)).await;

    // Failing servers: stale at once, and again without a question for half a minute.
    resolver.upstreams().say(1, 5, SERVFAIL);
    resolver.upstreams().asked();
    let answer = resolver.a().await;
    assert_eq!(in_short(&answer.bytes), (ResponseCode::NoError, vec!["192.0.2.1".into()], vec![3]));
    assert_eq!(ttl(&answer.bytes), 30);
    assert_eq!(answer.learned.expect("addresses").ttl, Duration::from_secs(30));
    assert_eq!(ttl(&resolver.warm().expect("revived")), 30);
    assert_eq!(resolver.upstreams().asked().len(), 1);

    // Slow servers: stale after 1.8 s, and their answer is kept when it comes.
    sleep(Duration::from_secs(60)).await;
    resolver.upstreams().say(1, 3_000, data("192.0.2.9"));
    let started = now();
    let answer = resolver.a().await;
    assert_eq!((now() - started).as_millis(), 1_800);
    assert_eq!(ttl(&answer.bytes), 30);
    assert!(resolver.warm().is_none());
    sleep(Duration::from_secs(2)).await;
    let warm = resolver.warm().expect("kept");
    assert_eq!(in_short(&warm), (ResponseCode::NoError, vec!["192.0.2.9".into()], vec![]));

    // Too old.
    sleep(Duration::from_secs(90_000)).await;
    resolver.upstreams().say(1, 5, SERVFAIL);
    assert_eq!(in_short(&resolver.a().await.bytes).0, ResponseCode::ServFail);
}

#[tokio::test(start_paused = true)]
async fn a_popular_name_is_asked_again_in_time() {
    let resolver = resolver(using(Form::One, &[1]), &[(1, 5, data("192.0.2.1"))]);
    resolver.a().await;
    for _ in 0..3 {
        assert!(resolver.warm().is_some());
    }
    sleep(Duration::from_secs(55)).await;
    resolver.upstreams().say(1, 5, data("192.0.2.2"));
    assert!(resolver.warm().is_none(), "one goes the slow way");
    let started = now();
    assert_eq!(ttl(&resolver.a().await.bytes), 5);
    assert_eq!(now(), started, "and waits for nobody");
    assert!(resolver.warm().is_some(), "the others don't");
    sleep(Duration::from_secs(2)).await;
    let warm = resolver.warm().expect("kept");
    assert_eq!((ttl(&warm), in_short(&warm).1), (59, vec!["192.0.2.2".into()]));
    assert_eq!(resolver.upstreams().asked().len(), 2);
    assert_eq!(resolver.statistics().prefetched, 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_before_a_flush_is_not_kept() {
    let resolver = resolver(using(Form::One, &[1]), &[(1, 50, data("192.0.2.1"))]);
    let first = {
        let resolver = Arc::clone(&resolver);
        tokio::spawn(async move { resolver.a().await })
    };
    sleep(Duration::from_millis(10)).await;
    resolver.flush(Some(ResolverId(1)));
    resolver.upstreams().say(1, 50, data("192.0.2.2"));
    let second = {
        let resolver = Arc::clone(&resolver);
        tokio::spawn(async move { resolver.a().await })
    };
    assert_eq!(in_short(&first.await.expect("no panic").bytes).1, ["192.0.2.1"]);
    assert!(resolver.warm().is_none());
    assert_eq!(in_short(&second.await.expect("no panic").bytes).1, ["192.0.2.2"]);
    assert_eq!(in_short(&resolver.warm().expect("kept")).1, ["192.0.2.2"]);
    resolver.flush(None);
    assert!(resolver.warm().is_none());
}

#[tokio::test(start_paused = true)]
async fn near_addresses_pass_only_where_they_may() {
    let near = "192.168.1.1";
    let rule = |private, specific| {
        let mut plan = using(Form::One, &[1]);
        plan.1.private = private;
        plan.1.specific = specific;
        plan
    };
    for (case, plan, tunnels, passes) in [
        ("a rule for all", rule(false, false), 0, false),
        ("another's tunnel", rule(false, false), 0b100, false),
        ("a tunnel", rule(false, false), 0b10, true),
        ("private", rule(true, false), 0, true),
        ("a rule that names more", rule(false, true), 0, true),
    ] {
        let scripted = Scripted { tunnels, ..Scripted::default() };
        scripted.say(1, 5, data(near));
        let resolver = Resolver::new(Settings::default(), Arc::new(plan), scripted);
        let answer = resolver.a().await;
        let (code, addresses, errors) = in_short(&answer.bytes);
        assert_eq!(code, ResponseCode::NoError, "{case}");
        assert_eq!(addresses.len(), usize::from(passes), "{case}");
        assert_eq!(errors, if passes { vec![] } else { vec![17] }, "{case}");
        assert_eq!(answer.learned.is_some(), passes, "{case}");
        let events = answer.events.iter().filter(|e| matches!(e, Event::Rebinding { .. }));
        assert_eq!(events.count(), usize::from(!passes), "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_filtered_answer_leaves_the_others() {
    let resolver = resolver(
        OneRule("", Rule { form: Form::Or, specific: false, ..using(Form::Or, &[1, 2]).1 }),
        &[(1, 5, data("10.0.0.1")), (2, 50, data("192.0.2.2"))],
    );
    let (_, addresses, errors) = in_short(&resolver.a().await.bytes);
    assert_eq!((addresses, errors), (vec!["192.0.2.2".to_owned()], vec![17]));
}

#[tokio::test(start_paused = true)]
async fn our_own_question_is_a_loop() {
    let resolver = resolver(using(Form::One, &[1]), &[(1, 5, data("192.0.2.1"))]);
    let sent = resolver.own.sent(&a_query());
    let answer = resolver.a().await;
    assert_eq!(in_short(&answer.bytes).0, ResponseCode::ServFail);
    assert!(matches!(answer.events[..], [Event::Loop { .. }]), "{:?}", answer.events);
    assert_eq!(resolver.upstreams().asked(), []);
    drop(sent);
    assert_eq!(in_short(&resolver.a().await.bytes).0, ResponseCode::NoError);
}

#[tokio::test(start_paused = true)]
async fn a_break_is_a_failure() {
    let resolver = resolver(using(Form::One, &[1]), &[(1, 5, Say::Panic)]);
    assert_eq!(in_short(&resolver.a().await.bytes).0, ResponseCode::ServFail);
    resolver.upstreams().say(1, 5, data("192.0.2.1"));
    assert_eq!(in_short(&resolver.a().await.bytes).0, ResponseCode::NoError);
}

#[tokio::test(start_paused = true)]
async fn statistics_count_each_resolver() {
    let says = [(1, 5, SERVFAIL), (2, 5, data("192.0.2.1"))];
    let resolver = resolver(using(Form::Else, &[1, 2]), &says);
    resolver.a().await;
    resolver.warm();
    let statistics = resolver.statistics();
    assert_eq!((statistics.hits, statistics.misses, statistics.entries), (1, 1, 1));
    let of =
        |resolver, failed| ResolverStatistics { resolver: ResolverId(resolver), asked: 1, failed };
    assert_eq!(statistics.resolvers, [of(1, 1), of(2, 0)]);
}

#[test]
fn no_bytes_from_an_app_make_it_panic() {
    use proptest::test_runner::{Config, TestRunner};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime");
    let resolver = resolver(OneRule("", Rule::default()), &[(0, 0, data("192.0.2.1"))]);
    let bytes = proptest::collection::vec(proptest::prelude::any::<u8>(), 0..60);
    let plain = proptest::prelude::any::<bool>();
    let test = |(mut bytes, plain): (Vec<u8>, bool)| {
        if plain && bytes.len() > 12 {
            bytes[2..12].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        }
        let answer = runtime.block_on(resolver.resolve(bytes.clone(), Over::Udp));
        if !answer.bytes.is_empty() {
            assert_eq!(answer.bytes[..2], bytes[..2]);
            assert!(answer.bytes[2] & 0x80 != 0);
        }
        Ok(())
    };
    TestRunner::new(Config::with_cases(512)).run(&(bytes, plain), test).expect("no panic");
}

/// `cargo nextest run --cargo-profile ci -p dns --run-ignored only --no-capture figures`
///
/// The profile has debug assertions and overflow checks on; release is faster.
#[tokio::test]
#[ignore = "a measurement, not a test"]
async fn figures() {
    use crate::cache::tests::cpu_time;
    const NAMES: u32 = 10_000;
    let resolver = resolver(OneRule("", Rule::default()), &[(0, 0, data("192.0.2.1"))]);
    // Each name is an alias of the one that the script knows.
    let name = |n: u32| format!("host{n}.some.domain.example");
    let queries: Vec<Vec<u8>> =
        (0..NAMES * 4 / 5).map(|n| query_edns(7, &name(n), 1, 1_232, false)).collect();
    let started = cpu_time();
    for (n, query) in queries.iter().enumerate() {
        resolver.upstreams().asked();
        let alias = record(&name(n as u32), 600, "CNAME w.example");
        let answers = vec![alias, record("w.example", 600, "192.0.2.1")];
        resolver.upstreams().say(0, 0, Say::Data(answers));
        resolver.resolve(query.clone(), Over::Udp).await;
    }
    let taken = cpu_time() - started;
    println!("{} ns a miss, the script included", taken.as_nanos() / queries.len() as u128);
    let mut room = Vec::with_capacity(2_048);
    let started = cpu_time();
    let at = now();
    for _ in 0..30 {
        for query in &queries {
            assert!(resolver.cached(query, Over::Udp, at, &mut room).is_some());
            std::hint::black_box(&room);
        }
    }
    let taken = (cpu_time() - started).as_nanos() / (30 * queries.len() as u128);
    println!("{taken} ns a warm answer, {} names", resolver.statistics().entries);
}
