//! The stream of an HTTP connection. If the connection becomes a socket, the answer that says so is
//! held back, so that it leaves in one packet with the socket's first messages: one write and one
//! wake-up of the client fewer.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::http_connection::HttpConnection;

/// A stream that can hold written bytes back.
pub(super) struct CorkedStream {
    stream: TcpStream,
    connection: HttpConnection,
    /// What is held back: one answer of a few hundred bytes, and whatever was written before it.
    held: Vec<u8>,
}

impl CorkedStream {
    pub(super) fn new(stream: TcpStream, connection: HttpConnection) -> Self {
        Self { stream, connection, held: Vec::new() }
    }

    /// Returns the stream, and the bytes that were held back.
    pub(super) fn into_parts(self) -> (TcpStream, Vec<u8>) {
        (self.stream, self.held)
    }
}

impl AsyncRead for CorkedStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, out)
    }
}

impl AsyncWrite for CorkedStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wire = self.get_mut();
        if !wire.connection.holds() {
            return Pin::new(&mut wire.stream).poll_write(cx, bytes);
        }

        wire.held.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wire = self.get_mut();
        if !wire.connection.holds() {
            return Pin::new(&mut wire.stream).poll_write_vectored(cx, slices);
        }

        let before = wire.held.len();
        slices.iter().for_each(|slice| wire.held.extend_from_slice(slice));
        Poll::Ready(Ok(wire.held.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
