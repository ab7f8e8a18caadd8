//! Asks all sources, and asks again when something moved.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;
use tracing::{debug, info, warn};
use zbus::Connection;

use super::advert::Adverts;
use super::belief::{self, Heard, Never};
use super::links::Links;
use super::{Found, Settings, files, network_manager, resolved};
use crate::bus::{self, News};
use crate::inotify::Inotify;

/// Events within this time count as one.
pub const DEBOUNCE: Duration = Duration::from_millis(200);

/// How long nothing may be asked at all: what isn't told (a bus that came, a source that has
/// failed) is seen after this time at the latest.
const SLOW: Duration = Duration::from_secs(60);

/// The network's own servers now. Asks for some seconds at most; a source that doesn't answer
/// says nothing. Works in the network namespace of the calling thread.
pub async fn once(settings: &Settings) -> Found {
    Discovery::open(settings.clone()).look().await.0
}

/// The network's own servers now and whenever they change, until the last receiver is dropped.
/// The first value is that of [`once`]. Works in the network namespace of the calling thread,
/// and needs a tokio runtime with I/O and time.
pub async fn watch(settings: Settings) -> watch::Receiver<Arc<Found>> {
    let mut discovery = Discovery::open(settings);
    let (found, until) = discovery.look().await;
    tell(&found);
    let (sender, receiver) = watch::channel(Arc::new(found));
    tokio::spawn(discovery.follow(sender, until));
    receiver
}

/// All that is listened to. What could not be opened is missing: it is tried again where that
/// may help, and said once.
struct Discovery {
    settings: Settings,
    links: Option<Arc<Links>>,
    files: Option<Inotify>,
    adverts: Option<Adverts>,
    bus: Option<(Connection, News)>,
}

impl Discovery {
    /// Opens what needs no waiting, before anything can move unseen.
    fn open(settings: Settings) -> Self {
        let files = Inotify::new(files::places(&settings.root));
        let adverts = Adverts::open();
        for error in [files.as_ref().err(), adverts.as_ref().err()].into_iter().flatten() {
            warn!(
                code = "servers-unwatched",
                "changes of the network's servers are seen late: {error}"
            );
        }
        let links = Links::open().map(Arc::new).ok();
        Self { settings, links, files: files.ok(), adverts: adverts.ok(), bus: None }
    }

    /// Asks all sources once. The second is when what they said ends by itself.
    async fn look(&mut self) -> (Found, Option<Instant>) {
        // Without a socket nothing here can be told of links; the next look tries again.
        let links = match &self.links {
            Some(links) => Arc::clone(links),
            None => match Links::open() {
                Ok(links) => Arc::clone(self.links.insert(Arc::new(links))),
                Err(_) => return (Found::default(), None),
            },
        };
        let mut heard = self.ask_bus(&links).await;
        let now = Instant::now();
        let (mut until, time) = (None, SystemTime::now());
        let (settings, of_files) = (self.settings.clone(), Arc::clone(&links));
        let read = tokio::task::spawn_blocking(move || files::read(&settings, &of_files, time));
        if let Ok((of_files, ends)) = read.await {
            heard.extend(of_files);
            until = ends.and_then(|ends| Some(now + ends.duration_since(time).ok()?));
        }
        if let Some(adverts) = &mut self.adverts {
            let (said, ends) = adverts.heard(&links, now);
            heard.extend(said);
            until = [until, ends].into_iter().flatten().min();
        }
        let tun = self.settings.tun.as_deref().and_then(|tun| links.index(tun));
        // As they are behind what was read: who changes the file tells us of the address first.
        let never = Never { own: self.settings.own.now(), tun };
        (belief::believe(heard, &never), until)
    }

    /// What the services say, those that run.
    async fn ask_bus(&mut self, links: &Links) -> Vec<Heard> {
        if self.bus.is_none() {
            let address = self.settings.bus.as_deref();
            let listening = async {
                let bus = bus::connect(address).await?;
                let news = News::listen(&bus).await?;
                zbus::Result::Ok((bus, news))
            };
            match listening.await {
                Ok(bus) => self.bus = Some(bus),
                Err(error) => debug!("no system bus: {error}"),
            }
        }
        let Some((bus, _)) = &self.bus else { return Vec::new() };
        let (resolved, network_manager) =
            tokio::join!(resolved::ask(bus), network_manager::ask(bus, links));
        let mut heard = Vec::new();
        for said in [resolved, network_manager] {
            match said {
                Ok(said) => heard.extend(said.into_iter().flatten()),
                Err(error) => debug!("a service that knows servers gave no answer: {error}"),
            }
        }
        heard
    }

    /// Looks again after each event, as long as somebody listens.
    async fn follow(mut self, sender: watch::Sender<Arc<Found>>, mut until: Option<Instant>) {
        loop {
            let slow = Instant::now() + SLOW;
            let next = until.map_or(slow, |until| until.min(slow));
            tokio::select! {
                () = sender.closed() => return,
                () = self.moved() => {}
                () = tokio::time::sleep_until(next.into()) => {}
            }
            // Until nothing has moved for that long, but not for ever.
            let latest = Instant::now() + 10 * DEBOUNCE;
            while Instant::now() < latest
                && tokio::time::timeout(DEBOUNCE, self.moved()).await.is_ok()
            {}
            let (found, ends) = self.look().await;
            until = ends;
            let is_new = |known: &mut Arc<Found>| {
                let is_new = **known != found;
                if is_new {
                    tell(&found);
                    *known = Arc::new(found);
                }
                is_new
            };
            sender.send_if_modified(is_new);
        }
    }

    /// Waits for an event of any source. A source that fails is given up.
    async fn moved(&mut self) {
        let Self { settings, files, adverts, bus, .. } = self;
        tokio::select! {
            () = settings.own.changed() => {}
            () = source(files, Inotify::changed) => {}
            () = source(adverts, Adverts::changed) => {}
            () = source(bus, async |(_, news)| news.next().await.ok_or(rustix::io::Errno::PIPE)) => {}
        }
    }
}

/// Waits for an event of a source that may be missing, and is from its first error on.
async fn source<T>(
    of: &mut Option<T>,
    changed: impl AsyncFnOnce(&mut T) -> Result<(), rustix::io::Errno>,
) {
    let Some(source) = of else { return std::future::pending().await };
    if changed(source).await.is_err() {
        *of = None;
    }
}

fn tell(found: &Found) {
    info!(servers = found.servers.len(), "the network's own servers");
    for server in &found.servers {
        debug!(address = %server.address, from = %server.from, "a server of the network's");
    }
}
