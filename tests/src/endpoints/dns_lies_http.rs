//! A name server that is broken over HTTP/2 (RFC 8484), in frames of our own.

use std::io::{self, Read, Write};

use anyhow::Result;

use super::dns_lies_stream::{inside_tls, truth};
use super::dns_trust::Signed;
use super::tcp::TcpServer;
use crate::lab::Netns;

/// What is wrong with it, once a connection has begun as it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpLie {
    /// Questions are taken, and nothing is said.
    Silent,
    /// Bytes without an end, which are no frames.
    Noise,
    /// Frames without an end, of a kind that nobody knows, which are to be ignored.
    Frames,
    /// An answer whose body never ends.
    Body,
    /// Half a body, and the end of it.
    Half,
    /// The answer to another question.
    Other,
    /// Status 500.
    Fails,
    /// The end, instead of an answer.
    Ends,
    /// The truth about `www.example`, and then frames without an end that nobody asked for.
    Afterwards,
}

/// Starts one at port 443 of every address.
///
/// # Errors
/// It can't listen.
pub fn lies_over_https(netns: &Netns, signed: &Signed, lie: HttpLie) -> Result<TcpServer> {
    inside_tls(netns, 443, signed, &[b"h2"], move |stream| tell(lie, stream))
}

// RFC 9113 section 6.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const NOBODY_KNOWS: u8 = 0xfa;
/// END_STREAM of DATA and HEADERS, ACK of SETTINGS and PING.
const END: u8 = 1;
const END_HEADERS: u8 = 4;

/// RFC 9113 section 4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = (payload.len() as u32).to_be_bytes();
    [&length[..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn tell(lie: HttpLie, stream: &mut (impl Read + Write)) -> io::Result<u64> {
    let mut preface = [0; 24];
    stream.read_exact(&mut preface)?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[]))?;
    loop {
        let (id, mut query) = question(stream)?;
        // RFC 7541: index 8 is `:status 200`, 14 is 500; 31 is `content-type`, its value as it is.
        let kind = b"application/dns-message";
        let headers = [&[0x88, 0x0f, 0x10, kind.len() as u8][..], kind].concat();
        let headers = frame(HEADERS, END_HEADERS, id, &headers);
        match lie {
            HttpLie::Silent => {}
            HttpLie::Noise => for_ever(stream, &[0xff; 4096])?,
            HttpLie::Frames => for_ever(stream, &frame(NOBODY_KNOWS, 0, 0, &[7; 4087]))?,
            HttpLie::Body => {
                stream.write_all(&headers)?;
                for_ever(stream, &frame(DATA, 0, id, &[7; 512]))?;
            }
            HttpLie::Half => {
                let answer = truth(&query)?;
                stream.write_all(&headers)?;
                stream.write_all(&frame(DATA, END, id, &answer[..answer.len() / 2]))?;
            }
            HttpLie::Other => {
                query[13] = b'_';
                query[2] |= 0x80;
                stream.write_all(&headers)?;
                stream.write_all(&frame(DATA, END, id, &query))?;
            }
            HttpLie::Fails => {
                stream.write_all(&frame(HEADERS, END_HEADERS | END, id, &[0x8e]))?;
            }
            HttpLie::Ends => return Ok(0),
            HttpLie::Afterwards => {
                stream.write_all(&headers)?;
                stream.write_all(&frame(DATA, END, id, &truth(&query)?))?;
                for_ever(stream, &frame(NOBODY_KNOWS, 0, 0, &[7; 4087]))?;
            }
        }
    }
}

/// Until nobody reads it any more.
fn for_ever(stream: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    loop {
        stream.write_all(bytes)?;
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// The next question, and its stream; what comes in between is answered as it should be.
fn question(stream: &mut (impl Read + Write)) -> io::Result<(u32, Vec<u8>)> {
    let mut query = Vec::new();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let [high, middle, low, kind, flags, id @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, high, middle, low]) as usize];
        stream.read_exact(&mut payload)?;
        match (kind, flags & END) {
            (SETTINGS, 0) => stream.write_all(&frame(SETTINGS, END, 0, &[]))?,
            (PING, 0) => stream.write_all(&frame(PING, END, 0, &payload))?,
            (DATA, end) => {
                query.extend(payload);
                if end == END {
                    return Ok((u32::from_be_bytes(id), query));
                }
            }
            _ => {}
        }
    }
}
