//! All of `run_host` on a host whose connections are tracked, where tunneld's rules have their
//! other form.

#[path = "run_host.rs"]
mod run_host;
