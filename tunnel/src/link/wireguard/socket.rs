//! The two UDP sockets of an interface, and the system calls on them.
//!
//! # Theory of operation
//!
//! One socket for IPv4 and one for IPv6 on the same port, neither connected. Datagrams come
//! with the address that they were sent to, so that an answer can leave from it, and with the
//! congestion bits of their outer header. Runs of equal datagrams pass as one message both
//! ways (`UDP_SEGMENT`, `UDP_GRO`).
//!
//! What routers and hosts say of what was sent (ICMP) comes through the error queue, and names
//! the place that can't be reached. The kernel tells of it a second time by failing any
//! call, whomever that is about; such a failure is passed over.
//!
//! Nothing waits: what a full socket doesn't take is lost, as in any network. Where the kernel
//! refuses a message its cause is guessed in turn: our address is gone (it is sent without
//! one, and the peer's is forgotten), or the run can't be cut on that path (it is sent one by
//! one from then on).

#![allow(unsafe_code)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use engine::Failure;
use foldhash::{HashSet, HashSetExt as _};
use rustix::io::Errno;
use smallvec::SmallVec;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use super::LinkError;
use super::control::Control;
use super::dropped::{LinkDropped, LinkTotals};
use super::outbox::{Outbox, Run};
use super::peers::PeerId;
use crate::egress::message;
use crate::egress::pin::set_option;

/// What sending found out.
#[derive(Debug, Clone, Copy)]
pub(super) enum Lost {
    /// The address that this peer speaks to is ours no longer.
    Source(PeerId),
    /// There is no way to that place.
    Path(SocketAddr),
}

/// The sockets.
#[derive(Debug)]
pub(super) struct Sockets {
    v4: Option<Socket>,
    v6: Option<Socket>,
    port: u16,
    /// Runs may leave as one message.
    segmentation: bool,
    /// But not to these.
    apart: HashSet<SocketAddr>,
}

impl Sockets {
    /// Binds both to `port`, or to one that is free on both.
    pub(super) fn open(port: u16, mark: Option<u32>) -> Result<Self, LinkError> {
        for _ in 0..ATTEMPTS {
            let v4 = open_one(Domain::IPV4, Ipv4Addr::UNSPECIFIED.into(), port, mark)?;
            let bound = match &v4 {
                Some(socket) => local_port(socket)?,
                None => port,
            };
            let v6 = match open_one(Domain::IPV6, Ipv6Addr::UNSPECIFIED.into(), bound, mark) {
                Err(LinkError::Bind { errno: Errno::ADDRINUSE, .. }) if port == 0 => continue,
                other => other?,
            };
            let port = match &v6 {
                Some(socket) => local_port(socket)?,
                None => bound,
            };
            if v4.is_none() && v6.is_none() {
                return Err(LinkError::Socket(Errno::AFNOSUPPORT));
            }
            return Ok(Self { v4, v6, port, segmentation: true, apart: HashSet::new() });
        }
        Err(LinkError::Bind { port, errno: Errno::ADDRINUSE })
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn set_mark(&self, mark: Option<u32>) -> Result<(), LinkError> {
        self.both().try_for_each(|socket| {
            socket.set_mark(mark.unwrap_or(0)).map_err(|error| LinkError::Mark(errno(&error)))
        })
    }

    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.both().map(AsFd::as_fd)
    }

    fn both(&self) -> impl Iterator<Item = &Socket> {
        self.v4.iter().chain(&self.v6)
    }

