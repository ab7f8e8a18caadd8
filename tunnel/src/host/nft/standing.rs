//! Whether our table is as it was made, asked of the kernel itself: the program takes milliseconds,
//! this some microseconds.
//!
//! Table, chains and rules have numbers that are never given twice, so whatever was removed, or
//! replaced by its like, is missed. So is a table that was put to sleep, a chain with another
//! policy, and a connection that is listed no more. What others add is theirs to know; what
//! is in the other sets comes and goes with the packets.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

use netlink_packet_core::Emitable;
use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

use super::TABLE;
use crate::netlink;

/// Our table, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Standing {
    table: u64,
    flags: Option<u32>,
    /// By their numbers: what becomes of a packet at their end.
    chains: BTreeMap<u64, Option<u32>>,
    rules: BTreeSet<u64>,
    /// The connections that are listed, as the kernel writes them.
    accepted: BTreeSet<Vec<u8>>,
}

impl Standing {
    /// What there is in this thread's network namespace; `None`: no table.
    pub(in super::super) fn look() -> Result<Option<Self>, Errno> {
        let mut lists = Lists { socket: socket()?, sequence: 0 };
        for _ in 0..TRIES {
            let mut found = None;
            let tables = lists.list(GET_TABLE, &[], |message| {
                if attribute(message, TABLE_NAME).is_some_and(is_ours) {
                    let number = attribute(message, TABLE_HANDLE).and_then(number);
                    let flags = attribute(message, TABLE_FLAGS).and_then(word);
                    found = number.map(|number| (number, flags));
                }
            })?;
            let Some((table, flags)) = found else {
                if tables {
                    return Ok(None);
                }
                continue;
            };
            let mut standing = Self {
                table,
                flags,
                chains: BTreeMap::new(),
                rules: BTreeSet::new(),
                accepted: BTreeSet::new(),
            };
            if lists.read(&mut standing)? {
                return Ok(Some(standing));
            }
        }
        Err(Errno::AGAIN)
    }

    /// Whether all of it is still there by what there is `now`, but for what is listed.
    pub(in super::super) fn is_within(&self, now: Option<&Self>) -> bool {
        now.is_some_and(|now| {
            let chain_stands = |(chain, policy)| now.chains.get(chain) == Some(policy);
            now.table == self.table
                && now.flags == self.flags
                && self.chains.iter().all(chain_stands)
                && self.rules.is_subset(&now.rules)
        })
    }

    /// Whether all connections that were listed are by what there is `now`.
    pub(in super::super) fn lists_within(&self, now: Option<&Self>) -> bool {
        now.is_some_and(|now| self.accepted.is_subset(&now.accepted))
    }
}

/// Asks for one list after the other.
struct Lists {
    socket: OwnedFd,
    sequence: u32,
}

impl Lists {
    /// All of a table but the table itself. `false`: something changed meanwhile.
    fn read(&mut self, standing: &mut Standing) -> Result<bool, Errno> {
        let ours = text(TABLE_NAME, TABLE);
        let chains = self.list(GET_CHAIN, &[], |message| {
            if attribute(message, TABLE_NAME).is_some_and(is_ours)
                && let Some(chain) = attribute(message, CHAIN_HANDLE).and_then(number)
            {
                standing.chains.insert(chain, attribute(message, CHAIN_POLICY).and_then(word));
            }
        })?;
        let rules = self.list(GET_RULE, &ours, |message| {
            // A kernel that doesn't filter lists all of them.
            if attribute(message, TABLE_NAME).is_some_and(is_ours) {
                standing.rules.extend(attribute(message, RULE_HANDLE).and_then(number));
            }
        })?;
        let mut whole = chains && rules;
        for set in ACCEPTED {
            let question = [ours.clone(), text(SET_NAME, set)].concat();
            let listed = self.list(GET_ELEMENTS, &question, |message| {
                let elements = attribute(message, SET_ELEMENTS).unwrap_or_default();
                let keys = attributes(elements)
                    .filter_map(|(_, element)| attributes(element).find(|(kind, _)| *kind == KEY));
                standing.accepted.extend(keys.map(|(_, key)| key.to_vec()));
            });
            match listed {
                Ok(listed) => whole &= listed,
                // Whoever has removed a set has removed the rules before that look there.
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(whole)
    }

    /// Whether the list is whole.
    fn list(
        &mut self,
        kind: u16,
        attributes: &[u8],
        mut each: impl FnMut(&[u8]),
    ) -> Result<bool, Errno> {
        self.sequence += 1;
        let question = Question([&[INET, 0, 0, 0], attributes].concat());
        netlink::dump(&self.socket, self.sequence, kind, &question, |_, message| each(message))
    }
}

/// A socket that hears of every change of rules from now on.
pub(in super::super) fn watch() -> Result<OwnedFd, Errno> {
    let socket = socket()?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, NFTABLES))?;
    Ok(socket)
}

