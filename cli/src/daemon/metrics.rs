//! Metrics in the text format of OpenMetrics 1.0.
//!
//! Nothing is kept for them: each scrape asks the shards for their status and writes what they
//! say, and the resolver. Counters are their own, so they only grow while the daemon runs.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use dns::resolver::{ResolverStatistics, Statistics};
use engine::{Dropped, Resolvers};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::{Registry, Unit};
use tunnel::driver::request::{Limits, Request, Status};
use tunnel::link::wireguard::LinkDropped;

use super::{Daemon, InForce, Unanswered};
use crate::names::Names;
use crate::shards;
use crate::ways::{Told, ToldProxy};

/// The media type of what [`Daemon::metrics`] writes.
pub(crate) const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All that one scrape knows.
#[derive(Debug)]
struct Scrape {
    shards: Vec<Status>,
    in_force: Arc<InForce>,
    started: SystemTime,
    watchers: usize,
    names: Statistics,
    resolvers: Resolvers,
    tunnels: Vec<Told>,
    proxies: Vec<ToldProxy>,
}

/// Metrics of one name.
struct Family {
    /// Less the prefix `tunneld_`, the unit, and a counter's `_total`.
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    values: Values,
}

/// Where the values of a family come from.
enum Values {
    /// One of each shard, which only grows.
    CountOfShard(fn(&Status) -> u64),
    /// One that only grows for each value of a label.
    CountBy(&'static str, fn(&Scrape) -> Vec<(&'static str, u64)>),
    /// One that only grows.
    Count(fn(&Statistics) -> u64),
    /// One of each resolver, which only grows.
    CountOfResolver(fn(&ResolverStatistics) -> u64),
    /// One of each tunnel, which only grows.
    CountOfTunnel(fn(&Told) -> u64),
    /// One of each tunnel and cause, which only grows.
    DroppedOfTunnel,
    /// One of each tunnel at this moment, where there is one.
    NowOfTunnel(fn(&Told) -> Option<u64>),
    /// One of each proxy at this moment.
    NowOfProxy(fn(&ToldProxy) -> u64),
    /// One at this moment.
    Now(fn(&Scrape) -> u64),
    /// One of each shard at this moment.
    NowOfShard(fn(&Status) -> u64),
    /// A moment.
    Time(fn(&Scrape) -> SystemTime),
}

