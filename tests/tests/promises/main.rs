//! What tunneld promises, seen from outside: one file for a promise, one binary for all of them:
//! each of them would be linked with the whole product.

mod bad_packets;
mod counters;
mod dns_believed;
mod dns_host;
mod dns_lies;
mod dns_load;
mod dns_split;
mod dns_split_run;
mod dns_trust;
mod dns_tunnelled;
mod dns_upstream;
mod dns_verbs;
mod echo;
mod exec_basics;
mod exec_wireguard;
mod forwarded;
mod happy_eyeballs;
mod lab;
mod limits;
mod names;
mod names_peeked;
mod policy_check;
mod protected;
mod proxy;
mod proxy_own;
mod proxy_tunnelled;
mod proxy_udp;
mod repo_rules;
mod run_bridge;
mod run_dns;
mod run_host;
#[allow(clippy::duplicate_mod, reason = "the same promises of another host")]
/// All of `run_host` on a host whose connections are tracked, where the rules have their other form.
#[path = "run_host.rs"]
mod run_host_tracked;
mod run_links;
mod run_network;
mod run_proxy;
mod run_reload;
mod run_shards;
mod run_socket;
mod run_ssh;
mod run_takeover;
mod run_tracking;
mod run_wireguard;
mod run_wireguard_changes;
mod run_wireguard_packets;
mod run_wireguard_paths;
mod source_before_bytes;
mod tcp_truth;
mod udp_truth;
mod wireguard_core;
mod wireguard_health;
mod wireguard_peers;
mod wireguard_secrets;
mod wireguard_uapi;
mod wireguard_wire;
