//! The netstack in virtual time, with a far side that is another stack, over a network that
//! loses, doubles and reorders.

mod hostile;
mod pair;

use std::task::{Context, Poll, Waker};

use engine::{Arrived, Failure, LinkId, WayId};

use self::pair::{ADDRESS, FAR, MTU, PORT, Pair, ways};
use super::*;

fn link() -> LinkId {
    LinkId::of(WayId::new(1).expect("few"))
}

fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

impl Stream {
    fn now_open(&self) -> Option<Result<(), Failure>> {
        match self.poll_open(&context()) {
            Poll::Ready(opened) => Some(opened),
            Poll::Pending => None,
        }
    }

    fn read_now(&self) -> Option<Result<Vec<u8>, Failure>> {
        let mut room = vec![0; 4096];
        match self.poll_read(&context(), &mut room) {
            Poll::Ready(read) => Some(read.map(|length| room[..length].to_vec())),
            Poll::Pending => None,
        }
    }

    fn write_now(&self, bytes: &[u8]) -> Option<Result<usize, Failure>> {
        match self.poll_write(&context(), bytes) {
            Poll::Ready(written) => Some(written),
            Poll::Pending => None,
        }
    }
}

/// Echoes 300 kB through whatever the network does; how long it took.
fn echoes(pair: &mut Pair, v6: bool) -> Duration {
    let began = pair.now;
    let stream = pair.connect(v6);
    pair.listen(v6);
    let data: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    let (mut sent, mut back) = (0, Vec::new());
    pair.until("it is open", |_| stream.now_open()).expect("open");
    pair.until("all is echoed", |_| {
        while let Some(written) = data.get(sent..).filter(|rest| !rest.is_empty()) {
            match stream.write_now(written) {
                Some(written) => sent += written.expect("open"),
                None => break,
            }
        }
        if sent == data.len() {
            stream.end();
        }
        loop {
            match stream.read_now() {
                Some(Ok(read)) if read.is_empty() => return Some(()),
                Some(read) => back.extend(read.expect("no reset")),
                None => return None,
            }
        }
    });
    assert!(back == data, "{} of {} bytes", back.len(), data.len());
    drop(stream);
    pair.until("all is released", |pair| (pair.netstack.len() == 0).then_some(()));
    assert!(pair.below.taken.is_empty(), "ports: {:?}", pair.below.taken);
    pair.now.since(began)
}

#[test]
fn a_connection_over_a_good_network() {
    for v6 in [false, true] {
        let mut pair = Pair::new();
        let took = echoes(&mut pair, v6);
        // 10 s of it are what is left of an end in order.
        assert!(took < Duration::from_secs(14), "{took:?}");
        assert!(pair.longest <= usize::from(MTU), "{}", pair.longest);
    }
}

#[test]
fn a_connection_over_a_bad_network() {
    for seed in 1..4 {
        let mut pair = Pair::new();
        pair.bad(seed);
        echoes(&mut pair, seed % 2 == 0);
    }
}

