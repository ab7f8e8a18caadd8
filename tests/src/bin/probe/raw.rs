//! Bytes that are no proper packets, thrown at the device of the default route.
//!
//! Needs a root's raw socket: what an unprivileged program can't send, a bug or
//! a bridge can.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Every length of every template, then `count` mutations of them in an order
/// that `seed` decides.
pub(crate) fn bad_packets(seed: u64, count: u64) -> Result<Value> {
    let device = device()?;
    let socket = Link::open(&device)?;
    let templates = templates();
    let mut sent = 0_u64;
    let mut refused = 0_u64;
    let mut send = |bytes: &[u8]| match socket.send(bytes) {
        Ok(()) => sent += 1,
        Err(_) => refused += 1,
    };
    for template in &templates {
        for length in 1..=template.len() {
            send(&template[..length]);
        }
    }
    let mut random = Random(seed | 1);
    for _ in 0..count {
        let mut packet = templates[random.below(templates.len())].clone();
        for _ in 0..=random.below(4) {
            let at = random.below(packet.len());
            packet[at] = random.next() as u8;
        }
        packet.truncate(1 + random.below(packet.len()));
        send(&packet);
    }
    for length in [1, 2, 19, 20, 39, 40, 41, 1_500] {
        let noise: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
        send(&noise);
    }
    Ok(json!({"device": device, "sent": sent, "refused": refused}))
}

/// The first device that is not the loopback.
fn device() -> Result<String> {
    let table = fs::read_to_string("/proc/self/net/dev")?;
    table
        .lines()
        .filter_map(|line| line.split_once(':').map(|(name, _)| name.trim().to_owned()))
        .find(|name| name != "lo")
        .context("no device but the loopback")
}

struct Link {
    socket: OwnedFd,
    address: libc::sockaddr_ll,
}

impl Link {
    fn open(device: &str) -> Result<Self> {
        let name = CString::new(device)?;
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: integers, a C string that lives through the call, and a descriptor owned at once;
        // sockaddr_ll is plain integers, for which zero is a value.
        unsafe {
            let raw = libc::socket(libc::AF_PACKET, kind, 0);
            if raw < 0 {
                return Err(io::Error::last_os_error()).context("packet socket");
            }
            let socket = OwnedFd::from_raw_fd(raw);
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_ifindex = libc::if_nametoindex(name.as_ptr()).cast_signed();
            Ok(Self { socket, address })
        }
    }

    fn send(&self, packet: &[u8]) -> io::Result<()> {
        let mut address = self.address;
        let version = packet.first().map_or(0, |byte| byte >> 4);
        let protocol = if version == 6 { libc::ETH_P_IPV6 } else { libc::ETH_P_IP };
        address.sll_protocol = (protocol as u16).to_be();
        // SAFETY: the packet and the address outlive the call, each with its own length.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                0,
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Whole packets of every kind that the engine reads, checksums left at zero.
fn templates() -> Vec<Vec<u8>> {
    let tcp = |flags: u8| {
        let mut tcp = vec![0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x80, flags, 0xff, 0xff];
        tcp.extend([0, 0, 0, 0, 2, 4, 5, 0xb4, 1, 3, 3, 7, 1, 1, 4, 2]);
        tcp[12] = 0x80;
        tcp
    };
    let udp = vec![0x9c, 0x41, 0, 53, 0, 12, 0, 0, b'p', b'i', b'n', b'g'];
    let echo4 = vec![8, 0, 0, 0, 0, 1, 0, 1, 1, 2, 3, 4];
    let echo6 = vec![128, 0, 0, 0, 0, 1, 0, 1, 1, 2, 3, 4];
    let mut all = vec![
        ipv4(6, 0, &tcp(0x02)),
        ipv4(6, 0, &tcp(0x10)),
        ipv4(6, 0, &tcp(0x04)),
        ipv4(17, 0, &udp),
        ipv4(1, 0, &echo4),
        ipv4(17, 0x2000, &udp),
        ipv4(17, 0x2001, &udp),
        ipv4(47, 0, &udp),
        ipv6(6, &tcp(0x02)),
        ipv6(6, &tcp(0x11)),
        ipv6(17, &udp),
        ipv6(58, &echo6),
        ipv6(59, &[]),
    ];
    // Extension headers: hop by hop, a fragment, one that points at itself without end.
    let mut hop = vec![17, 0, 1, 4, 0, 0, 0, 0];
    hop.extend(&udp);
    all.push(ipv6(0, &hop));
    let mut fragment = vec![17, 0, 0, 1, 0, 0, 0, 9];
    fragment.extend(&udp);
    all.push(ipv6(44, &fragment));
    all.push(ipv6(0, &[0; 64]));
    all
}

fn ipv4(protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let length = (20 + payload.len()) as u16;
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0, 7]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend([198, 18, 0, 1, 203, 0, 113, 1]);
    let sum = packet
        .chunks(2)
        .fold(0_u32, |sum, pair| sum + u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let folded = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    packet.extend(payload);
    packet
}

fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 64]);
    packet.extend([0x20, 1, 0, 2, 0, 0, 0x75, 0x6e, 0, 0, 0, 0, 0, 0, 0, 1]);
    packet.extend([0x20, 1, 0x0d, 0xb8, 0, 0xf1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    packet.extend(payload);
    packet
}

/// xorshift64 (Marsaglia 2003): the same packets for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}
