//! Random interleavings of all that can happen to flows to the service.

use std::sync::atomic::AtomicBool;

use super::*;

/// Askers over both transports, answers from two other threads, policies that come and go,
/// flows that are killed, little room, and now and then a panic: whatever the order, every
/// packet is counted, each flow ends once, and who asks after all that is answered.
#[test]
fn everything_at_once() {
    namespace::within("", || {
        let config = Config { services: services(), flows: 120, half_open: 30, ..config() };
        let Some(host) = Host::with(config, true) else { return };
        let over = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        let mut repeat = |mut state: u64, mut body: Box<dyn FnMut(&mut u64) + Send>| {
            let over = Arc::clone(&over);
            threads.push(spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    body(&mut state);
                }
            }));
        };
        for seed in 1..3 {
            let (desk, handle) = (Arc::clone(&host.desk), host.handle.clone());
            repeat(seed, Box::new(move |state| answer_some(&desk, &handle, state)));
        }
        for seed in 3..6 {
            repeat(seed, Box::new(ask_some_by_datagrams));
            repeat(seed, Box::new(ask_some_in_a_connection));
        }
        let mut state = 7;
        for generation in 2..80 {
            let rules = ["", "block tcp to 198.18.0.2", "drop udp", "block udp port 53"];
            host.reload(rules[random(&mut state) as usize % rules.len()], generation);
            for flow in host.flows() {
                if random(&mut state).is_multiple_of(16) {
                    host.kill(flow.number);
                }
            }
            sleep(Duration::from_millis(15));
        }
        host.reload("", 80);
        over.store(true, Ordering::Relaxed);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let socket = udp();
        socket.send(&query(77, "now")).unwrap();
        assert_eq!(receive(&socket).unwrap(), (77, TOLD));
        assert_eq!(exchange(&mut tcp(), &[query(78, "now")]), 78);
        let status = host.status();
        assert!(status.panics > 0 && status.flows <= 120, "{status:?}");
        let asked = host.desk.asked();
        let (totals, ends) = host.stop();
        let mut numbers: Vec<u64> = ends.iter().map(|report| report.number).collect();
        numbers.sort_unstable();
        let all: Vec<u64> = (1..=status.flows_opened).collect();
        assert!(numbers == all, "each flow ends once: {} of {}", numbers.len(), all.len());
        println!("{asked} questions, {} flows, {} panics", ends.len(), totals.panics);
    });
}

const NAMES: [&str; 12] = [
    "now", "now", "now", "later", "later", "later", "never", "now.a", "later.b", "now.c", "big",
    "panic",
];

fn name(state: &mut u64) -> &'static str {
    NAMES[random(state) as usize % NAMES.len()]
}

fn answer_some(desk: &Desk, handle: &Handle, state: &mut u64) {
    let taken: Vec<_> = {
        let mut open = desk.later.lock().unwrap();
        let take = random(state) as usize % (open.len() + 1);
        open.drain(..take).collect()
    };
    for question in &taken {
        let mut reply = reply_to(question);
        if random(state).is_multiple_of(8) {
            reply.bytes.clear();
        }
        let _ = handle.reply(reply);
    }
    sleep(Duration::from_micros(300));
}

fn ask_some_by_datagrams(state: &mut u64) {
    let socket = udp();
    socket.set_read_timeout(Some(Duration::from_micros(500))).unwrap();
    for id in 0..random(state) as u16 % 20 {
        // What is refused fails later; nothing here depends on which call it is.
        let _ = socket.send(&query(id, &name(state).replace("big", "now")));
        let _ = receive(&socket);
    }
}

fn ask_some_in_a_connection(state: &mut u64) {
    let Ok(mut stream) = TcpStream::connect((RESOLVER, 53)) else { return };
    stream.set_read_timeout(Some(Duration::from_millis(3))).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(3))).unwrap();
    let count = random(state) as u16 % 100;
    let asked: Vec<_> = (0..count).map(|id| query(id, name(state))).collect();
    let mut bytes = framed(&asked);
    match random(state) % 4 {
        0 => bytes.extend([0, 0]),
        1 => bytes.truncate(random(state) as usize % (bytes.len() + 1)),
        _ => {}
    }
    let _ = stream.write_all(&bytes);
    if random(state).is_multiple_of(2) {
        let _ = stream.shutdown(Shutdown::Write);
    }
    while next_answer(&mut stream).is_ok() && !random(state).is_multiple_of(32) {}
}

fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    *state >> 33
}
