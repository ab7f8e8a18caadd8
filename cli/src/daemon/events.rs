//! What happens, as lines for whoever watches.
//!
//! A report goes from its shard through a channel to one thread, which writes it as JSON once
//! for all watchers. Each watcher reads at its own pace out of a ring; one that falls behind
//! is told how much it lost, and nobody waits for it.

use std::sync::Arc;
use std::sync::mpsc::Receiver;

use engine::Report;
use serde_json::json;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

use crate::report::{self, Clock, GATHER, Users};

/// Lines that a watcher may be behind: about 30 MB, and only where somebody is.
const BEHIND: usize = 32_768;
/// Bytes of lines that are handed on at once, about: one write for many events.
const CHUNK: usize = 64 << 10;

/// The stream of events.
#[derive(Debug)]
pub(crate) struct Events {
    sender: broadcast::Sender<Arc<str>>,
}

/// One watcher's place in it.
#[derive(Debug)]
pub(crate) struct Watch {
    receiver: broadcast::Receiver<Arc<str>>,
}

impl Default for Events {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(BEHIND) }
    }
}

impl Events {
    /// From now on.
    pub(crate) fn watch(&self) -> Watch {
        Watch { receiver: self.sender.subscribe() }
    }

    /// How many watch.
    pub(crate) fn watchers(&self) -> usize {
        self.sender.receiver_count()
    }

    pub(crate) fn send(&self, line: String) {
        // Without watchers nobody is told.
        let _ = self.sender.send(line.into());
    }
}

impl Watch {
    /// The next lines, each with its end: what is there, up to `CHUNK`. `None` when there will
    /// be no more.
    pub(crate) async fn next(&mut self) -> Option<String> {
        let mut lines = match self.receiver.recv().await {
            Ok(line) => line.to_string(),
            Err(RecvError::Lagged(count)) => lost(count),
            Err(RecvError::Closed) => return None,
        };
        while lines.len() < CHUNK {
            match self.receiver.try_recv() {
                Ok(line) => lines.push_str(&line),
                Err(TryRecvError::Lagged(count)) => lines.push_str(&lost(count)),
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        Some(lines)
    }
}

fn lost(count: u64) -> String {
    format!("{}\n", json!({ "event": "lost", "count": count }))
}

/// Publishes reports, each with the number of its shard, until the last shard has ended. Runs
/// on a thread of its own. `clocks` are the shards' in their order.
pub(crate) fn publish(reports: &Receiver<(usize, Report)>, clocks: &[Clock], events: &Events) {
    let mut users = Users::default();
    while let Ok(first) = reports.recv() {
        for (shard, report) in std::iter::once(first).chain(reports.try_iter()) {
            let Some(clock) = clocks.get(shard) else { continue };
            if events.watchers() > 0 {
                let object = report::object(shard, &report, *clock, &mut users);
                events.send(format!("{object}\n"));
            }
        }
        std::thread::sleep(GATHER);
    }
}
