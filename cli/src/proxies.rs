//! The proxies of a configuration, with what their files hold.

use std::sync::Arc;

use dns::tls::{Credentials, TrustError};
use tunnel::egress::proxy::tls::Tls;

use crate::config;
use crate::config::Config;

/// A proxy as the configuration says it, ready to be talked to.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    pub(crate) config: config::Proxy,
    /// Whom to trust, where it is talked to over TLS.
    pub(crate) tls: Option<Tls>,
}

/// A file of certificates can't be used.
#[derive(Debug, thiserror::Error)]
#[error("proxy {name}: {error}{}", error.help().map(|help| format!("; {help}")).unwrap_or_default())]
pub(crate) struct Unloaded {
    name: String,
    error: TrustError,
}

/// Reads the files of all proxies.
///
/// # Errors
/// One can't be used.
pub(crate) fn load(config: &Config) -> Result<Vec<Loaded>, Unloaded> {
    let load = |proxy: &config::Proxy| -> Result<Loaded, TrustError> {
        let tls = match &proxy.tls {
            Some(name) => {
                let config = Credentials::load(&proxy.trust)?.client_config()?;
                Some(Tls { config: Arc::new(config), name: name.clone() })
            }
            None => None,
        };
        Ok(Loaded { config: proxy.clone(), tls })
    };
    let all = config.proxies.iter();
    all.map(|proxy| load(proxy).map_err(|error| Unloaded { name: proxy.name.clone(), error }))
        .collect()
}
