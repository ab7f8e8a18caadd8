//! Connections and datagrams of our own through a tunnel, beside a flow that goes the same way.

use std::task::{Context, Poll, Waker};

use super::*;

/// Tries until there is an answer.
fn wait<T>(what: &str, mut poll: impl FnMut(&Context<'_>) -> Poll<T>) -> T {
    let began = std::time::Instant::now();
    while began.elapsed() < PATIENCE {
        if let Poll::Ready(done) = poll(&Context::from_waker(Waker::noop())) {
            return done;
        }
        sleep(Duration::from_millis(1));
    }
    panic!("{what}: nothing came of it");
}

#[test]
fn our_own_sockets_leave_by_the_tunnel() {
    namespace::within(SETUP, || {
        let (mut shard, exit) = through("route via wg0\nblock via direct");
        let (server, accepts, ends) = tcp_server(A);
        let udp = udp_server(B);
        // A flow that has the same way.
        let mut flow = Connection::open(&mut shard, 40_001, server);
        flow.echo(&mut shard);
        accepts.recv_timeout(PATIENCE).unwrap();

        let stream = shard.handle.connect(link(), server.into()).unwrap();
        wait("open", |context| stream.poll_open(context)).unwrap();
        let data: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
        let (mut sent, mut back) = (0, Vec::<u8>::new());
        let mut room = vec![0; 10_000];
        while back.len() < data.len() {
            let context = Context::from_waker(Waker::noop());
            if sent < data.len()
                && let Poll::Ready(written) = stream.poll_write(&context, &data[sent..])
            {
                sent += written.unwrap();
            }
            match stream.poll_read(&context, &mut room) {
                Poll::Ready(read) => back.extend(&room[..read.unwrap()]),
                Poll::Pending => sleep(Duration::from_micros(100)),
            }
        }
        assert!(back == data);
        let client = accepts.recv_timeout(PATIENCE);
        assert!(client.is_ok());
        stream.end();
        assert_eq!(wait("the end", |context| stream.poll_read(context, &mut room)), Ok(0));
        assert!(ends.recv_timeout(PATIENCE).unwrap().is_ok());
        drop(stream);

        let socket = shard.handle.bind(link(), udp.into()).unwrap();
        assert_eq!(socket.send(b"question"), Ok(true));
        wait("the answer", |context| socket.poll_ready(context));
        let length = socket.receive(&mut room).unwrap().unwrap();
        assert_eq!(&room[..length], b"question");
        assert_eq!(socket.near().ip(), INNER);
        // What the far side and the tunnel say.
        let closed = SocketAddr::from((A, 9));
        let refused = shard.handle.connect(link(), closed).unwrap();
        let opened = wait("refused", |context| refused.poll_open(context));
        assert_eq!(opened, Err(Failure::Refused));
        let socket = shard.handle.bind(link(), closed).unwrap();
        socket.send(b"anybody?").unwrap();
        wait("refused", |context| socket.poll_ready(context));
        assert_eq!(socket.receive(&mut room), Err(Failure::Refused));
        shard.get(|answer| Request::Ways { ways: ways(false), proxies: Arc::default(), answer });
        let unusable = shard.handle.connect(link(), server.into()).unwrap();
        let opened = wait("not usable", |context| unusable.poll_open(context));
        assert_eq!(opened, Err(Failure::NetUnreachable));
        flow.echo(&mut shard);

        let flows = shard.flows();
        assert_eq!(flows.len(), 1, "ours are no flows: {flows:?}");
        let handle = shard.handle.clone();
        let (totals, _) = shard.stop();
        assert_eq!((totals.panics, totals.engine.to_egress), (0, 0));
        assert!(handle.connect(link(), server.into()).is_err(), "there is no shard");
        assert_eq!(socket.receive(&mut room), Err(Failure::NetUnreachable));
        let seen = exit.stop();
        assert!(seen.iter().all(|flow| flow.client.ip() == INNER), "{seen:?}");
        assert!(seen.len() >= 5, "{}", seen.len());
    });
}
