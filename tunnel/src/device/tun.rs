//! The kernel's TUN device: opening one and reading and writing it.
//!
//! # Theory of operation
//!
//! A TUN belongs to the network namespace in which `TUNSETIFF` ran, and that call works only
//! on a descriptor of `/dev/net/tun` opened after the namespace was entered. Opening
//! ([`open_tun`]) is therefore apart from use ([`Tun::adopt`]): the sandbox opens inside and
//! passes the descriptor out, where it goes on working.
//!
//! With `IFF_VNET_HDR` every packet carries the header of [`virtio`], read and written by
//! one `readv`/`writev` beside the packet. Which offloads the kernel may use towards us is
//! device state that outlives a descriptor, so it is set at opening and again at adoption,
//! also to none. Without the header packets are plain: a system call for each of at most the
//! MTU, whole and summed.

#![allow(unsafe_code)]

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use engine::DeviceName;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{IntegerSetter, Opcode, Updater, ioctl};

use super::{Device, RxOffload, TxOffload, virtio};

/// Opens a queue of the TUN `name` in this thread's network namespace, and makes the device
/// where it does not exist. `multi_queue` allows (and is needed for) more than one queue.
///
/// The descriptor is non-blocking and closed on exec. With `offload` the packets carry the
/// virtio header.
pub fn open_tun(name: &str, offload: bool, multi_queue: bool) -> Result<OwnedFd, OpenError> {
    let name = DeviceName::new(name).ok_or(OpenError::Name)?;
    let fd = rustix::fs::open(
        CLONE_DEVICE,
        OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK,
        Mode::empty(),
    )
    .map_err(OpenError::at_open)?;
    let mut flags = IFF_TUN | IFF_NO_PI;
    if offload {
        flags |= IFF_VNET_HDR;
    }
    if multi_queue {
        flags |= IFF_MULTI_QUEUE;
    }
    let mut request = InterfaceRequest::new(name.as_str(), flags);
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, whose layout `InterfaceRequest` has.
    unsafe { ioctl(&fd, Updater::<TUNSETIFF, _>::new(&mut request)) }
        .map_err(OpenError::at_attach)?;
    Offloads::negotiate(fd.as_fd(), offload)?;
    Ok(fd)
}

/// A queue of a TUN device.
pub struct Tun {
    fd: OwnedFd,
    /// The same descriptor in the hands of crate `tun`, which carries the plain packets. Its
    /// vectored calls fall back to the first slice alone (0.8.14), so a header cannot pass it.
    plain: tun::Device,
    name: DeviceName,
    vnet_header: bool,
    offloads: Offloads,
}

impl Tun {
    /// Takes over a descriptor that [`open_tun`], in whatever namespace, has attached.
    pub fn adopt(fd: OwnedFd) -> Result<Self, OpenError> {
        let mut request = InterfaceRequest::new("", 0);
        // SAFETY: TUNGETIFF writes one `struct ifreq`, whose layout `InterfaceRequest` has.
        unsafe { ioctl(&fd, Updater::<TUNGETIFF, _>::new(&mut request)) }
            .map_err(|_| OpenError::NotAttached)?;
        if request.flags & IFF_TUN == 0 || request.flags & IFF_NO_PI == 0 {
            return Err(OpenError::NotAttached);
        }
        let name = request.name().ok_or(OpenError::NotAttached)?;
        let vnet_header = request.flags & IFF_VNET_HDR != 0;
        let offloads = Offloads::negotiate(fd.as_fd(), vnet_header)?;

        let mut configuration = tun::Configuration::default();
        configuration.tun_name(name.as_str()).raw_fd(fd.as_raw_fd()).close_fd_on_drop(false);
        let plain = tun::Device::new(&configuration).map_err(|_| OpenError::NotAttached)?;
        plain
            .set_nonblock()
            .map_err(|e| OpenError::Attach(Errno::from_io_error(&e).unwrap_or(Errno::INVAL)))?;
        Ok(Self { fd, plain, name, vnet_header, offloads })
    }

    /// The device's name when it was adopted.
    pub fn name(&self) -> DeviceName {
        self.name
    }
}

impl Device for Tun {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<(usize, RxOffload)> {
        debug_assert!(buf.len() >= super::MAX_PACKET, "a packet would be cut");
        if !self.vnet_header {
            return Ok((self.plain.recv(buf)?, RxOffload::default()));
        }
        let mut header = [0; virtio::HEADER];
        let mut slices = [IoSliceMut::new(&mut header), IoSliceMut::new(buf)];
        let read = rustix::io::readv(&self.fd, &mut slices)?;
        let len = read.checked_sub(virtio::HEADER).ok_or(io::ErrorKind::InvalidData)?;
        let offload = virtio::decode(&header, len).map_err(|_| io::ErrorKind::InvalidData)?;
        Ok((len, offload))
    }