fn socket() -> Result<OwnedFd, Errno> {
    let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
    rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, Some(NETFILTER))
}

/// What `told` says of the next datagram; `None` where there is none. Changes that were `missed`
/// are one more reason to look.
pub(in super::super) fn receive<T>(
    socket: &OwnedFd,
    missed: T,
    told: fn(&[u8]) -> T,
) -> Result<Option<T>, Errno> {
    let mut buffer = [0; 4096];
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recv(socket, &mut buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC)
    });
    match received {
        // Of more than there is room for the beginning is read.
        Ok((_, whole)) if whole > buffer.len() => Ok(Some(missed)),
        Ok((_, whole)) => Ok(Some(told(&buffer[..whole]))),
        Err(Errno::NOBUFS) => Ok(Some(missed)),
        Err(Errno::AGAIN) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// What somebody may have done to our table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in super::super) struct Touched {
    /// It, a chain or a rule of it was removed, or it or a chain is another now.
    pub(in super::super) table: bool,
    /// Something was taken out of its sets by hand: what expires there is not told of.
    pub(in super::super) sets: bool,
}

/// What a datagram of nftables tells of our table.
pub(in super::super) fn touches(mut datagram: &[u8]) -> Touched {
    let mut touched = Touched::default();
    while let (Some(length), Some(kind)) =
        (datagram.first_chunk::<4>(), datagram.get(4..).and_then(<[u8]>::first_chunk::<2>))
    {
        let length = (u32::from_ne_bytes(*length) as usize).max(HEADER);
        let kind = u16::from_ne_bytes(*kind);
        let message = datagram.get(HEADER..length).unwrap_or_default();
        // All have the table's name first.
        if attribute(message, TABLE_NAME).is_some_and(is_ours) {
            touched.table |= [NEW_TABLE, DEL_TABLE, NEW_CHAIN, DEL_CHAIN, DEL_RULE].contains(&kind);
            touched.sets |= kind == DEL_ELEMENTS;
        }
        let next = length.checked_next_multiple_of(4).and_then(|next| datagram.get(next..));
        datagram = next.unwrap_or_default();
    }
    touched
}

/// A `struct nfgenmsg` and attributes.
struct Question(Vec<u8>);

impl Emitable for Question {
    fn buffer_len(&self) -> usize {
        self.0.len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        buffer[..self.0.len()].copy_from_slice(&self.0);
    }
}

/// An attribute that is a name.
fn text(kind: u16, value: &str) -> Vec<u8> {
    let length = 4 + value.len() as u16 + 1;
    let mut attribute = length.to_ne_bytes().to_vec();
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value.as_bytes());
    attribute.resize(usize::from(length).next_multiple_of(4), 0);
    attribute
}

fn is_ours(name: &[u8]) -> bool {
    name.strip_suffix(&[0]).unwrap_or(name) == TABLE.as_bytes()
}

fn number(value: &[u8]) -> Option<u64> {
    value.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

fn word(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// The value of an attribute of a message of family `inet`.
fn attribute(message: &[u8], wanted: u16) -> Option<&[u8]> {
    if message.first() != Some(&INET) {
        return None;
    }
    attributes(message.get(4..)?).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// Kinds and values of attributes, up to the first that makes no sense.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk::<2>()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk::<2>()?);
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & KIND, value))
    })
}

/// How often a list is asked for that changes while it is read.
const TRIES: u32 = 20;

