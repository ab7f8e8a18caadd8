//! Whether our table is as it was made, asked of the kernel itself: the program takes milliseconds,
//! this some microseconds.
//!
//! Table and rules have numbers that are never given twice, so whatever was removed, or
//! replaced by its like, is missed. What others add is theirs to know.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

use netlink_packet_core::Emitable;
use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

use super::TABLE;
use crate::netlink;

/// The numbers of our table and its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Standing {
    table: u64,
    rules: BTreeSet<u64>,
}

impl Standing {
    /// What there is in this thread's network namespace; `None`: no table.
    pub(in super::super) fn look() -> Result<Option<Self>, Errno> {
        let socket = socket()?;
        for sequence in 1..=TRIES {
            let mut table = None;
            let tables = list(&socket, 2 * sequence, GET_TABLE, &[], |message| {
                if attribute(message, TABLE_NAME).is_some_and(is_ours) {
                    table = attribute(message, TABLE_HANDLE).and_then(number);
                }
            })?;
            let Some(table) = table else {
                if tables {
                    return Ok(None);
                }
                continue;
            };
            let mut rules = BTreeSet::new();
            let whole = list(&socket, 2 * sequence + 1, GET_RULE, &name(), |message| {
                // A kernel that doesn't filter lists all of them.
                if attribute(message, RULE_TABLE).is_some_and(is_ours) {
                    rules.extend(attribute(message, RULE_HANDLE).and_then(number));
                }
            })?;
            if whole {
                return Ok(Some(Self { table, rules }));
            }
        }
        Err(Errno::AGAIN)
    }

    /// Whether all of it is still there by what there is `now`.
    pub(in super::super) fn is_within(&self, now: Option<&Self>) -> bool {
        now.is_some_and(|now| now.table == self.table && self.rules.is_subset(&now.rules))
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

/// What `matters` says of the next datagram; `None` where there is none.
pub(in super::super) fn receive(
    socket: &OwnedFd,
    matters: fn(&[u8]) -> bool,
) -> Result<Option<bool>, Errno> {
    let mut buffer = [0; 4096];
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recv(socket, &mut buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC)
    });
    match received {
        // Of more than there is room for the beginning is read.
        Ok((_, whole)) => Ok(Some(whole > buffer.len() || matters(&buffer[..whole]))),
        // Changes were missed: one more reason to look.
        Err(Errno::NOBUFS) => Ok(Some(true)),
        Err(Errno::AGAIN) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Whether a datagram of nftables tells that our table, a chain or a rule of it was removed.
pub(in super::super) fn removes(mut datagram: &[u8]) -> bool {
    while let (Some(length), Some(kind)) =
        (datagram.first_chunk::<4>(), datagram.get(4..).and_then(<[u8]>::first_chunk::<2>))
    {
        let length = (u32::from_ne_bytes(*length) as usize).max(HEADER);
        let kind = u16::from_ne_bytes(*kind);
        let message = datagram.get(HEADER..length).unwrap_or_default();
        // All three have the table's name first.
        if [DEL_TABLE, DEL_CHAIN, DEL_RULE].contains(&kind)
            && attribute(message, TABLE_NAME).is_some_and(is_ours)
        {
            return true;
        }
        let next = length.checked_next_multiple_of(4).and_then(|next| datagram.get(next..));
        datagram = next.unwrap_or_default();
    }
    false
}

/// Whether the list is whole.
fn list(
    socket: &OwnedFd,
    sequence: u32,
    kind: u16,
    attributes: &[u8],
    mut each: impl FnMut(&[u8]),
) -> Result<bool, Errno> {
    let question = Question([&[INET, 0, 0, 0], attributes].concat());
    netlink::dump(socket, sequence, kind, &question, |_, message| each(message))
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

/// The attribute with our table's name.
fn name() -> Vec<u8> {
    let length = 4 + TABLE.len() as u16 + 1;
    let mut attribute = length.to_ne_bytes().to_vec();
    attribute.extend(RULE_TABLE.to_ne_bytes());
    attribute.extend(TABLE.as_bytes());
    attribute.resize(usize::from(length).next_multiple_of(4), 0);
    attribute
}

fn is_ours(name: &[u8]) -> bool {
    name.strip_suffix(&[0]).unwrap_or(name) == TABLE.as_bytes()
}

fn number(value: &[u8]) -> Option<u64> {
    value.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

/// The value of an attribute of a message of family `inet`.
fn attribute(message: &[u8], wanted: u16) -> Option<&[u8]> {
    if message.first() != Some(&INET) {
        return None;
    }
    let mut rest = message.get(4..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk::<2>()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk::<2>()?);
        let value = rest.get(4..length)?;
        if kind & KIND == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

/// How often a list is asked for that changes while it is read.
const TRIES: u32 = 20;

/// `NFNLGRP_NFTABLES` as a bit.
const NFTABLES: u32 = 1 << (7 - 1);
/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `NFPROTO_INET`
const INET: u8 = 1;
/// `NFNL_SUBSYS_NFTABLES` with `NFT_MSG_GETTABLE` and others.
const GET_TABLE: u16 = 10 << 8 | 1;
const DEL_TABLE: u16 = 10 << 8 | 2;
const DEL_CHAIN: u16 = 10 << 8 | 5;
const GET_RULE: u16 = 10 << 8 | 7;
const DEL_RULE: u16 = 10 << 8 | 8;
/// `NFTA_TABLE_NAME`, and `NFTA_CHAIN_TABLE`.
const TABLE_NAME: u16 = 1;
/// `NFTA_TABLE_HANDLE`
const TABLE_HANDLE: u16 = 4;
/// `NFTA_RULE_TABLE`
const RULE_TABLE: u16 = 1;
/// `NFTA_RULE_HANDLE`
const RULE_HANDLE: u16 = 3;
/// `NLA_TYPE_MASK`
const KIND: u16 = 0x3fff;