    fn write(&mut self, packet: &[u8], offload: TxOffload) -> io::Result<()> {
        let refused = (offload.checksum_partial && !self.offloads.tcp)
            || (offload.gso_size.is_some() && !self.offloads.covers(packet));
        if refused {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if !self.vnet_header {
            self.plain.send(packet)?;
            return Ok(());
        }
        let header = virtio::encode(packet, offload).map_err(|_| io::ErrorKind::InvalidInput)?;
        // A write to a TUN takes the whole packet or fails.
        rustix::io::writev(&self.fd, &[IoSlice::new(&header), IoSlice::new(packet)])?;
        Ok(())
    }

    fn write_parts(&mut self, start: &[u8], rest: &[&[u8]], offload: TxOffload) -> io::Result<()> {
        /// The virtio header, the headers, and as many segments as a run has at most.
        const PARTS: usize = 2 + 64;
        if rest.is_empty() {
            return self.write(start, offload);
        }
        let refused = (offload.checksum_partial && !self.offloads.tcp)
            || (offload.gso_size.is_some() && !self.offloads.covers(start));
        if refused || !self.vnet_header || rest.len() + 2 > PARTS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let length = start.len() + rest.iter().map(|part| part.len()).sum::<usize>();
        let header = virtio::encode_start(start, length, offload)
            .map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut parts = [IoSlice::new(&[]); PARTS];
        let all = [&header[..], start].into_iter().chain(rest.iter().copied());
        for (part, bytes) in parts.iter_mut().zip(all) {
            *part = IoSlice::new(bytes);
        }
        rustix::io::writev(&self.fd, &parts[..rest.len() + 2])?;
        Ok(())
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn offload(&self) -> bool {
        self.offloads.tcp
    }

    fn udp_offload(&self) -> bool {
        self.offloads.udp
    }
}

impl fmt::Debug for Tun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tun")
            .field("fd", &self.fd)
            .field("name", &self.name)
            .field("vnet_header", &self.vnet_header)
            .field("offloads", &self.offloads)
            .finish_non_exhaustive()
    }
}

/// Why there is no TUN device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The name is empty, too long or holds a NUL.
    #[error("a device name has 1 to 15 bytes")]
    Name,
    /// `/dev/net/tun` does not exist.
    #[error("/dev/net/tun does not exist")]
    Missing,
    /// `/dev/net/tun` exists, and the kernel has nothing behind it.
    #[error("the kernel has no TUN driver (module `tun`)")]
    NoDriver,
    /// `/dev/net/tun` may not be opened by this user.
    #[error("/dev/net/tun may not be opened by this user")]
    Closed,
    /// `/dev/net/tun` could not be opened.
    #[error("cannot open /dev/net/tun: {0}")]
    Open(Errno),
    /// No right to make a device in this network namespace.
    #[error("making a TUN device takes CAP_NET_ADMIN in this network namespace")]
    NotPermitted,
    /// The name is another device's, or its only queue is taken.
    #[error("the device exists already and is in use")]
    Busy,
    /// The kernel knows the device but not what was asked of it.
    #[error("the kernel refuses these TUN flags (an existing device of another kind?)")]
    Unsupported,
    /// Another cause.
    #[error("cannot make the TUN device: {0}")]
    Attach(Errno),
    /// The descriptor to adopt is no TUN queue of ours.
    #[error("the descriptor is not an attached TUN queue without packet information")]
    NotAttached,
}

impl OpenError {
    /// What the user can do, where there is something.
    pub fn help(&self) -> Option<&'static str> {
        match self {
            Self::Missing | Self::NoDriver => Some("modprobe tun"),
            Self::Closed => Some(
                "let the service open it: `DeviceAllow=/dev/net/tun rw`, or `--device /dev/net/tun` \
                 of a container",
            ),
            Self::NotPermitted => Some("give the service CAP_NET_ADMIN"),
            Self::Busy | Self::Unsupported => {
                Some("remove the device, or give ours another name: `[device] name`")
            }
            Self::Name | Self::Open(_) | Self::Attach(_) | Self::NotAttached => None,
        }
    }

    fn at_open(errno: Errno) -> Self {
        match errno {
            Errno::NOENT | Errno::NOTDIR => Self::Missing,
            Errno::NODEV | Errno::NXIO => Self::NoDriver,
            Errno::ACCESS | Errno::PERM => Self::Closed,
            other => Self::Open(other),
        }
    }

    fn at_attach(errno: Errno) -> Self {
        match errno {
            Errno::PERM | Errno::ACCESS => Self::NotPermitted,
            Errno::BUSY => Self::Busy,
            Errno::INVAL => Self::Unsupported,
            other => Self::Attach(other),
        }
    }
}

