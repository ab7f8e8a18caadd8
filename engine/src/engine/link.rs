//! Flows that pass into a tunnel at layer 3, after their verdict.
//!
//! A packet of such a flow gets headers with the link's address as source ([`Nat`]) and goes
//! to [`Sink::to_link`] with its payload as it came, super-packets uncut. What comes out of
//! the tunnel ([`Engine::handle_link_packet`]) belongs to the flow whose packets it answers, or
//! to nobody. On the way
//!
//! - the hop limit is one less; where nothing is left of it the app is told;
//! - a SYN and its answer offer segments that the link takes;
//! - what is longer than the link's MTU is cut where that is allowed, else the app is told;
//! - datagrams in pieces are put together before anything looks at them;
//! - an ICMP error about a flow's packet is translated, with what it quotes, and passed on.
//!
//! [`Nat`]: crate::nat::Nat

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::engine::judge::reset_syn;
use crate::engine::walk::{PIECE, Walk};
use crate::engine::{Engine, Meta, Unsent, reason_of, write_icmp};
use crate::flow::link::{Crossing, From, Life, News, Tracker};
use crate::flow::{First, Flow, FlowId, Held, State, Waiting};
use crate::nat::NatKey;
use crate::packet::checksum::{Update, fold, sum};
use crate::packet::icmp::{self, Answer, Cause, Quoted};
use crate::packet::rewrite::{self, End, Headers, clamp_mss, readdress};
use crate::packet::{
    self, Checksum, ECHO_HEADER, Fragment, Head, ICMP, ICMPV6, Incoming, Packet, TCP, Tcp,
    Transport, UDP, UDP_HEADER, be16, ip_header,
};
use crate::report::Stage;
use crate::ways::{Link, LinkId, Ways};
use crate::{Dropped, Failure, Instant, Outcome, Protocol, Reason, Sink};

/// What a packet of a flow carries into its tunnel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Carried<'a> {
    pub(super) head: Head,
    pub(super) what: What<'a>,
    pub(super) segment: Option<u16>,
    /// The packet as it came, to quote; `None`: only its payload is left.
    pub(super) bytes: Option<&'a [u8]>,
}

