//! Where the app's packets come from and go to.
//!
//! # Theory of operation
//!
//! A device moves one IP packet, or one super-packet that stands for many, a call. It never
//! blocks: `WouldBlock` ends the turn. Every other error concerns one packet: the driver
//! counts it and goes on. The trait is dispatched statically; [`Tun`] is the kernel's
//! device and [`Memory`] its twin for tests.

use std::io;
use std::os::fd::BorrowedFd;

pub mod memory;
pub mod tun;
pub mod virtio;

pub use memory::Memory;
pub use tun::{OpenError, Tun, open_tun};
pub use virtio::{Checksum, Gso, GsoKind, RxOffload, TxOffload};

/// The longest packet that a read may return: an IPv6 header and the largest payload its
/// length field can tell. A buffer for [`Device::read`] must hold this much.
pub const MAX_PACKET: usize = 40 + 65_535;

/// A source and sink of IP packets.
pub trait Device {
    /// Reads one packet into `buf`, which holds at least [`MAX_PACKET`] bytes, and says
    /// its length. `WouldBlock`: there is none. `InvalidData`: one was there, and it is gone.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<(usize, RxOffload)>;

    /// Writes one packet. `InvalidInput`: the packet and `offload` don't fit together.
    /// `Io` (`EIO`): the device is down.
    fn write(&mut self, packet: &[u8], offload: TxOffload) -> io::Result<()>;

    /// Writes one packet that lies in several places: `start` holds its IP and transport
    /// headers at least. Errors as for [`write`](Self::write).
    fn write_parts(&mut self, start: &[u8], rest: &[&[u8]], offload: TxOffload) -> io::Result<()> {
        let packet: Vec<u8> =
            [start].into_iter().chain(rest.iter().copied()).flatten().copied().collect();
        self.write(&packet, offload)
    }

    /// Readable when [`read`](Self::read) has a packet.
    fn as_fd(&self) -> BorrowedFd<'_>;

    /// Whether partial checksums and TCP super-packets may be written. Where not, every
    /// packet must be whole, summed and within the device's MTU.
    fn offload(&self) -> bool;

    /// Whether UDP super-packets may be written too (Linux 6.2).
    fn udp_offload(&self) -> bool;
}
