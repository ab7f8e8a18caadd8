//! UDP and echo: our own code on packets, no stack between.
//!
//! A datagram of an open flow costs one table lookup and one send. Super-datagrams pass
//! unsplit in both directions.

use std::net::SocketAddr;

use crate::engine::link::{Carried, What};
use crate::engine::{Datagram, Engine, Mapping, MappingKey, Meta, Output, Unsent, Way};
use crate::flow::{
    First, FlowId, HELD_DATAGRAMS, Held, Key, MappingId, SavedDatagram, SavedEcho, State, Waiting,
};
use crate::packet::checksum::{finish, fold, pseudo, sum};
use crate::packet::icmp::{self, Answer, Cause};
use crate::packet::{
    ECHO_HEADER, Echo, Head, ICMP, ICMPV6, LARGEST, Packet, UDP, UDP_HEADER, Udp, ip_header,
    write_ip,
};
use crate::report::Stage;
use crate::{Dropped, Facts, Failure, Instant, Outcome, Protocol, Reason, Sink};

impl Engine {
    pub(super) fn udp_packet(
        &mut self,
        packet: &Packet<'_>,
        udp: &Udp<'_>,
        segment: Option<u16>,
        now: Instant,
        sink: &mut impl Sink,
    ) -> Outcome {
        let key = Key::new(
            UDP,
            (packet.source, udp.source_port),
            (packet.destination, udp.destination_port),
        );
        let dont_fragment = packet.dont_fragment;
        let datagram = Datagram { payload: udp.payload, segment, dont_fragment, may_wait: true };
        let head = packet.head;
        let Some(id) = self.table.find(&key) else {
            if udp.destination_port == 0 || udp.source_port == 0 {
                return Outcome::Dropped(Dropped::Malformed);
            }
            let client = SocketAddr::new(packet.source, udp.source_port);
            let destination = SocketAddr::new(packet.destination, udp.destination_port);
            let facts = self.facts(Protocol::Udp, client, destination);
            let first = First::Datagrams(vec![save(&datagram, head)]);
            return self.hold(key, facts, first, now, sink);
        };
        self.carried = Some(id);
        self.table.touch(id, now);
        let Some(flow) = self.table.get_mut(id) else {
            return Outcome::Dropped(Dropped::NoFlow);
        };
        flow.packets_sent += 1;
        match &mut flow.state {
            State::Datagrams(mapping) => {
                let way = Way::Mapping(*mapping, flow.opening.far);
                self.send(id, way, datagram, sink)
            }
            State::Held(Held { first: First::Datagrams(saved), .. })
                if saved.len() < HELD_DATAGRAMS =>
            {
                saved.push(save(&datagram, head));
                Outcome::Held
            }
            State::Held(_) => Outcome::Dropped(Dropped::HeldFull),
            State::Questions { .. } => self.send(id, Way::Service(id), datagram, sink),
            State::Answered(_) => self.answered(id, now, sink),
            State::Link(_) => {
                // A datagram that was in pieces has no bytes that would show all of it.
                let bytes = Some(packet.bytes).filter(|_| !packet.in_pieces);
                let carried = Carried { head, what: What::Udp(udp.payload), segment, bytes };
                self.cross(id, &carried, now, sink)
            }
            State::Stream(_) | State::Echo { .. } => Outcome::Dropped(Dropped::NoFlow),
        }
    }

    pub(super) fn echo_packet(
        &mut self,
        packet: &Packet<'_>,
        echo: &Echo<'_>,
        now: Instant,
        sink: &mut impl Sink,
    ) -> Outcome {
        if crate::cast::is_cast(packet.destination) {
            return Outcome::Dropped(Dropped::Cast);
        }
        let key = Key::new(ICMP, (packet.source, echo.ident), (packet.destination, 0));
        let Some(id) = self.table.find(&key) else {
            let client = SocketAddr::new(packet.source, echo.ident);
            let destination = SocketAddr::new(packet.destination, 0);
            let facts = self.facts(Protocol::Icmp, client, destination);
            let first = First::Echoes(vec![save_echo(packet, echo)]);
            return self.hold(key, facts, first, now, sink);
        };
        self.carried = Some(id);
        self.table.touch(id, now);
        let Some(flow) = self.table.get_mut(id) else {
            return Outcome::Dropped(Dropped::NoFlow);
        };
        flow.packets_sent += 1;
        match &mut flow.state {
            State::Echo { sequence } => {
                *sequence = echo.sequence;
                let datagram = Datagram {
                    payload: echo.payload,
                    segment: None,
                    dont_fragment: packet.dont_fragment,
                    may_wait: false,
                };
                self.send(id, Way::Echo(id, echo.sequence), datagram, sink)
            }
            State::Held(Held { first: First::Echoes(saved), .. })
                if saved.len() < HELD_DATAGRAMS =>
            {
                saved.push(save_echo(packet, echo));
                Outcome::Held
            }
            State::Held(_) => Outcome::Dropped(Dropped::HeldFull),
            State::Answered(_) => self.answered(id, now, sink),
            State::Link(_) => {
                let bytes = Some(packet.bytes).filter(|_| !packet.in_pieces);
                let what = What::Echo(echo.sequence, echo.payload);
                let carried = Carried { head: packet.head, what, segment: None, bytes };
                self.cross(id, &carried, now, sink)
            }
            State::Stream(_) | State::Datagrams(_) | State::Questions { .. } => {
                Outcome::Dropped(Dropped::NoFlow)
            }
        }
    }

