//! Packets that came one by one into the super-packets that the device takes.
//!
//! # Theory of operation
//!
//! Segments of one TCP connection join while they continue each other: the same headers but
//! for lengths, identification, sequence and PSH, no flag other than ACK and PSH, equal sizes
//! but for a shorter last one. PSH ends a run. Datagrams of one UDP flow join by equal sizes
//! alike. Whoever cuts the result gets the packets back as they were.
//!
//! A joined packet leaves with a checksum to be completed, so each packet's own checksum is
//! verified before it joins: else what somebody corrupted before the tunnel would leave
//! here as good. A packet that stays alone keeps its checksum, right or wrong.
//!
//! Packets of one flow keep their order. Flows may overtake each other.

use std::ops::Range;

use engine::Meta;
use smallvec::SmallVec;

use super::header::{ACK, Layout, PSH, be16, be32};

/// What came out of a tunnel: one packet, or a run of them that stands for many.
#[derive(Debug)]
pub struct Inner<'a> {
    /// A single packet: all of it. A run: the IP and transport headers.
    pub headers: &'a mut [u8],
    /// A single packet: nothing. A run: the payload of each packet in it.
    pub payload: &'a [&'a [u8]],
    /// A run has a segment size and, in its headers, the pseudo-header's sum. A single packet
    /// has neither: its checksum is as the sender made it.
    pub meta: Meta,
}

/// What the device takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Coalesce {
    /// Super-packets of TCP.
    pub tcp: bool,
    /// Super-packets of UDP.
    pub udp: bool,
}

