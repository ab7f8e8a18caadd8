//! A reload is one transaction: either everything of it counts, or nothing.
//!
//! ```text
//! read the configuration ─▶ which keys changed? ─▶ read, compile and test the policy
//!   ─▶ does every shard answer? ─▶ can the host's resolver follow?
//!   ─▶ tell them all ─▶ it is in force ─▶ the host's resolver follows ─▶ each has judged its flows
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
use engine::policy::{Policy, Verdict};
use engine::{Report, ResolverService, Ways};
use serde_json::{Value, json};
use tunnel::driver::request::{self, Changed, Request};
use zeroize::Zeroizing;

use super::{Access, Daemon, InForce, Unanswered, Unled, on_host};
use crate::config::{self, Config, Dns, Named};
use crate::diagnostics::Told;
use crate::names::Names;
use crate::policy_files::{self, PolicyFiles};
use crate::report::{self, Clock, Users};
use crate::secrets;
use crate::shards;
use crate::ways::{Prepared, Unopened, Wanted};

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
    why: Why,
}

/// The flow, and why it ends.
#[derive(Debug)]
struct Why {
    flow: Report,
    /// What the policy says of it.
    verdict: Option<Verdict>,
    rule: Option<String>,
    /// The way out that it would take now, where that is another.
    moved: Option<Arc<str>>,
}

