//! TCP: from the app's segments to the far side's bytes and back.

use crate::engine::limit::hang_up;
use crate::engine::link::{Carried, What};
use crate::engine::{Engine, Output, write_reset};
use crate::flow::link::Life;
use crate::flow::tcp::{Far, Step, Stream};
use crate::flow::{First, FlowId, Held, Key, Rings, State, Waiting};
use crate::packet::{Packet, TCP, Tcp};
use crate::report::Stage;
use crate::stack::{Phase, Syn};
use crate::{Dropped, Failure, Instant, Outcome, Protocol, Reason, Sink};
use std::net::SocketAddr;
use std::time::Duration;

impl Engine {
    pub(super) fn tcp_packet(
        &mut self,
        packet: &Packet<'_>,
        tcp: &Tcp<'_>,
        segment: Option<u16>,
        now: Instant,
        sink: &mut impl Sink,
    ) -> Outcome {
        let client = SocketAddr::new(packet.source, tcp.source_port());
        let destination = SocketAddr::new(packet.destination, tcp.destination_port());
        let key =
            Key::new(TCP, (client.ip(), client.port()), (destination.ip(), destination.port()));
        let opens = tcp.syn() && !tcp.ack() && !tcp.rst();
        let found = self.table.find(&key);
        if let Some(id) = found {
            self.carried = Some(id);
            let Some(flow) = self.table.get_mut(id) else {
                return Outcome::Dropped(Dropped::NoFlow);
            };
            match &mut flow.state {
                State::Stream(stream) => {
                    let over = matches!(stream.endpoint.phase(), Phase::Done | Phase::Closed);
                    if !(opens && over) {
                        flow.packets_sent += 1;
                        self.stack.segment(&mut stream.endpoint, packet.bytes, now, sink);
                        self.table.touch(id, now);
                        self.mark_dirty(id);
                        return Outcome::ToEgress;
                    }
                    // RFC 9293 3.6.1: a new SYN may end TIME-WAIT early. The app's kernel
                    // has forgotten the old connection.
                    self.outputs.push_back(hang_up(id, stream));
                    self.finish(id, Reason::AppClosed, now);
                }
                State::Held(Held { first: First::Peeked(_), .. }) => {
                    flow.packets_sent += 1;
                    self.peeked_packet(id, packet.bytes, now, sink);
                    return Outcome::Held;
                }
                State::Held(held) => {
                    if opens {
                        // Perhaps of another connect(): one that is given up in SYN-SENT is
                        // forgotten without a word, and only the last one's SYN is answered.
                        held.first = First::Syn(packet.bytes.into(), tcp.mss());
                        flow.packets_sent += 1;
                        return Outcome::Held;
                    }
                    if tcp.rst() {
                        if matches!(held.waiting, Waiting::Egress(_)) {
                            self.outputs.push_back(Output::Close(id));
                        }
                        self.finish(id, Reason::AppReset, now);
                        return Outcome::ToEgress;
                    }
                    write_reset(sink, packet, tcp);
                    return Outcome::ToApp;
                }
                State::Answered(_) if opens => {
                    return if self.answer_again(id, now, sink) {
                        Outcome::ToApp
                    } else {
                        Outcome::Dropped(Dropped::Policy)
                    };
                }
                State::Link(crossing) => {
                    if !(opens && crossing.is_over()) {
                        flow.packets_sent += 1;
                        self.table.touch(id, now);
                        let bytes = Some(packet.bytes);
                        let what = What::Tcp(*tcp);
                        let carried = Carried { head: packet.head, what, segment, bytes };
                        return self.cross(id, &carried, now, sink);
                    }
                    // As above.
                    let reason = match &crossing.life {
                        Life::Tcp(tracker) => tracker.silence(),
                        Life::Udp | Life::Echo { .. } => Reason::AppClosed,
                    };
                    self.finish(id, reason, now);
                }
                State::Answered(_)
                | State::Datagrams(_)
                | State::Echo { .. }
                | State::Questions { .. } => {}
            }
        }
        if tcp.rst() {
            return Outcome::Dropped(Dropped::NoFlow);
        }
        if crate::cast::is_cast(packet.destination) {
            return Outcome::Dropped(Dropped::Cast);
        }
        if !opens || tcp.destination_port() == 0 || tcp.source_port() == 0 {
            if found.is_none() && !tcp.syn() {
                self.counters.older += 1;
            }
            write_reset(sink, packet, tcp);
            return Outcome::ToApp;
        }
        let facts = self.facts(Protocol::Tcp, client, destination);
        match self.open(key, facts, First::Syn(packet.bytes.into(), tcp.mss()), now, sink) {
            Ok(()) => Outcome::Held,
            Err(cause) => Outcome::Dropped(cause),
        }
    }

