//! A certificate authority of a test's own, and what it signs.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    date_time_ymd,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ResolvesServerCertUsingSni;
use rustls::sign::CertifiedKey;
use rustls::{ServerConnection, StreamOwned};

use super::dns::serve;
use super::tcp::TcpServer;
use crate::lab::scratch::Scratch;
use crate::lab::{Netns, Running};

/// Signs certificates.
#[derive(Debug)]
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, PEM.
#[derive(Debug, Clone)]
pub struct Signed {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

/// When a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Valid {
    /// Now.
    Now,
    /// It was once.
    Before,
    /// It will be.
    Later,
}

impl Authority {
    /// A new one, which nobody knows.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// Its own certificate, PEM.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for names and addresses.
    pub fn sign(&self, names: &[&str], valid: Valid) -> Result<Signed> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = match valid {
            Valid::Now => (date_time_ymd(2020, 1, 1), date_time_ymd(2080, 1, 1)),
            Valid::Before => (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1)),
            Valid::Later => (date_time_ymd(2070, 1, 1), date_time_ymd(2080, 1, 1)),
        };
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.0)?.pem();
        Ok(Signed { certificate, key: key.serialize_pem() })
    }
}

/// socat(1) as the TLS side of a server that speaks in the clear at `behind`. Whoever shows no
/// certificate of `clients` is turned away.
///
/// # Errors
/// It does not start.
pub fn wants_certificates(
    netns: &Netns,
    at: SocketAddr,
    behind: SocketAddr,
    signed: &Signed,
    clients: &Authority,
) -> Result<(Running, Scratch)> {
    let files = Scratch::new()?;
    let (certificate, key) = signed.write(&files, "server")?;
    let clients = files.write("clients.pem", &clients.pem())?;
    let (address, port) = (at.ip(), at.port());
    let listen = format!(
        "OPENSSL-LISTEN:{port},bind={address},cert={certificate},key={key},cafile={},verify=1,fork,reuseaddr",
        clients.display()
    );
    // `-d -d`: it says that it listens.
    let socat = netns.command("socat").args(["-d", "-d", &listen, &format!("TCP:{behind}")]);
    let mut running = socat.spawn()?;
    let limit = Instant::now() + Duration::from_secs(10);
    while !running.stderr().contains("listening on") {
        ensure!(!running.ended()? && Instant::now() < limit, "socat: {}", running.stderr());
        thread::sleep(Duration::from_millis(5));
    }
    Ok((running, files))
}

/// A name server at port 853 of every address, which shows the certificate of whichever of these
/// names it is asked for (RFC 6066 section 3), and none to whoever names none of them. It knows
/// `www.example`, 203.0.113.80.
///
/// # Errors
/// It does not start.
pub fn picks_by_name(netns: &Netns, names: &[(&str, &Signed)]) -> Result<TcpServer> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut certificates = ResolvesServerCertUsingSni::new();
    for (name, signed) in names {
        let certificate = CertificateDer::from_pem_slice(signed.certificate.as_bytes())?;
        let key = PrivateKeyDer::from_pem_slice(signed.key.as_bytes())?;
        certificates.add(name, CertifiedKey::from_der(vec![certificate], key, &provider)?)?;
    }
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(certificates));
    let (tls, address) = (Arc::new(tls), "203.0.113.80".parse()?);
    let table = Arc::new(BTreeMap::from([("www.example".to_owned(), vec![address])]));
    TcpServer::start(netns, 853, move |stream| {
        let connection = ServerConnection::new(Arc::clone(&tls)).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, stream);
        serve(&table, &mut stream)
    })
}

impl Signed {
    /// Both in one text.
    pub fn whole(&self) -> String {
        format!("{}{}", self.certificate, self.key)
    }

    /// Writes both as `NAME.pem` and `NAME.key`, and gives their paths.
    pub fn write(&self, to: &Scratch, name: &str) -> Result<(String, String)> {
        let certificate = to.write(&format!("{name}.pem"), &self.certificate)?;
        let key = to.write(&format!("{name}.key"), &self.key)?;
        Ok((certificate.display().to_string(), key.display().to_string()))
    }
}
