//! A client that says exactly what a test wants it to say, and waits at most a few seconds.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use cowl_nbd::protocol::request::{Headers, Request};
use cowl_nbd::protocol::wire::{
    EXTENDED_REPLY_MAGIC, OPTION_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk, option,
    option_reply,
};

/// A reply: the chunks of it, or one for a simple reply.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) cookie: u64,
    pub(crate) kind: u16,
    pub(crate) is_last: bool,
    pub(crate) payload: Vec<u8>,
}

impl Chunk {
    /// The error of an error chunk; zero otherwise.
    pub(crate) fn error(&self) -> u32 {
        match self.kind {
            chunk::ERROR => u32::from_be_bytes(self.payload[..4].try_into().unwrap()),
            _ => 0,
        }
    }
}

pub(crate) struct BareClient {
    pub(crate) stream: UnixStream,
    headers: Headers,
    next_cookie: u64,
}

impl BareClient {
    /// Connects and exchanges flags.
    pub(crate) fn connect(socket: &Path) -> Self {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        stream.write_all(&[0, 0, 0, 3]).unwrap();
        Self { stream, headers: Headers::Simple, next_cookie: 1 }
    }

    /// Connects and goes to the default export with these headers and contexts.
    pub(crate) fn go(socket: &Path, headers: Headers, contexts: &[&str]) -> Self {
        let mut client = Self::connect(socket);
        match headers {
            Headers::Simple => {}
            Headers::Structured => client.agree(option::STRUCTURED_REPLY, &[]),
            Headers::Extended => client.agree(option::EXTENDED_HEADERS, &[]),
        }
        if !contexts.is_empty() {
            let mut data = vec![0; 4];
            data.extend((contexts.len() as u32).to_be_bytes());
            for context in contexts {
                data.extend((context.len() as u32).to_be_bytes());
                data.extend(context.as_bytes());
            }
            client.agree(option::SET_META_CONTEXT, &data);
        }
        client.agree(option::GO, &[0; 6]);
        client.headers = headers;
        client
    }

    fn agree(&mut self, number: u32, data: &[u8]) {
        let replies = self.option(number, data);
        assert_eq!(replies.last().unwrap().0, option_reply::ACK);
    }

    /// Sends an option; returns the kinds and data of its replies.
    pub(crate) fn option(&mut self, number: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let length = (data.len() as u32).to_be_bytes();
        let parts = [&OPTION_MAGIC.to_be_bytes()[..], &number.to_be_bytes(), &length, data];
        self.stream.write_all(&parts.concat()).unwrap();
        let mut replies = Vec::new();
        loop {
            let head: [u8; 20] = self.array().unwrap();
            let kind = u32::from_be_bytes(head[12..16].try_into().unwrap());
            let length = u32::from_be_bytes(head[16..].try_into().unwrap());
            replies.push((kind, self.bytes(length as usize).unwrap()));
            if kind == option_reply::ACK || 1 << 31 <= kind {
                return replies;
            }
        }
    }

    /// Sends a request with its payload; returns its cookie.
    pub(crate) fn send(&mut self, request: Request, payload: &[u8]) -> u64 {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let request = Request { cookie, ..request };
        let bytes = [request.encode(self.headers), payload.to_vec()].concat();
        self.stream.write_all(&bytes).unwrap();
        cookie
    }

    /// One chunk. A simple reply counts as an error chunk or an empty one; the data of a simple
    /// read is not part of it.
    pub(crate) fn receive(&mut self) -> io::Result<Chunk> {
        let magic = u32::from_be_bytes(self.array()?);
        match (magic, self.headers) {
            (SIMPLE_REPLY_MAGIC, Headers::Simple) => {
                let error: [u8; 4] = self.array()?;
                let cookie = u64::from_be_bytes(self.array()?);
                let kind = if error == [0; 4] { chunk::NONE } else { chunk::ERROR };
                Ok(Chunk { cookie, kind, is_last: true, payload: error.to_vec() })
            }
            (STRUCTURED_REPLY_MAGIC, Headers::Structured)
            | (EXTENDED_REPLY_MAGIC, Headers::Extended) => self.receive_chunk(),
            _ => panic!("a reply starts with {magic:#x}"),
        }
    }

    fn receive_chunk(&mut self) -> io::Result<Chunk> {
        let head: [u8; 12] = self.array()?;
        let length = match self.headers {
            Headers::Extended => {
                let rest: [u8; 16] = self.array()?;
                u64::from_be_bytes(rest[8..].try_into().unwrap()) as usize
            }
            _ => u32::from_be_bytes(self.array()?) as usize,
        };
        Ok(Chunk {
            is_last: head[1] == 1,
            kind: u16::from_be_bytes(head[2..4].try_into().unwrap()),
            cookie: u64::from_be_bytes(head[4..].try_into().unwrap()),
            payload: self.bytes(length)?,
        })
    }

    /// Sends a request and waits for all of its reply, with nothing else in flight.
    pub(crate) fn ask(&mut self, request: Request, payload: &[u8]) -> Vec<Chunk> {
        let cookie = self.send(request, payload);
        let mut chunks = Vec::new();
        loop {
            let chunk = self.receive().unwrap();
            assert_eq!(chunk.cookie, cookie);
            let is_last = chunk.is_last;
            chunks.push(chunk);
            if is_last {
                return chunks;
            }
        }
    }

    /// Asks, and returns the error of the reply.
    pub(crate) fn error_of(&mut self, request: Request, payload: &[u8]) -> u32 {
        self.ask(request, payload).last().unwrap().error()
    }

    pub(crate) fn bytes(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Whether the server ends the connection, within the read timeout.
    pub(crate) fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

/// A request without flags.
pub(crate) fn request(command: u16, offset: u64, length: u64) -> Request {
    Request { flags: 0, command, cookie: 0, offset, length }
}