/// What the kernel accepted of what we can take and give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Offloads {
    tcp: bool,
    udp: bool,
}

impl Offloads {
    /// Asks for all, then for what kernels before 6.2 know, then for none.
    fn negotiate(fd: BorrowedFd<'_>, wanted: bool) -> Result<Self, OpenError> {
        let steps: &[(usize, Self)] = if wanted {
            &[
                (TCP_OFFLOADS | UDP_OFFLOADS, Self { tcp: true, udp: true }),
                (TCP_OFFLOADS, Self { tcp: true, udp: false }),
                (0, Self { tcp: false, udp: false }),
            ]
        } else {
            &[(0, Self { tcp: false, udp: false })]
        };
        let mut refusal = Errno::INVAL;
        for &(mask, offloads) in steps {
            // SAFETY: TUNSETOFFLOAD takes a mask of bits by value and no pointer.
            match unsafe { ioctl(fd, IntegerSetter::<TUNSETOFFLOAD>::new_usize(mask)) } {
                Ok(()) => return Ok(offloads),
                Err(errno) => refusal = errno,
            }
        }
        Err(OpenError::at_attach(refusal))
    }

    fn covers(self, packet: &[u8]) -> bool {
        let protocol = match packet.first().map(|b| b >> 4) {
            Some(4) => packet.get(9),
            Some(6) => packet.get(6),
            _ => None,
        };
        match protocol {
            Some(17) => self.udp,
            _ => self.tcp,
        }
    }
}

/// `struct ifreq` as far as the TUN driver looks.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    rest: [u8; size_of::<libc::ifreq>() - 18],
}

const _: () = assert!(size_of::<InterfaceRequest>() == size_of::<libc::ifreq>());

impl InterfaceRequest {
    fn new(name: &str, flags: u16) -> Self {
        let mut request = Self { name: [0; 16], flags, rest: [0; size_of::<libc::ifreq>() - 18] };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        request
    }

    fn name(&self) -> Option<DeviceName> {
        let end = self.name.iter().position(|&b| b == 0)?;
        DeviceName::new(std::str::from_utf8(&self.name[..end]).ok()?)
    }
}

const CLONE_DEVICE: &str = "/dev/net/tun";

const TUNSETIFF: Opcode = libc::TUNSETIFF as Opcode;
const TUNGETIFF: Opcode = libc::TUNGETIFF as Opcode;
const TUNSETOFFLOAD: Opcode = libc::TUNSETOFFLOAD as Opcode;

const IFF_TUN: u16 = libc::IFF_TUN as u16;
const IFF_NO_PI: u16 = libc::IFF_NO_PI as u16;
const IFF_VNET_HDR: u16 = libc::IFF_VNET_HDR as u16;
const IFF_MULTI_QUEUE: u16 = libc::IFF_MULTI_QUEUE as u16;

