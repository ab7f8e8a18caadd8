//! systemd-resolved sends all queries to our link (org.freedesktop.resolve1(5)).
//!
//! What is set on a link vanishes with it, so nothing has to be put back after a crash. A resolved
//! that is restarted is told again, and so is one that somebody else has told otherwise: at most
//! [`REWRITES`] times in a minute, then once a minute. A link that systemd-networkd manages is set
//! through that.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::{Select, select};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};
use zbus::message::Type;
use zbus::names::OwnedUniqueName;
use zbus::{Connection, MatchRule, MessageStream, OwnedObjectPath, Proxy};

use super::Rewrites;
use crate::bus::{self, RESOLVED, RESOLVED_PATH};
#[cfg(doc)]
use crate::takeover::REWRITES;

/// How long until a bus that isn't there, or a resolved that has refused, is tried again.
const SLOW: Duration = Duration::from_secs(60);
/// How long resolved may take for all that it is told. At the end the link goes in any case.
const PATIENCE: Duration = Duration::from_secs(3);

/// The link that queries are led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Where we answer.
    pub servers: Vec<IpAddr>,
    /// Domains that complete a name without a dot, and whose names come to us.
    pub search: Vec<String>,
}

impl Link {
    /// Its domains, each with whether it only leads names here. The root leads every name here that
    /// no other link has a longer domain for.
    fn domains(&self) -> Vec<(&str, bool)> {
        let search = self.search.iter().map(|domain| (domain.as_str(), false));
        [(".", true)].into_iter().chain(search).collect()
    }
}

/// A link that is held. Dropped without [`release`](Self::release) it stays set as long as it is
/// there.
#[derive(Debug)]
pub struct Hold {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
    set: watch::Receiver<bool>,
}

/// Sets a link, and again whenever resolved begins to run. Returns when it was tried once. `bus` is
/// the system bus's address, `None` where it is by default. Needs a tokio runtime with I/O and
/// time.
pub async fn hold(bus: Option<String>, link: Link) -> Hold {
    let (stop, stopped) = oneshot::channel();
    let (tell, set) = watch::channel(false);
    let (tried, first) = oneshot::channel();
    let task = tokio::spawn(async move {
        tokio::select! {
            () = keep(bus.as_deref(), &link, &tell, tried) => {}
            // Dropped without having been sent: the link stays set.
            stopped = stopped => if stopped.is_err() { return },
        }
        let giving_back = give_back(bus.as_deref(), &link);
        let given = tokio::time::timeout(PATIENCE, giving_back).await;
        debug!("the link is given back: {given:?}");
        tell.send_replace(false);
    });
    // Its end says as much.
    let _ = first.await;
    Hold { stop, task, set }
}

impl Hold {
    /// Whether resolved runs and has done as it was told.
    pub fn is_set(&self) -> bool {
        *self.set.borrow()
    }

    /// Tells of each change of [`is_set`](Self::is_set).
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.set.clone()
    }

    /// Gives the link back. Takes three seconds at most.
    pub async fn release(self) {
        // A task that has ended has nothing to stop.
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}

/// Why waiting has ended.
enum Event {
    /// Somebody has taken or given up the name, or something that resolved knows is another.
    Moved,
    /// The bus is gone.
    Gone,
    /// It is time to try again.
    Slow,
}

/// Sets the link, and again, for ever.
async fn keep(
    address: Option<&str>,
    link: &Link,
    tell: &watch::Sender<bool>,
    tried: oneshot::Sender<()>,
) {
    let mut tried = Some(tried);
    let (mut said, mut contested) = (false, false);
    let mut sets = Rewrites::default();
    loop {
        let mut bus = listen(address).await.ok();
        // Who was told last. A bus that came back may be another one.
        let mut told = None;
        loop {
            let mut refused = false;
            if let Some((bus, _)) = &bus {
                let setting = set_where_needed(bus, link, &mut told, &mut sets);
                let why = match tokio::time::timeout(PATIENCE, setting).await {
                    Ok(Ok(Set::Contested)) => {
                        refused = true;
                        tell.send_replace(false);
                        if !std::mem::replace(&mut contested, true) {
                            warn!(
                                code = "resolved-contested",
                                "something keeps telling systemd-resolved not to ask us"
                            );
                        }
                        None
                    }
                    Ok(Ok(done)) => {
                        let is_set = done == Set::Done;
                        if is_set && !*tell.borrow() {
                            info!("systemd-resolved asks us");
                        }
                        tell.send_replace(is_set);
                        None
                    }
                    Ok(Err(error)) => Some(error.to_string()),
                    Err(_) => Some("it gives no answer".to_owned()),
                };
                if let Some(why) = why {
                    refused = true;
                    tell.send_replace(false);
                    if !std::mem::replace(&mut said, true) {
                        warn!(code = "resolved-refused", "systemd-resolved does not ask us: {why}");
                    }
                }
            }
            drop(tried.take());
            match (next(&mut bus, refused).await, &bus) {
                (Event::Moved | Event::Slow, Some(_)) => {}
                (Event::Gone, _) | (Event::Moved | Event::Slow, None) => break,
            }
        }
        tell.send_replace(false);
    }
}