    /// Sends everything, or drops it, and tells `lost` what was found out.
    pub(super) fn transmit(
        &mut self,
        outbox: &Outbox,
        totals: &mut LinkTotals,
        mut lost: impl FnMut(Lost),
    ) {
        let mut runs = outbox.runs();
        let mut told = false;
        while let [first, ..] = runs {
            let v6 = first.path.to.is_ipv6();
            let Some(socket) = (if v6 { &self.v6 } else { &self.v4 }) else {
                totals.drop_many(LinkDropped::Refused, first.count as u64);
                runs = &runs[1..];
                continue;
            };
            let together = |run: &&Run| {
                run.count == 1 || (self.segmentation && !self.apart.contains(&run.path.to))
            };
            let messages: SmallVec<[Message<'_>; BATCH]> = runs
                .iter()
                .take(BATCH)
                .take_while(|run| run.path.to.is_ipv6() == v6)
                .take_while(together)
                .map(|run| Message::of(run, outbox.bytes()))
                .collect();
            if messages.is_empty() {
                send_apart(socket, first, outbox.bytes(), true, totals);
                runs = &runs[1..];
                continue;
            }
            totals.sends += 1;
            match send(socket, &messages) {
                Ok(sent) => {
                    totals.datagrams_out +=
                        runs[..sent].iter().map(|r| r.count as u64).sum::<u64>();
                    runs = &runs[sent..];
                    told = false;
                }
                Err(Errno::INTR) => {}
                // Of an earlier message, perhaps: telling it has cleared it.
                Err(errno) if !told && is_report(errno) => told = true,
                Err(Errno::AGAIN | Errno::NOBUFS) => {
                    totals.drop_many(LinkDropped::SocketFull, first.count as u64);
                    runs = &runs[1..];
                }
                Err(refusal) => {
                    let mut message = Message::of(first, outbox.bytes());
                    let had_source = message.source.take().is_some();
                    totals.sends += 1;
                    if had_source && send(socket, &[message]).is_ok() {
                        totals.datagrams_out += first.count as u64;
                        first.peer.map(Lost::Source).into_iter().for_each(&mut lost);
                    } else if first.count > 1
                        && send_apart(socket, first, outbox.bytes(), !had_source, totals)
                    {
                        // EIO: the device can't sum what it would have to cut.
                        self.segmentation &= refusal != Errno::IO;
                        if self.apart.len() >= APART {
                            self.apart.clear();
                        }
                        self.apart.insert(first.path.to);
                        let source = first.peer.filter(|_| had_source);
                        source.map(Lost::Source).into_iter().for_each(&mut lost);
                    } else {
                        lost(Lost::Path(first.path.to));
                        if first.count == 1 {
                            totals.drop(LinkDropped::Refused);
                        }
                    }
                    runs = &runs[1..];
                }
            }
        }
    }

    /// The next place of which the network says that it can't be reached; `None`: no more.
    pub(super) fn unreachable(&self) -> Option<SocketAddr> {
        let mut quoted = [0; 64];
        self.both().find_map(|socket| {
            loop {
                let reported = message::reported(socket.as_fd(), &mut quoted)?;
                match reported.failure {
                    Failure::Refused
                    | Failure::NetUnreachable
                    | Failure::HostUnreachable
                    | Failure::Prohibited => return Some(reported.destination),
                    Failure::Reset
                    | Failure::TimedOut
                    | Failure::TooBig { .. }
                    | Failure::Exhausted => {}
                }
            }
        })
    }

    /// Receives what there is, up to a batch, and says whether there may be more. `None`: there
    /// was nothing, so it was for [`unreachable`](Self::unreachable) that the socket was ready.
    pub(super) fn receive(&self, v6: bool, inbox: &mut Inbox) -> Option<bool> {
        inbox.arrivals.clear();
        let socket = (if v6 { &self.v6 } else { &self.v4 }).as_ref()?;
        let mut told = false;
        loop {
            match receive(socket, inbox) {
                Err(Errno::INTR) => {}
                Err(errno) if !told && is_report(errno) => told = true,
                result => return result.ok(),
            }
        }
    }
}

/// What an ICMP error makes of a call that has nothing to do with it.
fn is_report(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::CONNREFUSED
            | Errno::HOSTUNREACH
            | Errno::NETUNREACH
            | Errno::ACCESS
            | Errno::PERM
            | Errno::HOSTDOWN
            | Errno::PROTO
            | Errno::NOPROTOOPT
            | Errno::OPNOTSUPP
    )
}

/// Sends the messages of a run one by one; `false`: not even the first one went.
fn send_apart(
    socket: &Socket,
    run: &Run,
    bytes: &[u8],
    with_source: bool,
    totals: &mut LinkTotals,
) -> bool {
    let whole = Message::of(run, bytes);
    let source = whole.source.filter(|_| with_source);
    let messages: SmallVec<[Message<'_>; super::outbox::SEGMENTS]> = whole
        .bytes
        .chunks(run.size)
        .map(|bytes| Message { bytes, segment: None, source, ..whole })
        .collect();
    let mut left = &messages[..];
    while !left.is_empty() {
        totals.sends += 1;
        match send(socket, &left[..left.len().min(BATCH)]) {
            Ok(sent) => {
                totals.datagrams_out += sent as u64;
                left = &left[sent..];
            }
            Err(Errno::INTR) => {}
            Err(errno) => {
                let full = matches!(errno, Errno::AGAIN | Errno::NOBUFS);
                let cause = if full { LinkDropped::SocketFull } else { LinkDropped::Refused };
                totals.drop_many(cause, left.len() as u64);
                break;
            }
        }
    }
    left.len() < messages.len()
}

/// One message of `sendmmsg()`: a datagram, or a run of them.
#[derive(Clone, Copy)]
struct Message<'a> {
    bytes: &'a [u8],
    to: SocketAddr,
    source: Option<IpAddr>,
    tos: u8,
    segment: Option<u16>,
}

