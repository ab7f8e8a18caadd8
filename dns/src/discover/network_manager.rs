//! What NetworkManager says, over D-Bus.

use std::collections::HashMap;

use zbus::{Connection, OwnedVariant};

use super::Provenance;
use super::belief::Heard;
use super::links::Links;
use super::server;
use crate::bus::{self, NETWORK_MANAGER, NETWORK_MANAGER_DNS};

/// Asks for all servers, in the order of their priority. `None`: it doesn't run.
pub(super) async fn ask(bus: &Connection, links: &Links) -> zbus::Result<Option<Vec<Heard>>> {
    let Some(owner) = bus::owner(bus, NETWORK_MANAGER).await? else { return Ok(None) };
    let interface = "org.freedesktop.NetworkManager.DnsManager";
    let manager = bus::object(bus, &owner, NETWORK_MANAGER_DNS, interface).await?;
    let entries: Vec<HashMap<String, OwnedVariant>> = manager.get_property("Configuration").await?;
    Ok(Some(entries.iter().map(|entry| heard(entry, links)).collect()))
}

fn heard(entry: &HashMap<String, OwnedVariant>, links: &Links) -> Heard {
    let texts = |key| -> Vec<String> {
        let value = entry.get(key).and_then(|value| value.try_clone().ok());
        value.and_then(|value| value.try_into().ok()).unwrap_or_default()
    };
    let interface: Option<String> = entry.get("interface").and_then(|value| {
        let name: &str = value.downcast_ref().ok()?;
        Some(name.to_owned())
    });
    // An interface that is gone has a number that no link has: its servers are not to be taken
    // for everybody's.
    let link = interface.as_deref().map(|name| links.index(name).unwrap_or(0));
    let servers = texts("nameservers");
    Heard {
        from: Provenance::NetworkManager { interface },
        link,
        servers: servers.iter().filter_map(|word| server::parse(word, link, links)).collect(),
        domains: texts("domains").iter().filter_map(|word| server::domain(word)).collect(),
        default_route: true,
    }
}
