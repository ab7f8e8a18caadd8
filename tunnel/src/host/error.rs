//! Why the host was not changed, or not put back.

use std::path::PathBuf;

use engine::DeviceName;
use rustix::io::Errno;

use super::change::{Change, Device, Family, Takes, Then, Via};
use super::nft::NftError;
use super::resolvconf::ResolvconfError;

/// Why the host is not as it was to be. Displays as `WHAT: WHY`.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The directory of lock and journal can't be used.
    #[error("cannot use {}: {}", .0.display(), reason(*.1))]
    Directory(PathBuf, Errno),
    /// Others may write to that directory, so what lies in it proves nothing.
    #[error("cannot keep the journal in {}: others may write there", .0.display())]
    OpenDirectory(PathBuf),
    /// The journal was written in another network namespace, and is to be undone there.
    #[error("cannot use the journal {}: it belongs to another network namespace", .0.display())]
    JournalElsewhere(PathBuf),
    /// Another daemon has the lock.
    #[error("cannot change the host: another tunneld is running{}", process(*.pid))]
    Running {
        /// Its process, where the lock tells.
        pid: Option<u32>,
    },
    /// The journal can't be read or written.
    #[error("cannot use the journal {}: {}", .0.display(), reason(*.1))]
    Journal(PathBuf, Errno),
    /// The journal is of a later version of tunneld.
    #[error(
        "cannot read the journal {}: its format is {format}, and this version knows up to {known}",
        .path.display()
    )]
    JournalFormat {
        /// Where it is.
        path: PathBuf,
        /// Its format.
        format: u64,
        /// Ours.
        known: u64,
    },
    /// The journal holds what is no change.
    #[error("cannot read the journal {}: line {line} makes no sense", .path.display())]
    JournalLine {
        /// Where it is.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
    },
    /// The host could not be looked at.
    #[error("cannot look at the host's network: {}", reason(*.0))]
    Look(Errno),
    /// No right to change it.
    #[error("cannot change the host: it takes root, or CAP_NET_ADMIN")]
    NotPermitted,
    /// A device has the TUN's name.
    #[error("cannot make the device {0}: there is a device of that name, and it is not ours")]
    DeviceExists(DeviceName),
    /// A rule of somebody else's has a priority that is ours.
    #[error(
        "cannot add a rule: there is an {family} rule of priority {priority}, and it is not ours"
    )]
    ForeignRule {
        /// Of which IP version.
        family: Family,
        /// Its priority.
        priority: u32,
    },
    /// Our table has routes of somebody else's.
    #[error("cannot add routes: there are {family} routes in table {table}, and they are not ours")]
    ForeignRoutes {
        /// Of which IP version.
        family: Family,
        /// The table.
        table: u32,
    },
    /// There is an nftables table of our name.
    #[error("cannot add the nftables table `inet tunneld`: there is one, and it is not ours")]
    ForeignTable,
    /// nft does not work.
    #[error("cannot use nftables: {0}")]
    Nft(NftError),
    /// One of the plan's device patterns is none.
    #[error("cannot use the device patterns: number {} is none", .0 + 1)]
    Pattern(usize),
    /// The mark is empty, or has bits outside of its mask.
    #[error("cannot use the mark: it has no bits, or bits outside of its mask")]
    Mark,
    /// The priority leaves no room before the rule for the table `main`.
    #[error("cannot use the rule priority {0}: it is 2 to 32764")]
    Priority(u32),
    /// The table is one of the kernel's.
    #[error("cannot use the routing table {0}: it is the kernel's own")]
    Table(u32),
    /// A change failed; what went before was undone, but for what is left.
    #[error("cannot {}: {why}{}", what(.change), left_over(.left))]
    Apply {
        /// Which one.
        change: Box<Change>,
        /// Why.
        why: Refusal,
        /// What could not be undone.
        left: Vec<Unrestored>,
    },
    /// Not all could be put back.
    #[error("cannot put the host back{}", left_over(.left))]
    Restore {
        /// What was undone.
        undone: Vec<Change>,
        /// What wasn't.
        left: Vec<Unrestored>,
    },
}

/// A change that could not be undone.
#[derive(Debug)]
pub struct Unrestored {
    /// The change.
    pub change: Change,
    /// Why.
    pub why: Refusal,
}

/// Why one change could not be made or undone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The kernel said no.
    #[error("{}", reason(*.0))]
    Kernel(Errno),
    /// nft said no.
    #[error("{0}")]
    Nft(NftError),
    /// resolvconf said no.
    #[error("{0}")]
    Resolvconf(ResolvconfError),
    /// Another daemon, whose lock is in this directory, has it.
    #[error("another tunneld has it, whose lock is in {}", .0.display())]
    Anothers(PathBuf),
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self::Kernel(errno)
    }
}

impl From<NftError> for Refusal {
    fn from(error: NftError) -> Self {
        Self::Nft(error)
    }
}

impl From<ResolvconfError> for Refusal {
    fn from(error: ResolvconfError) -> Self {
        Self::Resolvconf(error)
    }
}

