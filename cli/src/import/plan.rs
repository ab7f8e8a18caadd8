//! What wg-quick would do with an interface, in our terms, and what of it stays out.

use std::fmt;

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::config::secret;
use crate::wireguard::conf::{Extra, What};
use crate::wireguard::{Endpoint, Interface};

/// What configuration and policy are to do.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) name: String,
    /// What is led into the tunnel, as few prefixes as say it.
    pub(super) routes: Vec<IpNet>,
    /// Whether what is not led there is blocked.
    pub(super) kill_switch: bool,
    /// Whether all names are asked of the tunnel's servers.
    pub(super) names: bool,
    pub(super) notes: Vec<Note>,
}

/// Something that the user is told.
#[derive(Debug)]
pub(super) struct Note {
    /// The key that was dropped, and its line where it is one. `None`: nothing was.
    dropped: Option<(&'static str, Option<usize>)>,
    /// What the key said, where that is no secret.
    value: Option<String>,
    why: String,
    instead: String,
}

/// What a command is probably for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    KillSwitch,
    Forwarding,
    Names,
    Routes,
    Other,
}

impl Plan {
    pub(super) fn new(name: &str, interface: &Interface, extras: &[Extra]) -> Self {
        let table = extras.iter().any(|extra| matches!(extra.what, What::Table(_)));
        let purposes = extras.iter().filter_map(|extra| match &extra.what {
            What::Hook { command, .. } => Some(Purpose::of(command)),
            What::Table(_) | What::SaveConfig => None,
        });
        let purposes: Vec<Purpose> = purposes.collect();
        let mut plan = Self {
            name: name.to_owned(),
            routes: routes(interface, table),
            kill_switch: purposes.contains(&Purpose::KillSwitch),
            names: !interface.dns.is_empty(),
            notes: Vec::new(),
        };
        plan.notes = extras.iter().map(|extra| plan.of_extra(extra)).collect();
        plan.of_keys(interface);
        plan.remarks(interface, purposes.contains(&Purpose::Forwarding));
        plan
    }

    /// Whether all of that IP version is led into the tunnel.
    pub(super) fn is_full(&self, v4: bool) -> bool {
        self.routes.iter().any(|net| net.prefix_len() == 0 && net.addr().is_ipv4() == v4)
    }

    fn of_extra(&self, extra: &Extra) -> Note {
        let line = Some(extra.fault.line);
        let name = &self.name;
        let (key, value, why, instead) = match &extra.what {
            What::Hook { key, command } => {
                let why = "tunneld runs no commands".to_owned();
                (*key, command.clone(), why, Purpose::of(command).instead(name))
            }
            What::Table(table) => {
                let why =
                    "no kernel route leads into the tunnel, and so no table has one".to_owned();
                let instead = format!(
                    "the prefixes of the peers stay out of it, as with wg-quick: where some shall \
                     go in, write `route to PREFIX via {name}`"
                );
                ("Table", table.clone(), why, instead)
            }
            What::SaveConfig => {
                let why = "tunneld never writes to its configuration".to_owned();
                ("SaveConfig", "true".to_owned(), why, "nothing is needed".to_owned())
            }
        };
        let value = Some(secret::masked(&value).into_owned());
        Note { dropped: Some((key, line)), value, why, instead }
    }

    /// What of WireGuard's own keys stays out.
    fn of_keys(&mut self, interface: &Interface) {
        if let Some(mark) = interface.fwmark {
            self.notes.push(Note {
                dropped: Some(("FwMark", None)),
                value: Some(format!("{mark:#x}")),
                why: "tunneld marks all of its own packets alike, so that they pass its device"
                    .to_owned(),
                instead: "the mark is `host.mark` of the configuration".to_owned(),
            });
        }
        if !interface.search.is_empty() && interface.dns.is_empty() {
            self.notes.push(Note {
                dropped: Some(("DNS", None)),
                value: Some(interface.search.join(", ")),
                why: "a search domain without a server in the tunnel leads to nobody".to_owned(),
                instead: "write names in full, or `search` in /etc/resolv.conf".to_owned(),
            });
        }
    }

