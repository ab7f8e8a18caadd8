//! A mapping whose datagrams a SOCKS5 proxy carries: RFC 1928 7.
//!
//! # Theory of operation
//!
//! There is one association a mapping, so a client port keeps one outside port whoever it talks
//! to, as far as the proxy lets it. It has two sockets. The *control* connection leads to the
//! proxy as a flow's own would, and the same talk is had over it; when it ends, so does the
//! association, and the flows are told. The *relay* is where the proxy then takes datagrams: a
//! [`Mapping`] that hears nobody else, each datagram with a header that says whom it is for, or
//! from. Nothing is sent to a relay that would be reached with another address or by another
//! device than the proxy is: the verdict was about these.
//!
//! **Names.** A flow whose name is known has it in its headers, and the proxy asks for the
//! address. It may find another one than the app has, so an answer from an address that nobody
//! was asked at belongs to the flow by name with that port, of which there is one: a second one
//! at the same port goes by its address. The first address that so answers is the only one.
//!
//! **Behind a tunnel** both sockets are our own host's inside it, and so is the relay: it must be
//! reached by that tunnel with the address that was judged.
//!
//! What the proxy says on the control connection after its answer is not read.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use engine::{Datagram, Egress, Engine, Failure, FlowId, Instant, LinkId, Unsent, Ways};
use rustix::event::epoll::EventFlags;

use super::carrier::Carrier;
use super::error::EgressError;
use super::message::SendError;
use super::pin::Pin;
use super::proxy::relay::{Header, Origin, header};
use super::proxy::{self, Fault, Refusal, Talk, Target};
use super::relayed::Inside;
use super::stream::converse;
use super::udp::Mapping;

/// Names of one association: more of them go by their addresses, so that finding one stays
/// cheap.
const NAMES: usize = 16;

/// What a proxy does for a mapping.
#[derive(Debug)]
pub(crate) struct Association {
    control: Carrier,
    phase: Phase,
    /// What was judged, of the way to the proxy.
    egress: Egress,
    /// The tunnel that its relay is behind.
    behind: Option<LinkId>,
    /// The proxy has ended its half of the control connection, or that is gone.
    exhaust: bool,
    /// Tells it from the one that had its place before.
    serial: u32,
    until: Instant,
    /// Who wait for it or use it, and some that are over.
    members: Vec<FlowId>,
    /// So many members and those that are over are looked for.
    crowd: usize,
    named: Vec<Named>,
}

/// How far it has come.
#[derive(Debug)]
enum Phase {
    Connecting(Talk),
    Talking(Talk),
    /// The socket inside a tunnel is being opened.
    Opening(Inside),
    Open(Relay),
    /// Between two others.
    Over,
}

/// Where the proxy takes datagrams, and our socket towards it.
#[derive(Debug)]
enum Relay {
    Kernel(Mapping, SocketAddr),
    Inside(Inside),
}

/// A flow whose name the proxy is told.
#[derive(Debug)]
struct Named {
    flow: FlowId,
    far: SocketAddr,
    name: Arc<str>,
    header: Box<[u8]>,
    /// The address that answers, as the proxy says.
    answers: Option<SocketAddr>,
}

/// What came of an event on the control connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// The proxy has more to say.
    Waits,
    /// It takes datagrams there, and is itself behind that tunnel.
    Associated(SocketAddr, Option<LinkId>),
    /// It takes none, or no more.
    Ended(Refusal),
}

impl Association {
    /// Begins to talk over a connection to a proxy that is being opened.
    pub(crate) fn begin(
        talk: Talk,
        control: Carrier,
        egress: Egress,
        serial: u32,
        until: Instant,
    ) -> Self {
        control.keep_alive();
        Self {
            control,
            phase: Phase::Connecting(talk),
            egress,
            behind: None,
            exhaust: false,
            serial,
            until,
            members: Vec::new(),
            crowd: 64,
            named: Vec::new(),
        }
    }