static FAMILIES: [Family; 37] = [
    Family {
        name: "start_time",
        help: "When the daemon started, since the epoch",
        unit: Some(Unit::Seconds),
        values: Values::Time(|scrape| scrape.started),
    },
    Family {
        name: "policy_generation",
        help: "Number of the policy in force",
        unit: None,
        values: Values::Now(|scrape| scrape.in_force.generation),
    },
    Family {
        name: "policy_load_time",
        help: "When the policy in force was loaded, since the epoch",
        unit: Some(Unit::Seconds),
        values: Values::Time(|scrape| scrape.in_force.loaded),
    },
    Family {
        name: "policy_rules",
        help: "Rules of the policy in force",
        unit: None,
        values: Values::Now(|scrape| scrape.in_force.policy.summary().rules as u64),
    },
    Family {
        name: "policy_routes",
        help: "Routes of the policy in force",
        unit: None,
        values: Values::Now(|scrape| scrape.in_force.policy.summary().routes as u64),
    },
    Family {
        name: "policy_sets",
        help: "Sets of the policy in force",
        unit: None,
        values: Values::Now(|scrape| scrape.in_force.policy.summary().sets as u64),
    },
    Family {
        name: "flows",
        help: "Live flows",
        unit: None,
        values: Values::NowOfShard(|shard| shard.flows as u64),
    },
    Family {
        name: "flows_limit",
        help: "Most live flows: the one that was idle longest gives way to the next",
        unit: None,
        values: Values::Now(|scrape| (scrape.limits().flows * scrape.shards.len()) as u64),
    },
    Family {
        name: "flows_opened",
        help: "Flows that began, whatever their verdict",
        unit: None,
        values: Values::CountOfShard(|shard| shard.flows_opened),
    },
    Family {
        name: "flow_panics",
        help: "Flows that a fault of tunneld ended",
        unit: None,
        values: Values::CountOfShard(|shard| shard.panics),
    },
    Family {
        name: "ring_memory",
        help: "Memory of the rings that flows have",
        unit: Some(Unit::Bytes),
        values: Values::NowOfShard(|shard| shard.memory as u64),
    },
    Family {
        name: "ring_memory_limit",
        help: "Most memory of rings: the flow that was idle longest gives way",
        unit: Some(Unit::Bytes),
        values: Values::Now(|scrape| scrape.in_force.config.limits.memory as u64),
    },
    Family {
        name: "packets_in",
        help: "Packets from apps: those of every outcome, and those that are held",
        unit: None,
        values: Values::CountOfShard(|shard| shard.counters.packets_in),
    },
    Family {
        name: "packets",
        help: "Packets from apps by what became of them",
        unit: None,
        values: Values::CountBy("outcome", |scrape| {
            let sum = |of: fn(&Status) -> u64| scrape.shards.iter().map(of).sum();
            vec![
                ("to-egress", sum(|shard| shard.counters.to_egress)),
                ("to-link", sum(|shard| shard.counters.to_link)),
                ("to-app", sum(|shard| shard.counters.to_app)),
                ("dropped", sum(|shard| shard.counters.dropped.iter().sum())),
            ]
        }),
    },
    Family {
        name: "packets_held",
        help: "Packets from apps that wait for a verdict or a socket",
        unit: None,
        values: Values::NowOfShard(|shard| shard.counters.held),
    },
    Family {
        name: "packets_dropped",
        help: "Packets from apps that were dropped, by cause",
        unit: None,
        values: Values::CountBy("cause", |scrape| {
            by_cause(scrape, |shard| &shard.counters.dropped)
        }),
    },
    Family {
        name: "replies_dropped",
        help: "Replies of far sides that were dropped, by cause",
        unit: None,
        values: Values::CountBy("cause", |scrape| {
            by_cause(scrape, |shard| &shard.counters.replies_dropped)
        }),
    },
    Family {
        name: "older_segments",
        help: "Segments of connections older than the capture, answered with a reset",
        unit: None,
        values: Values::CountOfShard(|shard| shard.older),
    },
    Family {
        name: "reports_lost",
        help: "Flow events that were thrown away because nobody kept up",
        unit: None,
        values: Values::CountOfShard(|shard| shard.reports_lost),
    },
    Family {
        name: "shards",
        help: "Threads that carry flows",
        unit: None,
        values: Values::Now(|scrape| scrape.shards.len() as u64),
    },
    Family {
        name: "watchers",
        help: "Event streams that are open",
        unit: None,
        values: Values::Now(|scrape| scrape.watchers as u64),
    },
    Family {
        name: "dns_cache_hits",
        help: "Questions that the cache answered within their TTL",
        unit: None,
        values: Values::Count(|names| names.hits),
    },
    Family {
        name: "dns_cache_misses",
        help: "Questions that went to servers",
        unit: None,
        values: Values::Count(|names| names.misses),
    },
    Family {
        name: "dns_cache_stale",
        help: "Answers given past their TTL, as the servers failed or were slow",
        unit: None,
        values: Values::Count(|names| names.stale),
    },
    Family {
        name: "dns_cache_prefetched",
        help: "Answers that were asked for again before their TTL ended",
        unit: None,
        values: Values::Count(|names| names.prefetched),
    },
    Family {
        name: "dns_overloaded",
        help: "Questions that were answered SERVFAIL as too many were open",
        unit: None,
        values: Values::Count(|names| names.overloaded),
    },
    Family {
        name: "dns_cache_entries",
        help: "Answers in the cache",
        unit: None,
        values: Values::Now(|scrape| scrape.names.entries as u64),
    },
    Family {
        name: "dns_cache_memory",
        help: "Memory of the cache, about",
        unit: Some(Unit::Bytes),
        values: Values::Now(|scrape| scrape.names.bytes as u64),
    },
    Family {
        name: "dns_asked",
        help: "Questions that a resolver was asked",
        unit: None,
        values: Values::CountOfResolver(|resolver| resolver.asked),
    },
    Family {
        name: "dns_failed",
        help: "Questions that a resolver did not answer",
        unit: None,
        values: Values::CountOfResolver(|resolver| resolver.failed),
    },
    Family {
        name: "proxy_usable",
        help: "Whether new flows may take the proxy: 1 or 0",
        unit: None,
        values: Values::NowOfProxy(|proxy| proxy.usable.into()),
    },
    Family {
        name: "tunnel_usable",
        help: "Whether new flows may take the tunnel: 1 or 0",
        unit: None,
        values: Values::NowOfTunnel(|tunnel| Some(tunnel.usable.into())),
    },
    Family {
        name: "tunnel_sent",
        help: "What was sent to the peers of the tunnel",
        unit: Some(Unit::Bytes),
        values: Values::CountOfTunnel(|tunnel| tunnel.sent),
    },
    Family {
        name: "tunnel_received",
        help: "What authentic messages of its peers brought",
        unit: Some(Unit::Bytes),
        values: Values::CountOfTunnel(|tunnel| tunnel.received),
    },
    Family {
        name: "tunnel_handshakes",
        help: "Sessions that began",
        unit: None,
        values: Values::CountOfTunnel(|tunnel| tunnel.totals.handshakes),
    },
    Family {
        name: "tunnel_handshake_age",
        help: "How long ago the newest session with a peer began; not there without one",
        unit: Some(Unit::Seconds),
        values: Values::NowOfTunnel(|tunnel| tunnel.handshake_age),
    },
    Family {
        name: "tunnel_dropped",
        help: "Packets and datagrams that the tunnel dropped",
        unit: None,
        values: Values::DroppedOfTunnel,
    },
];

