//! The addresses where nobody lives: a TUN device in the server's namespace,
//! read by a thread that answers each packet with an ICMP error, or not at all.
//!
//! A rule of the kernel could send the same errors, but it would send them
//! inside the very system call that sent the packet, while the socket is still
//! locked by it; the kernel drops an error that finds the socket so, and
//! `connect` waits a second for the next try. A thread answers as a network
//! does: a little later.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};

use super::netns::Netns;
use super::plan;

/// The device's name in the server's namespace.
pub(crate) const DEVICE: &str = "void0";

const DEVICE_C: &CStr = c"void0";

/// Between a packet and its answer: what the nearest router takes.
const DELAY: Duration = Duration::from_micros(200);

/// The thread behind the device; ended when dropped.
#[derive(Debug)]
pub(crate) struct Void {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Void {
    pub(crate) fn start(netns: &Netns) -> Result<Self> {
        let device = netns.run(open).context("the TUN device of the void")?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let stop = Arc::clone(&stop);
            move || answer_all(device, &stop)
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Void {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn open() -> io::Result<File> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: ifreq is plain bytes, for which zero is a value; the name fits with its end.
    let set = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(DEVICE_C.to_bytes()) {
            *to = (*from).cast_signed();
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
        libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request)
    };
    if set < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(device)
}

fn answer_all(mut device: File, stop: &AtomicBool) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let patience = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    let mut packet = [0; 2048];
    while !stop.load(Ordering::Acquire) {
        let mut wait = [PollFd::new(&device, PollFlags::IN)];
        if !matches!(poll(&mut wait, Some(&patience)), Ok(1..)) {
            continue;
        }
        let Ok(length) = device.read(&mut packet) else {
            continue;
        };
        let Some(answer) = answer(&packet[..length]) else {
            continue;
        };
        thread::sleep(DELAY);
        // A device that goes down with its namespace ends the test, not this thread.
        let _ = device.write(&answer);
    }
}

fn answer(packet: &[u8]) -> Option<Vec<u8>> {
    match packet.first()? >> 4 {
        4 => {
            let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
            let destination: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
            let (kind, code) = error_of(destination.into())?;
            Some(icmp4(destination, source, kind, code, packet))
        }
        6 => {
            let source: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
            let destination: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
            let (kind, code) = error_of(destination.into())?;
            Some(icmp6(destination, source, kind, code, packet))
        }
        _ => None,
    }
}

/// ICMP type and code that an address of the plan answers with.
const ERRORS: [(IpAddr, (u8, u8)); 6] = [
    (plan::NET_UNREACHABLE4, (3, 0)),
    (plan::HOST_UNREACHABLE4, (3, 1)),
    (plan::PROHIBITED4, (3, 13)),
    (plan::NET_UNREACHABLE6, (1, 0)),
    (plan::HOST_UNREACHABLE6, (1, 3)),
    (plan::PROHIBITED6, (1, 1)),
];

fn error_of(destination: IpAddr) -> Option<(u8, u8)> {
    ERRORS.iter().find(|(address, _)| *address == destination).map(|(_, error)| *error)
}

/// RFC 792, with the header and as much of the packet as RFC 1812 section
/// 4.3.2.3 lets a router send.
fn icmp4(from: [u8; 4], to: [u8; 4], kind: u8, code: u8, cause: &[u8]) -> Vec<u8> {
    let cause = &cause[..cause.len().min(576 - 28)];
    let mut packet = vec![0x45, 0];
    packet.extend(((28 + cause.len()) as u16).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 1, 0, 0]);
    packet.extend(from);
    packet.extend(to);
    let header = checksum(&[&packet]);
    packet[10..12].copy_from_slice(&header);
    packet.extend([kind, code, 0, 0, 0, 0, 0, 0]);
    packet.extend(cause);
    let sum = checksum(&[&packet[20..]]);
    packet[22..24].copy_from_slice(&sum);
    packet
}

/// RFC 4443 section 3.1, cut to the minimum MTU.
fn icmp6(from: [u8; 16], to: [u8; 16], kind: u8, code: u8, cause: &[u8]) -> Vec<u8> {
    let cause = &cause[..cause.len().min(1280 - 48)];
    let length = (8 + cause.len()) as u16;
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([58, 64]);
    packet.extend(from);
    packet.extend(to);
    packet.extend([kind, code, 0, 0, 0, 0, 0, 0]);
    packet.extend(cause);
    let sum = checksum(&[&from, &to, &length.to_be_bytes(), &[0, 58], &packet[40..]]);
    packet[42..44].copy_from_slice(&sum);
    packet
}

/// RFC 1071 over parts of even length (the last may be odd).
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let mut sum = 0_u32;
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}
