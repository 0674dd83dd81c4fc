//! `floor`: a server that shows the least that fan-out can cost on this kernel. It has one thread,
//! a handshake that asks for no token, and one `send` for each subscriber out of one shared frame.
//! It has no queues and no gaps: a client that does not take a frame at once loses its connection.
//! What the floor costs is what sockets cost.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read as _, Write as _};

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use sha1::Digest as _;

use crate::args::Floor;
use crate::frame;

const LISTENER: Token = Token(usize::MAX - 1);
const REDIS: Token = Token(usize::MAX - 2);
const BACKLOG: i32 = 65_535;

pub fn floor(args: &Floor) -> Result<bool> {
    crate::scenario::enough_files(0, 1)?;
    let mut server = Server::new(args)?;
    println!("floor: pid {} on {}", std::process::id(), args.listen);
    server.run()
}

struct Connection {
    stream: TcpStream,
    /// The request as far as it has come; empty after the upgrade.
    head: Vec<u8>,
    /// The channel, and the connection's place in the channel's list.
    subscription: Option<(usize, usize)>,
}

struct Server {
    poll: Poll,
    listener: TcpListener,
    redis: TcpStream,
    /// The part of Redis' stream that is not handled yet.
    pending: Vec<u8>,
    prefix: usize,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    names: HashMap<Vec<u8>, usize>,
    channels: Vec<Vec<usize>>,
    frame: Vec<u8>,
}

impl Server {
    fn new(args: &Floor) -> Result<Self> {
        let poll = Poll::new()?;

        let domain = socket2::Domain::for_address(args.listen);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        let bound = socket.bind(&args.listen.into()).and_then(|()| socket.listen(BACKLOG));
        bound.with_context(|| format!("cannot listen on {}", args.listen))?;
        let mut listener = TcpListener::from_std(socket.into());

        let mut redis = std::net::TcpStream::connect(&args.redis)
            .with_context(|| format!("--redis {}: cannot connect (HOST:PORT)", args.redis))?;
        let pattern = format!("{}*", args.redis_prefix);
        let command = format!("*2\r\n$10\r\nPSUBSCRIBE\r\n${}\r\n{pattern}\r\n", pattern.len());
        redis.write_all(command.as_bytes())?;
        redis.set_nonblocking(true)?;
        let mut redis = TcpStream::from_std(redis);

        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        poll.registry().register(&mut redis, REDIS, Interest::READABLE)?;
        Ok(Server {
            poll,
            listener,
            redis,
            pending: Vec::new(),
            prefix: args.redis_prefix.len(),
            connections: Vec::new(),
            free: Vec::new(),
            names: HashMap::new(),
            channels: Vec::new(),
            frame: Vec::new(),
        })
    }

    fn run(&mut self) -> Result<bool> {
        let mut events = Events::with_capacity(1024);
        let mut buffer = vec![0; 64 * 1024];

        loop {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error.into()),
                _ => {}
            }