/// `NFNLGRP_NFTABLES` as a bit.
const NFTABLES: u32 = 1 << (7 - 1);
/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `NFPROTO_INET`
const INET: u8 = 1;
/// `NFNL_SUBSYS_NFTABLES` with `NFT_MSG_NEWTABLE` and others.
const NEW_TABLE: u16 = 10 << 8;
const GET_TABLE: u16 = 10 << 8 | 1;
const DEL_TABLE: u16 = 10 << 8 | 2;
const NEW_CHAIN: u16 = 10 << 8 | 3;
const GET_CHAIN: u16 = 10 << 8 | 4;
const DEL_CHAIN: u16 = 10 << 8 | 5;
const GET_RULE: u16 = 10 << 8 | 7;
const DEL_RULE: u16 = 10 << 8 | 8;
const GET_ELEMENTS: u16 = 10 << 8 | 13;
const DEL_ELEMENTS: u16 = 10 << 8 | 14;
/// `NFTA_TABLE_NAME`, and the table's name in messages of all other kinds.
const TABLE_NAME: u16 = 1;
/// `NFTA_TABLE_FLAGS`
const TABLE_FLAGS: u16 = 2;
/// `NFTA_TABLE_HANDLE`
const TABLE_HANDLE: u16 = 4;
/// `NFTA_CHAIN_HANDLE`
const CHAIN_HANDLE: u16 = 2;
/// `NFTA_CHAIN_POLICY`
const CHAIN_POLICY: u16 = 5;
/// `NFTA_RULE_HANDLE`
const RULE_HANDLE: u16 = 3;
/// `NFTA_SET_ELEM_LIST_SET`
const SET_NAME: u16 = 2;
/// `NFTA_SET_ELEM_LIST_ELEMENTS`
const SET_ELEMENTS: u16 = 3;
/// `NFTA_SET_ELEM_KEY`
const KEY: u16 = 1;
/// `NLA_TYPE_MASK`
const KIND: u16 = 0x3fff;

/// The sets that are filled once: what is in them stays.
const ACCEPTED: [&str; 2] = ["accepted4", "accepted6"];

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, family: u8, body: &[u8]) -> Vec<u8> {
        let length = (HEADER + 4 + body.len()) as u32;
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.resize(HEADER, 0);
        message.extend([family, 0, 0, 0]);
        message.extend(body);
        message
    }

    #[test]
    fn touches_table() {
        let ours = text(TABLE_NAME, TABLE);
        let theirs = text(TABLE_NAME, "filter");
        let table = Touched { table: true, sets: false };
        let sets = Touched { table: false, sets: true };
        let none = Touched::default();
        let (added, emptied) = (10 << 8 | 6, message(DEL_ELEMENTS, INET, &ours));
        #[rustfmt::skip]
        let cases = [
            ("nothing", Vec::new(), none),
            ("cut off", message(DEL_TABLE, INET, &ours)[..9].to_vec(), none),
            ("no attribute", message(DEL_TABLE, INET, &[]), none),
            ("a rule that came", message(added, INET, &ours), none),
            ("a rule that went", message(DEL_RULE, INET, &ours), table),
            ("another's", message(DEL_RULE, INET, &theirs), none),
            ("another family's", message(DEL_RULE, 2, &ours), none),
            ("put to sleep", message(NEW_TABLE, INET, &ours), table),
            ("an element", emptied.clone(), sets),
            ("behind another", [message(added, INET, &theirs), emptied].concat(), sets),
            ("a length beyond", [vec![0xff; 16], message(DEL_RULE, INET, &ours)].concat(), none),
        ];
        for (name, datagram, expected) in cases {
            assert_eq!(touches(&datagram), expected, "{name}");
        }
    }

    #[test]
    fn attributes_of_any_bytes() {
        let mut state = 7_u64;
        for round in 0..20_000_usize {
            let bytes: Vec<u8> = (0..round % 48)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    // Small numbers, so that lengths are often plausible.
                    (state >> 60) as u8
                })
                .collect();
            assert!(attributes(&bytes).count() <= bytes.len() / 4);
            touches(&bytes);
        }
    }
}