    /// The control connection, where the kernel has it.
    pub(crate) fn control(&self) -> Option<BorrowedFd<'_>> {
        self.control.fd()
    }

    pub(crate) fn serial(&self) -> u32 {
        self.serial
    }

    /// With what the proxy is reached.
    pub(crate) fn egress(&self) -> Egress {
        self.egress
    }

    /// When the proxy must have done its part; `None`: it has.
    pub(crate) fn until(&self) -> Option<Instant> {
        match self.phase {
            Phase::Connecting(_) | Phase::Talking(_) | Phase::Opening(_) => Some(self.until),
            Phase::Open(_) | Phase::Over => None,
        }
    }

    /// Whether nobody has answered its connect.
    pub(crate) fn is_connecting(&self) -> bool {
        match &self.phase {
            Phase::Connecting(_) => true,
            Phase::Talking(_) | Phase::Opening(_) | Phase::Open(_) | Phase::Over => false,
        }
    }

    /// Whether the proxy takes datagrams.
    pub(crate) fn is_open(&self) -> bool {
        match &self.phase {
            Phase::Open(_) => true,
            Phase::Connecting(_) | Phase::Talking(_) | Phase::Opening(_) | Phase::Over => false,
        }
    }

    /// The port that datagrams leave with, once there is one.
    pub(crate) fn port(&self) -> Option<u16> {
        match &self.phase {
            Phase::Open(Relay::Kernel(socket, _)) => Some(port_of(socket)),
            Phase::Open(Relay::Inside(inside)) => inside.port(),
            Phase::Connecting(_) | Phase::Talking(_) | Phase::Opening(_) | Phase::Over => None,
        }
    }

    /// The kernel's socket to the relay, and where that is.
    pub(crate) fn relay(&self) -> Option<(&Mapping, SocketAddr)> {
        match &self.phase {
            Phase::Open(Relay::Kernel(socket, relay)) => Some((socket, *relay)),
            Phase::Open(Relay::Inside(_))
            | Phase::Connecting(_)
            | Phase::Talking(_)
            | Phase::Opening(_)
            | Phase::Over => None,
        }
    }

    /// Whether its relay is behind a tunnel.
    pub(crate) fn is_inside(&self) -> bool {
        self.behind.is_some()
    }

    /// The socket to the relay inside a tunnel.
    pub(crate) fn inside(&mut self) -> Option<&mut Inside> {
        match &mut self.phase {
            Phase::Opening(inside) | Phase::Open(Relay::Inside(inside)) => Some(inside),
            Phase::Open(Relay::Kernel(..))
            | Phase::Connecting(_)
            | Phase::Talking(_)
            | Phase::Over => None,
        }
    }

    /// Adds a flow of the mapping.
    pub(crate) fn join(&mut self, id: FlowId, target: Target, engine: &Engine) {
        if self.members.len() >= self.crowd {
            self.members.retain(|id| engine.has_flow(*id));
            self.crowd = 64 + 2 * self.members.len();
        }
        self.members.push(id);
        self.named.retain(|named| engine.has_flow(named.flow));
        let port = target.address.port();
        let alone = !self.named.iter().any(|named| named.far.port() == port);
        if alone
            && self.named.len() < NAMES
            && let Some(name) = target.told_name()
        {
            let header = header(&target);
            let named = Named { flow: id, far: target.address, name, header, answers: None };
            self.named.push(named);
        }
    }

    /// Who wait for it or use it; some may be over.
    pub(crate) fn members(&self) -> &[FlowId] {
        &self.members
    }

    /// Goes on after an event on the control connection.
    pub(crate) fn ready(&mut self, flags: EventFlags) -> Step {
        let gone = flags.intersects(EventFlags::ERR | EventFlags::HUP);
        self.exhaust |= gone || flags.contains(EventFlags::RDHUP);
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Connecting(talk) => match self.control.opened(gone) {
                Some(Ok(())) => self.talk(talk),
                Some(Err(failure)) => {
                    let refusal = proxy::unreachable(failure);
                    talk.note(Err(refusal));
                    Step::Ended(refusal)
                }
                None => {
                    self.phase = Phase::Connecting(talk);
                    Step::Waits
                }
            },
            Phase::Talking(talk) => self.talk(talk),
            phase @ (Phase::Opening(_) | Phase::Open(_)) => {
                self.phase = phase;
                if !self.exhaust && !self.control.is_over() {
                    return Step::Waits;
                }
                Step::Ended(Refusal::Proxy(Fault::Ended))
            }
            Phase::Over => Step::Waits,
        }
    }

    fn talk(&mut self, mut talk: Talk) -> Step {
        let step = match converse(&self.control, &mut talk, self.exhaust) {
            Ok(true) => match talk.relay() {
                Some(relay) => {
                    talk.note(Ok(()));
                    Step::Associated(relay, talk.proxy().behind)
                }
                None => Step::Ended(Refusal::Proxy(Fault::Relay)),
            },
            Ok(false) => Step::Waits,
            Err(refusal) => Step::Ended(refusal),
        };
        if let Step::Ended(refusal) = step {
            talk.note(Err(refusal));
        }
        self.phase = Phase::Talking(talk);
        step
    }

    /// Opens the socket towards the relay; its port.
    pub(crate) fn open(&mut self, relay: SocketAddr, pin: &Pin) -> Result<u16, EgressError> {
        let socket = Mapping::open(relay.ip(), pin)?;
        socket.only(relay)?;
        let port = port_of(&socket);
        self.phase = Phase::Open(Relay::Kernel(socket, relay));
        Ok(port)
    }

    /// The same inside a tunnel, where it opens later.
    pub(crate) fn open_inside(&mut self, inside: Inside, link: LinkId) {
        self.behind = Some(link);
        self.phase = Phase::Opening(inside);
    }

    /// The port of a socket inside a tunnel that has opened since this was asked last.
    pub(crate) fn opened(&mut self) -> Option<u16> {
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Opening(inside) => match inside.port() {
                Some(port) => {
                    self.phase = Phase::Open(Relay::Inside(inside));
                    Some(port)
                }
                None => {
                    self.phase = Phase::Opening(inside);
                    None
                }
            },
            other @ (Phase::Connecting(_) | Phase::Talking(_) | Phase::Open(_) | Phase::Over) => {
                self.phase = other;
                None
            }
        }
    }

    /// Takes in what its tunnel carries now.
    pub(crate) fn follow_link(&mut self, ways: &Ways) {
        let link = self.behind.and_then(|link| ways.link(link));
        if let Some((mtu, inside)) = link.map(|link| link.mtu).zip(self.inside()) {
            inside.set_mtu(mtu);
        }
    }

    /// The proxy has not done its part in time.
    pub(crate) fn give_up(&self) -> Refusal {
        let refusal = Refusal::Proxy(Fault::Silent);
        match &self.phase {
            Phase::Connecting(talk) | Phase::Talking(talk) => talk.note(Err(refusal)),
            Phase::Opening(_) | Phase::Open(_) | Phase::Over => {}
        }
        refusal
    }

    /// Sends what is for `far` to the relay.
    pub(crate) fn send(&mut self, far: SocketAddr, datagram: Datagram<'_>) -> Result<(), Unsent> {
        let Phase::Open(relay) = &mut self.phase else { return Err(Unsent::Full) };
        let plain;
        let header = match self.named.iter().find(|named| named.far == far) {
            Some(named) => &*named.header,
            None => {
                plain = Header::to(far);
                plain.bytes()
            }
        };
        let Datagram { payload, segment, dont_fragment, may_wait: _ } = datagram;
        let relay_is_v4 = match relay {
            Relay::Kernel(_, relay) => relay.is_ipv4(),
            Relay::Inside(inside) => inside.is_v4(),
        };
        let mut send = |whole| match relay {
            Relay::Kernel(socket, relay) => {
                socket.send_behind(header, *relay, payload, segment, whole)
            }
            Relay::Inside(inside) => inside.send(header, payload, segment, whole),
        };
        let too_big = |mtu| inner_mtu(mtu, relay_is_v4, header.len(), far.is_ipv4());
        match send(dont_fragment) {
            Ok(()) => Ok(()),
            Err(SendError::Failed(Failure::TooBig { mtu })) => match too_big(mtu) {
                Some(mtu) => Err(Unsent::Failed(Failure::TooBig { mtu })),
                // The app can't make it any smaller; the proxy's path must take it in pieces.
                None => send(false).map_err(|_| Unsent::Full),
            },
            // The queue of errors tells of it, which is the proxy's and not the far side's.
            Err(SendError::WouldBlock | SendError::Failed(Failure::Refused)) => Err(Unsent::Full),
            Err(SendError::Failed(failure)) => Err(Unsent::Failed(failure)),
        }
    }

    /// The far side, as the app knows it, of a datagram that the proxy says is from `origin`.
    /// `awaits`: whether a flow is with that very address.
    pub(crate) fn far_of(
        &mut self,
        origin: Origin<'_>,
        awaits: impl FnOnce(SocketAddr) -> bool,
    ) -> Option<SocketAddr> {
        match origin {
            Origin::Address(from) => {
                let at_port = |named: &&mut Named| named.far.port() == from.port();
                let Some(named) = self.named.iter_mut().find(at_port) else { return Some(from) };
                if named.far != from && awaits(from) {
                    return Some(from);
                }
                (*named.answers.get_or_insert(from) == from).then_some(named.far)
            }
            Origin::Name(name, port) => {
                let is_it = |named: &&Named| {
                    named.far.port() == port && named.name.as_bytes().eq_ignore_ascii_case(name)
                };
                self.named.iter().find(is_it).map(|named| named.far)
            }
        }
    }
}