#[test]
fn why_a_connection_does_not_open() {
    type Do = fn(&mut Pair);
    let cases: [(&str, Failure, Do); 6] = [
        ("nobody listens", Failure::Refused, |_| {}),
        ("no such tunnel", Failure::NetUnreachable, |pair| pair.below.ways = Arc::default()),
        ("not usable", Failure::NetUnreachable, |pair| pair.below.ways = ways(false)),
        ("no peer has that address", Failure::HostUnreachable, |pair| {
            pair.below.refuse = Some(Unsent::Failed(Failure::HostUnreachable));
        }),
        ("a router says so", Failure::Prohibited, |pair| pair.errors = Some((3, 13, 0))),
        ("a host says so", Failure::HostUnreachable, |pair| pair.errors = Some((3, 1, 0))),
    ];
    for (name, want, act) in cases {
        let mut pair = Pair::new();
        act(&mut pair);
        let stream = pair.connect(false);
        let began = pair.now;
        pair.turn();
        let opened = pair.until(name, |_| stream.now_open());
        assert_eq!(opened, Err(want), "{name}");
        assert!(pair.now.since(began) < Duration::from_millis(100), "{name}: at once");
        assert_eq!(stream.write_now(b"x"), Some(Err(want)), "{name}");
        assert_eq!((pair.netstack.len(), pair.below.taken.len()), (0, 0), "{name}");
    }
    // An error that quotes another segment, or another connection, is none of ours.
    let mut pair = Pair::new();
    let stream = pair.connect(false);
    pair.netstack.turn(&mut pair.below, pair.now);
    let port = *pair.below.taken.iter().next().expect("a port");
    let error = |sequence| Arrived::Error { kind: 3, code: 3, rest: 0, sequence };
    let syn = u32::from_be_bytes(pair.below.out[0][24..28].try_into().expect("a number"));
    pair.netstack.arrive(port, error(syn.wrapping_sub(1)));
    pair.netstack.arrive(LinkPort { port: port.port ^ 1, ..port }, error(syn));
    pair.below.out.clear();
    pair.turn();
    assert_eq!(stream.now_open(), None);
    pair.netstack.arrive(port, error(syn));
    pair.turn();
    assert_eq!(stream.now_open(), Some(Err(Failure::Refused)));
}

#[test]
fn datagrams_and_what_is_known_of_their_way() {
    for v6 in [false, true] {
        let mut pair = Pair::new();
        let socket = pair.bind(v6);
        let mut room = [0; 2000];
        assert!(socket.near().ip().is_unspecified());
        assert_eq!(socket.send(b"question"), Ok(true));
        pair.turn();
        assert_eq!(socket.near().ip(), ADDRESS[usize::from(v6)]);
        // Each comes back as it is.
        let mut length = 0;
        pair.until("the echo", |_| {
            length = socket.receive(&mut room).expect("no error")?;
            Some(())
        });
        assert_eq!(&room[..length], b"question");
        assert_eq!(socket.receive(&mut room), Ok(None));
        assert!(socket.poll_ready(&context()).is_pending());
        // What is longer than the room is cut, and the next one is whole.
        assert_eq!((socket.send(b"abcdef"), socket.send(b"gh")), (Ok(true), Ok(true)));
        pair.until("both", |_| socket.poll_ready(&context()).is_ready().then_some(()));
        assert_eq!(socket.receive(&mut room[..2]), Ok(Some(2)));
        assert_eq!(socket.receive(&mut room), Ok(Some(2)));
        assert_eq!(&room[..2], b"gh");
        // An error is told once, and the socket goes on.
        let unreachable = if v6 { (1, 4, 0) } else { (3, 3, 0) };
        pair.errors = Some(unreachable);
        assert_eq!(socket.send(b"x"), Ok(true));
        pair.until("told", |_| socket.poll_ready(&context()).is_ready().then_some(()));
        assert_eq!(socket.receive(&mut room), Err(Failure::Refused));
        pair.errors = None;
        assert_eq!(socket.send(b"y"), Ok(true));
        pair.until("the echo", |_| socket.receive(&mut room).expect("no error"));
        // What is longer than the tunnel takes goes in pieces.
        assert_eq!(socket.send(&[7; MTU as usize]), Ok(true));
        pair.netstack.turn(&mut pair.below, pair.now);
        let pieces: Vec<usize> = pair.below.out.drain(..).map(|packet| packet.len()).collect();
        assert!(pieces.len() == 2 && pieces.iter().all(|it| *it <= MTU.into()), "{pieces:?}");
        // Not usable: no datagram leaves.
        pair.below.ways = ways(false);
        assert_eq!(socket.send(b"z"), Ok(true));
        pair.netstack.turn(&mut pair.below, pair.now);
        assert_eq!((socket.send(b"z"), pair.below.out.len()), (Err(Failure::NetUnreachable), 0));
        drop(socket);
        pair.turn();
        assert_eq!((pair.netstack.len(), pair.below.taken.len()), (0, 0));
    }
}