    /// The socket is open: what was held goes out.
    pub(super) fn bound(&mut self, id: FlowId, port: u16, now: Instant, sink: &mut impl Sink) {
        let Some(flow) = self.table.get_mut(id) else {
            self.outputs.push_back(Output::Close(id));
            return;
        };
        let State::Held(held) = &mut flow.state else { return };
        let Waiting::Egress(mapping) = held.waiting else { return };
        let far = flow.opening.far;
        flow.opening.egress_port = (port != 0).then_some(port);
        let open = mapping.map_or(State::Echo { sequence: 0 }, State::Datagrams);
        let State::Held(held) = std::mem::replace(&mut flow.state, open) else { return };
        flow.packets_sent = 0;
        self.table.touch(id, now);
        self.tell(id, Stage::Open, None, now);
        let mut sent = 0;
        match held.first {
            First::Datagrams(saved) => {
                for saved in &saved {
                    let Some(mapping) = mapping else { break };
                    let datagram = Datagram {
                        payload: &saved.payload,
                        segment: saved.segment,
                        dont_fragment: saved.dont_fragment,
                        may_wait: false,
                    };
                    self.send(id, Way::Mapping(mapping, far), datagram, sink);
                    sent += 1;
                }
            }
            First::Echoes(saved) => {
                for saved in &saved {
                    if let Some(flow) = self.table.get_mut(id)
                        && let State::Echo { sequence } = &mut flow.state
                    {
                        *sequence = saved.sequence;
                    }
                    let datagram = Datagram {
                        payload: &saved.payload,
                        segment: None,
                        dont_fragment: saved.dont_fragment,
                        may_wait: false,
                    };
                    self.send(id, Way::Echo(id, saved.sequence), datagram, sink);
                    sent += 1;
                }
            }
            First::Syn(..) | First::Peeked(_) => {}
        }
        if let Some(flow) = self.table.get_mut(id) {
            flow.packets_sent += sent;
        }
        self.arm(id);
    }

    /// Takes what a mapping's socket received from `from`; several datagrams where
    /// `segment` is set. Only peers to which something was allowed get through.
    pub fn handle_datagram(
        &mut self,
        mapping: MappingId,
        from: SocketAddr,
        payload: &[u8],
        segment: Option<u16>,
        now: Instant,
        sink: &mut impl Sink,
    ) {
        let Some(id) = self.flow_of(mapping, from) else {
            return self.drop_reply(Dropped::Unsolicited);
        };
        self.carried = Some(id);
        self.table.touch(id, now);
        let Some(flow) = self.table.get_mut(id) else { return };
        flow.received += payload.len() as u64;
        flow.packets_received += 1;
        let (client, destination) = (flow.opening.facts.client(), flow.opening.facts.destination());
        if flow.opening.chained {
            self.leave_chain(id);
        }
        let offload = self.config.offload;
        let step = segment.filter(|&s| s > 0 && usize::from(s) < payload.len());
        // What stands for a destination may answer over IPv6 a client that asked over IPv4,
        // whose datagrams are shorter.
        let fits = fits(client, payload.len());
        match step {
            // A device that takes no super-datagrams cuts nothing for us.
            Some(step) if !self.config.udp_offload || !fits => {
                for datagram in payload.chunks(usize::from(step)) {
                    write_udp(sink, destination, client, datagram, None, offload);
                }
            }
            step if fits => {
                write_udp(sink, destination, client, payload, step, offload);
            }
            Some(_) | None => {
                self.counters.replies_dropped[Dropped::Malformed as usize] += 1;
            }
        }
    }

