//! The system bus.
//!
//! Services are asked by their unique names, so nobody is started by being asked.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{Select, select};
use zbus::fdo::DBusProxy;
use zbus::message::Type;
use zbus::names::OwnedUniqueName;
use zbus::proxy::CacheProperties;
use zbus::{Connection, MatchRule, MessageStream, Proxy};

pub(crate) const RESOLVED: &str = "org.freedesktop.resolve1";
pub(crate) const RESOLVED_PATH: &str = "/org/freedesktop/resolve1";
pub(crate) const NETWORK_MANAGER: &str = "org.freedesktop.NetworkManager";
pub(crate) const NETWORK_MANAGER_DNS: &str = "/org/freedesktop/NetworkManager/DnsManager";

/// A service that takes longer is as good as none: it is asked again later.
const PATIENCE: Duration = Duration::from_secs(2);

/// Connects to the system bus, or to another.
pub(crate) async fn connect(address: Option<&str>) -> zbus::Result<Connection> {
    let builder = match address {
        Some(address) => zbus::connection::Builder::address(address),
        None => zbus::connection::Builder::system(),
    };
    let connecting = builder.method_timeout(PATIENCE).build();
    match tokio::time::timeout(PATIENCE, connecting).await {
        Ok(connected) => connected,
        Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
    }
}

/// Who has a name now.
pub(crate) async fn owner(
    bus: &Connection,
    name: &'static str,
) -> zbus::Result<Option<OwnedUniqueName>> {
    match DBusProxy::new(bus).await?.get_name_owner(name.try_into()?).await {
        Ok(owner) => Ok(Some(owner)),
        Err(zbus::fdo::Error::NameHasNoOwner(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// An interface of an object, asked each time.
pub(crate) async fn object<'a>(
    bus: &Connection,
    owner: &'a OwnedUniqueName,
    path: &'a str,
    interface: &'a str,
) -> zbus::Result<Proxy<'a>> {
    zbus::proxy::Builder::new(bus)
        .destination(owner)
        .path(path)
        .interface(interface)
        .cache_properties(CacheProperties::No)
        .build()
        .await
}

type Both<A> = Select<A, A>;

/// What the bus tells of the services that know servers.
pub(crate) struct News(Both<Both<MessageStream>>);

impl std::fmt::Debug for News {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("News")
    }
}

impl News {
    /// Begins to listen.
    pub(crate) async fn listen(bus: &Connection) -> zbus::Result<Self> {
        let rule = || MatchRule::builder().msg_type(Type::Signal);
        let properties =
            || rule().interface("org.freedesktop.DBus.Properties").member("PropertiesChanged");
        let listen = async |rule| MessageStream::for_match_rule(rule, bus, None).await;
        Ok(Self(select(
            select(listen(comings(RESOLVED)?).await?, listen(comings(NETWORK_MANAGER)?).await?),
            select(
                listen(properties().path_namespace(RESOLVED_PATH).build()?).await?,
                listen(properties().path(NETWORK_MANAGER_DNS).build()?).await?,
            ),
        )))
    }

    /// Waits until something changed. `None`: the bus is gone.
    pub(crate) async fn next(&mut self) -> Option<()> {
        self.0.next().await.map(|_| ())
    }
}

/// That a name is taken or given up.
pub(crate) fn comings(name: &'static str) -> zbus::Result<MatchRule<'static>> {
    MatchRule::builder()
        .msg_type(Type::Signal)
        .sender("org.freedesktop.DBus")
        .interface("org.freedesktop.DBus")
        .member("NameOwnerChanged")
        .arg(0, name)
        .build()
}
