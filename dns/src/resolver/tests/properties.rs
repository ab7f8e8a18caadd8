//! What holds for every course of things.

use std::sync::atomic::AtomicU32;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;

/// A rule for each of a few names.
#[derive(Debug, Clone)]
struct Table(Vec<Rule>);

impl Plan for Table {
    fn rule(&self, name: &str) -> Rule {
        let number = name.strip_prefix('n').and_then(|rest| rest.strip_suffix(".example"));
        let number: Option<usize> = number.and_then(|number| number.parse().ok());
        number.and_then(|number| self.0.get(number)).cloned().unwrap_or_default()
    }
}

#[derive(Debug, Clone)]
enum Step {
    Ask(usize),
    Flush(Option<u8>),
    Plan(Table),
    Say(u8, Option<u64>),
    Wait(u64),
}

fn table() -> impl Strategy<Value = Table> {
    let form = prop_oneof![
        Just(Form::One),
        Just(Form::Else),
        Just(Form::Or),
        Just(Form::And),
        Just(Form::None)
    ];
    let resolvers = proptest::sample::subsequence(vec![0_u8, 1, 2, 3], 2..=3).prop_shuffle();
    let rule = (form, resolvers).prop_map(|(form, resolvers)| {
        let count = match form {
            Form::None => 0,
            Form::One => 1,
            Form::And | Form::Else | Form::Or => resolvers.len(),
        };
        let resolvers = resolvers[..count].iter().map(|resolver| ResolverId(*resolver));
        Rule { form, resolvers: resolvers.collect(), private: false, specific: true }
    });
    proptest::collection::vec(rule, 3).prop_map(Table)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_usize..3).prop_map(Step::Ask),
        1 => proptest::option::of(0_u8..4).prop_map(Step::Flush),
        1 => table().prop_map(Step::Plan),
        2 => (0_u8..4, proptest::option::of(0_u64..3_000)).prop_map(|(r, s)| Step::Say(r, s)),
        2 => (1_u64..100).prop_map(Step::Wait),
    ]
}

/// Every resolver says an address with its own number, so an answer tells where it is from.
fn says(resolver: u8) -> Say {
    let owners = (0..3).map(|n| format!("n{n}.example"));
    Say::Data(owners.map(|owner| record(&owner, 60, &format!("192.0.2.{resolver}"))).collect())
}

#[test]
fn no_name_reaches_a_resolver_that_its_rule_does_not_name() {
    let course = (table(), proptest::collection::vec(step(), 1..40));
    TestRunner::new(Config::with_cases(200))
        .run(&course, |(first, steps)| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .expect("a runtime");
            runtime.block_on(follow(first, steps));
            Ok(())
        })
        .expect("holds");
}

async fn follow(first: Table, steps: Vec<Step>) {
    let scripted = Scripted::default();
    for resolver in 0..4 {
        scripted.say(resolver, 5, says(resolver));
    }
    let mut plan = first.clone();
    let resolver = Resolver::new(Settings::default(), Arc::new(first), scripted);
    for step in steps {
        match step {
            Step::Ask(number) => {
                let name = format!("n{number}.example");
                let started = now();
                let answer =
                    resolver.resolve(query_edns(7, &name, 1, 1_232, false), Over::Udp).await;
                assert!(now() - started < Duration::from_secs(5));
                // Those asked in the background included.
                for (asked, name) in resolver.upstreams().asked() {
                    let rule = plan.rule(&name);
                    assert!(rule.resolvers.contains(&ResolverId(asked)), "{asked}: {rule:?}");
                }
                let named: Vec<u8> = plan.0[number].resolvers.iter().map(|r| r.0).collect();
                let (_, addresses, _) = in_short(&answer.bytes);
                let from: Vec<u8> = addresses
                    .iter()
                    .filter_map(|address| address.strip_prefix("192.0.2.")?.parse().ok())
                    .collect();
                assert!(from.iter().all(|from| named.contains(from)), "{from:?}, of {named:?}");
                for (address, resolvers) in answer.learned.iter().flat_map(|l| &l.addresses) {
                    let IpAddr::V4(address) = address else { panic!("an IPv4 address") };
                    assert_eq!(*resolvers, 1 << address.octets()[3]);
                }
            }
            Step::Flush(of) => resolver.flush(of.map(ResolverId)),
            Step::Plan(other) => {
                // A refresh in the background belongs to the rule of its question.
                sleep(Duration::from_secs(5)).await;
                resolver.upstreams().asked();
                plan = other.clone();
                resolver.set_plan(Arc::new(other));
            }
            Step::Say(of, Some(after)) => resolver.upstreams().say(of, after, says(of)),
            Step::Say(of, None) => resolver.upstreams().say(of, 5, SERVFAIL),
            Step::Wait(seconds) => {
                sleep(Duration::from_secs(seconds)).await;
                resolver.upstreams().asked();
            }
        }
    }
}