impl<'a> Message<'a> {
    fn of(run: &Run, bytes: &'a [u8]) -> Self {
        Self {
            bytes: &bytes[run.bytes.clone()],
            to: run.path.to,
            source: run.path.source,
            tos: run.path.tos,
            segment: (run.count > 1).then_some(run.size as u16), // at most a datagram's
        }
    }
}

/// What came with one message of a batch.
#[derive(Debug, Clone)]
pub(super) struct Arrival {
    /// Where it lies in the inbox.
    pub(super) bytes: Range<usize>,
    /// It is many datagrams of this size each, the last one of what is left.
    pub(super) segment: usize,
    pub(super) from: SocketAddr,
    /// Our address that it was sent to.
    pub(super) to: Option<IpAddr>,
    /// The outer header's type of service, or traffic class.
    pub(super) tos: u8,
}

/// Buffers of `recvmmsg()`. Memory that no message was long enough to touch costs nothing.
#[derive(Debug)]
pub(super) struct Inbox {
    pub(super) data: Vec<u8>,
    pub(super) arrivals: Vec<Arrival>,
    /// Messages to ask for. After a long one it is one: its bytes are still in the
    /// processor's cache when they are opened. Short ones come as many as there are.
    ask: usize,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self { data: vec![0; BATCH * MESSAGE], arrivals: Vec::with_capacity(BATCH), ask: BATCH }
    }

    /// Bytes that all datagrams of a batch have at most.
    pub(super) const CAPACITY: usize = BATCH * MESSAGE;
}

