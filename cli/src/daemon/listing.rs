//! What is there: live flows, rules with their counts, and the daemon's own state.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use engine::Dropped;
use serde_json::{Map, Value, json};
use tunnel::driver::request::{Hits, Killed, Request, Status};

use super::{Daemon, InForce, Selection, Unanswered, absolute};
use crate::args::VERSION;
use crate::policy_files::directory;
use crate::report::{self, Users, timestamp};
use crate::ways::{Told, ToldProxy};

/// `SHARD-NUMBER`: a flow of this run of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FlowId {
    shard: usize,
    number: u64,
}

impl FromStr for FlowId {
    type Err = NoFlowId;

    fn from_str(word: &str) -> Result<Self, NoFlowId> {
        let (shard, number) = word.split_once('-').ok_or(NoFlowId)?;
        let digits = |word: &str| word.bytes().all(|b| b.is_ascii_digit());
        if !digits(shard) || !digits(number) {
            return Err(NoFlowId);
        }
        let shard = shard.parse().map_err(|_| NoFlowId)?;
        Ok(Self { shard, number: number.parse().map_err(|_| NoFlowId)? })
    }
}

impl<'de> serde::Deserialize<'de> for FlowId {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.shard, self.number)
    }
}

/// A word that names no flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a flow's id is SHARD-NUMBER, such as 0-1042")]
pub(crate) struct NoFlowId;

/// Why a flow lives on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KillError {
    /// It is not there.
    #[error("there is no flow {0}")]
    NoSuchFlow(FlowId),
    /// It is somebody else's.
    #[error("flow {0} is another user's")]
    NotYours(FlowId),
    /// Nobody knows.
    #[error("{0}")]
    Unanswered(#[from] Unanswered),
}

/// How often the counts of a policy are asked for that is just being replaced.
const TRIES: usize = 10;
const BETWEEN: Duration = Duration::from_millis(20);

impl Daemon {
    /// Live flows, one object a line. Takes about 4 µs a flow, on a thread of its own.
    pub(crate) async fn flows(&self, selection: Option<Selection>) -> Result<Vec<u8>, Unanswered> {
        let shards = self.ask_all(|answer| Request::Flows { answer }).await?;
        let clocks: Vec<_> = self.shards.iter().map(|(_, clock)| *clock).collect();
        let now = timestamp(SystemTime::now());
        let write = move || {
            let mut users = Users::default();
            let mut lines = Vec::new();
            for (shard, (flows, clock)) in shards.iter().zip(clocks).enumerate() {
                for flow in flows {
                    if selection.as_ref().is_some_and(|selection| !selection.means(flow)) {
                        continue;
                    }
                    let mut object = report::object(shard, flow, clock, &mut users);
                    object["time"] = json!(now);
                    lines.extend(object.to_string().bytes());
                    lines.push(b'\n');
                }
            }
            lines
        };
        // It does not panic; and a runtime that ends has nobody left to answer.
        Ok(tokio::task::spawn_blocking(write).await.unwrap_or_default())
    }

    /// Ends a flow, if it is `of` this user; `None`: whoever's.
    pub(crate) async fn kill(&self, id: FlowId, of: Option<u32>) -> Result<(), KillError> {
        if id.shard >= self.shards.len() {
            return Err(KillError::NoSuchFlow(id));
        }
        let request = |answer| Request::Kill { number: id.number, of, answer };
        match self.ask_one(id.shard, request).await? {
            Killed::Done => Ok(()),
            Killed::NoSuchFlow => Err(KillError::NoSuchFlow(id)),
            Killed::NotYours => Err(KillError::NotYours(id)),
        }
    }

    /// The rules in the order in which they are asked, the default last: one object a line.
    pub(crate) async fn rules(&self) -> Result<Vec<u8>, Unanswered> {
        let mut tries = 0;
        let (in_force, hits) = loop {
            let in_force = self.in_force();
            let mut hits = self.ask_all(|answer| Request::Hits { answer }).await?;
            tries += 1;
            let agree = hits.iter().all(|hits| hits.generation == in_force.generation);
            if agree || tries == TRIES {
                // What belongs to another policy counts other rules.
                hits.retain(|hits| hits.generation == in_force.generation);
                break (in_force, hits);
            }
            // A reload is under way.
            tokio::time::sleep(BETWEEN).await;
        };
        let write = move || rule_lines(&in_force, &hits);
        Ok(tokio::task::spawn_blocking(write).await.unwrap_or_default())
    }