fn port_of(socket: &Mapping) -> u16 {
    socket.local_addr().map_or(0, |address| address.port())
}

/// The longest packet of the app that fits, in front of whose payload comes a header, where the
/// path to the relay takes so many bytes. `None`: none that its IP version lets it be told of.
fn inner_mtu(mtu: u16, relay_is_v4: bool, header: usize, app_is_v4: bool) -> Option<u16> {
    let ip = |v4: bool| if v4 { 20 } else { 40 };
    // RFC 791 3.2 and RFC 8200 5: what every path carries.
    let least = if app_is_v4 { 68 } else { 1280 };
    let inner = (usize::from(mtu) + ip(app_is_v4)).checked_sub(ip(relay_is_v4) + header)?;
    u16::try_from(inner).ok().filter(|inner| *inner >= least)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_behind_a_header() {
        for (mtu, relay_is_v4, header, app_is_v4, expected) in [
            (1500, true, 10, true, Some(1490)),
            (1500, true, 22, false, Some(1498)),
            (1500, false, 10, true, Some(1470)),
            (1500, false, 22, false, Some(1478)),
            (1280, false, 22, false, None),
            (1260, true, 22, false, None),
            (68, true, 10, true, None),
            (20, true, 262, true, None),
        ] {
            let inner = inner_mtu(mtu, relay_is_v4, header, app_is_v4);
            assert_eq!(inner, expected, "{mtu} {relay_is_v4} {header} {app_is_v4}");
        }
    }
}