fn by_cause(
    scrape: &Scrape,
    of: fn(&Status) -> &[u64; Dropped::ALL.len()],
) -> Vec<(&'static str, u64)> {
    let causes = Dropped::ALL.iter().enumerate();
    causes
        .map(|(at, cause)| (cause.name(), scrape.shards.iter().map(|s| of(s)[at]).sum()))
        .collect()
}

impl Scrape {
    /// Of one shard.
    fn limits(&self) -> Limits {
        shards::share(self.in_force.config.limits, self.shards.len())
    }
}

impl Scrape {
    /// A resolver that was asked.
    fn counted(&self, name: &str) -> Option<&ResolverStatistics> {
        let id = self.resolvers.id(name)?.number();
        self.names.resolvers.iter().find(|counted| counted.resolver.0 == id)
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let build = [("version", env!("CARGO_PKG_VERSION")), ("commit", env!("TUNNELD_COMMIT"))];
        encoder
            .encode_descriptor("build", "This program", None, MetricType::Info)?
            .encode_info(&build)?;
        for family in &FAMILIES {
            family.encode(self, &mut encoder)?;
        }
        Ok(())
    }
}

impl Family {
    fn encode(&self, scrape: &Scrape, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let kind = match self.values {
            Values::CountOfShard(_)
            | Values::CountBy(..)
            | Values::Count(_)
            | Values::CountOfTunnel(_)
            | Values::DroppedOfTunnel
            | Values::CountOfResolver(_) => MetricType::Counter,
            Values::Now(_)
            | Values::NowOfShard(_)
            | Values::NowOfTunnel(_)
            | Values::NowOfProxy(_)
            | Values::Time(_) => MetricType::Gauge,
        };
        // A family without a sample is none.
        let has_samples = match self.values {
            Values::CountOfTunnel(_) | Values::DroppedOfTunnel => !scrape.tunnels.is_empty(),
            Values::NowOfTunnel(of) => scrape.tunnels.iter().any(|told| of(told).is_some()),
            Values::NowOfProxy(_) => !scrape.proxies.is_empty(),
            Values::CountOfShard(_)
            | Values::CountBy(..)
            | Values::Count(_)
            | Values::CountOfResolver(_)
            | Values::Now(_)
            | Values::NowOfShard(_)
            | Values::Time(_) => true,
        };
        if !has_samples {
            return Ok(());
        }
        let mut metric =
            encoder.encode_descriptor(self.name, self.help, self.unit.as_ref(), kind)?;
        let no_exemplar = None::<&Exemplar<NoLabelSet, u64>>;
        let numbered = scrape.shards.iter().enumerate();
        match self.values {
            Values::CountOfShard(of) => {
                for (number, shard) in numbered {
                    let labels = [("shard", number.to_string())];
                    metric.encode_family(&labels)?.encode_counter(&of(shard), no_exemplar)?;
                }
            }
            Values::CountBy(label, of) => {
                for (value, count) in of(scrape) {
                    let labels = [(label, value)];
                    metric.encode_family(&labels)?.encode_counter(&count, no_exemplar)?;
                }
            }
            Values::Count(of) => metric.encode_counter(&of(&scrape.names), no_exemplar)?,
            Values::CountOfResolver(of) => {
                for name in scrape.resolvers.names() {
                    let labels = [("resolver", name)];
                    let count = scrape.counted(name).map_or(0, of);
                    metric.encode_family(&labels)?.encode_counter(&count, no_exemplar)?;
                }
            }
            Values::CountOfTunnel(of) => {
                for told in &scrape.tunnels {
                    let labels = [("tunnel", &*told.name)];
                    metric.encode_family(&labels)?.encode_counter(&of(told), no_exemplar)?;
                }
            }
            Values::DroppedOfTunnel => {
                for told in &scrape.tunnels {
                    for cause in LinkDropped::ALL {
                        let labels = [("tunnel", &*told.name), ("cause", cause.name())];
                        let count = told.totals.dropped(cause);
                        metric.encode_family(&labels)?.encode_counter(&count, no_exemplar)?;
                    }
                }
            }
            Values::NowOfTunnel(of) => {
                for told in &scrape.tunnels {
                    let Some(value) = of(told) else { continue };
                    let labels = [("tunnel", &*told.name)];
                    metric.encode_family(&labels)?.encode_gauge(&value)?;
                }
            }
            Values::NowOfProxy(of) => {
                for told in &scrape.proxies {
                    let labels = [("proxy", &*told.name)];
                    metric.encode_family(&labels)?.encode_gauge(&of(told))?;
                }
            }
            Values::Now(of) => metric.encode_gauge(&of(scrape))?,
            Values::NowOfShard(of) => {
                for (number, shard) in numbered {
                    let labels = [("shard", number.to_string())];
                    metric.encode_family(&labels)?.encode_gauge(&of(shard))?;
                }
            }
            Values::Time(of) => {
                let since = of(scrape).duration_since(UNIX_EPOCH).unwrap_or_default();
                metric.encode_gauge(&since.as_secs_f64())?;
            }
        }
        Ok(())
    }
}

