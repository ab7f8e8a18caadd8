//! What crosses a link: an AF_PACKET socket in the far namespace, read by a
//! thread, that counts the frames a filter wants.
//!
//! A count of zero is a claim. It holds only if the capture saw everything, so
//! [`Capture::finish`] fails when the kernel dropped a frame, and the tests
//! first prove with a flow that is let through that the filter sees it.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::frame::Frame;
use super::netns::Netns;

/// Frames kept for the message of a failing test.
const KEPT: usize = 32;

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    matched: Arc<AtomicU64>,
    thread: JoinHandle<io::Result<Captured>>,
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Captured {
    /// Frames that the filter wanted.
    pub matched: u64,
    /// All frames.
    pub total: u64,
    /// The first of the wanted ones.
    pub kept: Vec<Frame>,
    lost: u32,
}

impl Capture {
    /// Starts on a device, both directions; every frame from now on is seen.
    pub fn start(
        netns: &Netns,
        device: &str,
        wanted: impl Fn(&Frame) -> bool + Send + 'static,
    ) -> Result<Self> {
        let socket = netns
            .run(|| packet_socket(device))
            .with_context(|| format!("packet socket on {device}"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let matched = Arc::new(AtomicU64::new(0));
        let thread = thread::spawn({
            let (stop, matched) = (Arc::clone(&stop), Arc::clone(&matched));
            move || read(&socket, &stop, &matched, wanted)
        });
        Ok(Self { stop, matched, thread })
    }

    /// The frames wanted so far.
    pub fn matched(&self) -> u64 {
        self.matched.load(Ordering::Acquire)
    }

    /// Waits until a wanted frame was seen: the positive control.
    pub fn wait_for_one(&self) -> Result<()> {
        let limit = Instant::now() + Duration::from_secs(5);
        while self.matched() == 0 {
            ensure!(Instant::now() < limit, "the capture saw no frame of its control");
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Reads what is still queued and ends. An error if any frame was lost.
    pub fn finish(self) -> Result<Captured> {
        self.stop.store(true, Ordering::Release);
        let captured = self.thread.join().expect("the reader does not panic")?;
        ensure!(captured.lost == 0, "the capture lost {} frames", captured.lost);
        Ok(captured)
    }
}

fn packet_socket(device: &str) -> io::Result<OwnedFd> {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: socket(2) takes integers; the descriptor is checked and owned at once.
    let socket = unsafe {
        // Protocol 0: nothing is received before the bind names the device.
        let raw = libc::socket(libc::AF_PACKET, kind, 0);
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(raw)
    };
    let room: libc::c_int = 256 << 20;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &room)?;
    let patience = libc::timeval { tv_sec: 0, tv_usec: 20_000 };
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &patience)?;

    let name = CString::new(device)?;
    // SAFETY: a C string that lives through the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: sockaddr_ll is plain integers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    address.sll_ifindex = index.cast_signed();
    // SAFETY: a sockaddr_ll and its own length.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if bound < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

fn set_option<T>(socket: &OwnedFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    // SAFETY: `value` outlives the call, its own length beside it.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const *value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if set < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn read(
    socket: &OwnedFd,
    stop: &AtomicBool,
    matched: &AtomicU64,
    wanted: impl Fn(&Frame) -> bool,
) -> io::Result<Captured> {
    let mut captured = Captured::default();
    // Headers are enough: the rest of a frame is cut off.
    let mut buffer = [0; 256];
    loop {
        // Read before the queue: what was sent before the stop is then still seen.
        let stopping = stop.load(Ordering::Acquire);
        // SAFETY: the buffer and its own length.
        let length =
            unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        let Ok(length) = usize::try_from(length) else {
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EAGAIN) if stopping => break,
                Some(libc::EAGAIN | libc::EINTR) => continue,
                _ => return Err(error),
            }
        };
        captured.total += 1;
        let frame = Frame::parse(&buffer[..length]);
        if wanted(&frame) {
            captured.matched += 1;
            matched.store(captured.matched, Ordering::Release);
            if captured.kept.len() < KEPT {
                captured.kept.push(frame);
            }
        }
    }
    captured.lost = lost(socket)?;
    Ok(captured)
}

/// Frames that the kernel could not queue since the socket exists.
fn lost(socket: &OwnedFd) -> io::Result<u32> {
    let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    // SAFETY: the structure that PACKET_STATISTICS fills, and its own length.
    let got = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut length,
        )
    };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(statistics.tp_drops)
}
