//! Devices, sockets and the host's network beneath the engine.
#![deny(unsafe_code)]

pub mod device;
pub mod driver;
pub mod egress;
pub mod host;
pub mod link;
#[cfg(test)]
mod namespace;
mod netlink;
pub mod owner;
pub mod peer;
pub mod rings;
pub mod rtnetlink;
pub mod source;
