//! Connections to proxies that carry no flow: they only show how a proxy fares.
//!
//! Each is answered once, after [`SUSPECT`] where nobody answers its connect, and after
//! [`PATIENCE`] at the latest: a slow proxy is as usable as it is to flows. It is pinned and
//! marked like those of flows, so it is the same way that is probed.

use engine::Instant;
use rustix::event::epoll::EventFlags;
use slab::Slab;

use super::proxy::{Fault, PATIENCE, Refusal, SUSPECT};
use super::{Connection, Tag};
use crate::driver::request::Answer;

/// Those of a shard, few at a time.
#[derive(Default)]
pub(crate) struct Probes(Slab<Probe>);

struct Probe {
    connection: Connection,
    began: Instant,
    end: Instant,
    answer: Answer<Result<(), Fault>>,
}

impl Probes {
    /// What the events of the next one come under.
    pub(crate) fn next_tag(&self) -> Tag {
        Tag::Probe(self.0.vacant_key() as u32)
    }

    /// Keeps one that was begun under [`Probes::next_tag`].
    pub(crate) fn keep(
        &mut self,
        connection: Connection,
        answer: Answer<Result<(), Fault>>,
        now: Instant,
    ) {
        self.0.insert(Probe { connection, began: now, end: now + SUSPECT, answer });
    }

    /// Takes an event.
    pub(crate) fn ready(&mut self, number: u32, flags: EventFlags) {
        let at = number as usize;
        let Some(Probe { connection, .. }) = self.0.get_mut(at) else { return };
        connection.ready(flags);
        let opened = connection.open().map(|opened| opened.map(drop));
        let seen = opened.or_else(|| connection.is_content().then_some(Ok(())));
        if let Some(seen) = seen {
            (self.0.remove(at).answer)(shown(seen));
        }
    }

    /// When [`Probes::end`] has something to do.
    pub(crate) fn next_end(&self) -> Option<Instant> {
        self.0.iter().map(|(_, probe)| probe.end).min()
    }

    /// Answers those whose time is over.
    pub(crate) fn end(&mut self, now: Instant) {
        while let Some(at) = self.0.iter().find(|(_, it)| it.end <= now).map(|(at, _)| at) {
            let probe = &mut self.0[at];
            let last = probe.began + PATIENCE;
            if probe.end < last && !probe.connection.is_connecting() {
                probe.end = last;
                continue;
            }
            let Probe { connection, answer, .. } = self.0.remove(at);
            answer(if connection.awaits_proxy() {
                Err(Fault::Silent)
            } else if connection.wants_answer() {
                // There is no far side that could let it wait.
                Err(Fault::Mute)
            } else {
                Ok(())
            });
        }
    }
}

/// What a probe has shown: only what speaks against a proxy does.
pub(super) fn shown(seen: Result<(), Refusal>) -> Result<(), Fault> {
    match seen {
        Err(Refusal::Proxy(fault)) if fault.speaks_against() => Err(fault),
        // This host itself could not.
        Err(Refusal::Far(failure @ engine::Failure::Exhausted)) => Err(Fault::Unreachable(failure)),
        Ok(()) | Err(Refusal::Far(_) | Refusal::Proxy(_)) => Ok(()),
    }
}

impl std::fmt::Debug for Probes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Probes").field(&self.0.len()).finish()
    }
}
