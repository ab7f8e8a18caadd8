//! Whom an encrypted server must be: the roots, the certificate of our own, the name check.
//!
//! Without a `ca` file the host's roots decide; with one, that file alone, so that a public
//! authority can't speak for a private resolver. The handshake ends before a query leaves: a
//! server whose certificate is at fault never sees one.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{VerifierBuilderError, WantsClientCert};
use rustls::crypto::CryptoProvider;
pub use rustls::pki_types::ServerName;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore,
    SignatureScheme,
};
use thiserror::Error;

/// The files that say whom to trust and who we are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trust {
    /// PEM certificates that are the only roots. `None`: the host's.
    pub ca: Option<PathBuf>,
    /// A PEM file with our certificate chain and its key, for servers that ask for one.
    pub identity: Option<PathBuf>,
}

/// Why trust could not be set up.
#[derive(Debug, Error)]
pub enum TrustError {
    /// A file could not be read.
    #[error("{}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file is no PEM.
    #[error("{}: {error}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        error: pem::Error,
    },
    /// A file holds no certificate.
    #[error("{}: no certificate in it", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// A certificate can't be a root, or ours.
    #[error("{}: {error}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: rustls::Error,
    },
    /// A file holds no private key.
    #[error("{}: no private key in it", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// Anybody may read a private key.
    #[error("{}: a private key that others may read or write (mode {mode:03o})", path.display())]
    OpenKey {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The host has no roots.
    #[error("this host has no root certificates")]
    NoRoots,
    /// The cryptography refuses.
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
    /// The roots are refused.
    #[error(transparent)]
    Roots(#[from] VerifierBuilderError),
}

impl TrustError {
    /// What to do about it.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::OpenKey { path, .. } => Some(format!("chmod 600 {}", path.display())),
            Self::NoRoots => Some("install ca-certificates, or write `ca`".to_owned()),
            Self::NoKey { .. } => {
                Some("`identity` is one PEM file: the certificate, its chain and the key".into())
            }
            Self::Read { .. }
            | Self::Pem { .. }
            | Self::NoCertificate { .. }
            | Self::Unusable { .. }
            | Self::Rustls(_)
            | Self::Roots(_) => None,
        }
    }
}

/// Trust, loaded: what each encrypted connection of a resolver starts from.
#[derive(Debug)]
pub struct Credentials {
    provider: Arc<CryptoProvider>,
    verifier: Arc<WebPkiServerVerifier>,
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

impl Credentials {
    /// Reads the files, and the host's roots where no `ca` is given.
    ///
    /// # Errors
    /// A file is missing, is no PEM, or is a key that others may read.
    pub fn load(trust: &Trust) -> Result<Self, TrustError> {
        let roots = match &trust.ca {
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path, &read(path)?)? {
                    let unusable = |error| TrustError::Unusable { path: path.clone(), error };
                    roots.add(certificate).map_err(unusable)?;
                }
                roots
            }
            None => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                roots
            }
        };
        if roots.is_empty() {
            return Err(TrustError::NoRoots);
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()?;
        let credentials = Self {
            provider,
            verifier,
            identity: trust.identity.as_deref().map(identity).transpose()?,
        };
        if let Some(path) = &trust.identity {
            // A key that does not fit its certificate is an error now, not at the first query.
            credentials
                .config()
                .map_err(|error| TrustError::Unusable { path: path.clone(), error })?;
        }
        Ok(credentials)
    }

    /// The configuration of connections to somebody else than a name server.
    ///
    /// # Errors
    /// The cryptography refuses our own certificate.
    pub fn client_config(&self) -> Result<ClientConfig, TrustError> {
        Ok(self.config()?.0)
    }

    /// The configuration of one server's connections, and what became of its certificate.
    ///
    /// # Errors
    /// The cryptography refuses our own certificate.
    pub(crate) fn config(&self) -> Result<(ClientConfig, Arc<Verdict>), rustls::Error> {
        let verdict =
            Arc::new(Verdict { verifier: Arc::clone(&self.verifier), fault: Mutex::default() });
        let builder: ConfigBuilder<ClientConfig, WantsClientCert> =
            ClientConfig::builder_with_provider(Arc::clone(&self.provider))
                .with_safe_default_protocol_versions()?
                .dangerous()
                // Not less than the verifier of the library: it decides.
                .with_custom_certificate_verifier(Arc::clone(&verdict) as _);
        let config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => builder.with_client_auth_cert(chain.clone(), key.clone_key())?,
        };
        Ok((config, verdict))
    }
}

/// The library's verifier, which also remembers why it refused: of the errors that come out of
/// TLS, HTTP/2 and QUIC some say no more than that there was one.
#[derive(Debug)]
pub(crate) struct Verdict {
    verifier: Arc<WebPkiServerVerifier>,
    fault: Mutex<Option<CertificateFault>>,
}

