//! What goes into the engine, and what comes out of it: its settings, the driver's answers, its
//! own requests, and where packets go.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::flow::{FlowId, MappingId, RingId, Rings};
use crate::report::Report;
use crate::share::Share;
use crate::ways::{LinkId, WayId};
use crate::{Egress, Failure, Owner, Protocol};

use super::netstack::{Arrived, LinkPort};
use super::own::Own;
use super::service::ResolverService;

/// What an engine is built with.
#[derive(Debug, Clone)]
pub struct Config {
    /// The device's MTU in bytes, at least 1,280.
    pub mtu: u16,
    /// Whether the device takes and gives super-packets and partial checksums.
    pub offload: bool,
    /// Whether it also takes super-datagrams.
    pub udp_offload: bool,
    /// Flows at once, of every kind and state.
    pub flows: usize,
    /// Of these, flows that are not open yet: each may hold a descriptor. As many may ask the
    /// resolver inside by datagrams.
    pub half_open: usize,
    /// Which flows are this host's own.
    pub own: Own,
    /// Whether to tell of flows ([`Output::Report`]).
    pub reports: bool,
    /// Destinations that stand for something else.
    pub services: Services,
    /// Which ports at the tunnels' addresses are this engine's.
    pub share: Share,
    /// Seeds hashes and sequence numbers; from a CSPRNG.
    pub seed: u64,
}

impl Config {
    /// How many of so many flows may be half open: each may hold a descriptor, and they give
    /// way among themselves first.
    pub fn half_open(flows: usize) -> usize {
        (flows / 4).max(8)
    }
}

/// Destinations inside that stand for something else.
#[derive(Debug, Clone, Default)]
pub struct Services {
    /// Where our own resolver answers; it goes before all else.
    pub resolver: Option<ResolverService>,
    /// Inside address → this host's loopback address.
    pub loopback: Vec<(IpAddr, IpAddr)>,
}

/// Where packets go at once. Static dispatch; the test twin is a `Vec`.
pub trait Sink {
    /// One packet of at most `max` bytes towards the app: `write` fills the buffer from
    /// its start and gives the packet's size.
    fn to_app(&mut self, max: usize, meta: Meta, write: impl FnOnce(&mut [u8]) -> usize);

    /// One datagram or echo request towards the far side. One that was taken may still not leave
    /// ([`Input::Unsent`]).
    fn to_far(&mut self, way: Way, datagram: Datagram<'_>) -> Result<(), Unsent>;

    /// One packet into a tunnel: its headers (IP and transport, already translated) and the
    /// payload behind them. Where `meta` has a segment size it stands for several, each with so
    /// many bytes of payload; where it says that the checksum is partial, the transport
    /// checksum in `headers` is the pseudo-header's sum, else it is whole.
    fn to_link(
        &mut self,
        link: LinkId,
        headers: &[u8],
        payload: &[u8],
        meta: Meta,
    ) -> Result<(), Unsent>;

    /// What came out of a tunnel to a port that was reserved
    /// ([`Engine::reserve`](crate::Engine::reserve)). A sink whose
    /// driver reserves none gets none.
    fn to_netstack(&mut self, port: LinkPort, arrived: Arrived) {
        let _ = (port, arrived);
    }

    /// What came out of a tunnel to a port of another shard's ([`Config::share`]): it is to go to
    /// that one's [`Engine::handle_link_packet`](crate::Engine::handle_link_packet) as it is. A
    /// sink whose driver is alone gets none.
    fn to_shard(
        &mut self,
        shard: usize,
        link: LinkId,
        headers: &[u8],
        payload: &[&[u8]],
        meta: Meta,
    ) {
        let _ = (shard, link, headers, payload, meta);
    }
}

/// What goes along with a packet to the app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Meta {
    /// Bytes of payload in each segment, for the kernel to cut; `None`: one packet.
    pub segment: Option<u16>,
    /// The transport checksum holds the pseudo-header's sum only; the kernel does the rest.
    pub partial_checksum: bool,
}

/// Which socket carries a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The socket of a mapping, to this address.
    Mapping(MappingId, SocketAddr),
    /// The echo socket of a flow, with this sequence number.
    Echo(FlowId, u16),
    /// No socket: the driver's service, which answers this flow.
    Service(FlowId),
}

/// A datagram's payload on its way to the far side.
#[derive(Debug, Clone, Copy)]
pub struct Datagram<'a> {
    /// UDP or echo payload; several datagrams where `segment` is set.
    pub payload: &'a [u8],
    /// Bytes in each datagram but the last.
    pub segment: Option<u16>,
    /// The app forbids fragmentation.
    pub dont_fragment: bool,
    /// It is part of what the device has just brought, and more may follow: it may wait for the
    /// end of that. A failure of one that is not is told at once.
    pub may_wait: bool,
}

/// Why a datagram did not leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsent {
    /// The socket's buffer is full.
    Full,
    /// The local network refused.
    Failed(Failure),
}

