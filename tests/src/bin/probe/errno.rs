//! Errors by the names that connect(2) and send(2) call them.

use std::io;

use serde_json::{Value, json};

/// The name of an error, as JSON; null where there is none.
pub(crate) fn named<T>(result: &io::Result<T>) -> Value {
    match result {
        Ok(_) => Value::Null,
        Err(error) => json!(name(error)),
    }
}

/// The name of an error.
pub(crate) fn name(error: &io::Error) -> String {
    let known = match error.raw_os_error() {
        Some(libc::EACCES) => "EACCES",
        Some(libc::EADDRNOTAVAIL) => "EADDRNOTAVAIL",
        Some(libc::EAGAIN) => "EAGAIN",
        Some(libc::ECONNABORTED) => "ECONNABORTED",
        Some(libc::ECONNREFUSED) => "ECONNREFUSED",
        Some(libc::ECONNRESET) => "ECONNRESET",
        Some(libc::EHOSTUNREACH) => "EHOSTUNREACH",
        Some(libc::EINPROGRESS) => "EINPROGRESS",
        Some(libc::EMFILE) => "EMFILE",
        Some(libc::EMSGSIZE) => "EMSGSIZE",
        Some(libc::ENETUNREACH) => "ENETUNREACH",
        Some(libc::EPERM) => "EPERM",
        Some(libc::EPIPE) => "EPIPE",
        Some(libc::ETIMEDOUT) => "ETIMEDOUT",
        _ => return error.to_string(),
    };
    known.to_owned()
}