/// Says an address made of the name's number.
#[derive(Debug, Default)]
struct Numbered(AtomicU32);

impl Upstreams for Numbered {
    async fn ask(&self, _: ResolverId, question: &Question, _: Duration) -> Result<Reply, Failure> {
        tokio::task::yield_now().await;
        let n = self.0.fetch_add(1, Relaxed);
        let name = question.name.to_ascii();
        let answers = vec![record(name.trim_end_matches('.'), n % 3, &address(&name))];
        let code = if n.is_multiple_of(7) { ResponseCode::ServFail } else { ResponseCode::NoError };
        Ok(Reply {
            message: reply(question, code, answers, vec![]),
            server: ([192, 0, 2, 53], 53).into(),
            transport: Transport::Udp,
            took: Duration::ZERO,
        })
    }

    fn is_tunnel(&self, _: ResolverId) -> bool {
        false
    }
}

fn address(name: &str) -> String {
    let number = name.trim_start_matches('n').split('.').next().expect("a label");
    format!("198.51.100.{number}")
}

/// Shards that ask the cache, askers that wait, and flushes, all at once: each gets an
/// answer to its own question.
#[test]
fn threads_don_t_mix_answers_up() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build();
    let runtime = runtime.expect("a runtime");
    let settings = Settings { cache: 64, ..Settings::default() };
    let plan = Arc::new(OneRule("", Rule::default()));
    let resolver = Resolver::new(settings, plan, Numbered::default());
    let check = |bytes: &[u8], id: u16, name: &str| {
        let message = Message::from_vec(bytes).expect("an answer");
        assert_eq!(message.metadata.id, id);
        assert_eq!(message.queries[0].name().to_ascii(), format!("{name}."));
        for record in &message.answers {
            assert_eq!(record.data.to_string(), address(name));
        }
        message.metadata.response_code
    };
    let answered = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3_u16)
            .map(|thread| {
                let (resolver, runtime) = (&resolver, &runtime);
                scope.spawn(move || {
                    let mut room = Vec::new();
                    let mut warm = 0;
                    for n in 0..3_000_u16 {
                        let name = format!("n{}.example", n.wrapping_mul(31 + thread) % 90);
                        let query = query(n, &name, 1);
                        if resolver.cached(&query, Over::Udp, Instant::now(), &mut room).is_some() {
                            check(&room, n, &name);
                            warm += 1;
                        } else {
                            let answer = runtime.block_on(resolver.resolve(query, Over::Udp));
                            let code = check(&answer.bytes, n, &name);
                            assert!(
                                code == ResponseCode::NoError || code == ResponseCode::ServFail
                            );
                        }
                        if n.is_multiple_of(500) {
                            resolver.flush(None);
                        }
                    }
                    warm
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).sum::<u32>()
    });
    assert!(answered > 0);
    assert_eq!(resolver.statistics().overloaded, 0);
}