    /// The far side has accepted: only now is there an endpoint, and a SYN-ACK.
    pub(super) fn connected(
        &mut self,
        id: FlowId,
        port: u16,
        rings: Rings,
        now: Instant,
        sink: &mut impl Sink,
    ) {
        if self.has_rings(id) {
            self.outputs.push_back(Output::Release(rings.id, 0));
            return self.joined(id, port, now, sink);
        }
        if !self.waits_for(id, Waiting::Egress(None)) {
            self.outputs.push_back(Output::Release(rings.id, 0));
            self.outputs.push_back(Output::Close(id));
            return;
        }
        let Some(stream) = self.answer_syn(id, rings, now, sink) else { return };
        self.carry_stream(id, port, stream, now, sink);
    }

    /// Makes the endpoint of a held SYN's connection and answers the SYN.
    pub(super) fn answer_syn(
        &mut self,
        id: FlowId,
        rings: Rings,
        now: Instant,
        sink: &mut impl Sink,
    ) -> Option<Stream> {
        let flow = self.table.get(id)?;
        let State::Held(Held { first: First::Syn(syn, mss), .. }) = &flow.state else {
            self.outputs.push_back(Output::Release(rings.id, 0));
            return None;
        };
        let syn = Syn {
            packet: syn,
            client: flow.opening.facts.client().ip(),
            port: flow.opening.facts.destination().port(),
            mss: *mss,
        };
        let endpoint = self.stack.accept(&syn, rings.to_far, rings.to_app, now, sink);
        Some(Stream::new(endpoint, rings.id, flow.opening.served))
    }

    /// Begins to carry bytes both ways.
    pub(super) fn carry_stream(
        &mut self,
        id: FlowId,
        port: u16,
        stream: Stream,
        now: Instant,
        sink: &mut impl Sink,
    ) {
        self.leave_chain(id);
        let Some(flow) = self.table.get_mut(id) else { return };
        flow.state = State::Stream(stream);
        flow.opening.egress_port = (port != 0).then_some(port);
        self.table.touch(id, now);
        self.tell(id, Stage::Open, None, now);
        self.mark_dirty(id);
        self.settle(id, now, sink);
    }

    /// Lends the app's bytes to `take`, one contiguous slice; it gives back how many it
    /// took. `None` where there are none. Call again until then: the ring may wrap.
    pub fn with_app_data<R>(
        &mut self,
        id: FlowId,
        now: Instant,
        take: impl FnOnce(&[u8]) -> (usize, R),
    ) -> Option<R> {
        let flow = self.table.get_mut(id)?;
        let State::Stream(stream) = &mut flow.state else { return None };
        if matches!(stream.far, Far::Failed(..)) {
            return None;
        }
        let (sent, moved) = (&mut flow.sent, &mut stream.moved);
        flow.active = now;
        stream.endpoint.app_data(|data| {
            let (taken, result) = take(data);
            *sent += taken as u64;
            *moved = moved.saturating_add(taken);
            (taken, result)
        })
    }

