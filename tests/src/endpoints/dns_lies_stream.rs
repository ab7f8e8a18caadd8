//! A name server that is broken over TCP and TLS, or somebody who plays it: connections are taken,
//! and then no answer comes whole.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::Result;

use super::SILENCE;
use super::dns_lies::LyingServer;
use super::tcp::TcpServer;
use crate::lab::Netns;

/// What is wrong with its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamLie {
    /// They are taken, and nothing is said.
    Silent,
    /// Half an answer.
    Half,
    /// Bytes without an end, which are no messages.
    Noise,
    /// The truth about `www.example`, and then noise without an end that nobody asked for.
    Afterwards,
    /// Answers without an end, to what was not asked.
    Endless,
    /// An answer to something else, and nothing more.
    Other,
    /// The end, instead of an answer.
    Ends,
    /// The first bytes of a handshake's answer, and nothing more.
    Stalled,
}

/// Starts one at a port of every address.
///
/// # Errors
/// It can't listen.
pub fn lies_over(netns: &Netns, port: u16, lie: StreamLie) -> Result<TcpServer> {
    TcpServer::start(netns, port, move |stream| tell(lie, stream))
}

/// Until nobody reads it any more.
fn noise(stream: &mut TcpStream) -> io::Result<()> {
    loop {
        stream.write_all(&[0xff; 4096])?;
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn tell(lie: StreamLie, stream: &mut TcpStream) -> io::Result<u64> {
    stream.set_read_timeout(Some(SILENCE))?;
    let mut query = [0; 2048];
    let mut length = stream.read(&mut query)?;
    // Behind its length; noise where a handshake begins.
    let mut answer = query[2.min(length)..length].to_vec();
    answer.resize(answer.len().max(40), 0);
    answer[2] |= 0x80;
    let other = |answer: &mut Vec<u8>| answer[13] = b'_';
    let framed = |answer: &[u8]| [&(answer.len() as u16).to_be_bytes(), answer].concat();
    match lie {
        StreamLie::Silent => {}
        StreamLie::Half => stream.write_all(&framed(&answer)[..answer.len() / 2])?,
        StreamLie::Noise => noise(stream)?,
        StreamLie::Afterwards => {
            // Its length may come alone.
            while length < 2 + usize::from(u16::from_be_bytes([query[0], query[1]])) {
                match stream.read(&mut query[length..])? {
                    0 => return Ok(length as u64),
                    more => length += more,
                }
            }
            let truth = LyingServer::TRUTH.parse().map_err(io::Error::other)?;
            let names = [("www.example".to_owned(), vec![truth])].into();
            let truth = super::dns::answer(&names, &query[2..length]).unwrap_or_default();
            stream.write_all(&framed(&truth))?;
            noise(stream)?;
        }
        StreamLie::Endless => {
            other(&mut answer);
            loop {
                answer[0] = answer[0].wrapping_add(1);
                stream.write_all(&framed(&answer))?;
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        StreamLie::Other => {
            other(&mut answer);
            stream.write_all(&framed(&answer))?;
        }
        StreamLie::Ends => return Ok(length as u64),
        StreamLie::Stalled => stream.write_all(&[22, 3, 3, 0x20, 0, 2, 0, 0])?,
    }
    // Until the other side has enough.
    while stream.read(&mut query)? > 0 {}
    Ok(length as u64)
}