/// Delivers `packets`, which lie in `buffer`, joined where `what` allows.
pub(super) fn coalesce(
    buffer: &mut [u8],
    packets: &[Range<usize>],
    what: Coalesce,
    deliver: &mut impl FnMut(&mut Inner<'_>),
) {
    // A handful of flows take turns in one batch at most; each is looked for by comparing.
    let mut open: SmallVec<[Run; OPEN]> = SmallVec::new();
    for range in packets {
        let packet = &buffer[range.clone()];
        let Some(layout) = Layout::of(packet) else {
            single(buffer, range.clone(), deliver);
            continue;
        };
        let joins = if layout.tcp { what.tcp } else { what.udp };
        let flow = Flow::of(packet, layout);
        let found = open.iter().position(|run| run.flow == flow);
        if joins && continues_nothing_odd(packet, layout) {
            if let Some(at) = found {
                if open[at].take(buffer, range, layout) {
                    continue;
                }
                open.remove(at).deliver(buffer, deliver);
            }
            if open.len() == OPEN {
                open.remove(0).deliver(buffer, deliver);
            }
            open.push(Run::new(flow, layout, &buffer[range.clone()], range.clone()));
        } else {
            if let Some(at) = found {
                open.remove(at).deliver(buffer, deliver);
            }
            single(buffer, range.clone(), deliver);
        }
    }
    for run in open {
        run.deliver(buffer, deliver);
    }
}

/// Whether a packet may be part of a run at all.
fn continues_nothing_odd(packet: &[u8], layout: Layout) -> bool {
    let said =
        if layout.v4 { usize::from(be16(packet, 2)) } else { usize::from(be16(packet, 4)) + 40 };
    let options = layout.v4 && layout.ip != 20;
    if said != packet.len() || packet.len() == layout.header || options {
        return false;
    }
    if layout.tcp {
        // The reserved bits beside the offset, and every flag that says more than "here is data".
        packet[layout.ip + 12] & 0x0f == 0 && packet[layout.ip + 13] & !PSH == ACK
    } else {
        usize::from(be16(packet, layout.ip + 4)) == packet.len() - layout.ip
    }
}

/// Who speaks to whom.
#[derive(PartialEq, Eq, Clone, Copy)]
struct Flow {
    source: [u8; 16],
    destination: [u8; 16],
    ports: [u8; 4],
    tcp: bool,
    v4: bool,
}

impl Flow {
    fn of(packet: &[u8], layout: Layout) -> Self {
        let (mut source, mut destination, mut ports) = ([0; 16], [0; 16], [0; 4]);
        if layout.v4 {
            source[..4].copy_from_slice(&packet[12..16]);
            destination[..4].copy_from_slice(&packet[16..20]);
        } else {
            source.copy_from_slice(&packet[8..24]);
            destination.copy_from_slice(&packet[24..40]);
        }
        ports.copy_from_slice(&packet[layout.ip..layout.ip + 4]);
        Self { source, destination, ports, tcp: layout.tcp, v4: layout.v4 }
    }
}

/// A super-packet in the making.
struct Run {
    flow: Flow,
    layout: Layout,
    /// The whole packets, in order.
    members: SmallVec<[(u32, u32); SEGMENTS]>,
    /// Payload bytes of each member but the last.
    size: usize,
    payload: usize,
    /// TCP: where the next member begins.
    sequence: u32,
    /// Whether the first member's checksum is right, once it was looked at.
    verified: Option<bool>,
    ended: bool,
}

impl Run {
    fn new(flow: Flow, layout: Layout, packet: &[u8], range: Range<usize>) -> Self {
        let size = packet.len() - layout.header;
        let mut run = Self {
            flow,
            layout,
            members: SmallVec::new(),
            size,
            payload: 0,
            sequence: 0,
            verified: None,
            ended: false,
        };
        run.push(packet, range);
        run
    }

    /// Takes a packet that continues the run; `false`: it doesn't.
    fn take(&mut self, buffer: &[u8], range: &Range<usize>, layout: Layout) -> bool {
        let packet = &buffer[range.clone()];
        let first = self.first(buffer);
        let size = packet.len() - layout.header;
        let fits = !self.ended
            && self.layout == layout
            && size <= self.size
            && self.members.len() < SEGMENTS
            && layout.header + self.payload + size <= MAX_RUN;
        if !fits || !self.continues(first, packet) || !layout.verify(packet) {
            return false;
        }
        if !*self.verified.get_or_insert_with(|| layout.verify(first)) {
            return false;
        }
        self.push(packet, range.clone());
        true
    }

    /// Whether all that must be equal in the headers is.
    fn continues(&self, first: &[u8], packet: &[u8]) -> bool {
        let ip = self.layout.ip;
        let same_ip = if self.layout.v4 {
            let step = be16(packet, 4).wrapping_sub(be16(first, 4));
            // Unfragmentable packets of one identification are common too.
            let counted =
                usize::from(step) == self.members.len() || (step == 0 && packet[6] & 0x40 != 0);
            counted && first[..2] == packet[..2] && first[6..10] == packet[6..10]
        } else {
            // Version, class and flow label; next header and hop limit.
            first[..4] == packet[..4] && first[6..8] == packet[6..8]
        };
        if !self.layout.tcp {
            return same_ip;
        }
        same_ip
            && be32(packet, ip + 4) == self.sequence
            && first[ip + 8..ip + 13] == packet[ip + 8..ip + 13] // acknowledgement, offset
            && first[ip + 14..ip + 16] == packet[ip + 14..ip + 16] // window
            && first[ip + 18..self.layout.header] == packet[ip + 18..self.layout.header] // options
    }

    fn push(&mut self, packet: &[u8], range: Range<usize>) {
        let size = packet.len() - self.layout.header;
        // Buffers here are far shorter than 4 GiB.
        self.members.push((range.start as u32, range.end as u32));
        self.payload += size;
        self.ended = size < self.size;
        if self.layout.tcp {
            self.sequence = be32(packet, self.layout.ip + 4).wrapping_add(size as u32);
            self.ended |= packet[self.layout.ip + 13] & PSH != 0;
        }
    }

    fn first<'a>(&self, buffer: &'a [u8]) -> &'a [u8] {
        let (start, end) = self.members[0];
        &buffer[start as usize..end as usize]
    }

    fn deliver(self, buffer: &mut [u8], deliver: &mut impl FnMut(&mut Inner<'_>)) {
        if let [(start, end)] = self.members[..] {
            return single(buffer, start as usize..end as usize, deliver);
        }
        let layout = self.layout;
        let mut space = [0; 40 + 60]; // the longest headers: IPv6, or IPv4 without options, and TCP's
        let headers = &mut space[..layout.header];
        headers.copy_from_slice(&self.first(buffer)[..layout.header]);
        if layout.tcp {
            // Only the last member may have PSH.
            let last = self.members[self.members.len() - 1].0 as usize;
            headers[layout.ip + 13] = buffer[last + layout.ip + 13];
        }
        let total = layout.header + self.payload;
        layout.set_lengths(headers, total);
        let pseudo = super::header::fold(layout.pseudo(headers, total - layout.ip));
        let at = layout.checksum_at();
        headers[at..at + 2].copy_from_slice(&pseudo.to_ne_bytes());
        let payload: SmallVec<[&[u8]; SEGMENTS]> = self
            .members
            .iter()
            .map(|&(start, end)| &buffer[start as usize + layout.header..end as usize])
            .collect();
        let segment = Some(self.size as u16); // a packet's payload
        deliver(&mut Inner {
            headers,
            payload: &payload,
            meta: Meta { segment, partial_checksum: true },
        });
    }
}

fn single(buffer: &mut [u8], range: Range<usize>, deliver: &mut impl FnMut(&mut Inner<'_>)) {
    deliver(&mut Inner { headers: &mut buffer[range], payload: &[], meta: Meta::default() });
}

/// Flows that are put together at a time.
const OPEN: usize = 8;
/// Packets in a run: as many datagrams as every kernel cuts.
const SEGMENTS: usize = 64;
/// Bytes of a run, under the 65,535 that an IP header can say.
const MAX_RUN: usize = 65_000;