    fn remarks(&mut self, interface: &Interface, forwards: bool) {
        let name = self.name.clone();
        if interface.listen_port.is_some() || forwards {
            self.notes.push(Note::remark(
                "what a peer begins is dropped: in this version a tunnel is a way out, and none in"
                    .to_owned(),
                "peers that connect to this host still need wg-quick".to_owned(),
            ));
        }
        let [v4, v6] = [true, false].map(|v4| self.is_full(v4));
        if v4 && !v6 && !self.kill_switch {
            self.notes.push(Note::remark(
                "IPv6 stays beside the tunnel, as with wg-quick: no peer has ::/0".to_owned(),
                "to block it write capture = \"all\" below [device], and `block to ::/0` in the \
                 policy"
                    .to_owned(),
            ));
        }
        if v4 || v6 {
            self.notes.push(Note::remark(
                "wg-quick leaves networks with a route of their own, such as the LAN, beside the \
                 tunnel; here they go in"
                    .to_owned(),
                format!("to leave some out write `route to PREFIX via direct` above `via {name}`"),
            ));
        }
        let is_name = |endpoint: &Endpoint| matches!(endpoint, Endpoint::Name(..));
        if interface.peers.iter().filter_map(|peer| peer.endpoint.as_ref()).any(is_name) {
            self.notes.push(Note::remark(
                "names of endpoints are asked of the network's own servers".to_owned(),
                "an address in their place needs none".to_owned(),
            ));
        }
    }
}

/// wg-quick(8) leads there what the peers may have, unless `Table` says otherwise; the kernel
/// adds the networks that the interface's addresses are in.
fn routes(interface: &Interface, table: bool) -> Vec<IpNet> {
    let own = interface.addresses.iter();
    let own = own.filter(|net| net.prefix_len() < net.max_prefix_len()).map(IpNet::trunc);
    let allowed = interface.peers.iter().flat_map(|peer| &peer.allowed).copied();
    let all: Vec<IpNet> = allowed.filter(|_| !table).chain(own).collect();
    IpNet::aggregate(&all)
}

impl Purpose {
    fn of(command: &str) -> Self {
        let command = command.to_ascii_lowercase();
        let has = |words: &[&str]| words.iter().any(|word| command.contains(word));
        if has(&["masquerade", "forward"]) {
            Self::Forwarding
        } else if has(&["iptables", "ip6tables", "nft", "ufw"]) && has(&["reject", "drop", "deny"])
        {
            Self::KillSwitch
        } else if has(&["resolvconf", "resolvectl", "systemd-resolve", "resolv.conf"]) {
            Self::Names
        } else if has(&["ip route", "ip rule", "ip -4 r", "ip -6 r"]) {
            Self::Routes
        } else {
            Self::Other
        }
    }

    fn instead(self, name: &str) -> String {
        match self {
            Self::KillSwitch => format!(
                "nothing that is led into {name} leaves beside it, and `block to any via direct` \
                 stops the rest; exceptions of the command are not in it"
            ),
            Self::Forwarding => {
                "flows that this host forwards are judged like its own; from peers they don't come"
                    .to_owned()
            }
            Self::Names => format!("`resolve NAMES using {name}` in the policy leads names"),
            Self::Routes => "`route to PREFIX via …` in the policy leads destinations".to_owned(),
            Self::Other => "run it beside tunneld where it is needed".to_owned(),
        }
    }
}

impl Note {
    /// Nothing was dropped, and yet it is not all the same.
    pub(super) fn remark(why: String, instead: String) -> Self {
        Self { dropped: None, value: None, why, instead }
    }

    pub(super) fn is_dropped(&self) -> bool {
        self.dropped.is_some()
    }

    pub(super) fn object(&self) -> Value {
        let mut object = json!({ "why": self.why, "instead": self.instead });
        if let Some((key, line)) = self.dropped {
            object["key"] = json!(key);
            object["line"] = json!(line);
            object["value"] = json!(self.value);
        }
        object
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.dropped {
            Some((key, Some(line))) => write!(f, "dropped: `{key}` in line {line}")?,
            Some((key, None)) => write!(f, "dropped: `{key}`")?,
            None => write!(f, "note")?,
        }
        if let Some(value) = &self.value {
            write!(f, " ({value})")?;
        }
        write!(f, ": {}\nhelp: {}", self.why, self.instead)
    }
}
