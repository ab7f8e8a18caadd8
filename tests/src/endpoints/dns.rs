//! A name server with a fixed table, over UDP and TCP: what a network's own
//! server is to the programs under test.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Result;

use super::tcp::TcpServer;
use super::udp::UdpServer;
use crate::lab::Netns;

pub(super) const HEADER: usize = 12;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const NXDOMAIN: u8 = 3;

/// A running name server on port 53 of one address.
#[derive(Debug)]
pub struct DnsServer {
    udp: UdpServer,
    tcp: TcpServer,
}

impl DnsServer {
    /// Serves the addresses of `names`; any other name does not exist.
    pub fn start(netns: &Netns, address: IpAddr, names: &[(&str, IpAddr)]) -> Result<Self> {
        let mut table: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        for (name, address) in names {
            table.entry((*name).to_owned()).or_default().push(*address);
        }
        let table = Arc::new(table);
        let udp = UdpServer::start(netns, address, 53, {
            let table = Arc::clone(&table);
            move |query| answer(&table, query)
        })?;
        let tcp = TcpServer::start(netns, 53, move |stream| serve(&table, stream))?;
        Ok(Self { udp, tcp })
    }

    /// Queries received so far over UDP.
    pub fn queries(&self) -> u64 {
        self.udp.received()
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> u64 {
        self.tcp.accepted()
    }
}

/// RFC 1035 section 4.2.2: each message behind its length.
pub(super) fn serve(
    table: &BTreeMap<String, Vec<IpAddr>>,
    stream: &mut (impl Read + Write),
) -> io::Result<u64> {
    let mut received = 0;
    loop {
        let mut length = [0; 2];
        match stream.read_exact(&mut length) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(received),
            done => done?,
        }
        let mut query = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut query)?;
        received += query.len() as u64;
        let Some(answer) = answer(table, &query) else {
            return Ok(received);
        };
        let mut framed = (answer.len() as u16).to_be_bytes().to_vec();
        framed.extend_from_slice(&answer);
        stream.write_all(&framed)?;
    }
}

pub(super) fn answer(table: &BTreeMap<String, Vec<IpAddr>>, query: &[u8]) -> Option<Vec<u8>> {
    let (name, end) = question(query)?;
    let kind = u16::from_be_bytes([*query.get(end)?, *query.get(end + 1)?]);
    let question = query.get(HEADER..end + 4)?;
    let known = table.get(&name);
    let addresses: Vec<IpAddr> = known
        .into_iter()
        .flatten()
        .copied()
        .filter(|address| kind == if address.is_ipv4() { TYPE_A } else { TYPE_AAAA })
        .collect();
    let code = if known.is_some() { 0 } else { NXDOMAIN };

    let mut answer = query.get(..2)?.to_vec();
    // A response, recursion desired as asked and available.
    answer.extend([0x80 | (query[2] & 1), 0x80 | code, 0, 1, 0, addresses.len() as u8, 0, 0, 0, 0]);
    answer.extend_from_slice(question);
    for address in addresses {
        answer.extend([0xc0, HEADER as u8]);
        answer.extend(kind.to_be_bytes());
        answer.extend([0, 1, 0, 0, 0, 60]);
        match address {
            IpAddr::V4(address) => {
                answer.extend([0, 4]);
                answer.extend(address.octets());
            }
            IpAddr::V6(address) => {
                answer.extend([0, 16]);
                answer.extend(address.octets());
            }
        }
    }
    Some(answer)
}

/// The query again, as an answer with one address that its name decides: of a server that knows
/// every name.
pub fn any_name(query: &[u8]) -> Option<Vec<u8>> {
    let (_, end) = question(query)?;
    let question = query.get(..end + 4)?;
    let mut hash = 2_166_136_261u32;
    for byte in &question[HEADER..] {
        hash = (hash ^ u32::from(byte.to_ascii_lowercase())).wrapping_mul(16_777_619);
    }
    let mut answer = question.to_vec();
    // RFC 1035 section 4.1.1: QR and RA; RD as it was.
    answer[2] = (query[2] & 1) | 0x80;
    answer[3] = 0x80;
    answer[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
    let [_, b, c, d] = hash.to_be_bytes();
    answer.extend([0xc0, HEADER as u8, 0, 1, 0, 1, 0, 0, 14, 16, 0, 4, 11, b, c, d]);
    Some(answer)
}

/// The name of the first question, lower case, and the offset behind it.
pub(super) fn question(query: &[u8]) -> Option<(String, usize)> {
    let mut name = String::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            return Some((name, at));
        }
        let label = query.get(at..at + length)?;
        at += length;
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(&String::from_utf8_lossy(label).to_ascii_lowercase());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_what_it_knows_and_denies_the_rest() {
        let address: IpAddr = "203.0.113.1".parse().unwrap();
        let table = BTreeMap::from([("good.example".to_owned(), vec![address])]);
        let mut query = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        query.extend(b"\x04GOOD\x07example\x00\x00\x01\x00\x01");
        let known = answer(&table, &query).unwrap();
        assert_eq!(known[..4], [0xab, 0xcd, 0x81, 0x80]);
        assert_eq!(known[known.len() - 4..], [203, 0, 113, 1]);
        query[13] = b'F';
        assert_eq!(answer(&table, &query).unwrap()[3], 0x83);
        for length in 0..query.len() {
            assert_eq!(answer(&table, &query[..length]), None);
        }
    }
}
