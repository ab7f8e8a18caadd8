//! How a name finds its servers.
//!
//! [`discover`] tells which servers the network that the host is on has named.
#![forbid(unsafe_code)]

pub mod discover;