            for event in &events {
                match event.token() {
                    LISTENER => self.accept(),
                    REDIS => self.publications(&mut buffer)?,
                    Token(slot) => {
                        if !self.readable(slot, &mut buffer) {
                            self.end(slot);
                        }
                    }
                }
            }
        }
    }

    fn accept(&mut self) {
        while let Ok((mut stream, _)) = self.listener.accept() {
            let slot = self.free.pop().unwrap_or(self.connections.len());

            // Each `send` is one packet: without TCP_NODELAY the kernel joins what a slow client
            // is sent.
            if stream.set_nodelay(true).is_err()
                || self
                    .poll
                    .registry()
                    .register(&mut stream, Token(slot), Interest::READABLE)
                    .is_err()
            {
                continue;
            }

            let connection = Connection { stream, head: Vec::new(), subscription: None };
            if slot == self.connections.len() {
                self.connections.push(None);
            }
            self.connections[slot] = Some(connection);
        }
    }

    /// Reads what a client sent. False: the connection is over.
    fn readable(&mut self, slot: usize, buffer: &mut [u8]) -> bool {
        loop {
            let Some(Some(connection)) = self.connections.get_mut(slot) else { return true };
            let count = match connection.stream.read(buffer) {
                Ok(0) => return false,
                Ok(count) => count,
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            };

            if connection.subscription.is_some() {
                // A client only sends pongs and a close. The close ends the connection, and a pong
                // needs no answer.
                if buffer[0] & 15 == frame::CLOSE {
                    return false;
                }
            } else {
                connection.head.extend_from_slice(&buffer[..count]);
                if connection.head.len() > 65_536 {
                    return false;
                }
                if connection.head.ends_with(b"\r\n\r\n") && self.upgrade(slot).is_none() {
                    return false;
                }
            }

            if count < buffer.len() {
                return true;
            }
        }
    }

    fn upgrade(&mut self, slot: usize) -> Option<()> {
        let connection = self.connections[slot].as_mut()?;
        let head = std::mem::take(&mut connection.head);
        let head = std::str::from_utf8(&head).ok()?;
        let path = head.strip_prefix("GET /sub/")?.split([' ', '?']).next()?;
        let key = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim())
        })?;

        let mut hash = sha1::Sha1::new();
        hash.update(key);
        hash.update("258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
        let accept = base64::engine::general_purpose::STANDARD.encode(hash.finalize());
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        );

        let channel = *self.names.entry(path.as_bytes().to_vec()).or_insert_with(|| {
            self.channels.push(Vec::new());
            self.channels.len() - 1
        });

        // The subscription precedes the answer: a client that has read the answer misses nothing.
        connection.subscription = Some((channel, self.channels[channel].len()));
        self.channels[channel].push(slot);

        let sent = connection.stream.write(answer.as_bytes()).ok()?;
        (sent == answer.len()).then_some(())
    }

    fn end(&mut self, slot: usize) {
        let Some(connection) = self.connections[slot].take() else { return };
        self.free.push(slot);
        let Some((channel, at)) = connection.subscription else { return };
        self.channels[channel].swap_remove(at);

        // The last connection in the channel's list has taken the place.
        if let Some(moved) = self.channels[channel].get(at)
            && let Some(Some(other)) = self.connections.get_mut(*moved)
        {
            other.subscription = Some((channel, at));
        }
    }

    fn publications(&mut self, buffer: &mut [u8]) -> Result<()> {
        loop {
            match self.redis.read(buffer) {
                Ok(0) => bail!("Redis closed the connection"),
                Ok(count) => self.pending.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }

            let pending = std::mem::take(&mut self.pending);
            let mut at = 0;
            while let Some((message, used)) = message(&pending[at..])? {
                if let Message::Publication { channel, payload } = message {
                    self.publish(channel.get(self.prefix..).unwrap_or_default(), payload);
                }
                at += used;
            }

            self.pending = pending;
            self.pending.drain(..at);
        }
    }

    fn publish(&mut self, channel: &[u8], payload: &[u8]) {
        let Some(channel) = self.names.get(channel) else { return };
        self.frame.clear();
        frame::write_unmasked(&mut self.frame, frame::TEXT, payload);

        let mut lost = Vec::new();
        for slot in &self.channels[*channel] {
            if let Some(Some(connection)) = self.connections.get_mut(*slot) {
                let sent: io::Result<usize> = connection.stream.write(&self.frame);
                if sent.ok() != Some(self.frame.len()) {
                    lost.push(*slot);
                }
            }
        }

        for slot in lost {
            eprintln!("floor: connection {slot} reads too slowly");
            self.end(slot);
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Message<'a> {
    Publication { channel: &'a [u8], payload: &'a [u8] },
    Other,
}

/// Reads the RESP2 array of bulk strings and integers at the beginning of `bytes`, and its length;
/// `None` while it is not complete.
fn message(bytes: &[u8]) -> Result<Option<(Message<'_>, usize)>> {
    let Some((b'*', count, mut at)) = line(bytes)? else { return Ok(None) };

    let mut items = [&[][..]; 4];
    for number in 0..count {
        let Some((kind, length, used)) = line(&bytes[at..])? else { return Ok(None) };
        at += used;
        if kind == b'$' {
            let Some(item) = bytes.get(at..at + length) else { return Ok(None) };
            if let Some(place) = items.get_mut(number) {
                *place = item;
            }
            at += length + 2;
            if at > bytes.len() {
                return Ok(None);
            }
        }
    }

    let [kind, _, channel, payload] = items;
    let message = match kind {
        b"pmessage" => Message::Publication { channel, payload },
        _ => Message::Other,
    };
    Ok(Some((message, at)))
}

/// The kind of a RESP line, its number, and its length.
fn line(bytes: &[u8]) -> Result<Option<(u8, usize, usize)>> {
    let Some(end) = memchr::memchr(b'\n', bytes) else { return Ok(None) };
    let text = String::from_utf8_lossy(&bytes[..end]);
    match (bytes[0], text[1..].trim_end().parse()) {
        (kind @ (b'*' | b'$' | b':'), Ok(number)) => Ok(Some((kind, number, end + 1))),
        _ => bail!("Redis answered: {text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publication_is_read_when_it_is_complete() {
        let bytes = b"*4\r\n$8\r\npmessage\r\n$2\r\nt*\r\n$3\r\nt:a\r\n$5\r\nhello\r\n";
        let expected = Message::Publication { channel: b"t:a", payload: b"hello" };
        assert_eq!(message(bytes).unwrap(), Some((expected, bytes.len())));
        for end in 0..bytes.len() {
            assert_eq!(message(&bytes[..end]).unwrap(), None, "{end}");
        }

        let confirmed = b"*3\r\n$10\r\npsubscribe\r\n$2\r\nt*\r\n:1\r\n";
        assert_eq!(message(confirmed).unwrap(), Some((Message::Other, confirmed.len())));
        assert!(message(b"-NOAUTH Authentication required.\r\n").is_err());
    }
}
