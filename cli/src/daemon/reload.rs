//! A reload is one transaction: either everything of it counts, or nothing.
//!
//! ```text
//! read the configuration ─▶ which keys changed? ─▶ read, compile and test the policy
//!   ─▶ does every shard answer? ─▶ tell them all ─▶ it is in force ─▶ each has judged its flows
//! ```
//!
//! Whatever fails before the shards are told leaves no trace. To tell them is one step that
//! nothing keeps from its end: each shard has a place for a reload that is never taken, and
//! looks there at the start of each turn of its loop. So all of them judge by the new policy
//! within a turn, and one that hangs does from the turn in which it goes on: it alone is told
//! of, as its live flows wait to be judged again.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use dns::upstream::ConfigError;
use engine::Report;
use engine::policy::{Policy, Verdict};
use serde_json::{Value, json};
use tunnel::driver::request::{self, Changed, Request};

use super::{Access, Daemon, InForce, Unanswered};
use crate::config::{self, Config};
use crate::diagnostics::Told;
use crate::names::Names;
use crate::policy_files::{self, PolicyFiles};
use crate::report::{self, Clock, Users};
use crate::shards;

/// What a reload did, or would do.
#[derive(Debug)]
pub(crate) struct Reloaded {
    /// In force now.
    pub(crate) generation: u64,
    /// Nothing was changed.
    pub(crate) dry_run: bool,
    /// Flows that the new policy ends.
    pub(crate) cut: Vec<Cut>,
    /// Warnings about the policy.
    pub(crate) warnings: Vec<Told>,
}

/// A flow that a policy ends.
#[derive(Debug)]
pub(crate) struct Cut {
    shard: usize,
    clock: Clock,
    flow: Report,
    /// What the policy says of it.
    verdict: Option<Verdict>,
    rule: Option<String>,
}