    /// The daemon's state.
    pub(crate) async fn status(&self) -> Result<Value, Unanswered> {
        let shards = self.ask_all(|answer| Request::Status { answer }).await?;
        let sum = |of: fn(&Status) -> u64| shards.iter().map(of).sum::<u64>();
        let dropped = |of: fn(&Status) -> &[u64; Dropped::ALL.len()]| -> Map<String, Value> {
            let causes = Dropped::ALL.iter().enumerate().map(|(at, cause)| {
                let count: u64 = shards.iter().map(|shard| of(shard)[at]).sum();
                (cause.name().to_owned(), count.into())
            });
            causes.collect()
        };
        let each = shards.iter().enumerate().map(|(number, shard)| {
            json!({
                "shard": number, "generation": shard.generation, "flows": shard.flows,
                "flows_opened": shard.flows_opened, "memory": shard.memory,
            })
        });
        let (tunnels, proxies) = self.ways_out().await;
        let tunnels: Vec<Value> = tunnels.into_iter().map(|told| told.object).collect();
        let proxies: Vec<Value> = proxies.into_iter().map(|told| told.object).collect();
        let in_force = self.in_force();
        let summary = in_force.policy.summary();
        Ok(json!({
            "event": "status",
            "time": timestamp(SystemTime::now()),
            "version": VERSION,
            "pid": std::process::id(),
            "started": timestamp(self.started),
            "config": self.config_file,
            "policy": absolute(directory(&in_force.config)),
            "generation": in_force.generation,
            "rules": summary.rules,
            "routes": summary.routes,
            "sets": summary.sets,
            "flows": sum(|s| s.flows as u64),
            "flows_opened": sum(|s| s.flows_opened),
            "memory": sum(|s| s.memory as u64),
            "packets_in": sum(|s| s.counters.packets_in),
            "to_app": sum(|s| s.counters.to_app),
            "to_egress": sum(|s| s.counters.to_egress),
            "to_link": sum(|s| s.counters.to_link),
            "held": sum(|s| s.counters.held),
            "dropped": dropped(|s| &s.counters.dropped),
            "replies_dropped": dropped(|s| &s.counters.replies_dropped),
            "panics": sum(|s| s.panics),
            "reports_lost": sum(|s| s.reports_lost),
            "older": sum(|s| s.older),
            "watchers": self.events.watchers(),
            "tracking": self.tracking.load(Ordering::Relaxed),
            "tunnels": tunnels,
            "proxies": proxies,
            "shards": each.collect::<Value>(),
        }))
    }
}

impl Daemon {
    /// Tunnels and proxies, in the order of their numbers.
    pub(super) async fn ways_out(&self) -> (Vec<Told>, Vec<ToldProxy>) {
        match &self.ways {
            Some(ways) => ways.tell().await,
            None => Default::default(),
        }
    }
}

fn rule_lines(in_force: &InForce, shards: &[Hits]) -> Vec<u8> {
    let hits = |at: usize| -> u64 {
        let counts = shards.iter().filter_map(|hits| hits.rules.get(at));
        counts.map(|(_, count)| count).sum()
    };
    let mut lines = Vec::new();
    let mut line = |object: &Value| {
        lines.extend(object.to_string().bytes());
        lines.push(b'\n');
    };
    let mut count = 0;
    for (at, rule) in in_force.policy.rule_texts().enumerate() {
        line(&json!({
            "event": "rule", "rule": rule.name, "file": rule.file, "line": rule.line,
            "text": rule.text, "verdict": rule.verdict.as_str(), "hits": hits(at),
            "generation": in_force.generation,
        }));
        count = at + 1;
    }
    let verdict = in_force.policy.default_verdict().as_str();
    line(&json!({
        "event": "rule", "rule": "default", "file": null, "line": null,
        "text": format!("default {verdict}"), "verdict": verdict, "hits": hits(count),
        "generation": in_force.generation,
    }));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        for (word, want) in [
            ("0-1", Some((0, 1))),
            ("3-18446744073709551615", Some((3, u64::MAX))),
            ("0-18446744073709551616", None),
            ("0", None),
            ("-1", None),
            ("0-", None),
            ("+0-1", None),
            ("0-1-2", None),
            ("", None),
        ] {
            let id = word.parse::<FlowId>().ok();
            assert_eq!(id.map(|id| (id.shard, id.number)), want, "{word}");
            assert!(id.is_none_or(|id| id.to_string() == word));
        }
    }
}
