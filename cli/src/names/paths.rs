//! The way to each server, and when it leads elsewhere.
//!
//! A socket to a server is bound to the device that the kernel's routing names when it is opened,
//! past our capture. What was named then is remembered; when links, addresses, routes or rules of
//! the host change, it is asked again. A server that is reached another way by now, by another
//! router or with another address, has its sockets given up and its resolver's answers forgotten: they were
//! another network's.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dns::resolver::Resolver;
use dns::server::Device;
use dns::socket::Target;
use engine::Protocol;
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;
use tracing::{debug, warn};
use tunnel::source::{Query, RouteKind, Routes};

use super::servers::Servers;

/// What the kernel said of the ways that sockets took.
pub(super) struct Paths {
    mark: Option<u32>,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    /// Opened when it is first asked, in the thread that opens the servers' sockets.
    routes: Option<Routes>,
    ways: HashMap<Target, Option<Path>>,
}

/// A way to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Path {
    device: u32,
    source: IpAddr,
    /// The router: another one is another network, whatever its addresses are.
    gateway: Option<IpAddr>,
    /// It is this host itself.
    is_local: bool,
}

impl fmt::Debug for Paths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Paths").field("mark", &self.mark).finish_non_exhaustive()
    }
}

impl Paths {
    pub(super) fn new(mark: Option<u32>) -> Self {
        Self { mark, taken: Mutex::default() }
    }

    /// Where a socket to a server is to be bound. Without the mark of our own packets there are
    /// no rights to bind it, nor a capture that it must pass.
    pub(super) fn uplink(&self, to: &Target) -> Option<u32> {
        let mut taken = self.taken();
        let path = taken.look(to, self.mark);
        if taken.ways.len() >= MOST {
            taken.ways.clear();
        }
        // The oldest one counts, until whoever took it has been told.
        taken.ways.entry(to.clone()).or_insert(path);
        let path = path.filter(|path| !path.is_local && self.mark.is_some());
        path.map(|path| path.device)
    }

    /// The places that are reached another way than when they were last looked at.
    pub(super) fn moved(&self) -> HashSet<Target> {
        let mut taken = self.taken();
        let mut ways = std::mem::take(&mut taken.ways);
        let mut moved = HashSet::new();
        ways.retain(|to, before| {
            let same = taken.look(to, self.mark) == *before;
            if !same {
                moved.insert(to.clone());
            }
            same
        });
        taken.ways = ways;
        moved
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// What the kernel says now; `None`: there is no way.
    fn look(&mut self, to: &Target, mark: Option<u32>) -> Option<Path> {
        let device = match &to.device {
            Some(Device::Index(index)) => Some(*index),
            // Whichever has the name, and it is the kernel that knows.
            Some(Device::Named(_)) => return None,
            None => None,
        };
        if self.routes.is_none() {
            self.routes = Routes::open().ok();
        }
        let query = Query {
            destination: to.address.ip(),
            source: None,
            device,
            protocol: Protocol::Udp,
            destination_port: to.address.port(),
            uid: None,
            mark,
        };
        let answer = self.routes.as_mut()?.lookup(query).ok()?;
        Some(Path {
            device: answer.device_index,
            source: answer.egress.address,
            gateway: answer.gateway,
            is_local: answer.kind == RouteKind::Local,
        })
    }
}

/// Follows the host's routing for as long as the resolver is asked.
pub(super) async fn follow(resolver: Arc<Resolver<Servers>>) {
    let watch = Watch::open();
    if let Err(errno) = &watch {
        warn!(
            code = "servers-unwatched",
            "changes of routes to name servers are seen within a minute: {errno}"
        );
    }
    loop {
        match &watch {
            Ok(watch) => watch.changed().await,
            Err(_) => sleep(UNWATCHED).await,
        }
        for id in resolver.upstreams().follow_paths() {
            debug!(resolver = id.0, "its servers are reached another way");
            resolver.flush(Some(id));
        }
    }
}

/// Tells that something of the host's routing has changed.
struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    /// Every change from now on, of this thread's network namespace.
    fn open() -> Result<Self, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // No protocol is NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
        readable(socket).map(Self).map_err(|_| Errno::IO)
    }

    /// Waits for a change, and then until those that come with it are there.
    async fn changed(&self) {
        if let Ok(mut ready) = self.0.readable().await {
            sleep(GATHER).await;
            // What it was is looked at, not told; that some were lost says the same.
            let mut one = [0_u8; 16];
            let drained = loop {
                match recv(&self.0, &mut one, RecvFlags::TRUNC) {
                    Ok(_) | Err(Errno::NOBUFS | Errno::INTR) => {}
                    Err(errno) => break errno,
                }
            };
            match drained {
                Errno::AGAIN => ready.clear_ready(),
                _ => sleep(UNWATCHED).await,
            }
        } else {
            sleep(UNWATCHED).await;
        }
    }
}

#[expect(
    deprecated,
    reason = "what is to replace it is unsafe for types that may change their descriptor; this one never does"
)]
fn readable(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(socket, Interest::READABLE)
}

/// Servers whose way is remembered: more than there can be at a time.
const MOST: usize = 4_096;
/// A new network comes with a dozen changes, which are one to us.
const GATHER: Duration = Duration::from_millis(50);
/// Looked at again where nothing tells.
const UNWATCHED: Duration = Duration::from_secs(60);
/// `RTMGRP_LINK`, `_IPV4_IFADDR`, `_IPV4_ROUTE`, `_IPV4_RULE`, `_IPV6_IFADDR`, `_IPV6_ROUTE` and
/// `RTNLGRP_IPV6_RULE` (19).
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 1 << 18;