impl Daemon {
    /// All metrics at this moment.
    pub(crate) async fn metrics(&self) -> Result<String, Unanswered> {
        let shards = self.ask_all(|answer| Request::Status { answer }).await?;
        let mut registry = Registry::with_prefix("tunneld");
        let in_force = self.in_force();
        let (tunnels, proxies) = self.ways_out().await;
        registry.register_collector(Box::new(Scrape {
            shards,
            names: self.names.as_ref().map(Names::statistics).unwrap_or_default(),
            resolvers: in_force.policy.resolvers().clone(),
            in_force,
            started: self.started,
            watchers: self.events.watchers(),
            tunnels,
            proxies,
        }));
        let mut written = String::new();
        // A string takes whatever is written.
        let _ = text::encode(&mut written, &registry);
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::super::standin::{Disk, Manner, daemon};
    use super::super::{Access, Daemon};
    use super::Values;

    fn ask<T>(what: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(what)
    }

    fn scraped(name: &str) -> (Disk, Daemon, String) {
        let disk = Disk::new(name);
        let daemon = daemon(&disk, Access::default(), Manner::Answers);
        let text = ask(daemon.metrics()).expect("shards answer");
        (disk, daemon, text)
    }

    /// Name of a sample and its labels as they stand, with the value.
    type Samples<'t> = BTreeMap<(&'t str, &'t str), f64>;

    /// The names of what only a daemon with tunnels or proxies has.
    fn of_ways_out() -> impl Iterator<Item = String> {
        super::FAMILIES.iter().filter_map(|family| {
            let total = match family.values {
                Values::CountOfTunnel(_) | Values::DroppedOfTunnel => "_total",
                Values::NowOfTunnel(_) | Values::NowOfProxy(_) => "",
                Values::CountOfShard(_)
                | Values::CountBy(..)
                | Values::Count(_)
                | Values::CountOfResolver(_)
                | Values::Now(_)
                | Values::NowOfShard(_)
                | Values::Time(_) => return None,
            };
            let unit = family.unit.as_ref().map(|unit| format!("_{}", unit.as_str()));
            Some(format!("tunneld_{}{}{total}", family.name, unit.unwrap_or_default()))
        })
    }

    /// Reads an exposition by the letter of OpenMetrics 1.0: kind and samples of each family.
    fn parse(text: &str) -> Result<BTreeMap<&str, (&str, Samples<'_>)>, String> {
        let body = text.strip_suffix("# EOF\n").ok_or("no end")?;
        let mut families: BTreeMap<&str, (&str, Samples<'_>)> = BTreeMap::new();
        let mut now = "";
        let mut told = BTreeSet::new();
        for line in body.lines() {
            let wrong = |what: &str| format!("{what}: {line}");
            if let Some(descriptor) = line.strip_prefix("# ") {
                let [keyword, name, rest] =
                    descriptor.splitn(3, ' ').collect::<Vec<_>>().try_into().map_err(|_| line)?;
                if !told.insert((keyword, name)) {
                    return Err(wrong("twice"));
                }
                if name != now {
                    if families.contains_key(name) {
                        return Err(wrong("not together"));
                    }
                    now = name;
                    families.insert(name, ("unknown", BTreeMap::new()));
                }
                let family = families.get_mut(name).ok_or("a family")?;
                if !family.1.is_empty() {
                    return Err(wrong("behind a sample"));
                }
                match keyword {
                    "HELP" if !rest.is_empty() => {}
                    "TYPE" if ["counter", "gauge", "info"].contains(&rest) => family.0 = rest,
                    "UNIT" if name.ends_with(&format!("_{rest}")) => {}
                    _ => return Err(wrong("no descriptor")),
                }
                continue;
            }
            let (series, value) = line.rsplit_once(' ').ok_or_else(|| wrong("no value"))?;
            let (name, labels) = match series.split_once('{') {
                Some((name, labels)) => {
                    (name, labels.strip_suffix('}').ok_or_else(|| wrong("open labels"))?)
                }
                None => (series, ""),
            };
            for label in labels.split(',').filter(|label| !label.is_empty()) {
                let (key, value) = label.split_once('=').ok_or_else(|| wrong("no label"))?;
                let quoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
                let plain = quoted.is_some_and(|v| !v.contains(['"', '\\']));
                if !key.bytes().all(|b| b.is_ascii_lowercase()) || !plain {
                    return Err(wrong("no label"));
                }
            }
            let (kind, samples) = families.get_mut(now).ok_or_else(|| wrong("of no family"))?;
            let suffix = match *kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            if name != format!("{now}{suffix}") {
                return Err(wrong("another name"));
            }
            let value: f64 = value.parse().map_err(|_| wrong("no number"))?;
            if !value.is_finite() || value < 0.0 || samples.insert((name, labels), value).is_some()
            {
                return Err(wrong("a bad sample"));
            }
        }
        match families.iter().find(|(_, (_, samples))| samples.is_empty()) {
            Some((name, _)) => Err(format!("{name} has no sample")),
            None => Ok(families),
        }
    }

    #[test]
    fn what_is_no_exposition_is_told() {
        for text in [
            "",
            "# TYPE a gauge\na 1\n",
            "# TYPE a counter\na 1\n# EOF\n",
            "# TYPE a gauge\na 1\na 1\n# EOF\n",
            "# TYPE a gauge\na 1\n# HELP a b\n# EOF\n",
            "# TYPE a gauge\n# UNIT a seconds\na 1\n# EOF\n",
            "# TYPE a gauge\na{b=c} 1\n# EOF\n",
            "# TYPE a gauge\n# EOF\n",
            "a 1\n# EOF\n",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(
            parse("# TYPE a_seconds gauge\n# UNIT a_seconds seconds\na_seconds 1\n# EOF\n").is_ok()
        );
    }

    #[test]
    fn they_say_what_the_status_says() {
        let (_disk, daemon, text) = scraped("metrics");
        let families = parse(&text).unwrap_or_else(|wrong| panic!("{wrong}\n{text}"));
        let sum = |name: &str| families[name].1.values().sum::<f64>();
        let status = ask(daemon.status()).expect("a status");
        for (name, key) in [
            ("tunneld_flows", "flows"),
            ("tunneld_flows_opened", "flows_opened"),
            ("tunneld_ring_memory_bytes", "memory"),
            ("tunneld_packets_in", "packets_in"),
            ("tunneld_packets_held", "held"),
            ("tunneld_flow_panics", "panics"),
            ("tunneld_reports_lost", "reports_lost"),
            ("tunneld_older_segments", "older"),
            ("tunneld_policy_generation", "generation"),
            ("tunneld_policy_rules", "rules"),
            ("tunneld_watchers", "watchers"),
        ] {
            assert_eq!(Some(sum(name)), status[key].as_f64(), "{name}");
        }
        assert!(sum("tunneld_flows") > 0.0 && sum("tunneld_packets_in") > 0.0);
        let outcomes = &families["tunneld_packets"].1;
        for (outcome, key) in
            [("to-egress", "to_egress"), ("to-link", "to_link"), ("to-app", "to_app")]
        {
            let labels = format!("outcome=\"{outcome}\"");
            let value = outcomes[&("tunneld_packets_total", labels.as_str())];
            assert_eq!(Some(value), status[key].as_f64(), "{outcome}");
        }
        assert_eq!(sum("tunneld_packets") + sum("tunneld_packets_held"), sum("tunneld_packets_in"));
        for (name, key) in
            [("tunneld_packets_dropped", "dropped"), ("tunneld_replies_dropped", "replies_dropped")]
        {
            let samples = &families[name].1;
            let causes = status[key].as_object().expect("causes");
            assert_eq!(samples.len(), causes.len(), "{name}");
            for (cause, count) in causes {
                let (total, labels) = (format!("{name}_total"), format!("cause=\"{cause}\""));
                let value = samples[&(total.as_str(), labels.as_str())];
                assert_eq!(Some(value), count.as_f64(), "{name} {cause}");
            }
        }
        let loaded = sum("tunneld_policy_load_time_seconds");
        assert_eq!(loaded, sum("tunneld_start_time_seconds"));
        ask(daemon.reload()).expect("a good policy");
        let text = ask(daemon.metrics()).expect("shards answer");
        let families = parse(&text).expect("the same form");
        let now = |name: &str| families[name].1.values().sum::<f64>();
        assert!(now("tunneld_policy_load_time_seconds") > loaded);
        assert_eq!(now("tunneld_policy_generation"), 2.0);
    }

    #[test]
    fn all_are_documented_and_no_others() {
        let (_disk, _daemon, text) = scraped("metrics-docs");
        let families = parse(&text).expect("an exposition");
        let of_ways_out: Vec<String> = of_ways_out().collect();
        let told: BTreeSet<&str> = families
            .values()
            .flat_map(|(_, samples)| samples.keys().map(|(name, _)| *name))
            .chain(of_ways_out.iter().map(String::as_str))
            .collect();
        let docs = include_str!("../../../docs/json.md");
        let section = docs.split_once("\n## Metrics\n").expect("a section").1;
        let section = section.split("\n## ").next().unwrap_or(section);
        let word = |c: char| !c.is_ascii_alphanumeric() && c != '_';
        let documented: BTreeSet<&str> =
            section.split(word).filter(|word| word.starts_with("tunneld_")).collect();
        assert_eq!(told, documented);
    }
}
