//! What parent and child tell each other before CMD runs.
//!
//! # Theory of operation
//!
//! A `SOCK_SEQPACKET` pair, closed on exec. The child sends one message of fixed size: ready,
//! with all descriptors, or the stage and errno of a failure. After ready it waits for a
//! byte; the parent's death closes the socket and is read as the end. From then on silence
//! is success: `execve` closes the child's end. Only a failed `execve` sends once more.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use super::error::Stage;
use super::resolv::Etc;

/// The socket, parent and child end.
pub(super) fn pair() -> Result<(ParentEnd, ChildEnd), Errno> {
    let (parent, child) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    Ok((ParentEnd(parent), ChildEnd(child)))
}

/// The parent's end.
#[derive(Debug)]
pub(super) struct ParentEnd(OwnedFd);

/// The child's end.
#[derive(Debug)]
pub(super) struct ChildEnd(OwnedFd);

/// What the parent hears.
#[derive(Debug)]
pub(super) enum Reply {
    /// The sandbox stands.
    Ready { user_namespace: bool, etc: Etc, descriptors: Vec<OwnedFd> },
    /// It doesn't.
    Failed { stage: Stage, errno: Errno, user_namespace: bool },
    /// CMD could not be executed.
    NotExecuted(Errno),
    /// The child has closed its end: after the byte that lets it go it has become CMD.
    Closed,
    /// No message of ours.
    Garbled,
}

impl ParentEnd {
    /// Waits for the child's next message.
    pub(super) fn receive(&self) -> Reply {
        let mut message = [0; MESSAGE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            let mut slices = [IoSliceMut::new(&mut message)];
            rustix::net::recvmsg(&self.0, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)
        });
        let mut descriptors = Vec::new();
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = part {
                descriptors.extend(rights);
            }
        }
        match received {
            Ok(received) if received.bytes == 0 => Reply::Closed,
            // A child that is killed resets the socket when it leaves a byte of ours unread.
            Err(Errno::CONNRESET) => Reply::Closed,
            Ok(received) if received.bytes == MESSAGE && !cut(received.flags) => {
                decode(message, descriptors).unwrap_or(Reply::Garbled)
            }
            Ok(_) | Err(_) => Reply::Garbled,
        }
    }

    /// Lets CMD run.
    pub(super) fn go(&self) -> Result<(), Errno> {
        rustix::net::send(&self.0, &[0], SendFlags::NOSIGNAL).map(drop)
    }
}

impl ChildEnd {
    /// The sandbox stands.
    pub(super) fn ready(
        &self,
        user_namespace: bool,
        etc: Etc,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(Errno::TOOBIG);
        }
        let message = encode(READY, etc as u8, user_namespace, 0);
        let slices = [IoSlice::new(&message)];
        rustix::net::sendmsg(&self.0, &slices, &mut control, SendFlags::NOSIGNAL).map(drop)
    }

    /// The sandbox can't be made. Where the parent doesn't hear it there is none to hear.
    pub(super) fn failed(&self, stage: Stage, errno: Errno, user_namespace: bool) {
        self.send(encode(FAILED, stage as u8, user_namespace, errno.raw_os_error()));
    }

    /// CMD can't be executed.
    pub(super) fn not_executed(&self, errno: Errno) {
        self.send(encode(NOT_EXECUTED, 0, false, errno.raw_os_error()));
    }

    fn send(&self, message: [u8; MESSAGE]) {
        let _ = rustix::net::send(&self.0, &message, SendFlags::NOSIGNAL);
    }

    /// Waits to be let go; `false`: the parent is no more.
    pub(super) fn wait(&self) -> bool {
        let mut byte = [0; 1];
        let received = rustix::io::retry_on_intr(|| {
            rustix::net::recv(&self.0, &mut byte[..], RecvFlags::empty())
        });
        received.is_ok_and(|(_, length)| length == 1)
    }
}

/// Kind, detail, user namespace, nothing; errno.
const MESSAGE: usize = 8;

const READY: u8 = 0;
const FAILED: u8 = 1;
const NOT_EXECUTED: u8 = 2;

fn encode(kind: u8, detail: u8, user_namespace: bool, errno: i32) -> [u8; MESSAGE] {
    let [a, b, c, d] = errno.to_ne_bytes();
    [kind, detail, user_namespace.into(), 0, a, b, c, d]
}

fn decode(message: [u8; MESSAGE], descriptors: Vec<OwnedFd>) -> Option<Reply> {
    let [kind, detail, user_namespace, _, a, b, c, d] = message;
    // Not every number is an errno: one that is none makes no message of ours.
    let errno = || match i32::from_ne_bytes([a, b, c, d]) {
        number @ 1..=4095 => Some(Errno::from_raw_os_error(number)),
        ..=0 | 4096.. => None,
    };
    let user_namespace = user_namespace != 0;
    match kind {
        READY => {
            let etc = Etc::ALL.into_iter().find(|etc| *etc as u8 == detail)?;
            Some(Reply::Ready { user_namespace, etc, descriptors })
        }
        FAILED => {
            let stage = Stage::ALL.into_iter().find(|stage| *stage as u8 == detail)?;
            Some(Reply::Failed { stage, errno: errno()?, user_namespace })
        }
        NOT_EXECUTED => errno().map(Reply::NotExecuted),
        _ => None,
    }
}

fn cut(flags: ReturnFlags) -> bool {
    flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn every_message_arrives_as_it_was_sent() {
        let (parent, child) = pair().unwrap();
        for stage in Stage::ALL {
            child.failed(stage, Errno::NOSPC, true);
            let Reply::Failed { stage: heard, errno, user_namespace } = parent.receive() else {
                panic!("{stage:?} was garbled");
            };
            assert_eq!((heard, errno, user_namespace), (stage, Errno::NOSPC, true));
        }
        for sent in Etc::ALL {
            child.ready(false, sent, &[parent.0.as_fd(), child.0.as_fd()]).unwrap();
            let Reply::Ready { user_namespace, etc, descriptors } = parent.receive() else {
                panic!("{sent:?} was garbled");
            };
            assert_eq!((user_namespace, etc, descriptors.len()), (false, sent, 2));
        }
        child.not_executed(Errno::NOENT);
        assert!(matches!(parent.receive(), Reply::NotExecuted(Errno::NOENT)));
        for nonsense in [[9; MESSAGE], encode(NOT_EXECUTED, 0, false, 0)] {
            child.send(nonsense);
            assert!(matches!(parent.receive(), Reply::Garbled), "{nonsense:?}");
        }

        parent.go().unwrap();
        assert!(child.wait());
        drop(child);
        assert!(matches!(parent.receive(), Reply::Closed));
    }

    #[test]
    fn the_parents_end_is_the_childs() {
        let (parent, child) = pair().unwrap();
        drop(parent);
        assert!(!child.wait());
    }
}