type News = Select<MessageStream, MessageStream>;

async fn listen(address: Option<&str>) -> zbus::Result<(Connection, News)> {
    let bus = bus::connect(address).await?;
    let owners = MessageStream::for_match_rule(bus::comings(RESOLVED)?, &bus, None).await?;
    let properties = MatchRule::builder()
        .msg_type(Type::Signal)
        .interface("org.freedesktop.DBus.Properties")
        .member("PropertiesChanged")
        .path(RESOLVED_PATH)
        .build()?;
    let properties = MessageStream::for_match_rule(properties, &bus, None).await?;
    Ok((bus, select(owners, properties)))
}

/// Waits until there may be something to do. `slow`: something is to be tried again, and nothing
/// before its time.
async fn next(bus: &mut Option<(Connection, News)>, slow: bool) -> Event {
    let mut until = Instant::now() + SLOW;
    let (mut timed, mut event) = (slow || bus.is_none(), Event::Slow);
    loop {
        let news = async {
            match bus {
                Some((_, news)) => news.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // What comes is taken in any case: who doesn't read gets no answers either.
            news = news => match news {
                None => return Event::Gone,
                Some(message) if is_owner(&message) => return Event::Moved,
                Some(_) if timed => {}
                Some(_) => (timed, event, until) = (true, Event::Moved, Instant::now() + GATHER),
            },
            () = tokio::time::sleep_until(until.into()), if timed => return event,
        }
    }
}

/// Whether resolved has come or gone.
fn is_owner(message: &zbus::Result<zbus::Message>) -> bool {
    message.as_ref().is_ok_and(|message| {
        message.header().member().is_some_and(|member| member == "NameOwnerChanged")
    })
}

/// What is told together counts as one.
const GATHER: Duration = Duration::from_millis(100);

/// What came of setting the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Set {
    Done,
    /// resolved doesn't run.
    Absent,
    /// It was set too often of late.
    Contested,
}

/// Sets the link, but where this resolved was told already and it is still as it was set.
async fn set_where_needed(
    bus: &Connection,
    link: &Link,
    told: &mut Option<OwnedUniqueName>,
    sets: &mut Rewrites,
) -> zbus::Result<Set> {
    let Some(owner) = bus::owner(bus, RESOLVED).await? else { return Ok(Set::Absent) };
    let resolved = manager(bus, &owner).await?;
    if told.as_ref() == Some(&owner) && stays(bus, &owner, &resolved, link).await {
        return Ok(Set::Done);
    }
    *told = None;
    if !sets.again(Instant::now()) {
        return Ok(Set::Contested);
    }
    set(bus, resolved, link).await?;
    *told = Some(owner.clone());
    Ok(Set::Done)
}

/// Whether a link is as we have set it. One that can't be looked at counts as such.
async fn stays(
    bus: &Connection,
    owner: &OwnedUniqueName,
    resolved: &Proxy<'_>,
    link: &Link,
) -> bool {
    let index = i32::try_from(link.index).unwrap_or(0);
    let looked = async {
        let path: OwnedObjectPath = resolved.call("GetLink", &index).await?;
        let at = bus::object(bus, owner, path.as_str(), "org.freedesktop.resolve1.Link").await?;
        let servers: Vec<(i32, Vec<u8>)> = at.get_property("DNS").await?;
        let domains: Vec<(String, bool)> = at.get_property("Domains").await?;
        zbus::Result::Ok((servers, domains))
    };
    let Ok((servers, domains)) = looked.await else { return true };
    let has = |(name, route): (&str, bool)| {
        let is = |domain: &str| domain == name || name == "." && domain.is_empty();
        domains.iter().any(|(domain, of)| *of == route && is(domain))
    };
    link.domains().into_iter().all(has)
        && servers == link.servers.iter().map(octets).collect::<Vec<_>>()
}

