//! Whose a flow is, by the address that its packets come from.
//!
//! A socket of this host that is bound to nothing leaves with the address of the device its
//! route leads to, which is the TUN's: the real source is for the kernel to choose. One that
//! is bound to another address of this host has chosen, and the route is looked up for that
//! address. Every other client is somebody else's host behind this one.

use std::net::IpAddr;

/// Which flows are this host's own, by client address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Own {
    /// All of them (`exec`).
    Every,
    /// Those of these addresses; any other flow is forwarded.
    Addresses {
        /// The device's own: the kernel chooses the source.
        device: Vec<IpAddr>,
        /// This host's other addresses: the app has bound its socket, and the flow leaves
        /// with that address. An address of the device may be among them.
        host: Vec<IpAddr>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// Local, the source is open.
    Device,
    /// Local, and the client address is the source.
    Host,
    Forwarded,
}

impl Own {
    pub(super) fn whose(&self, client: IpAddr) -> Whose {
        match self {
            Self::Every => Whose::Device,
            Self::Addresses { device, .. } if device.contains(&client) => Whose::Device,
            Self::Addresses { host, .. } if host.contains(&client) => Whose::Host,
            Self::Addresses { .. } => Whose::Forwarded,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_address_says_whose() {
        let ip = |text: &str| -> IpAddr { text.parse().expect("an address") };
        let own = Own::Addresses {
            device: vec![ip("198.18.0.1"), ip("2001:2:0:756e::1")],
            host: vec![ip("192.0.2.1"), ip("198.18.0.1")],
        };
        for (client, whose) in [
            ("198.18.0.1", Whose::Device),
            ("2001:2:0:756e::1", Whose::Device),
            ("192.0.2.1", Whose::Host),
            ("10.0.0.2", Whose::Forwarded),
            ("2001:db8::2", Whose::Forwarded),
        ] {
            assert_eq!(own.whose(ip(client)), whose, "{client}");
        }
        assert_eq!(Own::Every.whose(ip("10.0.0.2")), Whose::Device);
    }
}
