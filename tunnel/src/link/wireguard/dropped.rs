//! Why packets were dropped, one variant a cause.

/// Why an interface dropped something: a packet to send, or a datagram that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum LinkDropped {
    /// To send: no IP packet, or not the super-packet it was said to be.
    Unparsable,
    /// To send: the destination is nobody's allowed address.
    NoPeer,
    /// To send: nobody knows where the peer is.
    NoEndpoint,
    /// To send: longer than the interface's MTU.
    TooLong,
    /// To send: more packets wait for a handshake than may.
    QueueFull,
    /// To send: waited for a handshake that was given up.
    GivenUp,
    /// To send: the socket took no more.
    SocketFull,
    /// To send: the local network refused.
    Refused,
    /// Came: no message of WireGuard, by its type or length.
    Malformed,
    /// Came: a handshake message of somebody who doesn't know our public key.
    Stranger,
    /// Came: a handshake message while there are many; answered with a cookie.
    UnderLoad,
    /// Came: a handshake of a key that is no peer's.
    UnknownPeer,
    /// Came: a handshake whose keys don't fit.
    BadHandshake,
    /// Came: a handshake message that was seen before, or answers nothing we asked.
    StaleHandshake,
    /// Came: a message for a session that doesn't exist.
    NoSession,
    /// Came: a data message seen before, or too old to tell.
    Replayed,
    /// Came: a data message that isn't authentic.
    Forged,
    /// Came: authentic, but what is inside is no IP packet.
    InnerMalformed,
    /// Came: authentic, but the inner source is not allowed to that peer.
    NotAllowed,
}

impl LinkDropped {
    /// Every cause, in the order of their counters.
    pub const ALL: [Self; 19] = [
        Self::Unparsable,
        Self::NoPeer,
        Self::NoEndpoint,
        Self::TooLong,
        Self::QueueFull,
        Self::GivenUp,
        Self::SocketFull,
        Self::Refused,
        Self::Malformed,
        Self::Stranger,
        Self::UnderLoad,
        Self::UnknownPeer,
        Self::BadHandshake,
        Self::StaleHandshake,
        Self::NoSession,
        Self::Replayed,
        Self::Forged,
        Self::InnerMalformed,
        Self::NotAllowed,
    ];

    /// The cause's stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unparsable => "unparsable",
            Self::NoPeer => "no-peer",
            Self::NoEndpoint => "no-endpoint",
            Self::TooLong => "too-long",
            Self::QueueFull => "queue-full",
            Self::GivenUp => "given-up",
            Self::SocketFull => "socket-full",
            Self::Refused => "refused",
            Self::Malformed => "malformed",
            Self::Stranger => "stranger",
            Self::UnderLoad => "under-load",
            Self::UnknownPeer => "unknown-peer",
            Self::BadHandshake => "bad-handshake",
            Self::StaleHandshake => "stale-handshake",
            Self::NoSession => "no-session",
            Self::Replayed => "replayed",
            Self::Forged => "forged",
            Self::InnerMalformed => "inner-malformed",
            Self::NotAllowed => "not-allowed",
        }
    }
}

/// What went through an interface.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkTotals {
    /// Inner packets sealed, or queued for a handshake; a segment of a super-packet counts one.
    pub packets_out: u64,
    /// Inner packets that came and were allowed.
    pub packets_in: u64,
    /// Datagrams that the sockets took, handshakes and empty packets included.
    pub datagrams_out: u64,
    /// Datagrams that came, of whatever kind.
    pub datagrams_in: u64,
    /// System calls that sent.
    pub sends: u64,
    /// System calls that received.
    pub receives: u64,
    /// Sessions that began.
    pub handshakes: u64,
    /// By cause, in the order of [`LinkDropped::ALL`].
    pub dropped: [u64; LinkDropped::ALL.len()],
}

impl LinkTotals {
    /// How many were dropped for that cause.
    pub fn dropped(&self, cause: LinkDropped) -> u64 {
        self.dropped[cause as usize]
    }

    pub(super) fn drop(&mut self, cause: LinkDropped) {
        self.drop_many(cause, 1);
    }

    pub(super) fn drop_many(&mut self, cause: LinkDropped, count: u64) {
        self.dropped[cause as usize] += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_in_order() {
        for (at, cause) in LinkDropped::ALL.into_iter().enumerate() {
            assert_eq!(cause as usize, at, "{}", cause.name());
        }
    }
}
