//! A pool and its one server, in a time that passes when it is told to.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use hickory_proto::op::Query;
use hickory_proto::rr::{Name, RecordType};
use tokio::sync::Notify;
use tokio::time::advance;

use super::remote::NO_EDNS_LIVES;
use super::*;
use crate::socket::{Datagrams, Stream};

/// What a server says to a query, with EDNS and without.
#[derive(Debug, Clone, Copy)]
struct Says {
    with: ResponseCode,
    /// Whether what it says to a query with an OPT record has one.
    opt: bool,
    without: ResponseCode,
}

/// A server behind any socket that is opened.
#[derive(Debug)]
struct Peer {
    says: Mutex<Says>,
    /// Of each query, whether it had an OPT record.
    heard: Mutex<Vec<bool>>,
}

#[derive(Debug)]
struct Line {
    peer: Arc<Peer>,
    answers: Mutex<VecDeque<Vec<u8>>>,
    came: Notify,
}

#[derive(Debug, Clone)]
struct Near(Arc<Peer>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Way for Near {
    fn connect_tcp(&self, _: Target) -> BoxFuture<'static, io::Result<Box<dyn Stream>>> {
        Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) })
    }

    fn bind_udp(&self, _: &Target) -> io::Result<Arc<dyn Datagrams>> {
        let peer = Arc::clone(&self.0);
        Ok(Arc::new(Line { peer, answers: Mutex::default(), came: Notify::new() }))
    }

    fn is_tunnel(&self) -> bool {
        false
    }
}

impl Datagrams for Line {
    fn try_send(&self, datagram: &[u8]) -> io::Result<()> {
        let query = Message::from_vec(datagram).expect("a query");
        let (edns, says) = (query.edns.is_some(), *lock(&self.peer.says));
        lock(&self.peer.heard).push(edns);
        let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
        answer.metadata.response_code = if edns { says.with } else { says.without };
        answer.queries.clone_from(&query.queries);
        answer.edns = (edns && says.opt).then(Edns::new);
        lock(&self.answers).push_back(answer.to_vec().expect("an answer"));
        self.came.notify_one();
        Ok(())
    }

    fn try_recv(&self, room: &mut [u8]) -> io::Result<usize> {
        let answer = lock(&self.answers).pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        room[..answer.len()].copy_from_slice(&answer);
        Ok(answer.len())
    }

    fn ready(&self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async {
            self.came.notified().await;
            Ok(())
        })
    }

    fn local_address(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::from(([127, 0, 0, 1], 1)))
    }
}

fn pool(says: Says) -> (Pool, Arc<Peer>) {
    let peer = Arc::new(Peer { says: Mutex::new(says), heard: Mutex::default() });
    let servers = vec!["192.0.2.53".parse().expect("a server")];
    let settings = Settings { servers, trust: Trust::default() };
    let pool = Pool::new(settings, Arc::new(Near(Arc::clone(&peer)))).expect("good settings");
    (pool, peer)
}

/// What the server heard of one question.
async fn heard_of_one(pool: &Pool, peer: &Peer) -> Vec<bool> {
    let mut query = Message::query();
    query.add_query(Query::query(Name::from_ascii("w.example.").expect("a name"), RecordType::A));
    // Its answer may be an error.
    let _ = pool.ask(&query, LONGEST).await;
    std::mem::take(&mut *lock(&peer.heard))
}

const NO_ERROR: ResponseCode = ResponseCode::NoError;

/// RFC 6891 6.1.1, 6.1.3 and 7: who says that it knows no EDNS, and knows the query without.
#[tokio::test(start_paused = true)]
async fn who_knows_no_edns() {
    use ResponseCode::{BADVERS, FormErr, NotImp, Refused, ServFail};
    for (name, with, opt, without, remembered) in [
        ("never heard of it", FormErr, false, NO_ERROR, true),
        ("not implemented", NotImp, false, NO_ERROR, true),
        ("no such version", BADVERS, true, NO_ERROR, true),
        ("a name that is not", FormErr, false, ResponseCode::NXDomain, true),
        ("it has heard of it", FormErr, true, NO_ERROR, false),
        ("the query itself", FormErr, false, FormErr, false),
        ("it fails", ServFail, false, NO_ERROR, false),
        ("it refuses", Refused, false, NO_ERROR, false),
        ("it knows", NO_ERROR, true, NO_ERROR, false),
        ("it takes no notice", NO_ERROR, false, NO_ERROR, false),
    ] {
        let (pool, peer) = pool(Says { with, opt, without });
        let first = heard_of_one(&pool, &peer).await;
        assert!(first[0], "{name}: asked with it first: {first:?}");
        let second = heard_of_one(&pool, &peer).await;
        assert_eq!(second == [false], remembered, "{name}: {second:?}");
    }
}

/// Five minutes, however often it is asked meanwhile; another server may be there by then.
#[tokio::test(start_paused = true)]
async fn a_server_without_edns_is_asked_with_it_again() {
    let old = Says { with: ResponseCode::FormErr, opt: false, without: NO_ERROR };
    let (pool, peer) = pool(old);
    assert_eq!(heard_of_one(&pool, &peer).await, [true, false]);
    for _ in 0..4 {
        advance(NO_EDNS_LIVES / 5).await;
        assert_eq!(heard_of_one(&pool, &peer).await, [false], "not yet");
    }
    advance(NO_EDNS_LIVES / 5).await;
    assert_eq!(heard_of_one(&pool, &peer).await, [true, false], "it is the same one");
    assert_eq!(heard_of_one(&pool, &peer).await, [false]);
    *lock(&peer.says) = Says { with: NO_ERROR, opt: true, without: NO_ERROR };
    assert_eq!(heard_of_one(&pool, &peer).await, [false], "nobody knows yet");
    advance(NO_EDNS_LIVES).await;
    for _ in 0..2 {
        assert_eq!(heard_of_one(&pool, &peer).await, [true], "another one");
    }
    // A way to another server.
    *lock(&peer.says) = old;
    assert_eq!(heard_of_one(&pool, &peer).await, [true, false]);
    pool.reset();
    assert_eq!(heard_of_one(&pool, &peer).await, [true, false]);
}