/// Why a policy or a configuration was not put in force: everything is as it was. Or, in one
/// case, why nobody knows what it did to the live flows.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotLoaded {
    /// A file cannot be read.
    #[error("{}: {error}", file.display())]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The policy's files cannot be read.
    #[error("{0}")]
    Files(anyhow::Error),
    /// The configuration is wrong.
    #[error("the configuration has errors")]
    Configuration(Vec<Told>),
    /// Keys were changed that a running daemon cannot follow.
    #[error("{} changed, which needs a restart", list(.0))]
    NeedsRestart(Vec<&'static str>),
    /// A resolver cannot be set up.
    #[error("{0}")]
    Resolver(#[from] ConfigError),
    /// The policy is wrong.
    #[error("the policy has errors")]
    Policy(Vec<Told>),
    /// A shard gave no answer, and none was told of the policy.
    #[error("{0}")]
    Unanswered(#[from] Unanswered),
    /// It is in force, and a shard does not say that it is done with its live flows.
    #[error("the policy is in force, but {0}")]
    Unconfirmed(Unanswered),
    /// The thread that compiles ended early.
    #[error("the policy could not be compiled")]
    Crashed,
}

/// What a reload reads from disk.
struct Read {
    config: Config,
    access: Access,
    policy: Policy,
    warnings: Vec<Told>,
}

impl Daemon {
    /// Reads configuration and policy again and puts them in force. Others who reload wait.
    ///
    /// # Errors
    /// Everything that is wrong; then nothing has changed, but for [`NotLoaded::Unconfirmed`].
    pub(crate) async fn reload(&self) -> Result<Reloaded, NotLoaded> {
        let _turn = self.reloading.lock().await;
        let Read { config, access, policy, warnings } = self.read_again().await?;
        let prepare = |names: &Names| names.prepare(&config, policy.resolvers());
        let configured = self.names.as_ref().map(prepare).transpose()?;
        // One that is gone or hangs is found before any is told.
        self.ask_all(|answer| Request::Status { answer }).await?;
        let before = self.in_force();
        let policy = Arc::new(policy);
        let generation = before.generation + 1;
        let limits = shards::share(config.limits, self.shards.len());
        let cut = self.tell_all(|answer| {
            let policy = Arc::clone(&policy);
            Request::Reload(request::Reload { policy, generation, limits, answer })
        });
        if let Some((names, configured)) = self.names.as_ref().zip(configured) {
            names.put_in_force(configured, &config, &policy);
        }
        let loaded = SystemTime::now();
        let policy = Arc::clone(&policy);
        self.put_in_force(InForce { policy, generation, loaded, config, access });
        let cut = cut.await;
        // A large policy takes a while to free.
        tokio::task::spawn_blocking(move || drop(before));
        let cut = self.per_shard(cut.map_err(NotLoaded::Unconfirmed)?, |flow| {
            let (verdict, rule) = (flow.verdict, flow.rule.clone());
            (flow, verdict, rule)
        });
        Ok(Reloaded { generation, dry_run: false, cut, warnings })
    }

    /// Says what [`Daemon::reload`] would do, and changes nothing.
    ///
    /// # Errors
    /// What would keep it from doing so.
    pub(crate) async fn rehearse(&self) -> Result<Reloaded, NotLoaded> {
        let Read { policy, warnings, .. } = self.read_again().await?;
        self.compare(policy, warnings).await
    }

    /// Which live flows would this policy end?
    ///
    /// # Errors
    /// A shard gave no answer.
    pub(crate) async fn compare(
        &self,
        policy: Policy,
        warnings: Vec<Told>,
    ) -> Result<Reloaded, NotLoaded> {
        let policy = Arc::new(policy);
        let request = |answer| Request::Compare { policy: Arc::clone(&policy), answer };
        let changed = self.ask_all(request).await?;
        let cut = self.per_shard(changed, |Changed { flow, verdict, rule }| {
            (flow, Some(verdict), Some(rule))
        });
        tokio::task::spawn_blocking(move || drop(policy));
        let generation = self.in_force().generation;
        Ok(Reloaded { generation, dry_run: true, cut, warnings })
    }

    async fn read_again(&self) -> Result<Read, NotLoaded> {
        let (file, before) = (self.config_file.clone(), self.in_force());
        let read = move || read(file.as_deref(), &before);
        tokio::task::spawn_blocking(read).await.unwrap_or(Err(NotLoaded::Crashed))
    }

    fn per_shard<T>(
        &self,
        answers: Vec<Vec<T>>,
        parts: impl Fn(T) -> (Report, Option<Verdict>, Option<String>),
    ) -> Vec<Cut> {
        let shards = self.shards.iter().enumerate().zip(answers);
        let cut = shards.flat_map(|((shard, (_, clock)), flows)| {
            let parts = &parts;
            flows.into_iter().map(move |flow| {
                let (flow, verdict, rule) = parts(flow);
                Cut { shard, clock: *clock, flow, verdict, rule }
            })
        });
        cut.collect()
    }
}

fn read(file: Option<&Path>, before: &InForce) -> Result<Read, NotLoaded> {
    let config = match file {
        None => Config::default(),
        Some(file) => {
            let text = std::fs::read_to_string(file)
                .map_err(|error| NotLoaded::Unreadable { file: file.to_owned(), error })?;
            config::whole(config::look(file, &text))
                .map_err(|faults| NotLoaded::Configuration(Told::of_faults(&faults, &text)))?
        }
    };
    let changed = before.config.needs_restart(&config);
    if !changed.is_empty() {
        return Err(NotLoaded::NeedsRestart(changed));
    }
    let path = policy_files::directory(&config);
    let files = PolicyFiles::read(&[path]).map_err(NotLoaded::Files)?;
    let resolvers = config.resolvers_after(before.policy.resolvers());
    let files = files.with_resolvers(resolvers.map_err(NotLoaded::Files)?);
    let told = |found: Vec<engine::policy::Diagnostic>| -> Vec<Told> {
        found.iter().map(|d| Told::of(d, &|source| files.path_of(source))).collect()
    };
    match files.load() {
        Ok((policy, warnings)) => {
            let access = Access::of(&config.control);
            Ok(Read { config, access, policy, warnings: told(warnings) })
        }
        Err(found) => Err(NotLoaded::Policy(told(found))),
    }
}

fn list(keys: &[&str]) -> String {
    keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ")
}

impl NotLoaded {
    /// What is wrong with the text, where it is the text.
    pub(crate) fn diagnostics(&self) -> &[Told] {
        match self {
            Self::Configuration(told) | Self::Policy(told) => told,
            Self::Unreadable { .. }
            | Self::Files(_)
            | Self::NeedsRestart(_)
            | Self::Unanswered(_)
            | Self::Unconfirmed(_)
            | Self::Resolver(_)
            | Self::Crashed => &[],
        }
    }

    /// What helps.
    pub(crate) fn help(&self) -> Option<&'static str> {
        match self {
            Self::NeedsRestart(_) => Some("restart tunneld, or take the change back"),
            Self::Unconfirmed(_) => {
                Some("that shard judges by it as soon as it goes on; the daemon's log says more")
            }
            Self::Unanswered(_) | Self::Configuration(_) | Self::Policy(_) => {
                Some("nothing has changed")
            }
            Self::Unreadable { .. } | Self::Files(_) | Self::Resolver(_) | Self::Crashed => None,
        }
    }
}

impl Reloaded {
    /// As `event`: `reload` or `diff`. Takes about 4 µs a flow.
    pub(crate) fn object(&self, event: &str) -> Value {
        let mut users = Users::default();
        let cut = self.cut.iter().map(|cut| {
            json!({
                "flow": report::object(cut.shard, &cut.flow, cut.clock, &mut users),
                "verdict": cut.verdict.map(Verdict::as_str),
                "rule": cut.rule,
            })
        });
        json!({
            "event": event,
            "generation": self.generation,
            "dry_run": self.dry_run,
            "cut": cut.collect::<Value>(),
            "moved": [],
            "diagnostics": self.warnings.iter().map(Told::object).collect::<Value>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_cannot_change_are_named() {
        let error = NotLoaded::NeedsRestart(vec!["device.name", "device.mtu"]);
        let want = "`device.name`, `device.mtu` changed, which needs a restart";
        assert_eq!(error.to_string(), want);
    }
}
