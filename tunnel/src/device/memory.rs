//! A device made of two queues, for tests.
//!
//! The driver owns the [`Memory`]; the test keeps the [`App`] and plays the kernel's part:
//! what it [`send`](App::send)s is read by the driver, what the driver writes it
//! [`receive`](App::receive)s. The descriptor is an eventfd, so a real epoll works with it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use super::{Device, RxOffload, TxOffload};

/// The driver's end.
#[derive(Debug)]
pub struct Memory {
    queues: Arc<Mutex<Queues>>,
    ready: Arc<OwnedFd>,
    offload: bool,
}

/// The test's end.
#[derive(Debug, Clone)]
pub struct App {
    queues: Arc<Mutex<Queues>>,
    ready: Arc<OwnedFd>,
}

#[derive(Debug, Default)]
struct Queues {
    from_app: VecDeque<(Vec<u8>, RxOffload)>,
    to_app: VecDeque<(Vec<u8>, TxOffload)>,
}

impl Memory {
    /// A device and the app behind it; `offload` as [`Device::offload`] will say.
    pub fn pair(offload: bool) -> io::Result<(Self, App)> {
        let ready = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        let queues = Arc::new(Mutex::new(Queues::default()));
        let app = App { queues: Arc::clone(&queues), ready: Arc::clone(&ready) };
        let memory = Self { queues, ready, offload };
        Ok((memory, app))
    }
}

impl Device for Memory {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<(usize, RxOffload)> {
        let mut queues = lock(&self.queues);
        let Some((packet, offload)) = queues.from_app.pop_front() else {
            // Emptied under the lock: a packet sent after this makes it readable again.
            let _ = rustix::io::read(&*self.ready, &mut [0; 8]);
            return Err(io::ErrorKind::WouldBlock.into());
        };
        let into = buf.get_mut(..packet.len()).ok_or(io::ErrorKind::InvalidData)?;
        into.copy_from_slice(&packet);
        Ok((packet.len(), offload))
    }

    fn write(&mut self, packet: &[u8], offload: TxOffload) -> io::Result<()> {
        if !self.offload && offload != TxOffload::default() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        super::virtio::encode(packet, offload).map_err(|_| io::ErrorKind::InvalidInput)?;
        lock(&self.queues).to_app.push_back((packet.to_vec(), offload));
        Ok(())
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }

    fn offload(&self) -> bool {
        self.offload
    }

    fn udp_offload(&self) -> bool {
        self.offload
    }
}

impl App {
    /// Puts a packet where the driver will read it.
    pub fn send(&self, packet: &[u8], offload: RxOffload) {
        lock(&self.queues).from_app.push_back((packet.to_vec(), offload));
        let _ = rustix::io::write(&*self.ready, &1_u64.to_ne_bytes());
    }

    /// The oldest packet that the driver wrote and nobody took.
    pub fn receive(&self) -> Option<(Vec<u8>, TxOffload)> {
        lock(&self.queues).to_app.pop_front()
    }
}

fn lock(queues: &Mutex<Queues>) -> MutexGuard<'_, Queues> {
    queues.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::MAX_PACKET;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn readable(memory: &Memory) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(memory.as_fd(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
    }

    #[test]
    fn packets_pass_both_ways_and_readiness_follows() {
        let (mut memory, app) = Memory::pair(true).unwrap();
        let mut buf = vec![0; MAX_PACKET];
        assert!(!readable(&memory));
        app.send(b"one", RxOffload::default());
        app.send(b"", RxOffload::default());
        assert!(readable(&memory));
        assert_eq!(memory.read(&mut buf).unwrap(), (3, RxOffload::default()));
        assert_eq!(memory.read(&mut buf).unwrap().0, 0);
        assert_eq!(memory.read(&mut buf).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(!readable(&memory));
        memory.write(b"two", TxOffload::default()).unwrap();
        assert_eq!(app.receive().unwrap().0, b"two");
        assert_eq!(app.receive(), None);
    }

    #[test]
    fn without_offload_only_whole_packets_are_taken() {
        let (mut memory, _app) = Memory::pair(false).unwrap();
        let partial = TxOffload { gso_size: None, checksum_partial: true };
        assert_eq!(
            memory.write(&[0x45; 40], partial).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }
}