#[test]
fn a_tunnel_that_goes_takes_its_sockets_along() {
    for (name, next) in [("gone", Arc::default()), ("another address", pair::moved())] {
        let mut pair = Pair::new();
        pair.listen(false);
        let (stream, socket) = (pair.connect(false), pair.bind(false));
        pair.until("it is open", |_| stream.now_open()).expect("open");
        pair.below.ways = ways(false);
        pair.netstack.turn(&mut pair.below, pair.now);
        assert_eq!(pair.netstack.len(), 2, "what is there stays, usable or not");
        pair.below.ways = next;
        pair.netstack.turn(&mut pair.below, pair.now);
        assert_eq!(stream.read_now(), Some(Err(Failure::NetUnreachable)), "{name}");
        assert_eq!(socket.receive(&mut [0; 9]), Err(Failure::NetUnreachable), "{name}");
        assert_eq!((pair.netstack.len(), pair.below.taken.len()), (0, 0), "{name}");
    }
    // And so does a shard.
    let mut pair = Pair::new();
    pair.listen(false);
    let (stream, board) = (pair.connect(false), Arc::downgrade(&pair.board));
    pair.until("it is open", |_| stream.now_open()).expect("open");
    let late = pair.connect(false);
    drop(pair);
    assert!(board.upgrade().is_none());
    assert_eq!(stream.write_now(b"x"), Some(Err(Failure::NetUnreachable)));
    assert_eq!(late.now_open(), Some(Err(Failure::NetUnreachable)));
}

#[test]
fn a_client_that_leaves() {
    // What it wrote is still sent, then the end.
    let mut pair = Pair::new();
    pair.mute = true;
    pair.listen(false);
    let stream = pair.connect(false);
    pair.until("it is open", |_| stream.now_open()).expect("open");
    assert_eq!(stream.write_now(b"last words"), Some(Ok(10)));
    drop(stream);
    pair.until("all is released", |pair| (pair.netstack.len() == 0).then_some(()));
    assert_eq!(pair.heard, b"last words");
    assert!(!pair.reset);
    // What it did not read is a reset.
    let mut pair = Pair::new();
    pair.listen(false);
    let stream = pair.connect(false);
    pair.until("it is open", |_| stream.now_open()).expect("open");
    stream.write_now(b"echo this");
    pair.until("it is back", |_| (!stream.line_is_empty()).then_some(()));
    drop(stream);
    pair.until("all is released", |pair| (pair.netstack.len() == 0).then_some(()));
    assert!(pair.reset);
    // So is what is to be one. What was looked at stays to be read.
    let mut pair = Pair::new();
    pair.listen(false);
    let stream = pair.connect(false);
    pair.until("it is open", |_| stream.now_open()).expect("open");
    stream.write_now(b"echo this");
    let mut seen = [0; 4];
    pair.until("it is back", |_| (!stream.line_is_empty()).then_some(()));
    for _ in 0..2 {
        assert_eq!(stream.poll_peek(&context(), &mut seen), Poll::Ready(Ok(4)));
        assert_eq!((&seen, stream.has_all()), (b"echo", false));
    }
    assert_eq!(stream.read_now(), Some(Ok(b"echo this".to_vec())));
    assert!(stream.poll_peek(&context(), &mut seen).is_pending());
    stream.abort();
    pair.until("all is released", |pair| (pair.netstack.len() == 0).then_some(()));
    assert!(pair.reset);
    // Before the far side has answered.
    let mut pair = Pair::new();
    let stream = pair.connect(false);
    pair.netstack.turn(&mut pair.below, pair.now);
    drop(stream);
    pair.netstack.turn(&mut pair.below, pair.now);
    assert_eq!((pair.netstack.len(), pair.below.taken.len()), (0, 0));
    // Where nobody answers any more it doesn't wait for ever.
    let mut pair = Pair::new();
    pair.listen(false);
    let stream = pair.connect(false);
    pair.until("it is open", |_| stream.now_open()).expect("open");
    pair.dead = true;
    let began = pair.now;
    drop(stream);
    pair.until("all is released", |pair| (pair.netstack.len() == 0).then_some(()));
    assert!(pair.now.since(began) <= LINGER + Duration::from_secs(1));
}

