//! The end of a thread that the daemon can't do without.
//!
//! A thread that ends unasked, by a panic mostly, leaves a daemon behind that carries no flows
//! for a part of the host, or no longer follows it. So each says farewell, and the daemon puts
//! the host back and ends, for its service manager to start another one.

use std::fmt;

use tokio::sync::mpsc::UnboundedSender;

/// What a thread was there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The flows of one queue of the device.
    Shard(usize),
    /// Names for the host's programs.
    Names,
    /// What is told to those who watch.
    Events,
    /// The host's addresses, devices and settings.
    Follower,
    /// The same, with nothing left to follow them for: the TUN isn't ours any more.
    Device,
    /// The host's resolver.
    Takeover,
    /// The ways out.
    Ways,
    /// Whether connections are to be tracked.
    Tracking,
}

impl Part {
    /// The code of its warning.
    pub(super) fn code(self) -> &'static str {
        match self {
            Self::Shard(_) => "shard-ended",
            Self::Device => "device-lost",
            Self::Names
            | Self::Events
            | Self::Follower
            | Self::Takeover
            | Self::Ways
            | Self::Tracking => "thread-ended",
        }
    }
}

impl fmt::Display for Part {
    /// What has happened.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let thread = match self {
            Self::Shard(number) => return write!(f, "shard {number} has ended"),
            Self::Device => return f.write_str("the TUN device is gone, or is ours no more"),
            Self::Names => "answers for names",
            Self::Events => "tells what flows do",
            Self::Follower => "follows the host",
            Self::Takeover => "leads the host's resolver to us",
            Self::Ways => "watches over the ways out",
            Self::Tracking => "waits for connections that must be tracked",
        };
        write!(f, "the thread that {thread} has ended")
    }
}

/// Held by a thread; dropped, it says that the thread has ended, however that came.
pub(super) struct Farewell {
    part: Part,
    told: Option<UnboundedSender<Part>>,
}

impl Farewell {
    /// To be told to who holds the other end of `told`.
    pub(super) fn new(part: Part, told: &UnboundedSender<Part>) -> Self {
        Self { part, told: Some(told.clone()) }
    }

    /// The same thread, which is there for `part` by now.
    pub(super) fn of(&mut self, part: Part) {
        self.part = part;
    }

    /// The thread's work is done: nobody misses it.
    pub(super) fn done(mut self) {
        self.told = None;
    }
}

impl Drop for Farewell {
    fn drop(&mut self) {
        if let Some(told) = &self.told {
            // Nobody listens any more when the daemon ends.
            let _ = told.send(self.part);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    #[test]
    fn every_end_but_a_good_one_is_told() {
        type Body = fn(Farewell);
        #[rustfmt::skip]
        let cases: [(&str, Body, Option<Part>); 3] = [
            ("a return", drop, Some(Part::Follower)),
            ("a panic", |_farewell| panic!("a fault, made for this test"), Some(Part::Follower)),
            ("work that is done", Farewell::done, None),
        ];
        for (name, body, expected) in cases {
            let (told, mut ended) = unbounded_channel();
            let farewell = Farewell::new(Part::Follower, &told);
            // A panic is its own business.
            let _ = thread::spawn(move || body(farewell)).join();
            assert_eq!(ended.try_recv().ok(), expected, "{name}");
        }
    }
}