/// Its transport.
#[derive(Debug, Clone, Copy)]
pub(super) enum What<'a> {
    Tcp(Tcp<'a>),
    Udp(&'a [u8]),
    /// With the sequence number of the request.
    Echo(u16, &'a [u8]),
}

impl What<'_> {
    fn payload(&self) -> &[u8] {
        match self {
            Self::Tcp(tcp) => tcp.data,
            Self::Udp(payload) | Self::Echo(_, payload) => payload,
        }
    }

    fn protocol(&self) -> u8 {
        match self {
            Self::Tcp(_) => TCP,
            Self::Udp(_) => UDP,
            Self::Echo(..) => ICMP,
        }
    }
}

/// The largest part of an ICMP error that is looked at: an error quotes as much as fits the
/// least MTU (RFC 1812 4.3.2.3, RFC 4443 2.4 c).
const ERROR: usize = 1280;

/// The MSS that a link's packets hold.
fn mss(mtu: u16, v4: bool) -> u16 {
    mtu.saturating_sub(if v4 { 40 } else { 60 })
}

impl Engine {
    /// What is known of each way out.
    pub fn ways(&self) -> &Arc<Ways> {
        &self.ways
    }

    /// Says what is known of each way out from now on. New flows choose by it; live ones stay
    /// where they are. Follow with a walk of [`Engine::leave_links`] to its end.
    pub fn set_ways(&mut self, ways: Arc<Ways>) {
        self.link_pieces.retain(|link, _| ways.link(*link).is_some());
        self.ways = ways;
        self.find_own_proxies();
    }

    /// Ends the flows in the next piece whose link is gone or has another address, or whose proxy
    /// is gone or another one.
    pub fn leave_links(&mut self, walk: &mut Walk, now: Instant, sink: &mut impl Sink) {
        for _ in 0..PIECE {
            let Some(id) = walk.step(&self.table) else { return };
            self.carried = Some(id);
            if self.table.get(id).is_some_and(|flow| has_left(&self.ways, flow)) {
                self.cut(id, Reason::PathChanged, false, now, sink);
            }
        }
    }

    /// Sends what was held into the tunnel: the flow is allowed.
    pub(super) fn open_link(
        &mut self,
        id: FlowId,
        link: LinkId,
        now: Instant,
        sink: &mut impl Sink,
    ) {
        // Its packets can't pass as the app makes them: it is connected to us.
        if self.has_rings(id) {
            return self.refuse(id, Cause::Unsupported, Reason::Unsupported, now, sink);
        }
        let Some(flow) = self.table.get_mut(id) else { return };
        let Some(egress) = flow.opening.facts.egress.known() else { return };
        let address = egress.address;
        let wanted = NatKey::of(&flow.key, link, flow.key.ports.0);
        let Some(port) = self.nat.take(wanted, id) else {
            return self.refuse(id, Cause::Failed(Failure::Exhausted), Reason::Limit, now, sink);
        };
        let protocol = flow.opening.facts.protocol;
        if protocol != Protocol::Icmp {
            flow.opening.egress_port = Some(port);
        }
        let crossing = |life| State::Link(Crossing { link, address, port, life });
        let placeholder = crossing(Life::Udp);
        let State::Held(Held { first, .. }) = std::mem::replace(&mut flow.state, placeholder)
        else {
            return;
        };
        match first {
            First::Syn(syn, mss) => self.open_link_tcp(id, (syn, mss), now, sink),
            First::Datagrams(saved) => {
                self.table.touch(id, now);
                self.tell(id, Stage::Open, None, now);
                for saved in &saved {
                    let what = What::Udp(&saved.payload);
                    let (head, segment) = (saved.head, saved.segment);
                    let carried = Carried { head, what, segment, bytes: None };
                    self.cross(id, &carried, now, sink);
                }
            }
            First::Echoes(saved) => {
                flow.state = crossing(Life::Echo { sequence: 0 });
                self.table.touch(id, now);
                self.tell(id, Stage::Open, None, now);
                for saved in &saved {
                    let what = What::Echo(saved.sequence, &saved.payload);
                    let carried = Carried { head: saved.head, what, segment: None, bytes: None };
                    self.cross(id, &carried, now, sink);
                }
            }
            // Refused above.
            First::Peeked(_) => {}
        }
        self.arm(id);
    }

    fn open_link_tcp(
        &mut self,
        id: FlowId,
        (syn, mss): (Box<[u8]>, Option<u16>),
        now: Instant,
        sink: &mut impl Sink,
    ) {
        // It was parsed when it came.
        let Ok(packet) = packet::parse(&syn, Checksum::Trusted) else { return };
        let Transport::Tcp(tcp) = packet.transport else { return };
        if let Some(flow) = self.table.get_mut(id)
            && let State::Link(crossing) = &mut flow.state
        {
            crossing.life = Life::Tcp(Tracker::new(&tcp));
        }
        self.table.touch(id, now);
        let what = What::Tcp(tcp);
        let carried = Carried { head: packet.head, what, segment: None, bytes: Some(packet.bytes) };
        // A link that has nobody for that destination refuses the flow, in the way of a connect
        // that fails at once.
        if let Err(Unsent::Failed(failure)) = self.send_across(id, &carried, now, sink) {
            self.free_port(id);
            if let Some(flow) = self.table.get_mut(id) {
                let first = First::Syn(syn, mss);
                flow.state = State::Held(Held { first, waiting: Waiting::Source });
                flow.opening.egress_port = None;
            }
            self.refuse(id, Cause::Failed(failure), reason_of(failure), now, sink);
        }
    }

    /// Gives back the port of a flow that passes into a tunnel.
    pub(super) fn free_port(&mut self, id: FlowId) {
        if let Some(flow) = self.table.get(id)
            && let State::Link(crossing) = &flow.state
        {
            self.nat.free(&NatKey::of(&flow.key, crossing.link, crossing.port));
        }
    }

    /// Takes a packet of a flow into its tunnel, follows it and says where it ended.
    pub(super) fn cross(
        &mut self,
        id: FlowId,
        carried: &Carried<'_>,
        now: Instant,
        sink: &mut impl Sink,
    ) -> Outcome {
        match self.send_across(id, carried, now, sink) {
            Ok(outcome) => outcome,
            Err(Unsent::Full) => Outcome::Dropped(Dropped::EgressFull),
            Err(Unsent::Failed(failure)) => {
                let cause = Cause::Failed(failure);
                let protocol = match carried.what {
                    What::Tcp(_) => Protocol::Tcp,
                    What::Udp(_) => Protocol::Udp,
                    What::Echo(..) => Protocol::Icmp,
                };
                let v4 = self.table.get(id).is_some_and(|flow| flow.opening.far.is_ipv4());
                match (icmp::answer(cause, protocol, v4), carried.bytes) {
                    (Answer::Icmp(error), bytes) => self.tell_icmp(id, error, None, bytes, sink),
                    (Answer::Reset, Some(bytes)) => reset_syn(bytes, sink),
                    (Answer::Reset, None) | (Answer::Silence, _) => {}
                }
                Outcome::ToApp
            }
        }
    }

    fn send_across(
        &mut self,
        id: FlowId,
        carried: &Carried<'_>,
        now: Instant,
        sink: &mut impl Sink,
    ) -> Result<Outcome, Unsent> {
        let Some(flow) = self.table.get_mut(id) else {
            return Ok(Outcome::Dropped(Dropped::NoFlow));
        };
        let State::Link(crossing) = &mut flow.state else {
            return Ok(Outcome::Dropped(Dropped::NoFlow));
        };
        let Some(link) = link_of(&self.ways, crossing, flow.opening.protected) else {
            self.cut(id, Reason::PathChanged, false, now, sink);
            return Ok(Outcome::ToApp);
        };
        let far = flow.opening.far;
        let (v4, number, mtu) = (far.is_ipv4(), crossing.link, link.mtu);
        if carried.head.hops <= 1 {
            // The router is the link's end, unless the app knows that address as its own.
            let ours = Some(crossing.address)
                .filter(|address| *address != flow.opening.facts.client().ip());
            self.tell_icmp(id, icmp::time_exceeded(v4), ours, carried.bytes, sink);
            return Ok(Outcome::ToApp);
        }
        let head = Head { hops: carried.head.hops - 1, ..carried.head };
        let from = (crossing.address, crossing.port);
        let to = (far.ip(), far.port());
        let payload = carried.what.payload();
        let mut headers = match carried.what {
            What::Tcp(tcp) => {
                let most = mss(mtu.min(self.config.mtu), v4);
                Headers::tcp(from, to, &head, &tcp, most)
            }
            What::Udp(_) => Headers::udp(from, to, &head, payload.len()),
            What::Echo(sequence, _) => Headers::echo(from, to.0, &head, sequence, payload),
        };
        let step = carried.segment.map(usize::from).filter(|step| *step > 0);
        let longest = step.map_or(payload.len(), |step| step.min(payload.len()));
        let mut news = News::Nothing;
        let partial = !matches!(carried.what, What::Echo(..));
        let sent = if headers.as_slice().len() + longest <= usize::from(mtu) {
            let step = step.filter(|step| *step < payload.len());
            let meta = Meta { segment: step.map(|step| step as u16), partial_checksum: partial };
            sink.to_link(number, headers.as_slice(), payload, meta)
        } else if step.is_none() && !head.dont_fragment {
            headers.complete(carried.what.protocol(), payload);
            let ident = self.nat.next_random() as u32;
            let mut sent = Ok(());
            headers.fragment(payload, usize::from(mtu), ident, |headers, piece| {
                sent = sink.to_link(number, headers, piece, Meta::default());
                sent.is_ok()
            });
            sent
        } else {
            let error = icmp::too_big(v4, mtu);
            self.tell_icmp(id, error, None, carried.bytes, sink);
            return Ok(Outcome::ToApp);
        };
        // What did not leave has not happened: it comes again. Only a reset does not.
        let reset = matches!(carried.what, What::Tcp(tcp) if tcp.rst());
        if sent.is_ok() || reset {
            match (&mut crossing.life, &carried.what) {
                (Life::Tcp(tracker), What::Tcp(tcp)) => news = tracker.follow(From::App, tcp),
                (Life::Echo { sequence }, What::Echo(this, _)) => *sequence = *this,
                (Life::Tcp(_) | Life::Udp | Life::Echo { .. }, _) => {}
            }
        }
        if sent.is_ok() {
            flow.sent += payload.len() as u64;
        }
        self.heed(id, news, now);
        match sent {
            Ok(()) => Ok(Outcome::ToLink),
            Err(_) if reset => Ok(Outcome::Dropped(Dropped::EgressFull)),
            Err(unsent) => Err(unsent),
        }
    }

    /// Does what a segment means for its flow.
    fn heed(&mut self, id: FlowId, news: News, now: Instant) {
        match news {
            News::Nothing => {}
            News::Opened => {
                self.table.touch(id, now);
                self.tell(id, Stage::Open, None, now);
            }
            News::Sooner => self.arm(id),
            News::Over(reason) => self.finish(id, reason, now),
        }
    }

    /// Takes one packet that came out of a tunnel: its headers (at least those of IP and of its
    /// transport) and the rest of it. Where `meta` has a segment size it stands for several, and
    /// its transport checksum is the pseudo-header's sum where `meta` says so.
    ///
    /// `Some`: headers and payload are for the device as they are now. `None`: the packet was
    /// dropped and counted, or what the app, or the driver's host, needs of it went to `sink`.
    pub fn handle_link_packet(
        &mut self,
        link: LinkId,
        headers: &mut [u8],
        payload: &[&[u8]],
        meta: Meta,
        now: Instant,
        sink: &mut impl Sink,
    ) -> Option<Meta> {
        match self.take_link_packet(link, headers, payload, meta, now, sink) {
            Ok(taken) => taken,
            Err(cause) => {
                self.counters.replies_dropped[cause as usize] += 1;
                None
            }
        }
    }

    fn take_link_packet(
        &mut self,
        link: LinkId,
        headers: &mut [u8],
        payload: &[&[u8]],
        meta: Meta,
        now: Instant,
        sink: &mut impl Sink,
    ) -> Result<Option<Meta>, Dropped> {
        let length = headers.len() + payload.iter().map(|piece| piece.len()).sum::<usize>();
        let incoming = Incoming::parse(headers, length)?;
        if let Some((ident, start, more)) = incoming.piece {
            let piece = Piece { incoming, ident, start, more };
            self.take_piece(link, &piece, headers, payload, now, sink)?;
            return Ok(None);
        }
        let transport = headers.get(incoming.start..).ok_or(Dropped::Malformed)?;
        let v4 = incoming.source.is_ipv4();
        // Where the port is; in an error, behind what it quotes.
        let at = match (incoming.protocol, transport.first()) {
            (TCP | UDP, _) => Some(2),
            (ICMP | ICMPV6, Some(0 | 129)) => Some(4),
            _ => None,
        };
        let port = at.and_then(|at| transport.get(at..at + 2)).map(|port| be16(port, 0));
        if let Some(shard) = port.and_then(|port| self.config.share.other(port)) {
            sink.to_shard(shard, link, headers, payload, meta);
            return Ok(None);
        }
        match incoming.protocol {
            TCP | UDP => match self.translate(link, &incoming, headers, length, meta, now) {
                Ok(id) => {
                    debug_assert!(id.is_some() || incoming.protocol == TCP);
                    Ok(Some(meta))
                }
                // No flow's: it may be our own.
                Err(Dropped::Unsolicited) => {
                    self.take_own(link, &incoming, headers, payload, meta, sink).map(|()| None)
                }
                Err(cause) => Err(cause),
            },
            ICMP | ICMPV6 if (incoming.protocol == ICMP) == v4 => {
                let kind = *transport.first().ok_or(Dropped::Malformed)?;
                if kind == if v4 { 0 } else { 129 } {
                    self.translate(link, &incoming, headers, length, meta, now)?;
                    return Ok(Some(meta));
                }
                if icmp::is_error(v4, kind) {
                    self.take_error(link, &incoming, headers, payload, now, sink)?;
                    return Ok(None);
                }
                Err(Dropped::Icmp)
            }
            _ => Err(Dropped::Unsolicited),
        }
    }

    /// Gives a reply the client's address and port, in place, and counts it for its flow.
    fn translate(
        &mut self,
        link: LinkId,
        incoming: &Incoming,
        headers: &mut [u8],
        length: usize,
        meta: Meta,
        now: Instant,
    ) -> Result<Option<FlowId>, Dropped> {
        let transport = &mut headers[incoming.start..];
        let (least, protocol) = match incoming.protocol {
            TCP => (20, TCP),
            UDP => (UDP_HEADER, UDP),
            _ => (ECHO_HEADER, ICMP),
        };
        if transport.len() < least {
            return Err(Dropped::Malformed);
        }
        let (far_port, port, header) = match protocol {
            TCP => {
                let header = usize::from(transport[12] >> 4) * 4;
                if header < 20 || transport.len() < header {
                    return Err(Dropped::Malformed);
                }
                (be16(transport, 0), be16(transport, 2), header)
            }
            UDP => (be16(transport, 0), be16(transport, 2), UDP_HEADER),
            _ => (0, be16(transport, 4), ECHO_HEADER),
        };
        let far = SocketAddr::new(incoming.source, far_port);
        let id = self.reply_of(link, protocol, far, (incoming.destination, port))?;
        self.carried = Some(id);
        let Some(flow) = self.table.get_mut(id) else { return Err(Dropped::Unsolicited) };
        let State::Link(crossing) = &mut flow.state else { return Err(Dropped::Unsolicited) };
        let bytes = length - incoming.start - header;
        let mut further = Update::default();
        let mut news = News::Nothing;
        if let Life::Tcp(tracker) = &mut crossing.life {
            // Of a super-packet all bytes count.
            let mut segment = Tcp::of(&transport[..header], &[]);
            segment.payload = bytes;
            news = tracker.follow(From::Far, &segment);
            if segment.syn()
                && let Some(link) = self.ways.link(link)
            {
                let most = mss(link.mtu.min(self.config.mtu), incoming.source.is_ipv4());
                further = clamp_mss(&mut transport[..header], most);
            }
        }
        let client = flow.opening.facts.client();
        let to = (client.ip(), client.port());
        let partial = meta.partial_checksum;
        let protocol = incoming.protocol;
        readdress(headers, incoming.start, protocol, End::Destination, to, partial, further);
        flow.received += bytes as u64;
        flow.packets_received += 1;
        self.table.touch(id, now);
        self.heed(id, news, now);
        Ok(Some(id))
    }

    /// The flow that a packet from `far` to an address and port of the link answers.
    fn reply_of(
        &self,
        link: LinkId,
        protocol: u8,
        far: SocketAddr,
        (address, port): (IpAddr, u16),
    ) -> Result<FlowId, Dropped> {
        let octets = crate::flow::octets(far.ip());
        let key = NatKey { link, protocol, far: octets, far_port: far.port(), port };
        let id = self.nat.find(&key).ok_or(Dropped::Unsolicited)?;
        let flow = self.table.get(id).ok_or(Dropped::Unsolicited)?;
        match &flow.state {
            State::Link(crossing) if crossing.address == address => Ok(id),
            State::Link(_)
            | State::Held(_)
            | State::Stream(_)
            | State::Datagrams(_)
            | State::Echo { .. }
            | State::Questions { .. }
            | State::Answered(_) => Err(Dropped::Unsolicited),
        }
    }

    /// Takes a piece of a datagram; the whole one goes to the app at once.
    fn take_piece(
        &mut self,
        link: LinkId,
        piece: &Piece,
        headers: &[u8],
        payload: &[&[u8]],
        now: Instant,
        sink: &mut impl Sink,
    ) -> Result<(), Dropped> {
        let Incoming { source, destination, protocol, start, hops, .. } = piece.incoming;
        // Nothing is kept for what can't be an answer.
        if !self.ways.link(link).is_some_and(|link| link.has(destination)) {
            return Err(Dropped::Unsolicited);
        }
        let upper: Vec<u8> = [&headers[start..]]
            .into_iter()
            .chain(payload.iter().copied())
            .flatten()
            .copied()
            .collect();
        let packet = Packet {
            bytes: &[],
            source,
            destination,
            dont_fragment: false,
            head: Head { hops, ..Head::default() },
            in_pieces: true,
            transport: Transport::Icmp,
        };
        let (ident, first, more) = (piece.ident, piece.start, piece.more);
        let fragment = Fragment { ident, protocol, start: first, more, payload: &upper };
        let pieces = self.link_pieces.entry(link).or_default();
        let Some(whole) = pieces.add(&packet, &fragment, now)? else { return Ok(()) };
        let mut bytes = vec![0; ip_header(source) + whole.len()];
        if bytes.len() > packet::LARGEST {
            return Err(Dropped::Malformed);
        }
        packet.head.write_whole(&mut bytes, source, destination, protocol, whole.len());
        bytes[ip_header(source)..].copy_from_slice(&whole);
        let taken = self.take_link_packet(link, &mut bytes, &[], Meta::default(), now, sink)?;
        if let Some(meta) = taken {
            sink.to_app(bytes.len(), meta, |buffer| {
                buffer[..bytes.len()].copy_from_slice(&bytes);
                bytes.len()
            });
        }
        Ok(())
    }

    /// Takes an ICMP error: about a packet of a flow it is passed on, translated.
    fn take_error(
        &mut self,
        link: LinkId,
        incoming: &Incoming,
        headers: &[u8],
        payload: &[&[u8]],
        now: Instant,
        sink: &mut impl Sink,
    ) -> Result<(), Dropped> {
        let transport = headers.get(incoming.start..).ok_or(Dropped::Malformed)?;
        let mut message = [0; ERROR];
        let mut length = 0;
        for piece in [transport].into_iter().chain(payload.iter().copied()) {
            let room = message.get_mut(length..length + piece.len()).ok_or(Dropped::Malformed)?;
            room.copy_from_slice(piece);
            length += piece.len();
        }
        let v4 = incoming.source.is_ipv4();
        let message = &mut message[..length];
        let covered = if v4 {
            0
        } else {
            let (from, to) = (incoming.source, incoming.destination);
            packet::checksum::pseudo(from, to, ICMPV6, length)
        };
        if fold(sum(message) + covered) != 0xffff {
            return Err(Dropped::Checksum);
        }
        let (head, quote) = message.split_at_mut_checked(8).ok_or(Dropped::Malformed)?;
        let quoted = Quoted::parse(quote).ok_or(Dropped::Icmp)?;
        // What left had the link's address: an error about anything else is about nothing of ours.
        let far = SocketAddr::new(quoted.destination, quoted.far_port);
        let ours = (quoted.source, quoted.port);
        if quoted.source != incoming.destination {
            return Err(Dropped::Unsolicited);
        }
        if let Some(shard) = self.config.share.other(quoted.port) {
            sink.to_shard(shard, link, headers, payload, Meta::default());
            return Ok(());
        }
        let id = match self.reply_of(link, quoted.protocol, far, ours) {
            Err(Dropped::Unsolicited) => return self.take_own_error(link, &quoted, head, sink),
            id => id?,
        };
        self.carried = Some(id);
        let Some(flow) = self.table.get_mut(id) else { return Err(Dropped::Unsolicited) };
        let State::Link(crossing) = &flow.state else { return Err(Dropped::Unsolicited) };
        let mut opening = false;
        if let Life::Tcp(tracker) = &crossing.life {
            if !tracker.is_under_way(quoted.sequence) {
                return Err(Dropped::Unsolicited);
            }
            opening = tracker.is_opening();
        }
        let client = flow.opening.facts.client();
        let to = (client.ip(), client.port());
        let transport = quoted.transport;
        let protocol = match (quoted.protocol, v4) {
            (ICMP, false) => ICMPV6,
            (protocol, _) => protocol,
        };
        let none = Update::default();
        readdress(quote, transport, protocol, End::Source, to, false, none);
        flow.packets_received += 1;
        let error = icmp::Error { kind: head[0], code: head[1], rest: icmp::rest(v4, head) };
        let from = incoming.source;
        let most = icmp::LENGTH - icmp::QUOTE + quote.len();
        sink.to_app(most, Meta::default(), |buffer| {
            icmp::write_long(buffer, from, client.ip(), error, quote)
        });
        // The app's connect() fails with it.
        if opening && icmp::is_unreachable(v4, &error) {
            self.finish(id, Reason::Unreachable, now);
        }
        Ok(())
    }

    /// Tells both sides that a connection is over, as far as they can be told.
    pub(super) fn reset_both(&self, id: FlowId, sink: &mut impl Sink) {
        let Some(flow) = self.table.get(id) else { return };
        let State::Link(crossing) = &flow.state else { return };
        let Life::Tcp(tracker) = &crossing.life else { return };
        let (client, far) = (flow.opening.facts.client(), flow.opening.far);
        let destination = flow.opening.facts.destination();
        let (client, destination) =
            ((client.ip(), client.port()), (destination.ip(), destination.port()));
        let (reset, length) = rewrite::reset(destination, client, tracker.reset(From::Far));
        sink.to_app(length, Meta::default(), |buffer| {
            buffer[..length].copy_from_slice(&reset[..length]);
            length
        });
        if self.ways.link(crossing.link).is_some() {
            let (from, to) = ((crossing.address, crossing.port), (far.ip(), far.port()));
            let (reset, length) = rewrite::reset(from, to, tracker.reset(From::App));
            // Where it does not leave the far side's own timers have to do.
            let _ = sink.to_link(crossing.link, &reset[..length], &[], Meta::default());
        }
    }

    /// Writes an ICMP error about a packet of a flow to the app: it quotes `bytes`, or what a
    /// packet of the flow looks like, and comes from `from`, or from the destination.
    pub(super) fn tell_icmp(
        &self,
        id: FlowId,
        error: icmp::Error,
        from: Option<IpAddr>,
        bytes: Option<&[u8]>,
        sink: &mut impl Sink,
    ) {
        let Some(flow) = self.table.get(id) else { return };
        let (client, destination) = (flow.opening.facts.client(), flow.opening.facts.destination());
        if crate::cast::is_cast(destination.ip()) {
            return;
        }
        let from = from.unwrap_or_else(|| destination.ip());
        if let Some(bytes) = bytes {
            return write_icmp(sink, from, client.ip(), error, bytes);
        }
        let mut quote = [0; icmp::QUOTED];
        let length = if flow.opening.facts.protocol == Protocol::Icmp {
            let sequence = flow.echo_sequence();
            icmp::quote_echo(&mut quote, client.ip(), destination.ip(), client.port(), sequence)
        } else {
            icmp::quote_udp(
                &mut quote,
                (client.ip(), client.port()),
                (destination.ip(), destination.port()),
            )
        };
        write_icmp(sink, from, client.ip(), error, &quote[..length]);
    }
}

/// Bytes that [`link_error`] needs room for.
pub const LINK_ERROR: usize = icmp::LENGTH;

/// Writes what comes out of a tunnel instead of an answer where a packet of another shard's could
/// not be sent into it: an ICMP error about that packet, whose headers and payload these are, from
/// where it was to go. 0: there is none for that failure, or they are no packet's.
pub fn link_error(buffer: &mut [u8; LINK_ERROR], packet: [&[u8]; 2], failure: Failure) -> usize {
    let [headers, payload] = packet;
    let Ok(packet) = Incoming::parse(headers, headers.len() + payload.len()) else { return 0 };
    let v4 = packet.source.is_ipv4();
    let protocol = match packet.protocol {
        TCP => Protocol::Tcp,
        UDP => Protocol::Udp,
        _ => Protocol::Icmp,
    };
    let answer = icmp::answer(Cause::Failed(failure), protocol, v4);
    let Answer::Icmp(error) = answer else { return 0 };
    let mut quote = [0; icmp::QUOTE];
    let mut length = 0;
    for byte in headers.iter().chain(payload).take(quote.len()) {
        quote[length] = *byte;
        length += 1;
    }
    icmp::write(buffer, packet.destination, packet.source, error, &quote[..length])
}

/// A piece of a datagram that came out of a tunnel.
struct Piece {
    incoming: Incoming,
    ident: u32,
    start: usize,
    more: bool,
}

/// Whether a flow's link is gone, or has another address; or its proxy is, or is another one.
/// A protected flow has left only where nothing is there that could carry it: a link.
pub(super) fn has_left(ways: &Ways, flow: &Flow) -> bool {
    let opening = &*flow.opening;
    match &flow.state {
        State::Link(crossing) => link_of(ways, crossing, opening.protected).is_none(),
        State::Held(_) | State::Stream(_) | State::Datagrams(_) | State::Echo { .. } => {
            let now = || ways.proxy(opening.facts.via?).map(|proxy| proxy.edition);
            !opening.protected && opening.proxy.is_some_and(|edition| now() != Some(edition))
        }
        State::Questions { .. } | State::Answered(_) => false,
    }
}

/// The tunnel of a flow, while it is there and has the flow's address. A protected flow keeps
/// the address that it has: whether the far end still takes it is not ours to say.
fn link_of<'w>(ways: &'w Ways, crossing: &Crossing, protected: bool) -> Option<&'w Link> {
    ways.link(crossing.link).filter(|link| protected || link.has(crossing.address))
}