impl HostError {
    /// What the user can do, where there is something.
    pub fn help(&self) -> Option<&'static str> {
        const NFT: &str = "apt install nftables";
        const ROOT: &str = "run tunneld as root";
        let refusal = |change: &Change, why: &Refusal| match why {
            Refusal::Anothers(_) => Some(
                "end the other one, or set `dns.takeover` to \"none\": one file can name one of them",
            ),
            Refusal::Kernel(_) if matches!(change, Change::ResolvConf { .. }) => Some(
                "make the file and its directory writable (`chattr -i` where it is immutable), \
                 or set `dns.takeover` to another way, or to \"none\"",
            ),
            Refusal::Resolvconf(_) => Some("set `dns.takeover` to another way, or to \"none\""),
            Refusal::Nft(NftError::Missing) => Some(NFT),
            Refusal::Kernel(Errno::PERM | Errno::ACCESS) => Some(ROOT),
            Refusal::Kernel(Errno::ROFS) => Some("make /proc/sys writable"),
            Refusal::Kernel(_)
            | Refusal::Nft(NftError::Run(_) | NftError::Hangs | NftError::Refused(_)) => None,
        };
        match self {
            Self::Directory(_, Errno::PERM | Errno::ACCESS) | Self::NotPermitted => Some(ROOT),
            Self::OpenDirectory(_) => {
                Some("set `control.socket` to a path below root's own, such as /run")
            }
            Self::JournalElsewhere(_) => Some("run `tunneld cleanup` there, or end what is in it"),
            Self::Running { .. } => Some("stop it first: by its service manager, or SIGTERM"),
            Self::JournalFormat { .. } => Some("put the host back with the version that wrote it"),
            Self::JournalLine { .. } => {
                Some("what the journal names is still in place: remove that by hand, then the file")
            }
            Self::DeviceExists(_) => {
                Some("remove the device, or give ours another name: `[device] name`")
            }
            Self::ForeignRule { .. } => Some("choose another priority: `[host] priority`"),
            Self::ForeignRoutes { .. } | Self::Table(_) => {
                Some("choose another table: `[host] table`")
            }
            Self::ForeignTable => Some("remove it: nft delete table inet tunneld"),
            Self::Nft(NftError::Missing) => Some(NFT),
            Self::Pattern(_) => Some("a pattern is a device name, or the start of one and `*`"),
            Self::Mark => Some("write VALUE/MASK, such as 0x74000000/0xff000000"),
            Self::Apply { change, why, left } if left.is_empty() => refusal(change, why),
            Self::Apply { left, .. } | Self::Restore { left, .. } => left
                .iter()
                .find_map(|left| refusal(&left.change, &left.why))
                .or(Some("run `tunneld cleanup` once the cause is gone")),
            Self::Directory(..)
            | Self::Journal(..)
            | Self::Look(_)
            | Self::Nft(NftError::Run(_) | NftError::Hangs | NftError::Refused(_))
            | Self::Priority(_) => None,
        }
    }
}

/// What making a change is called.
fn what(change: &Change) -> String {
    match change {
        Change::Sysctl { key, value, .. } => {
            format!("set net.{} to {value}", key.replace('/', "."))
        }
        Change::ReversePath { device: Device { name, .. }, .. } => {
            format!("set net.ipv4.conf.{name}.rp_filter to 0")
        }
        Change::LaterReversePath { .. } => "set net.ipv4.conf.default.rp_filter to 0".to_owned(),
        Change::NftTable { .. } => "add the nftables table `inet tunneld`".to_owned(),
        Change::Accepted => "list the connections that are open".to_owned(),
        Change::Link { device, .. } => format!("bring up {}", device.name),
        Change::Address { device: Device { name, .. }, address } => {
            format!("give {name} the address {address}")
        }
        Change::Route { table, to, via, .. } => {
            let via = match via {
                Via::Device { device, .. } => format!("to {} by {}", to, device.name),
                Via::Unreachable => format!("that makes {to} unreachable"),
                Via::Throw => format!("that leaves {to} out"),
            };
            format!("add the route {via} to table {table}")
        }
        Change::Rule(rule) => {
            let takes = match &rule.takes {
                Takes::All => String::new(),
                Takes::Marked { value, mask } => format!(" for mark {value:#x}/{mask:#x}"),
                Takes::Unmarked { value, mask } => {
                    format!(" for all but mark {value:#x}/{mask:#x}")
                }
                Takes::From(device) => format!(" for what {device} brings"),
                Takes::BoundTo(device) => format!(" for what is bound to {device}"),
                Takes::Own => " for own packets".to_owned(),
                Takes::Connection { there, .. } => format!(" for the connection from {there}"),
                Takes::OwnMarked { value, mask } => {
                    format!(" for own packets of mark {value:#x}/{mask:#x}")
                }
            };
            let then = match rule.then {
                Then::Lookup(table) => format!("to table {table}"),
                Then::Goto(priority) => format!("to rule {priority}"),
                Then::Nop => "that does nothing".to_owned(),
            };
            let (family, priority) = (rule.family, rule.priority);
            format!("add the {family} rule {then}{takes} at priority {priority}")
        }
        Change::ResolvConf { path, .. } => format!("replace {}", path.display()),
        Change::ResolvconfRecord { record, .. } => format!("add the resolvconf record {record}"),
    }
}

impl std::fmt::Display for Change {
    /// As the end of a sentence that begins with "cannot".
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&what(self))
    }
}

fn left_over(left: &[Unrestored]) -> String {
    let list: Vec<String> =
        left.iter().map(|left| format!("`{}` stays ({})", left.change, left.why)).collect();
    if list.is_empty() { String::new() } else { format!(": {}", list.join("; ")) }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

fn process(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

pub(super) fn reason(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    let end = text.find(" (os error").unwrap_or(text.len());
    text[..end].to_lowercase()
}