#[test]
fn a_client_that_does_not_read_closes_the_window() {
    let mut pair = Pair::new();
    pair.listen(false);
    let stream = pair.connect(false);
    pair.until("it is open", |_| stream.now_open()).expect("open");
    pair.pour = 1_000_000;
    for _ in 0..2_000 {
        pair.step();
    }
    assert!(pair.pour > 1_000_000 - 300_000, "{} left to pour", pair.pour);
    let mut all = 0;
    pair.until("all came", |_| {
        while let Some(read) = stream.read_now() {
            all += read.expect("no reset").len();
        }
        (all == 1_000_000).then_some(())
    });
}

#[test]
fn silence_costs_nothing_and_ends_what_waits_for_an_answer() {
    let mut pair = Pair::new();
    pair.listen(false);
    let stream = pair.connect(false);
    pair.until("it is open", |_| stream.now_open()).expect("open");
    pair.until("nothing is due", |pair| pair.netstack.next_timer().is_none().then_some(()));
    pair.now = pair.now + Duration::from_secs(36_000);
    pair.turn();
    assert_eq!(stream.write_now(b"after ten hours"), Some(Ok(15)));
    pair.until("the echo", |_| stream.read_now()).expect("it stands");
    pair.dead = true;
    let began = pair.now;
    assert_eq!(stream.write_now(b"into the void"), Some(Ok(13)));
    let read = pair.until("it is given up", |_| stream.read_now());
    assert_eq!(read, Err(Failure::TimedOut));
    let took = pair.now.since(began);
    assert!(took >= UNACKNOWLEDGED && took < UNACKNOWLEDGED * 3, "{took:?}");
    assert_eq!((pair.netstack.len(), pair.below.taken.len()), (0, 0));
}

#[test]
fn a_path_that_takes_less_than_the_tunnel() {
    for v6 in [false, true] {
        let mut pair = Pair::new();
        pair.path = 1300;
        let took = echoes(&mut pair, v6);
        assert!(took < Duration::from_secs(30), "{took:?}");
    }
}

#[test]
fn there_is_a_most_of_sockets() {
    let mut pair = Pair::new();
    let sockets: Vec<_> = std::iter::from_fn(|| pair.board.bind(link(), FAR[0]).ok()).collect();
    assert_eq!(sockets.len(), 1024);
    let streams: Vec<_> = std::iter::from_fn(|| pair.board.connect(link(), FAR[0]).ok()).collect();
    assert_eq!(streams.len(), 1024);
    pair.netstack.turn(&mut pair.below, pair.now);
    let ports: std::collections::HashSet<_> =
        pair.below.taken.iter().map(|it| (it.protocol, it.port)).collect();
    assert_eq!(ports.len(), 2048, "each has a port of its own");
    let low = pair.below.taken.iter().filter(|it| it.port < 30_000).count();
    assert!((700..1150).contains(&low), "{low}: of all there are");
    drop((sockets, streams));
    pair.netstack.turn(&mut pair.below, pair.now);
    assert_eq!((pair.netstack.len(), pair.below.taken.len()), (0, 0));
    assert!(pair.board.bind(link(), FAR[0]).is_ok(), "seats are given back");
    // Connections that nobody waits for give way, too.
    let mut pair = Pair::new();
    pair.listen(false);
    for _ in 0..300 {
        let stream = pair.connect(false);
        pair.until("it is open", |_| stream.now_open()).expect("open");
        pair.dead = true;
        drop(stream);
        pair.netstack.turn(&mut pair.below, pair.now);
        pair.dead = false;
        pair.relisten(false);
    }
    assert!(pair.netstack.len() <= LINGERING, "{}", pair.netstack.len());
    assert_eq!(PORT, 53);
}
