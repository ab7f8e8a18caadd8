//! Where packets go that leave through a tunnel.

pub mod netstack;
pub mod wireguard;
