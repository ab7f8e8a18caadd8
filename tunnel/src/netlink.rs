//! One question, one answer, over a netlink socket.
//!
//! # Theory of operation
//!
//! The kernel answers a unicast request inside the `sendto()` that carries it, so a blocking
//! exchange costs two system calls and no sleep: 1 to 1.5 µs, which is less than handing the
//! question to another thread. The receive timeout only guards against a kernel that breaks
//! this.
//!
//! Answers are matched by sequence number: what a timed-out question left behind is skipped.
//! What was not sent by the kernel (port 0) is skipped too. Encoding and decoding reuse two
//! buffers; nothing is allocated after [`Requests::new`].

use std::os::fd::OwnedFd;
use std::time::Duration;

use netlink_packet_core::{Emitable, NetlinkBuffer};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags, recvfrom, sendto};

/// A netlink socket for requests that have one answer.
#[derive(Debug)]
pub(crate) struct Requests {
    socket: OwnedFd,
    sequence: u32,
    question: [u8; QUESTION],
    answer: Box<[u8]>,
}

/// Why a question has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unanswered {
    /// The kernel's answer is this error.
    Refused(Errno),
    /// Nothing came within [`PATIENCE`].
    Silent,
    /// The socket failed.
    Socket(Errno),
    /// The answer cannot be read, or it is another message than the one expected.
    Garbled,
}

impl Requests {
    /// Takes over a netlink socket; the namespace it was opened in is the one that answers.
    pub(crate) fn new(socket: OwnedFd) -> Result<Self, Errno> {
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        Ok(Self {
            socket,
            sequence: 0,
            question: [0; QUESTION],
            answer: vec![0; ANSWER].into_boxed_slice(),
        })
    }

    /// The socket, for the ioctls that take any.
    pub(crate) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Sends `payload` as a message of type `kind` and returns the payload of the answer,
    /// whose type must be `expected`.
    pub(crate) fn ask(
        &mut self,
        kind: u16,
        payload: &impl Emitable,
        expected: u16,
    ) -> Result<&[u8], Unanswered> {
        let mut answer = self.exchange(kind, payload, expected);
        if answer == Err(Unanswered::Socket(Errno::NOBUFS)) {
            // The receive queue overflowed with answers to questions given up: it is empty now.
            answer = self.exchange(kind, payload, expected);
        }
        answer.map(|range| &self.answer[range])
    }

    fn exchange(
        &mut self,
        kind: u16,
        payload: &impl Emitable,
        expected: u16,
    ) -> Result<std::ops::Range<usize>, Unanswered> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = HEADER + payload.buffer_len();
        let message = self.question.get_mut(..length).ok_or(Unanswered::Socket(Errno::TOOBIG))?;
        let mut header = NetlinkBuffer::new(&mut *message);
        header.set_length(length as u32); // at most QUESTION
        header.set_message_type(kind);
        header.set_flags(netlink_packet_core::NLM_F_REQUEST);
        header.set_sequence_number(self.sequence);
        header.set_port_number(0);
        payload.emit(&mut message[HEADER..]);

        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::io::retry_on_intr(|| {
            sendto(&self.socket, &self.question[..length], SendFlags::empty(), &kernel)
        })
        .map_err(Unanswered::Socket)?;
        for _ in 0..STALE {
            let received = rustix::io::retry_on_intr(|| {
                recvfrom(&self.socket, &mut self.answer[..], RecvFlags::empty())
            });
            let (length, from) = match received {
                Ok((_, length, from)) => (length.min(ANSWER), from),
                Err(Errno::AGAIN) => return Err(Unanswered::Silent),
                Err(errno) => return Err(Unanswered::Socket(errno)),
            };
            let from_kernel = from
                .and_then(|from| SocketAddrNetlink::try_from(from).ok())
                .is_some_and(|from| from.pid() == 0);
            if !from_kernel {
                continue;
            }
            match find(&self.answer[..length], self.sequence, expected) {
                Found::Answer(range) => return Ok(range),
                Found::Refusal(errno) => return Err(Unanswered::Refused(errno)),
                Found::Garbled => return Err(Unanswered::Garbled),
                Found::Nothing => {}
            }
        }
        Err(Unanswered::Silent)
    }
}