    /// Lends room for the far side's bytes to `fill`, one contiguous slice; it gives back
    /// how many it wrote. `None` where there is no room: the far side has to wait.
    pub fn with_room<R>(
        &mut self,
        id: FlowId,
        now: Instant,
        fill: impl FnOnce(&mut [u8]) -> (usize, R),
    ) -> Option<R> {
        let flow = self.table.get_mut(id)?;
        let State::Stream(stream) = &mut flow.state else { return None };
        if stream.far != Far::Open {
            return None;
        }
        let (received, moved) = (&mut flow.received, &mut stream.moved);
        flow.active = now;
        stream.endpoint.room(|room| {
            let (filled, result) = fill(room);
            *received += filled as u64;
            *moved = moved.saturating_add(filled);
            (filled, result)
        })
    }

    /// Sends what is due to the app and takes the steps that follow. Call after the bytes
    /// of a flow have moved.
    pub fn settle(&mut self, id: FlowId, now: Instant, sink: &mut impl Sink) {
        loop {
            let Some(flow) = self.table.get_mut(id) else { return };
            let State::Stream(stream) = &mut flow.state else { return };
            stream.end_with_far();
            if stream.may_flush(now) {
                flow.packets_received += self.stack.flush(&mut stream.endpoint, now, sink);
            }
            match stream.step(now) {
                Step::Stay => {
                    // An endpoint that wants to run at once has just run.
                    let soon = now + Duration::from_millis(1);
                    stream.stack_at = if stream.may_flush(now) {
                        self.stack.poll_at(&stream.endpoint, now).map(|at| at.max(soon))
                    } else {
                        None
                    };
                    break;
                }
                Step::ShutdownFar => self.outputs.push_back(Output::ShutdownFar(id)),
                Step::Finish(reason) => {
                    self.outputs.push_back(Output::Close(id));
                    self.finish(id, reason, now);
                    return;
                }
                Step::ResetFar(reason) => {
                    self.outputs.push_back(Output::Reset(id));
                    self.finish(id, reason, now);
                    return;
                }
                Step::ResetApp(reason) => {
                    stream.endpoint.abort();
                    self.stack.flush(&mut stream.endpoint, now, sink);
                    self.outputs.push_back(Output::Close(id));
                    self.finish(id, reason, now);
                    return;
                }
            }
        }
        self.arm(id);
    }

    /// Whether bytes that the app has written may still be on their way: some connection
    /// has not passed on its app's end and moved within `quiet`.
    pub fn is_delivering(&self, now: Instant, quiet: Duration) -> bool {
        self.table.iter().any(|flow| match &flow.state {
            State::Stream(stream) => {
                !stream.app_done
                    && !matches!(stream.far, Far::Failed(..))
                    && (stream.endpoint.unread() > 0 || now.since(flow.active) < quiet)
            }
            // What is not acknowledged may have to be sent again, by the app's kernel.
            State::Link(crossing) if crossing.is_connection() => {
                !crossing.is_over() && now.since(flow.active) < quiet
            }
            State::Held(Held { first: First::Peeked(stream), .. }) => {
                stream.endpoint.unread() > 0 || now.since(flow.active) < quiet
            }
            State::Held(_)
            | State::Datagrams(_)
            | State::Link(_)
            | State::Echo { .. }
            | State::Questions { .. }
            | State::Answered(_) => false,
        })
    }

    pub(super) fn far_ended(&mut self, id: FlowId) {
        if let Some(flow) = self.table.get_mut(id)
            && let State::Stream(stream) = &mut flow.state
            && stream.far == Far::Open
        {
            stream.far = Far::Ended;
            self.mark_dirty(id);
        }
    }

    pub(super) fn far_failed(&mut self, id: FlowId, failure: Failure, now: Instant) {
        if let Some(flow) = self.table.get_mut(id)
            && let State::Stream(stream) = &mut flow.state
            && !matches!(stream.far, Far::Failed(..))
        {
            stream.far = Far::Failed(failure, now);
            self.mark_dirty(id);
        }
    }
}
