//! A web page: just enough HTTP/1.1 for curl(1).

use std::io::{self, Read, Write};
use std::net::TcpStream;

/// What the page says.
pub const PAGE: &str = "the far side says hello\n";

/// Answers one request with [`PAGE`] and closes.
pub fn page(stream: &mut TcpStream) -> io::Result<u64> {
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    while !request.windows(4).any(|four| four == b"\r\n\r\n") {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        request.extend_from_slice(&buffer[..length]);
    }
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{PAGE}",
        PAGE.len()
    )?;
    Ok(request.len() as u64)
}
