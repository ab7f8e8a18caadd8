//! Links, addresses, routes and rules: making, changing, removing and listing them.
//!
//! # Theory of operation
//!
//! One request, one answer, and the caller waits for it: the kernel does what is asked inside the
//! `sendto()` that asks. A change is acknowledged with an errno or without. A list comes as
//! many datagrams up to a "done"; where something changed while it was read the kernel says so,
//! and the list is asked for again.

use std::os::fd::OwnedFd;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
    ParseableParametrized as _,
};
use netlink_packet_route::RouteNetlinkMessage;
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use socket2::SockRef;

use crate::egress::pin::set_option;
use crate::netlink;

/// A `NETLINK_ROUTE` socket.
#[derive(Debug)]
pub struct Rtnetlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Rtnetlink {
    /// A socket of the network namespace that this thread is in.
    pub fn open() -> Result<Self, Errno> {
        let socket = socket()?;
        // Lists are filtered by the kernel (Linux 4.20); before, by whoever reads them.
        let _ = set_option(&SockRef::from(&socket), libc::SOL_NETLINK, STRICT, 1);
        Ok(Self { socket, sequence: 0 })
    }

    /// The index of a device.
    pub fn index(&self, device: &str) -> Result<u32, Errno> {
        rustix::net::netdevice::name_to_index(&self.socket, device)
    }

    /// The name that a device has now.
    pub fn name(&self, index: u32) -> Result<String, Errno> {
        rustix::net::netdevice::index_to_name(&self.socket, index)
    }

    /// Makes something new; `EEXIST` where it is there already.
    pub fn add(&mut self, message: RouteNetlinkMessage) -> Result<(), Errno> {
        self.request(message, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Changes something, or removes it (a message of a `Del` kind).
    pub fn change(&mut self, message: RouteNetlinkMessage) -> Result<(), Errno> {
        self.request(message, 0)
    }

    /// Lists what `message`, of a `Get` kind, asks for. What cannot be read is left out.
    pub fn list(
        &mut self,
        message: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Errno> {
        let mut listed = Vec::new();
        for _ in 0..TRIES {
            listed.clear();
            self.sequence += 1;
            let each = |kind, payload: &[u8]| {
                // An attribute that the crate cannot read costs its message, not the list.
                listed.extend(RouteNetlinkMessage::parse_with_param(payload, kind));
            };
            let kind = message.message_type();
            if netlink::dump(&self.socket, self.sequence, kind, message, each)? {
                return Ok(listed);
            }
        }
        Err(Errno::AGAIN)
    }

    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Errno> {
        self.sequence += 1;
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut buffer = vec![0; message.buffer_len()];
        message.serialize(&mut buffer);
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(&self.socket, &buffer, SendFlags::empty(), &kernel)?;
        loop {
            let mut answer = [0; ANSWER];
            let (length, _) = rustix::io::retry_on_intr(|| {
                rustix::net::recv(&self.socket, &mut answer[..], RecvFlags::empty())
            })?;
            if let Some(result) = acknowledgement(&answer[..length], self.sequence) {
                return result;
            }
        }
    }
}

/// A `NETLINK_ROUTE` socket of the network namespace that this thread is in.
pub(crate) fn socket() -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None, // NETLINK_ROUTE is 0
    )
}

/// More than an acknowledgement with the request in it.
const ANSWER: usize = 4096;

/// `NETLINK_GET_STRICT_CHK`
const STRICT: libc::c_int = 12;

/// How often a list is asked for that changes while it is read.
const TRIES: u32 = 20;

/// What the kernel says to request `sequence`; `None`: it speaks of something else.
fn acknowledgement(datagram: &[u8], sequence: u32) -> Option<Result<(), Errno>> {
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(datagram).ok()?;
    if message.header.sequence_number != sequence {
        return None;
    }
    let NetlinkPayload::Error(error) = message.payload else { return None };
    Some(match error.code {
        None => Ok(()),
        Some(code) => Err(Errno::from_raw_os_error(-code.get())),
    })
}
