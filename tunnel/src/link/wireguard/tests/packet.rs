//! Inner packets made by hand, whole and summed by the plain algorithm.

use std::net::IpAddr;

use crate::namespace::checksum;

/// What a test's packet is.
#[derive(Debug, Clone)]
pub(super) struct Spec {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) tcp: bool,
    pub(super) ports: (u16, u16),
    pub(super) identification: u16,
    pub(super) dont_fragment: bool,
    pub(super) tos: u8,
    pub(super) sequence: u32,
    pub(super) flags: u8,
    /// TCP options, a multiple of four bytes.
    pub(super) options: Vec<u8>,
}

impl Spec {
    pub(super) fn new(source: &str, destination: &str, tcp: bool) -> Self {
        Self {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            tcp,
            ports: (40_000, 443),
            identification: 7,
            dont_fragment: true,
            tos: 0,
            sequence: 1000,
            flags: 0x10,
            options: Vec::new(),
        }
    }

    pub(super) fn header(&self) -> usize {
        let ip = if self.source.is_ipv4() { 20 } else { 40 };
        ip + if self.tcp { 20 + self.options.len() } else { 8 }
    }

    /// The packet with this payload.
    pub(super) fn with(&self, payload: &[u8]) -> Vec<u8> {
        let mut transport = Vec::new();
        transport.extend(self.ports.0.to_be_bytes());
        transport.extend(self.ports.1.to_be_bytes());
        if self.tcp {
            transport.extend(self.sequence.to_be_bytes());
            transport.extend(77_u32.to_be_bytes());
            transport.extend([(((20 + self.options.len()) / 4) << 4) as u8, self.flags]);
            transport.extend([0x20, 0, 0, 0, 0, 0]);
            transport.extend(&self.options);
        } else {
            transport.extend(((8 + payload.len()) as u16).to_be_bytes());
            transport.extend([0, 0]);
        }
        transport.extend(payload);
        let protocol = if self.tcp { 6 } else { 17 };
        ip(self, protocol, transport, Some(if self.tcp { 16 } else { 6 }))
    }
}

/// An echo request.
pub(super) fn echo(source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
    let spec = Spec::new(source, destination, false);
    let v4 = spec.source.is_ipv4();
    let mut icmp = vec![if v4 { 8 } else { 128 }, 0, 0, 0, 0, 9, 0, 1];
    icmp.extend(payload);
    if v4 {
        let sum = checksum(&icmp, 0);
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        ip(&spec, 1, icmp, None)
    } else {
        ip(&spec, 58, icmp, Some(2))
    }
}

/// An IP header before `transport`, whose checksum at `sum_at` covers the pseudo-header.
fn ip(spec: &Spec, protocol: u8, mut transport: Vec<u8>, sum_at: Option<usize>) -> Vec<u8> {
    let length = transport.len();
    let (mut header, addresses) = match (spec.source, spec.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = vec![0x45, spec.tos];
            header.extend(((20 + length) as u16).to_be_bytes());
            header.extend(spec.identification.to_be_bytes());
            header.extend([if spec.dont_fragment { 0x40 } else { 0 }, 0, 64, protocol, 0, 0]);
            header.extend(source.octets());
            header.extend(destination.octets());
            let sum = checksum(&header, 0);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            (header, 12..20)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = vec![0x60 | (spec.tos >> 4), spec.tos << 4, 0, 5];
            header.extend((length as u16).to_be_bytes());
            header.extend([protocol, 64]);
            header.extend(source.octets());
            header.extend(destination.octets());
            (header, 8..40)
        }
        _ => panic!("one IP version"),
    };
    if let Some(at) = sum_at {
        let pseudo = !checksum(&header[addresses], u32::from(protocol) + length as u32);
        let sum = match checksum(&transport, pseudo.into()) {
            0 if protocol == 17 => 0xffff,
            sum => sum,
        };
        transport[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    header.append(&mut transport);
    header
}
