//! Changing addresses, routes and rules: one request, one acknowledgement.

use std::os::fd::OwnedFd;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// A `NETLINK_ROUTE` socket.
#[derive(Debug)]
pub(super) struct Rtnetlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Rtnetlink {
    /// A socket of the network namespace that this thread is in.
    pub(super) fn open() -> Result<Self, Errno> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None, // NETLINK_ROUTE is 0
        )?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The index of a device.
    pub(super) fn index(&self, device: &str) -> Result<u32, Errno> {
        rustix::net::netdevice::name_to_index(&self.socket, device)
    }

    /// Makes something new.
    pub(super) fn add(&mut self, message: RouteNetlinkMessage) -> Result<(), Errno> {
        self.request(message, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Changes or removes something.
    pub(super) fn change(&mut self, message: RouteNetlinkMessage) -> Result<(), Errno> {
        self.request(message, 0)
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

/// More than an acknowledgement with the request in it.
const ANSWER: usize = 4096;

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
