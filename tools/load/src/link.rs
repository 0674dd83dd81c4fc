//! One client's socket: TCP, or TLS over it, without blocking. What goes over it is
//! `client`'s business.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use rustls::ClientConnection;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::target::Target;

pub struct Link {
    stream: TcpStream,
    tls: Option<Box<ClientConnection>>,
    /// The bytes that the socket did not take at once.
    #[expect(clippy::box_collection, reason = "one word in each of many thousand connections")]
    waiting: Option<Box<Vec<u8>>>,
}

impl Link {
    pub fn open(
        target: &Target,
        client: usize,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Self> {
        let peer = target.peer(client);
        let mut stream = connect(peer.address, target.source(client))?;
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;

        let tls = match &peer.tls {
            None => None,
            Some((config, name)) => {
                let tls = ClientConnection::new(Arc::clone(config), name.clone());
                Some(Box::new(tls.map_err(io::Error::other)?))
            }
        };
        Ok(Link { stream, tls, waiting: None })
    }

    /// Whether `connect` has succeeded; `false` while it is under way.
    pub fn established(&self) -> io::Result<bool> {
        if let Some(error) = self.stream.take_error()? {
            return Err(error);
        }
        match self.stream.peer_addr() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.tls {
            Some(tls) => tls.writer().write_all(bytes)?,
            None => match &mut self.waiting {
                Some(waiting) => waiting.extend_from_slice(bytes),
                None => {
                    let taken = or_would_block(self.stream.write(bytes))?.unwrap_or(0);
                    if taken < bytes.len() {
                        self.waiting = Some(Box::new(bytes[taken..].to_vec()));
                    }
                    return Ok(());
                }
            },
        }
        self.flush()
    }

    pub fn flush(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            while tls.wants_write() {
                if or_would_block(tls.write_tls(&mut self.stream))?.is_none() {
                    break;
                }
            }
        }

        while let Some(waiting) = &mut self.waiting {
            let Some(taken) = or_would_block(self.stream.write(waiting))? else { break };
            waiting.drain(..taken);
            if waiting.is_empty() {
                self.waiting = None;
            }
        }
        Ok(())
    }

    /// Reads what has come. `None`: there is nothing. 0: the connection has ended.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(tls) = &mut self.tls else {
            return or_would_block(self.stream.read(buffer));
        };

        loop {
            if let Some(count) = or_would_block(tls.reader().read(buffer))? {
                return Ok(Some(count));
            }
            match or_would_block(tls.read_tls(&mut self.stream))? {
                None => return Ok(None),
                Some(0) => return Ok(Some(0)),
                Some(_) => {
                    tls.process_new_packets().map_err(io::Error::other)?;
                    // The packets of a TLS handshake need answers.
                    while tls.wants_write() {
                        if or_would_block(tls.write_tls(&mut self.stream))?.is_none() {
                            break;
                        }
                    }
                }
            }
        }
    }

    /// A read that filled less than the buffer has emptied the socket; TLS may hold more.
    pub fn short_read_is_last(&self) -> bool {
        self.tls.is_none()
    }

    /// Ends the connection as a lost network does: by a reset, without a close frame.
    pub fn abort(self) {
        let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }
}

fn connect(address: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }

    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(IN_PROGRESS) => return Err(error),
        _ => {}
    }
    Ok(TcpStream::from_std(socket.into()))
}

/// EINPROGRESS is what a connect that does not wait answers.
const IN_PROGRESS: i32 = rustix::io::Errno::INPROGRESS.raw_os_error();

fn or_would_block<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