/// What the driver tells the engine.
#[derive(Debug)]
pub enum Input {
    /// Answers [`Output::Owner`]; `None`: not known.
    Owner(FlowId, Option<Owner>),
    /// Answers [`Output::Source`]; as an error also instead of a connect, where the second
    /// look at the route found none.
    Source(FlowId, Result<Egress, Unresolved>),
    /// Instead of a connect: the route has changed since [`Input::Source`].
    SourceChanged(FlowId, Egress),
    /// Answers [`Output::Rings`]; `None`: memory is short.
    Lent(FlowId, Option<Rings>),
    /// The far side has accepted: the local port, 0 where there is none, and rings to carry
    /// bytes.
    Connected(FlowId, u16, Rings),
    /// The same where [`Engine::has_rings`](crate::Engine::has_rings).
    Joined(FlowId, u16),
    /// Answers [`Output::Bind`] or [`Output::OpenEcho`]: the local port, 0 where there is none.
    Bound(FlowId, u16),
    /// A connect, bind or echo socket failed.
    Failed(FlowId, Failure),
    /// Instead of a connect or a mapping: the proxy itself failed or refused, and this is what
    /// the app is to see.
    ProxyFailed(FlowId, Failure),
    /// The proxy has ended its part of a mapping, and this is what the app of this flow is to
    /// see.
    ProxyEnded(FlowId, Failure),
    /// This host lets us open no echo socket.
    Unsupported(FlowId),
    /// The far side has ended its half of a TCP flow; every byte before was handed over.
    FarEnded(FlowId),
    /// The far side has reset a TCP flow, or the path to it failed.
    FarFailed(FlowId, Failure),
    /// An error came back for a datagram to that address.
    DatagramFailed(MappingId, SocketAddr, Failure),
    /// So many datagrams with so many bytes, which [`Sink::to_far`] took since the last input of
    /// this kind, did not leave a mapping towards that peer after all.
    Unsent(MappingId, SocketAddr, u64, u64, Unsent),
    /// An error came back for an echo request.
    EchoFailed(FlowId, Failure),
    /// Carrying that flow failed inside this program.
    Broken(FlowId),
    /// Memory is short: end the connection that was idle longest.
    EvictIdle,
    /// End every flow.
    Shutdown,
}

/// Why a source could not be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unresolved {
    /// The kernel's own answer for that destination: the app gets it.
    NoRoute(Failure),
    /// The question itself failed: nothing may leave.
    LookupFailed,
}

/// What the engine asks of the driver, and tells.
#[derive(Debug)]
pub enum Output {
    /// Whose is the socket behind this flow? Answer: [`Input::Owner`].
    Owner(FlowId, Protocol, SocketAddr, SocketAddr),
    /// Which local address and device would this flow leave with? The last address, here and
    /// below, is the one that the app bound its socket to: the route is looked up for it.
    /// Answer: [`Input::Source`].
    Source(FlowId, Protocol, SocketAddr, Option<IpAddr>),
    /// Rings for a connection that opens towards the app before it does towards the far side
    /// (`peek`). Answer: [`Input::Lent`].
    Rings(FlowId),
    /// Connect to that address with that egress and no other, after looking at the route
    /// again. Answer: [`Input::Connected`], [`Input::SourceChanged`] or [`Input::Failed`].
    Connect(FlowId, SocketAddr, Egress, Option<IpAddr>),
    /// Have the proxy of that way out connect to the destination, by its name where there is
    /// one, with that egress towards the proxy and no other, after looking at the route to the
    /// proxy again. Answer: as for [`Output::Connect`], where a failure is what the proxy says
    /// of the destination, or [`Input::ProxyFailed`].
    ConnectVia(FlowId, WayId, SocketAddr, Option<Arc<str>>, Egress),
    /// Open the mapping's socket unless it is open, after looking at the route again.
    /// Answer: [`Input::Bound`], [`Input::SourceChanged`] or [`Input::Failed`].
    Bind(FlowId, MappingId, SocketAddr, Egress, Option<IpAddr>),
    /// Have the proxy of that way out carry the mapping's datagrams unless it does, this flow's
    /// to the destination's name where there is one, with that egress towards the proxy and no
    /// other, after looking at the route to the proxy again. Answer: as for [`Output::Bind`],
    /// [`Input::ProxyFailed`], or [`Input::Unsupported`].
    Associate(FlowId, MappingId, WayId, SocketAddr, Option<Arc<str>>, Egress),
    /// Open an echo socket, after looking at the route again. Answer: [`Input::Bound`],
    /// [`Input::SourceChanged`], [`Input::Failed`] or [`Input::Unsupported`].
    OpenEcho(FlowId, IpAddr, Egress, Option<IpAddr>),
    /// Be the far side of this connection. Answer: [`Input::Connected`] or [`Input::Failed`].
    Serve(FlowId),
    /// The app has ended its half and the far side has every byte: `shutdown(SHUT_WR)`.
    ShutdownFar(FlowId),
    /// Close the flow's socket.
    Close(FlowId),
    /// Close the flow's socket with a RST.
    Reset(FlowId),
    /// Close a mapping's socket.
    Unbind(MappingId),
    /// The flow of these rings is idle and both are empty: their memory may go.
    Trim(RingId),
    /// These rings are free again; nothing refers to them. At most so many bytes from the
    /// start of either were ever written to.
    Release(RingId, u64),
    /// A flow has opened or ended.
    Report(Box<Report>),
}