impl Cut {
    /// The way out that a new flow takes in its place.
    fn moved(&self) -> Option<&str> {
        let goes_on = self.why.verdict == Some(Verdict::Allow);
        self.why.moved.as_deref().filter(|_| goes_on)
    }
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
    /// The host's own resolver cannot follow.
    #[error("{0}")]
    Unled(#[from] Unled),
    /// A tunnel cannot be opened or changed.
    #[error("{0}")]
    Unopened(#[from] Unopened),
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
        if config.has_secrets() {
            // The first ones may have come with this reload.
            secrets::keep();
        }
        let prepare = |names: &Names| names.prepare(&config, &policy);
        let configured = self.names.as_ref().map(prepare).transpose()?;
        // One that is gone or hangs is found before any is told.
        self.ask_all(|answer| Request::Status { answer }).await?;
        let before = self.in_force();
        let led = |dns: &Dns| (dns.addresses.clone(), dns.takeover);
        let moves = led(&before.config.dns) != led(&config.dns);
        let on_host = self.on_host.as_ref().filter(|_| moves);
        if let Some(host) = on_host {
            on_host::prepare(host, &config.dns).await?;
        }
        // Last of what can fail: the tunnels that are new are open then.
        let prepared = match self.prepare_ways(&config, &policy).await {
            Ok(prepared) => prepared,
            Err(error) => {
                if let Some(host) = on_host {
                    on_host::give_up(host).await;
                }
                return Err(error.into());
            }
        };
        let ways = prepared.as_ref().map(Prepared::ways);
        let policy = Arc::new(policy);
        let generation = before.generation + 1;
        let limits = shards::share(config.limits, self.shards.len());
        let resolver = config.dns.service();
        let cut = self.tell_all(|answer| {
            let (policy, resolver) = (Arc::clone(&policy), Some(resolver.clone()));
            let ways = ways.clone();
            Request::Reload(request::Reload { policy, generation, limits, resolver, ways, answer })
        });
        let committed = prepared.map(Prepared::commit);
        if let Some((names, configured)) = self.names.as_ref().zip(configured) {
            // Until nothing leads to the old addresses any more they are ours as well.
            names.set_own(&[&before.config, &config]);
            names.put_in_force(configured, &config, &policy);
        }
        let loaded = SystemTime::now();
        let (named, policy) = (policy.ways().clone(), Arc::clone(&policy));
        self.put_in_force(InForce { policy, generation, loaded, config, access });
        if let Some(host) = on_host {
            on_host::commit(host).await;
        }
        if let Some(names) = &self.names {
            names.set_own(&[&self.in_force().config]);
        }
        let cut = cut.await;
        // No flow is in a tunnel that is gone.
        drop(committed);
        // A large policy takes a while to free.
        tokio::task::spawn_blocking(move || drop(before));
        let cut = self.per_shard(cut.map_err(NotLoaded::Unconfirmed)?, |cut| {
            let engine::Cut { flow, moved } = cut;
            let (verdict, rule) = (flow.verdict, flow.rule.clone());
            Why { flow, verdict, rule, moved: moved.and_then(|way| named.name(way).cloned()) }
        });
        Ok(Reloaded { generation, dry_run: false, cut, warnings })
    }

    async fn prepare_ways(
        &self,
        config: &Config,
        policy: &Policy,
    ) -> Result<Option<Prepared>, Unopened> {
        match &self.ways {
            Some(ways) => ways.prepare(Wanted::of(config, policy)?).await.map(Some),
            None => Ok(None),
        }
    }

    /// Says what [`Daemon::reload`] would do, and changes nothing.
    ///
    /// # Errors
    /// What would keep it from doing so.
    pub(crate) async fn rehearse(&self) -> Result<Reloaded, NotLoaded> {
        let Read { config, policy, warnings, .. } = self.read_again().await?;
        let ways = match &self.ways {
            Some(ways) => Some(ways.rehearse(Wanted::of(&config, &policy)?).await?),
            None => None,
        };
        self.compare_with(policy, Some(config.dns.service()), ways, warnings).await
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
        self.compare_with(policy, None, None, warnings).await
    }

    async fn compare_with(
        &self,
        policy: Policy,
        resolver: Option<ResolverService>,
        ways: Option<Arc<Ways>>,
        warnings: Vec<Told>,
    ) -> Result<Reloaded, NotLoaded> {
        let policy = Arc::new(policy);
        let request = |answer| {
            let (policy, resolver, ways) = (Arc::clone(&policy), resolver.clone(), ways.clone());
            Request::Compare { policy, resolver, ways, answer }
        };
        let changed = self.ask_all(request).await?;
        let cut = self.per_shard(changed, |Changed { flow, verdict, rule, moved }| {
            let moved = moved.and_then(|way| policy.ways().name(way).cloned());
            Why { flow, verdict: Some(verdict), rule: Some(rule), moved }
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

    fn per_shard<T>(&self, answers: Vec<Vec<T>>, why: impl Fn(T) -> Why) -> Vec<Cut> {
        let shards = self.shards.iter().enumerate().zip(answers);
        let cut = shards.flat_map(|((shard, (_, clock)), flows)| {
            let why = &why;
            flows.into_iter().map(move |flow| Cut { shard, clock: *clock, why: why(flow) })
        });
        cut.collect()
    }
}

fn read(file: Option<&Path>, before: &InForce) -> Result<Read, NotLoaded> {
    let config = match file {
        None => Config::default(),
        Some(file) => {
            let text = std::fs::read_to_string(file)
                .map(Zeroizing::new)
                .map_err(|error| NotLoaded::Unreadable { file: file.to_owned(), error })?;
            config::whole(config::look(file, &text))
                .map_err(|faults| NotLoaded::Configuration(Told::of_faults(&faults)))?
        }
    };
    let changed = before.config.needs_restart(&config);
    if !changed.is_empty() {
        return Err(NotLoaded::NeedsRestart(changed));
    }
    let path = policy_files::directory(&config);
    let files = PolicyFiles::read(&[path]).map_err(NotLoaded::Files)?;
    let named = config.named_after(&Named::of(&before.policy)).map_err(NotLoaded::Files)?;
    let files = files.with_names(named);
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
            | Self::Unled(_)
            | Self::Unopened(_)
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
            Self::Unled(error) => error.help(),
            Self::Unopened(error) => error.help().or(Some("nothing has changed")),
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
        let mut moved = Vec::new();
        let cut = self.cut.iter().map(|cut| {
            let why = &cut.why;
            let flow = report::object(cut.shard, &why.flow, cut.clock, &mut users);
            if let Some(via) = cut.moved() {
                moved.push(json!({ "flow": flow, "via": via }));
            }
            json!({ "flow": flow, "verdict": why.verdict.map(Verdict::as_str), "rule": why.rule })
        });
        let cut: Value = cut.collect();
        json!({
            "event": event,
            "generation": self.generation,
            "dry_run": self.dry_run,
            "cut": cut,
            "moved": moved,
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