/// Checksums, TCP over IPv4 and IPv6.
const TCP_OFFLOADS: usize = 0x01 | 0x02 | 0x04;
/// UDP over IPv4 and IPv6.
const UDP_OFFLOADS: usize = 0x20 | 0x40;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Checksum, Gso, GsoKind, MAX_PACKET};
    use crate::namespace;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::net::UdpSocket;
    use std::time::Duration;

    const APP: &str = "192.0.2.1:5000";
    const FAR: &str = "192.0.2.2:53";

    /// A device `t0` that is up, with the app's address on it; `None`, and said, where this
    /// user may not open one.
    fn device(offload: bool) -> Option<Tun> {
        let fd = match open_tun("t0", offload, false) {
            Ok(fd) => fd,
            Err(error @ (OpenError::Missing | OpenError::NoDriver | OpenError::Closed)) => {
                eprintln!("skipped: {error}");
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        namespace::run("ip addr add 192.0.2.1/24 dev t0");
        namespace::run("ip link set t0 up");
        Some(Tun::adopt(fd).unwrap())
    }

    /// The next UDP packet over IPv4; the kernel's own IPv6 chatter is passed over.
    fn next_datagram(tun: &mut Tun) -> (Vec<u8>, RxOffload) {
        let mut buf = vec![0; MAX_PACKET];
        let timeout = Timespec { tv_sec: 5, tv_nsec: 0 };
        loop {
            let mut fds = [PollFd::from_borrowed_fd(tun.as_fd(), PollFlags::IN)];
            assert_eq!(poll(&mut fds, Some(&timeout)).unwrap(), 1, "no packet within 5 s");
            let (len, offload) = tun.read(&mut buf).unwrap();
            if buf[0] >> 4 == 4 && buf[9] == 17 {
                return (buf[..len].to_vec(), offload);
            }
        }
    }

    /// The datagram that answers `packet`, with a checksum or the start of one.
    fn answer(packet: &[u8], payload: &[u8], partial: bool) -> Vec<u8> {
        let mut reply = packet[..28].to_vec();
        reply.extend_from_slice(payload);
        let length = reply.len() as u16;
        reply[2..4].copy_from_slice(&length.to_be_bytes());
        reply[10..12].fill(0);
        reply[12..16].copy_from_slice(&packet[16..20]);
        reply[16..20].copy_from_slice(&packet[12..16]);
        let header = namespace::checksum(&reply[..20], 0);
        reply[10..12].copy_from_slice(&header.to_be_bytes());
        reply[20..22].copy_from_slice(&packet[22..24]);
        reply[22..24].copy_from_slice(&packet[20..22]);
        reply[24..26].copy_from_slice(&(length - 20).to_be_bytes());
        reply[26..28].fill(0);
        let pseudo = !namespace::checksum(&reply[12..20], 17 + u32::from(length - 20));
        let checksum =
            if partial { pseudo } else { namespace::checksum(&reply[20..], pseudo.into()) };
        reply[26..28].copy_from_slice(&checksum.to_be_bytes());
        reply
    }

    fn app() -> UdpSocket {
        let app = UdpSocket::bind(APP).unwrap();
        app.connect(FAR).unwrap();
        app.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        app
    }

    #[test]
    fn super_datagrams_pass_whole_both_ways() {
        namespace::within("", || {
            let Some(mut tun) = device(true) else { return };
            assert_eq!(tun.name().as_str(), "t0");
            assert!(tun.offload());
            if !tun.udp_offload() {
                eprintln!("skipped: this kernel has no UDP offload in TUN");
                return;
            }
            let app = app();
            let socket = socket2::SockRef::from(&app);
            crate::egress::pin::set_option(&socket, libc::SOL_UDP, libc::UDP_SEGMENT, 1000)
                .unwrap();
            app.send(&[7; 3500]).unwrap();
            let (packet, offload) = next_datagram(&mut tun);
            let gso = Gso { kind: GsoKind::UdpL4, size: 1000 };
            assert_eq!(packet.len(), 28 + 3500);
            assert_eq!(offload, RxOffload { gso: Some(gso), checksum: Checksum::Partial });

            let partial = TxOffload { gso_size: Some(900), checksum_partial: true };
            tun.write(&answer(&packet, &[9; 2000], true), partial).unwrap();
            let mut buf = [0; 4096];
            for expected in [900, 900, 200] {
                assert_eq!(app.recv(&mut buf).unwrap(), expected);
            }
            // The offsets of this header come from the packet, so a cut one is refused here.
            let error = tun.write(&packet[..25], partial).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        });
    }

    #[test]
    fn without_the_header_packets_are_plain() {
        namespace::within("", || {
            let Some(mut tun) = device(false) else { return };
            assert!(!tun.offload());
            assert!(!tun.udp_offload());
            let app = app();
            app.send(b"question").unwrap();
            let (packet, offload) = next_datagram(&mut tun);
            assert_eq!(offload, RxOffload::default());
            assert_eq!(&packet[28..], b"question");
            let error = tun
                .write(&packet, TxOffload { gso_size: None, checksum_partial: true })
                .unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            tun.write(&answer(&packet, b"answer", false), TxOffload::default()).unwrap();
            let mut buf = [0; 64];
            assert_eq!(app.recv(&mut buf).unwrap(), 6);
            // After the kernel's own chatter, if any.
            let mut packet = vec![0; MAX_PACKET];
            let error = loop {
                if let Err(error) = tun.read(&mut packet) {
                    break error;
                }
            };
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        });
    }

    #[test]
    fn queues_and_refusals() {
        namespace::within("", || {
            assert_eq!(open_tun("", true, false).unwrap_err(), OpenError::Name);
            assert_eq!(open_tun("sixteen-letters!", true, false).unwrap_err(), OpenError::Name);
            let first = match open_tun("q0", true, true) {
                Ok(first) => first,
                Err(error) => return eprintln!("skipped: {error}"),
            };
            let second = open_tun("q0", true, true).unwrap();
            assert_eq!(open_tun("q0", true, false).unwrap_err(), OpenError::Unsupported);
            assert_eq!(open_tun("lo", true, false).unwrap_err(), OpenError::Unsupported);
            let _single = open_tun("s0", true, false).unwrap();
            assert_eq!(open_tun("s0", true, false).unwrap_err(), OpenError::Busy);
            for fd in [first, second] {
                assert_eq!(Tun::adopt(fd).unwrap().name().as_str(), "q0");
            }
            let null = std::fs::File::open("/dev/null").unwrap();
            assert_eq!(Tun::adopt(null.into()).unwrap_err(), OpenError::NotAttached);
        });
    }
}