    /// Takes an echo reply.
    pub fn handle_echo(
        &mut self,
        id: FlowId,
        sequence: u16,
        payload: &[u8],
        now: Instant,
        sink: &mut impl Sink,
    ) {
        self.carried = Some(id);
        self.table.touch(id, now);
        let Some(flow) = self.table.get_mut(id) else { return };
        flow.received += payload.len() as u64;
        flow.packets_received += 1;
        let (client, destination) = (flow.opening.facts.client(), flow.opening.facts.destination());
        let (from, to) = (destination.ip(), client.ip());
        let length = ECHO_HEADER + payload.len();
        let (protocol, kind) = if from.is_ipv4() { (ICMP, 0) } else { (ICMPV6, 129) };
        let start = ip_header(from);
        sink.to_app(start + length, Meta::default(), |buffer| {
            write_ip(buffer, from, to, protocol, length);
            let message = &mut buffer[start..start + length];
            message[..4].copy_from_slice(&[kind, 0, 0, 0]);
            message[4..6].copy_from_slice(&client.port().to_be_bytes());
            message[6..8].copy_from_slice(&sequence.to_be_bytes());
            message[8..].copy_from_slice(payload);
            let pseudo = if from.is_ipv4() { 0 } else { pseudo(from, to, protocol, length) };
            let checksum = finish(sum(message) + pseudo);
            message[2..4].copy_from_slice(&checksum.to_be_bytes());
            start + length
        });
    }

    pub(super) fn datagram_failed(
        &mut self,
        mapping: MappingId,
        far: SocketAddr,
        failure: Failure,
        sink: &mut impl Sink,
    ) {
        if let Some(id) = self.flow_of(mapping, far) {
            self.carried = Some(id);
            self.tell_failure(id, failure, sink);
        }
    }

    /// Takes back what was counted as sent.
    pub(super) fn unsent(
        &mut self,
        mapping: MappingId,
        far: SocketAddr,
        datagrams: u64,
        bytes: u64,
        why: Unsent,
        sink: &mut impl Sink,
    ) {
        let sent = &mut self.counters.to_egress;
        *sent = sent.saturating_sub(datagrams);
        match why {
            Unsent::Full => self.counters.dropped[Dropped::EgressFull as usize] += datagrams,
            Unsent::Failed(_) => self.counters.to_app += datagrams,
        }
        let Some(id) = self.flow_of(mapping, far) else { return };
        self.carried = Some(id);
        if let Some(flow) = self.table.get_mut(id) {
            flow.sent = flow.sent.saturating_sub(bytes);
        }
        if let Unsent::Failed(failure) = why {
            self.tell_failure(id, failure, sink);
        }
    }

    /// The proxy carries this flow's datagrams no longer. Its next one is a new flow's first.
    pub(super) fn proxy_ended(
        &mut self,
        id: FlowId,
        failure: Failure,
        now: Instant,
        sink: &mut impl Sink,
    ) {
        if self.table.get(id).is_some_and(|flow| matches!(flow.state, State::Datagrams(_))) {
            self.tell_failure(id, failure, sink);
            self.evict(id, Reason::Proxy, now, sink);
        }
    }

    pub(super) fn echo_failed(&mut self, id: FlowId, failure: Failure, sink: &mut impl Sink) {
        self.tell_failure(id, failure, sink);
    }

    pub(super) fn join_mapping(&mut self, key: MappingKey) -> MappingId {
        if let Some(&id) = self.mapping_index.get(&key) {
            self.mappings[id.slot()].flows += 1;
            return id;
        }
        let slot = self.mappings.insert(Mapping { key: key.clone(), flows: 1 });
        let id = MappingId(slot as u32);
        self.mapping_index.insert(key, id);
        id
    }

    pub(super) fn leave_mapping(&mut self, id: MappingId) {
        let Some(mapping) = self.mappings.get_mut(id.slot()) else { return };
        mapping.flows -= 1;
        if mapping.flows == 0 {
            let mapping = self.mappings.remove(id.slot());
            self.mapping_index.remove(&mapping.key);
            self.outputs.push_back(Output::Unbind(id));
        }
    }

    fn hold(
        &mut self,
        key: Key,
        facts: Facts,
        first: First,
        now: Instant,
        sink: &mut impl Sink,
    ) -> Outcome {
        match self.open(key, facts, first, now, sink) {
            Ok(()) => Outcome::Held,
            Err(cause) => Outcome::Dropped(cause),
        }
    }

    fn answered(&mut self, id: FlowId, now: Instant, sink: &mut impl Sink) -> Outcome {
        if self.answer_again(id, now, sink) {
            Outcome::ToApp
        } else {
            Outcome::Dropped(Dropped::Policy)
        }
    }

