//! A name server that is broken over TCP and TLS, or somebody who plays it: connections are taken,
//! and then no answer comes whole.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConnection, StreamOwned};

use super::dns_lies::LyingServer;
use super::dns_trust::Signed;
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

/// The same at port 853 inside TLS, behind a handshake as it should be.
///
/// # Errors
/// It can't listen.
pub fn lies_over_tls(netns: &Netns, signed: &Signed, lie: StreamLie) -> Result<TcpServer> {
    inside_tls(netns, 853, signed, &[], move |stream| tell(lie, stream))
}

/// What a server says inside TLS.
type Inside<'s> = StreamOwned<ServerConnection, &'s mut TcpStream>;

pub(super) fn inside_tls(
    netns: &Netns,
    port: u16,
    signed: &Signed,
    protocols: &[&[u8]],
    serve: impl Fn(&mut Inside<'_>) -> io::Result<u64> + Clone + Send + 'static,
) -> Result<TcpServer> {
    let certificate = CertificateDer::from_pem_slice(signed.certificate.as_bytes())?;
    let key = PrivateKeyDer::from_pem_slice(signed.key.as_bytes())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    tls.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let tls = Arc::new(tls);
    TcpServer::start(netns, port, move |stream| {
        let connection = ServerConnection::new(Arc::clone(&tls)).map_err(io::Error::other)?;
        serve(&mut StreamOwned::new(connection, stream))
    })
}

/// The truth about `www.example`.
pub(super) fn truth(query: &[u8]) -> io::Result<Vec<u8>> {
    let truth = LyingServer::TRUTH.parse().map_err(io::Error::other)?;
    let names = [("www.example".to_owned(), vec![truth])].into();
    super::dns::answer(&names, query).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Until nobody reads it any more.
fn noise(stream: &mut impl Write) -> io::Result<()> {
    loop {
        stream.write_all(&[0xff; 4096])?;
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn tell(lie: StreamLie, stream: &mut (impl Read + Write)) -> io::Result<u64> {
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
            stream.write_all(&framed(&truth(&query[2..length])?))?;
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