fn open_one(
    domain: Domain,
    any: IpAddr,
    port: u16,
    mark: Option<u32>,
) -> Result<Option<Socket>, LinkError> {
    let kind = Type::DGRAM.nonblocking().cloexec();
    let socket = match Socket::new_raw(domain, kind, Some(Protocol::UDP)) {
        Err(error) if errno(&error) == Errno::AFNOSUPPORT => return Ok(None),
        other => other.map_err(|error| LinkError::Socket(errno(&error)))?,
    };
    if let Some(mark) = mark {
        socket.set_mark(mark).map_err(|error| LinkError::Mark(errno(&error)))?;
    }
    let set = |level, name, value| {
        set_option(&socket, level, name, value).map_err(|error| LinkError::Socket(errno(&error)))
    };
    // The outer packet may be fragmented: the inner one was made to fit.
    if domain == Domain::IPV4 {
        set(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)?;
        set(libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
        set(libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
        set(libc::IPPROTO_IP, libc::IP_RECVERR, 1)?;
    } else {
        socket.set_only_v6(true).map_err(|error| LinkError::Socket(errno(&error)))?;
        set(libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT)?;
        set(libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
        set(libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
        set(libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)?;
    }
    // Kernels before 5.0 give every datagram alone.
    let _ = set(libc::SOL_UDP, libc::UDP_GRO, 1);
    for (forced, plain) in
        [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)]
    {
        // The first takes CAP_NET_ADMIN; the second is cut to what the host allows.
        if set(libc::SOL_SOCKET, forced, BUFFER).is_err() {
            set(libc::SOL_SOCKET, plain, BUFFER)?;
        }
    }
    socket
        .bind(&SocketAddr::new(any, port).into())
        .map_err(|error| LinkError::Bind { port, errno: errno(&error) })?;
    Ok(Some(socket))
}

fn local_port(socket: &Socket) -> Result<u16, LinkError> {
    let address = socket.local_addr().map_err(|error| LinkError::Socket(errno(&error)))?;
    Ok(address.as_socket().map_or(0, |address| address.port()))
}

/// `sendmmsg()` that never waits, of at most [`BATCH`] messages; how many went.
fn send(socket: &Socket, messages: &[Message<'_>]) -> Result<usize, Errno> {
    let mut names: SmallVec<[SockAddr; BATCH]> = SmallVec::new();
    let mut controls: SmallVec<[Control; BATCH]> = SmallVec::new();
    let mut slices: SmallVec<[libc::iovec; BATCH]> = SmallVec::new();
    for message in messages {
        names.push(message.to.into());
        controls.push(Control::of(
            message.to.is_ipv6(),
            message.source,
            message.tos,
            message.segment,
        ));
        slices.push(libc::iovec {
            iov_base: message.bytes.as_ptr().cast_mut().cast(),
            iov_len: message.bytes.len(),
        });
    }
    let mut headers: SmallVec<[libc::mmsghdr; BATCH]> = SmallVec::new();
    for ((name, control), slice) in names.iter().zip(&mut controls).zip(&mut slices) {
        // SAFETY: all zeroes is a valid mmsghdr: null pointers with lengths of zero.
        let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
        header.msg_hdr.msg_name = name.as_ptr().cast_mut().cast();
        header.msg_hdr.msg_namelen = name.len();
        header.msg_hdr.msg_iov = slice;
        header.msg_hdr.msg_iovlen = 1;
        if control.length() > 0 {
            header.msg_hdr.msg_controllen = control.length() as _;
            header.msg_hdr.msg_control = control.as_mut_ptr().cast();
        }
        headers.push(header);
    }
    // SAFETY: every pointer is to a live local or a slice of `messages`, of the length beside
    // it; the kernel reads them, and writes into `headers` alone.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr(),
            headers.len() as libc::c_uint,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    usize::try_from(sent).map_err(|_| last_errno())
}

/// `recvmmsg()` that never waits; whether as many came as were asked for.
fn receive(socket: &Socket, inbox: &mut Inbox) -> Result<bool, Errno> {
    let ask = inbox.ask;
    let mut names: SmallVec<[SockAddrStorage; BATCH]> = SmallVec::new();
    let mut controls: SmallVec<[Control; BATCH]> = SmallVec::new();
    let mut slices: SmallVec<[libc::iovec; BATCH]> = SmallVec::new();
    for buffer in inbox.data.chunks_exact_mut(MESSAGE).take(ask) {
        names.push(SockAddrStorage::zeroed());
        controls.push(Control::EMPTY);
        slices.push(libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: MESSAGE });
    }
    let mut headers: SmallVec<[libc::mmsghdr; BATCH]> = SmallVec::new();
    for ((name, control), slice) in names.iter_mut().zip(&mut controls).zip(&mut slices) {
        // SAFETY: all zeroes is a valid mmsghdr: null pointers with lengths of zero.
        let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
        header.msg_hdr.msg_namelen = name.size_of();
        header.msg_hdr.msg_name = std::ptr::from_mut(name).cast();
        header.msg_hdr.msg_iov = slice;
        header.msg_hdr.msg_iovlen = 1;
        header.msg_hdr.msg_control = control.as_mut_ptr().cast();
        header.msg_hdr.msg_controllen = Control::CAPACITY as _;
        headers.push(header);
    }
    // SAFETY: every pointer is to a live local or to a part of `inbox.data`, writable for the
    // length beside it.
    let received = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr(),
            headers.len() as libc::c_uint,
            libc::MSG_DONTWAIT as _,
            std::ptr::null_mut(),
        )
    };
    let received = usize::try_from(received).map_err(|_| last_errno())?;
    let mut longest = 0;
    let parts = headers.iter().zip(names).zip(&mut controls).take(received).enumerate();
    for (at, ((header, name), control)) in parts {
        let length = (header.msg_len as usize).min(MESSAGE);
        longest = longest.max(length);
        control.set_length(header.msg_hdr.msg_controllen);
        // SAFETY: the kernel wrote a socket address of this length.
        let from = unsafe { SockAddr::new(name, header.msg_hdr.msg_namelen) };
        let Some(from) = from.as_socket() else { continue };
        let (to, tos, segment) = control.read();
        let start = at * MESSAGE;
        inbox.arrivals.push(Arrival {
            bytes: start..start + length,
            segment: segment.unwrap_or(length).max(1),
            from,
            to,
            tos,
        });
    }
    inbox.ask = if longest > LONG { 1 } else { BATCH };
    Ok(received == ask)
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

fn last_errno() -> Errno {
    errno(&io::Error::last_os_error())
}

/// Messages in one system call.
const BATCH: usize = 16;
/// The longest datagram, or run of them.
const MESSAGE: usize = 1 << 16;
/// A message that fills caches.
const LONG: usize = MESSAGE / 4;
/// Bytes of each socket buffer: 10 ms at 10 Gbit/s.
const BUFFER: libc::c_int = 16 << 20;
/// Ports to try until one is free for both IP versions.
const ATTEMPTS: usize = 100;
/// Destinations that are remembered for not taking runs.
const APART: usize = 256;
