//! How much a server may say on one connection.
//!
//! A connection stays for the next question, and whoever has it reads what comes. A server that
//! goes on without being asked would be read for as long as it likes; so each question allows it
//! what an answer can be at most, and one that says more loses the connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Stream;

/// A message has at most 64 KiB; the rest is for what TLS and HTTP/2 put around it.
const OF_A_QUESTION: usize = 80 << 10;
/// A handshake, with a chain of certificates.
const AT_FIRST: usize = 128 << 10;
/// However many questions had short answers: as much as those that are open at once.
const MOST: usize = AT_FIRST + 32 * OF_A_QUESTION;

/// What may still come on one connection, in bytes.
#[derive(Debug, Clone)]
pub(crate) struct Allowance(Arc<AtomicUsize>);

impl Default for Allowance {
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(AT_FIRST)))
    }
}

impl Allowance {
    /// A question was asked.
    pub(crate) fn grant(&self) {
        self.change(|left| (left + OF_A_QUESTION).min(MOST));
    }

    /// So much has come.
    pub(super) fn spend(&self, bytes: usize) {
        self.change(|left| left.saturating_sub(bytes));
    }

    /// Whether anything more may come.
    pub(super) fn left(&self) -> io::Result<()> {
        if self.0.load(Ordering::Relaxed) > 0 {
            return Ok(());
        }
        let noise = "the server says more than it was asked";
        Err(io::Error::new(io::ErrorKind::ConnectionAborted, noise))
    }

    fn change(&self, to: impl Fn(usize) -> usize) {
        let (order, change) = (Ordering::Relaxed, |left| Some(to(left)));
        // It changes in any case.
        let _ = self.0.fetch_update(order, order, change);
    }
}

/// A connection that ends when its allowance is spent.
pub(crate) struct Metered {
    pub(crate) stream: Box<dyn Stream>,
    pub(crate) allowance: Allowance,
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.allowance.left()?;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.allowance.spend(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// How much is read of a server that never ends, after so many questions.
    async fn read_of(questions: usize) -> usize {
        let (stream, mut server) = tokio::io::duplex(64 << 10);
        let noise =
            tokio::spawn(async move { while server.write_all(&[7; 4096]).await.is_ok() {} });
        let allowance = Allowance::default();
        (0..questions).for_each(|_| allowance.grant());
        let mut metered = Metered { stream: Box::new(stream), allowance };
        let (mut room, mut read) = (vec![0; 4096], 0);
        let error = loop {
            match metered.read(&mut room).await {
                Ok(length) => read += length,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        drop(metered);
        noise.await.expect("it ends with its reader");
        read
    }

    #[tokio::test]
    async fn what_nobody_asked_for_has_an_end() {
        for (questions, allowed) in [
            (0, AT_FIRST),
            (1, AT_FIRST + OF_A_QUESTION),
            (10, AT_FIRST + 10 * OF_A_QUESTION),
            (1_000_000, MOST),
        ] {
            let read = read_of(questions).await;
            assert!((allowed..allowed + 4096).contains(&read), "{questions}: {read}");
        }
    }
}