/// Asks for a list and hands `each` the type and payload of every message of it. `false`:
/// something changed while the list was made, and it may lack or repeat what did.
pub(crate) fn dump(
    socket: &OwnedFd,
    sequence: u32,
    kind: u16,
    payload: &impl Emitable,
    mut each: impl FnMut(u16, &[u8]),
) -> Result<bool, Errno> {
    let length = HEADER + payload.buffer_len();
    let mut question = vec![0; length];
    let mut header = NetlinkBuffer::new(&mut question[..]);
    header.set_length(u32::try_from(length).map_err(|_| Errno::TOOBIG)?);
    header.set_message_type(kind);
    header.set_flags(netlink_packet_core::NLM_F_REQUEST | netlink_packet_core::NLM_F_DUMP);
    header.set_sequence_number(sequence);
    header.set_port_number(0);
    payload.emit(&mut question[HEADER..]);
    sendto(socket, &question, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;

    let mut buffer = vec![0; LIST];
    let mut whole = true;
    loop {
        let (length, _) = rustix::io::retry_on_intr(|| {
            rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty())
        })?;
        let mut rest = &buffer[..length.min(LIST)];
        while let Ok(message) = NetlinkBuffer::new_checked(rest) {
            let length = message.length() as usize;
            let (kind, flags) = (message.message_type(), message.flags());
            let ours = message.sequence_number() == sequence;
            let payload = rest.get(HEADER..length).unwrap_or(&[]);
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
            if !ours {
                continue;
            }
            whole &= flags & netlink_packet_core::NLM_F_DUMP_INTR == 0;
            // An error ends a list, and an errno may stand in its end as well.
            if matches!(kind, ERROR | DONE) {
                return match payload.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
                    Some(code @ -4095..=-1) => Err(Errno::from_raw_os_error(-code)),
                    _ => Ok(whole),
                };
            }
            each(kind, payload);
        }
    }
}

/// What a datagram from the kernel holds for the question `sequence`.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// The payload of the answer, as a range of the datagram.
    Answer(std::ops::Range<usize>),
    /// An error, or an acknowledgement where an answer was due (errno 0).
    Refusal(Errno),
    /// A message for us that makes no sense.
    Garbled,
    /// Nothing for this question.
    Nothing,
}

fn find(datagram: &[u8], sequence: u32, expected: u16) -> Found {
    let mut start = 0;
    while let Some(rest) = datagram.get(start..).filter(|rest| !rest.is_empty()) {
        let Ok(message) = NetlinkBuffer::new_checked(rest) else {
            return Found::Nothing;
        };
        let length = message.length() as usize;
        if message.sequence_number() == sequence {
            let payload = &rest[HEADER..length];
            return match message.message_type() {
                kind if kind == expected => Found::Answer(start + HEADER..start + length),
                ERROR => match payload.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
                    Some(code @ -4095..=-1) => Found::Refusal(Errno::from_raw_os_error(-code)),
                    _ => Found::Garbled,
                },
                _ => Found::Garbled,
            };
        }
        start += length.next_multiple_of(4);
    }
    Found::Nothing
}

/// A wait that only a broken kernel makes us wait out.
const PATIENCE: Duration = Duration::from_millis(100);
/// Datagrams to look through for the answer: questions given up earlier, each with one.
const STALE: usize = 32;
/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// The longest question: a route request with all its attributes has under 140 bytes.
const QUESTION: usize = 256;
/// The longest answer: a socket with all the attributes that come unasked has under 400 bytes.
const ANSWER: usize = 8192;

/// The longest datagram of a list that the kernel makes.
const LIST: usize = 32 * 1024;

const ERROR: u16 = 2;
const DONE: u16 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let length = HEADER + payload.len();
        let mut bytes = vec![0; length.next_multiple_of(4)];
        let mut header = NetlinkBuffer::new(&mut bytes);
        header.set_length(length as u32);
        header.set_message_type(kind);
        header.set_sequence_number(sequence);
        bytes[HEADER..length].copy_from_slice(payload);
        bytes
    }

    #[test]
    fn find_table() {
        let error = |code: i32| message(ERROR, 7, &code.to_ne_bytes());
        let mut lying = message(24, 7, b"abcd");
        lying[..4].copy_from_slice(&64_u32.to_ne_bytes());
        let mut short = message(24, 7, b"abcd");
        short[..4].copy_from_slice(&3_u32.to_ne_bytes());
        let cases = [
            ("answer", message(24, 7, b"abc"), Found::Answer(16..19)),
            (
                "after a stale one",
                [message(24, 6, b"x"), message(24, 7, b"abcd")].concat(),
                Found::Answer(36..40),
            ),
            ("stale alone", message(24, 6, b"x"), Found::Nothing),
            ("refusal", error(-101), Found::Refusal(Errno::NETUNREACH)),
            ("an acknowledgement", error(0), Found::Garbled),
            ("a positive error", error(101), Found::Garbled),
            ("an impossible error", error(i32::MIN), Found::Garbled),
            ("an error cut off", message(ERROR, 7, &[1, 2]), Found::Garbled),
            ("another type", message(99, 7, b""), Found::Garbled),
            ("nothing", vec![], Found::Nothing),
            ("half a header", vec![0; 9], Found::Nothing),
            ("a length past the end", lying, Found::Nothing),
            ("a length under the header", short, Found::Nothing),
        ];
        for (name, datagram, expected) in cases {
            assert_eq!(find(&datagram, 7, 24), expected, "{name}");
        }
    }
}