/// Sets the link.
async fn set(bus: &Connection, resolved: Proxy<'_>, link: &Link) -> zbus::Result<()> {
    match set_by(&resolved, link).await {
        Err(error) if is(&error, "org.freedesktop.resolve1.LinkBusy") => {
            let Some(owner) = bus::owner(bus, NETWORKD).await? else { return Err(error) };
            set_by(&networkd(bus, &owner).await?, link).await?;
        }
        done => done?,
    }
    // What was learned from others is past.
    flush(&resolved).await;
    Ok(())
}

fn octets(ip: &IpAddr) -> (i32, Vec<u8>) {
    match ip {
        IpAddr::V4(v4) => (AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (AF_INET6, v6.octets().to_vec()),
    }
}

async fn set_by(manager: &Proxy<'_>, link: &Link) -> zbus::Result<()> {
    let index = i32::try_from(link.index).unwrap_or(0);
    let servers: Vec<(i32, Vec<u8>)> = link.servers.iter().map(octets).collect();
    // To us it is a hop within the host.
    optional(manager.call_method("SetLinkDNSOverTLS", &(index, "no")).await)?;
    // And there is nobody else on the link.
    optional(manager.call_method("SetLinkLLMNR", &(index, "no")).await)?;
    optional(manager.call_method("SetLinkMulticastDNS", &(index, "no")).await)?;
    manager.call_method("SetLinkDNS", &(index, servers)).await?;
    manager.call_method("SetLinkDomains", &(index, link.domains())).await?;
    optional(manager.call_method("SetLinkDefaultRoute", &(index, true)).await)?;
    Ok(())
}

/// Undoes all of it, also what networkd was told.
async fn give_back(address: Option<&str>, link: &Link) -> zbus::Result<()> {
    let bus = &bus::connect(address).await?;
    let index = i32::try_from(link.index).unwrap_or(0);
    let Some(owner) = bus::owner(bus, RESOLVED).await? else { return Ok(()) };
    let resolved = manager(bus, &owner).await?;
    match resolved.call_method("RevertLink", &index).await {
        Err(error) if is(&error, "org.freedesktop.resolve1.LinkBusy") => {
            let Some(owner) = bus::owner(bus, NETWORKD).await? else { return Err(error) };
            networkd(bus, &owner).await?.call_method("RevertLinkDNS", &index).await?;
        }
        done => drop(done?),
    }
    flush(&resolved).await;
    Ok(())
}

/// Names are asked anew. Where that fails they are when their time is over.
async fn flush(resolved: &Proxy<'_>) {
    let _ = resolved.call_method("FlushCaches", &()).await;
}

async fn manager<'a>(bus: &Connection, owner: &'a OwnedUniqueName) -> zbus::Result<Proxy<'a>> {
    bus::object(bus, owner, RESOLVED_PATH, "org.freedesktop.resolve1.Manager").await
}

async fn networkd<'a>(bus: &Connection, owner: &'a OwnedUniqueName) -> zbus::Result<Proxy<'a>> {
    let path = "/org/freedesktop/network1";
    bus::object(bus, owner, path, "org.freedesktop.network1.Manager").await
}

/// An older one has no such method, and does without.
fn optional(called: zbus::Result<zbus::Message>) -> zbus::Result<()> {
    match called {
        Err(zbus::Error::FDO(error)) if matches!(*error, zbus::fdo::Error::UnknownMethod(_)) => {
            Ok(())
        }
        called => called.map(drop),
    }
}

fn is(error: &zbus::Error, expected: &str) -> bool {
    matches!(error, zbus::Error::MethodError(name, ..) if name.as_str() == expected)
}

const NETWORKD: &str = "org.freedesktop.network1";
const AF_INET: i32 = 2;
const AF_INET6: i32 = 10;