impl Verdict {
    /// Why the certificate was refused, once.
    pub(crate) fn take(&self) -> Option<CertificateFault> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl ServerCertVerifier for Verdict {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.verifier.verify_server_cert(certificate, chain, name, ocsp, now);
        let fault = match &verified {
            Ok(_) => None,
            Err(rustls::Error::InvalidCertificate(error)) => Some(error.clone().into()),
            Err(_) => Some(CertificateFault::Unusable),
        };
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
        verified
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// What is wrong with a server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CertificateFault {
    /// Its time is over.
    #[error("the certificate has expired")]
    Expired,
    /// Its time has not come.
    #[error("the certificate is not valid yet")]
    NotYetValid,
    /// No root of ours vouches for it.
    #[error("the certificate is of an unknown issuer")]
    UnknownIssuer,
    /// It is somebody else's.
    #[error("the certificate is for another name")]
    WrongName,
    /// It was taken back.
    #[error("the certificate was revoked")]
    Revoked,
    /// It is not what its issuer signed.
    #[error("the certificate's signature is wrong")]
    BadSignature,
    /// It is for another use, or not understood.
    #[error("the certificate can't be used")]
    Unusable,
}

impl From<CertificateError> for CertificateFault {
    fn from(error: CertificateError) -> Self {
        #[expect(clippy::wildcard_enum_match_arm, reason = "another crate's, and it grows")]
        match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Self::NotYetValid
            }
            CertificateError::UnknownIssuer => Self::UnknownIssuer,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Self::WrongName
            }
            CertificateError::Revoked => Self::Revoked,
            CertificateError::BadSignature => Self::BadSignature,
            _ => Self::Unusable,
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TrustError> {
    fs::read(path).map_err(|error| TrustError::Read { path: path.to_owned(), error })
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates =
        certificates.map_err(|error| TrustError::Pem { path: path.to_owned(), error })?;
    if certificates.is_empty() {
        return Err(TrustError::NoCertificate { path: path.to_owned() });
    }
    Ok(certificates)
}

fn identity(
    path: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TrustError> {
    let unread = |error| TrustError::Read { path: path.to_owned(), error };
    let mode = fs::metadata(path).map_err(unread)?.mode() & 0o777;
    if mode & 0o007 != 0 {
        return Err(TrustError::OpenKey { path: path.to_owned(), mode });
    }
    let pem = read(path)?;
    let key = match PrivateKeyDer::from_pem_slice(&pem) {
        Ok(key) => key,
        Err(pem::Error::NoItemsFound) => return Err(TrustError::NoKey { path: path.to_owned() }),
        Err(error) => return Err(TrustError::Pem { path: path.to_owned(), error }),
    };
    Ok((certificates(path, &pem)?, key))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

    /// Why these files are refused, and the help.
    fn refused(ca: Option<&str>, identity: Option<(&str, u32)>) -> (String, Option<String>) {
        let directory = std::env::temp_dir().join(format!(
            "tunneld-trust-{}-{}",
            std::process::id(),
            rand::random::<u64>()
        ));
        fs::create_dir(&directory).expect("a directory");
        let write = |name: &str, text: &str, mode| {
            let path = directory.join(name);
            fs::write(&path, text).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a mode");
            path
        };
        let trust = Trust {
            ca: ca.map(|text| match text {
                "missing" => directory.join("missing"),
                text => write("ca.pem", text, 0o644),
            }),
            identity: identity.map(|(text, mode)| write("identity.pem", text, mode)),
        };
        let error = Credentials::load(&trust).expect_err("refused");
        fs::remove_dir_all(&directory).expect("removed");
        let place = format!("{}/", directory.display());
        let short = |text: String| text.replace(&place, "");
        (short(error.to_string()), error.help().map(short))
    }

    #[test]
    fn files_at_fault_are_named() {
        let one_file = "`identity` is one PEM file: the certificate, its chain and the key";
        for (name, ca, identity, want, help) in [
            ("missing", Some("missing"), None, "missing: No such file", None),
            ("empty", Some(""), None, "ca.pem: no certificate in it", None),
            ("not PEM", Some("hello\n"), None, "ca.pem: no certificate in it", None),
            ("cut", Some("-----BEGIN CERTIFICATE-----\nAA"), None, "ca.pem: ", None),
            ("no certificate inside", Some(CERTIFICATE), None, "ca.pem: invalid peer", None),
            (
                "anybody's key",
                None,
                Some((CERTIFICATE, 0o604)),
                "identity.pem: a private key that others may read or write (mode 604)",
                Some("chmod 600 identity.pem"),
            ),
            (
                "no key",
                None,
                Some((CERTIFICATE, 0o600)),
                "identity.pem: no private key in it",
                Some(one_file),
            ),
        ] {
            let (message, shown) = refused(ca, identity);
            assert!(message.starts_with(want), "{name}: {message}");
            assert_eq!(shown.as_deref(), help, "{name}");
        }
    }
}
