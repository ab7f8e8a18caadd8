//! What gives way, and when: limits, memory, timers.

use super::*;

#[test]
fn short_memory_ends_a_connection_and_nothing_else() {
    let mut bench = Bench::new(config());
    bench.packet(&udp(false, b"older"));
    bench.now = bench.now + Duration::from_secs(2);
    open(&mut bench, false);
    bench.input(Input::EvictIdle);
    assert!(bench.outputs.iter().any(|o| matches!(o, Output::Release(RingId(1), _))));
    assert_eq!(bench.engine.flows(), 1, "the datagrams' flow stays");
    bench.input(Input::EvictIdle);
    assert_eq!(bench.engine.flows(), 1);
}

#[test]
fn timers_do_not_outlive_their_flows_by_hours() {
    let mut bench = Bench::new(config());
    for _ in 0..1_500 {
        let (_, next) = open(&mut bench, false);
        // The SYN-ACK's timer gives way to the idle one.
        bench.wait(Duration::from_secs(2));
        bench.packet(&tcp(false, RST, 1001, next, b""));
        bench.outputs.clear();
    }
    assert_eq!(bench.engine.flows(), 0);
    assert!(bench.engine.timers.len() < 1_100, "{} entries", bench.engine.timers.len());
}

#[test]
fn limits_evict_the_flow_that_was_idle_longest() {
    let mut bench = Bench::new(Config { flows: 4, half_open: 4, ..config() });
    let mut mappings = Vec::new();
    for port in 0..6u16 {
        let mut packet = udp(false, b"x");
        packet[20..22].copy_from_slice(&(1000 + port).to_be_bytes());
        packet[26..28].fill(0);
        bench.packet(&packet);
        mappings.push(port);
        bench.now = bench.now + Duration::from_secs(2);
    }
    assert_eq!(bench.engine.flows(), 4);
    let ended: Vec<u16> = bench
        .outputs
        .iter()
        .filter_map(|output| match output {
            Output::Report(r) if r.reason == Some(Reason::Limit) => Some(r.client.port()),
            _ => None,
        })
        .collect();
    assert_eq!(ended, [1000, 1001]);
}

#[test]
fn timers_say_when_and_nothing_wakes_without_flows() {
    let mut bench = Bench::new(config());
    assert_eq!(bench.engine.poll_timeout(), None);
    bench.packet(&udp(false, b"x"));
    assert!(bench.engine.poll_timeout().is_some());
    bench.input(Input::Shutdown);
    assert_eq!(bench.engine.poll_timeout(), None);
    assert_eq!(bench.engine.flows(), 0);
}

#[test]
fn an_idle_connection_gives_its_memory_back_once() {
    let mut bench = Bench::new(config());
    let (id, next) = open(&mut bench, false);
    let trims = |bench: &Bench| {
        bench.outputs.iter().filter(|o| matches!(o, Output::Trim(RingId(1)))).count()
    };
    write(&mut bench, id, &[7; 8000]);
    bench.wait(Duration::from_secs(11));
    assert_eq!(trims(&bench), 0, "the app has not acknowledged: the ring is not empty");
    write(&mut bench, id, b"x");
    bench.packet(&tcp(false, ACK, 1001, next + 8001, b""));
    write(&mut bench, id, &[7; 8000]);
    bench.packet(&tcp(false, ACK, 1001, next + 16001, b""));
    bench.wait(Duration::from_secs(11));
    bench.wait(Duration::from_secs(60));
    assert_eq!(trims(&bench), 1);
    let (at, _) = bench.engine.poll_timeout().expect("the idle timer");
    assert!(at.since(bench.now) > Duration::from_secs(3600), "no wake-up until then");
}
