//! Where a peer, or a proxy, is that the configuration knows by its name.
//!
//! The resolver `upstream` is asked for the name's addresses, again and again until it has
//! some, less and less often. When the peer there doesn't answer it is asked again, and
//! where it has several addresses the next one is tried.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use dns::ask::ResolverId;
use dns::inquiry;
use engine::WayId;
use tokio::time::Instant;
use tunnel::link::wireguard::PublicKey;

use crate::names::Names;

/// What was learned of a name.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) way: WayId,
    pub(super) peer: PublicKey,
    /// What was asked for; a reload may have changed it meanwhile.
    pub(super) name: String,
    /// Those of IPv6 first, as `getaddrinfo` has them where both can be reached (RFC 6724);
    /// none where there is no answer, or no such name.
    pub(super) addresses: Vec<IpAddr>,
}

/// The first pause after a name that has no address, and the longest one.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long an answer is good for a peer that doesn't answer.
const FRESH: Duration = Duration::from_secs(5);

/// A name whose addresses are wanted.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    name: String,
    port: u16,
    /// The address that was given to the tunnel last.
    given: Option<IpAddr>,
    state: State,
    pause: Duration,
    /// That it has none was said.
    told: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// To be asked for.
    Due(Instant),
    Asked {
        /// The first question of all.
        first: bool,
    },
    /// Known since.
    Known(Instant),
}

impl Endpoint {
    /// One that nobody has asked for.
    pub(super) fn new(name: &str, port: u16, now: Instant) -> Self {
        let state = State::Due(now);
        Self { name: name.to_owned(), port, given: None, state, pause: PAUSE, told: false }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// When it has to be asked for.
    pub(super) fn due(&self) -> Option<Instant> {
        match self.state {
            State::Due(at) => Some(at),
            State::Asked { .. } | State::Known(_) => None,
        }
    }

    /// Whether nobody knows yet what the first answer is.
    pub(super) fn is_new(&self) -> bool {
        match self.state {
            State::Due(_) => self.given.is_none() && self.pause == PAUSE,
            State::Asked { first } => first,
            State::Known(_) => false,
        }
    }

    /// It was asked for.
    pub(super) fn asked(&mut self) {
        self.state = State::Asked { first: self.is_new() };
    }

    /// The peer does not answer where it was said to be.
    pub(super) fn silent(&mut self, now: Instant) {
        if let State::Known(since) = self.state {
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            self.state = State::Due((since + FRESH.max(self.pause)).max(now));
        }
    }

    /// The network is another: whoever waits to ask again asks now.
    pub(super) fn elsewhere(&mut self, now: Instant) {
        if let State::Due(at) = &mut self.state {
            *at = now.min(*at);
        }
    }

    /// The peer has answered.
    pub(super) fn heard(&mut self) {
        self.pause = PAUSE;
    }

    /// An answer has come: where the peer is to be looked for now. `reachable` are the name's
    /// addresses that there is a route to; `None`: there is none.
    pub(super) fn answered(&mut self, reachable: &[IpAddr], now: Instant) -> Option<SocketAddr> {
        if reachable.is_empty() {
            self.state = State::Due(now + self.pause);
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            return None;
        }
        self.state = State::Known(now);
        self.told = false;
        let before = reachable.iter().position(|ip| Some(*ip) == self.given);
        let next = reachable[before.map_or(0, |at| (at + 1) % reachable.len())];
        self.given = Some(next);
        Some(SocketAddr::new(next, self.port))
    }

    /// Whether it is news that the name has no address.
    pub(super) fn is_news(&mut self) -> bool {
        !std::mem::replace(&mut self.told, true)
    }
}

/// Asks `upstream` for both kinds of address.
pub(super) async fn addresses(names: &Names, name: &str) -> Vec<IpAddr> {
    let (v6, v4) = futures_util::join!(ask(names, name, "AAAA"), ask(names, name, "A"));
    v6.into_iter().chain(v4).collect()
}

async fn ask(names: &Names, name: &str, kind: &str) -> Vec<IpAddr> {
    let Ok(question) = inquiry::question(name, kind) else { return Vec::new() };
    let asked = names.ask(vec![ResolverId::UPSTREAM], name, &question).await;
    let said = asked.into_iter().flatten().filter_map(|asked| asked.said.ok());
    let records = said.flat_map(|said| said.seen.records);
    records.filter(|record| record.kind == kind).filter_map(|r| r.data.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn a_name_is_asked_for_less_and_less_often() {
        let begin = Instant::now();
        let mut endpoint = Endpoint::new("vpn.example", 51820, begin);
        let (mut now, mut pauses) = (begin, Vec::new());
        for at in 0..8 {
            assert_eq!(endpoint.due(), Some(now));
            assert_eq!(endpoint.is_new(), at == 0);
            endpoint.asked();
            assert_eq!((endpoint.due(), endpoint.is_new()), (None, at == 0));
            assert_eq!(endpoint.answered(&[], now), None);
            assert_eq!(endpoint.is_news(), at == 0, "said once");
            let due = endpoint.due().expect("again");
            pauses.push((due - now).as_secs());
            now = due;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        let before = now - Duration::from_secs(50);
        endpoint.elsewhere(before);
        assert_eq!((endpoint.due(), endpoint.is_new()), (Some(before), false), "at once");
        endpoint.asked();
        assert_eq!(endpoint.answered(&[ip(1)], now), Some(SocketAddr::new(ip(1), 51820)));
        assert_eq!((endpoint.due(), endpoint.is_new()), (None, false));
    }

    #[test]
    fn a_silent_peer_is_looked_for_elsewhere() {
        let begin = Instant::now();
        let mut endpoint = Endpoint::new("vpn.example", 1, begin);
        endpoint.asked();
        let mut now = begin;
        let mut given = vec![endpoint.answered(&[ip(1), ip(2)], now).unwrap().ip()];
        for _ in 0..2 {
            endpoint.silent(now);
            let due = endpoint.due().expect("asked again");
            assert!(due >= now + FRESH && !endpoint.is_new());
            now = due;
            endpoint.asked();
            given.push(endpoint.answered(&[ip(1), ip(2)], now).unwrap().ip());
        }
        assert_eq!(given, [ip(1), ip(2), ip(1)]);
        endpoint.silent(now);
        endpoint.asked();
        assert_eq!(endpoint.answered(&[ip(1)], now).map(|a| a.ip()), Some(ip(1)), "the only one");
        endpoint.heard();
        endpoint.silent(now);
        assert_eq!(endpoint.due(), Some(now + FRESH));
    }
}