    pub(super) fn send(
        &mut self,
        id: FlowId,
        way: Way,
        datagram: Datagram<'_>,
        sink: &mut impl Sink,
    ) -> Outcome {
        match sink.to_far(way, datagram) {
            Ok(()) => {
                if let Some(flow) = self.table.get_mut(id) {
                    flow.sent += datagram.payload.len() as u64;
                }
                Outcome::ToEgress
            }
            Err(Unsent::Full) => Outcome::Dropped(Dropped::EgressFull),
            Err(Unsent::Failed(failure)) => {
                self.tell_failure(id, failure, sink);
                Outcome::ToApp
            }
        }
    }

    /// Tells the app of a failure after its datagram is gone. The flow stays: the next
    /// datagram may fare better.
    fn tell_failure(&mut self, id: FlowId, failure: Failure, sink: &mut impl Sink) {
        self.tell_error(id, Cause::Failed(failure), sink);
    }

    /// Writes the ICMP error that tells the app of `cause`, about a datagram or echo request
    /// that is gone. TCP gets none.
    pub(super) fn tell_error(&self, id: FlowId, cause: Cause, sink: &mut impl Sink) {
        let Some(flow) = self.table.get(id) else { return };
        let (v4, protocol) = (flow.opening.facts.client().is_ipv4(), flow.opening.facts.protocol);
        if let Answer::Icmp(error) = icmp::answer(cause, protocol, v4) {
            self.tell_icmp(id, error, None, None, sink);
        }
    }

    /// Whether a reply from `far` would get through to an app.
    pub fn awaits(&self, mapping: MappingId, far: SocketAddr) -> bool {
        self.flow_of(mapping, far).is_some()
    }

    /// The flow of a mapping that talks to the far address `far`.
    fn flow_of(&self, mapping: MappingId, far: SocketAddr) -> Option<FlowId> {
        let key = &self.mappings.get(mapping.slot())?.key;
        let destination = match key.service {
            Some(service) => service,
            None => far,
        };
        let key = Key::new(
            UDP,
            (key.client.ip(), key.client.port()),
            (destination.ip(), destination.port()),
        );
        let id = self.table.find(&key)?;
        let flow = self.table.get(id)?;
        let open = matches!(flow.state, State::Datagrams(m) if m == mapping);
        (open && flow.opening.far == far).then_some(id)
    }
}

/// Whether one packet for that client can hold so many bytes of a datagram.
pub(super) fn fits(client: SocketAddr, length: usize) -> bool {
    let counted = if client.is_ipv4() { ip_header(client.ip()) } else { 0 };
    counted + UDP_HEADER + length <= LARGEST
}

fn save(datagram: &Datagram<'_>, head: Head) -> SavedDatagram {
    SavedDatagram {
        payload: datagram.payload.into(),
        segment: datagram.segment,
        head,
        dont_fragment: datagram.dont_fragment,
    }
}

fn save_echo(packet: &Packet<'_>, echo: &Echo<'_>) -> SavedEcho {
    SavedEcho {
        sequence: echo.sequence,
        payload: echo.payload.into(),
        head: packet.head,
        dont_fragment: packet.dont_fragment,
    }
}

pub(super) fn write_udp(
    sink: &mut impl Sink,
    from: SocketAddr,
    to: SocketAddr,
    payload: &[u8],
    segment: Option<u16>,
    offload: bool,
) {
    let start = ip_header(from.ip());
    let length = UDP_HEADER + payload.len();
    let meta = Meta { segment, partial_checksum: offload };
    sink.to_app(start + length, meta, |buffer| {
        write_ip(buffer, from.ip(), to.ip(), UDP, length);
        let udp = &mut buffer[start..start + length];
        udp[0..2].copy_from_slice(&from.port().to_be_bytes());
        udp[2..4].copy_from_slice(&to.port().to_be_bytes());
        udp[4..6].copy_from_slice(&(length as u16).to_be_bytes());
        udp[6..8].fill(0);
        udp[8..].copy_from_slice(payload);
        let pseudo = pseudo(from.ip(), to.ip(), UDP, length);
        let checksum = if offload {
            fold(pseudo)
        } else {
            // RFC 768: a sum of zero is sent as ones, zero means "none".
            match finish(sum(udp) + pseudo) {
                0 => 0xffff,
                sum => sum,
            }
        };
        udp[6..8].copy_from_slice(&checksum.to_be_bytes());
        start + length
    });
}
