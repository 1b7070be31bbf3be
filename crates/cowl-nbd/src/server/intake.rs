//! Receiving on a connection: a buffer of what has come and was not understood yet.

use std::io;
use std::rc::Rc;

use cowl_storage::IoBuffer;

use super::tls::{Cipher, Tls};
use super::transport::Transport;
use crate::protocol::limits::OPTION_LENGTH_MAX;

/// Bytes of the buffer: an option has to fit as a whole, and so should all the small requests of
/// one burst.
const CAPACITY: usize = 2 * OPTION_LENGTH_MAX;

/// Sealed bytes received at a time; a record of TLS has 16 KiB and a little.
const SEALED_CAPACITY: usize = 32 << 10;

/// The receiving side of a connection.
pub(crate) struct Intake {
    pub(crate) transport: Transport,
    /// Away only while a receive is under way.
    buffer: Option<IoBuffer>,
    start: usize,
    end: usize,
    sealed: Option<IoBuffer>,
    sealed_start: usize,
    sealed_end: usize,
}

impl Intake {
    pub(crate) fn new(transport: Transport) -> Self {
        let buffer = Some(IoBuffer::zeroed(CAPACITY));
        Self { transport, buffer, start: 0, end: 0, sealed: None, sealed_start: 0, sealed_end: 0 }
    }

    /// What has come.
    pub(crate) fn available(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], |buffer| &buffer[self.start..self.end])
    }

    /// The first `count` bytes of it are done with.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start += count;
        assert!(self.start <= self.end);
    }

    /// Receives more. Zero: the client sends no more.
    pub(crate) async fn fill(&mut self) -> io::Result<usize> {
        let Some(mut buffer) = self.buffer.take() else { return Ok(0) };
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == CAPACITY {
            buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let (outcome, buffer) = self.receive(buffer, self.end, CAPACITY).await;
        self.buffer = Some(buffer);
        self.end += *outcome.as_ref().unwrap_or(&0);
        outcome
    }

    /// Fills all of `buffer`. `None` when the client stops before.
    pub(crate) async fn read(&mut self, mut buffer: IoBuffer) -> io::Result<Option<IoBuffer>> {
        let available = self.available();
        let mut done = available.len().min(buffer.len());
        buffer[..done].copy_from_slice(&available[..done]);
        self.consume(done);
        let length = buffer.len();
        while done < length {
            self.transport.watch.receiving();
            let (outcome, back) = self.receive(buffer, done, length).await;
            buffer = back;
            match outcome? {
                0 => return Ok(None),
                count => done += count,
            }
        }
        Ok(Some(buffer))
    }

    /// Reads past `length` bytes. Says whether they came.
    pub(crate) async fn skip(&mut self, mut length: u64) -> io::Result<bool> {
        loop {
            let taken = usize::try_from(length).unwrap_or(usize::MAX).min(self.available().len());
            self.consume(taken);
            length -= taken as u64;
            if length == 0 {
                return Ok(true);
            }
            self.transport.watch.receiving();
            if self.fill().await? == 0 {
                return Ok(false);
            }
        }
    }

    async fn receive(
        &mut self,
        buffer: IoBuffer,
        start: usize,
        end: usize,
    ) -> (io::Result<usize>, IoBuffer) {
        match self.transport.cipher.clone() {
            None => self.transport.socket().receive(buffer, start, end).await,
            Some(cipher) => self.receive_sealed(&cipher, buffer, start, end).await,
        }
    }

    async fn receive_sealed(
        &mut self,
        cipher: &Cipher,
        mut buffer: IoBuffer,
        start: usize,
        end: usize,
    ) -> (io::Result<usize>, IoBuffer) {
        loop {
            match cipher.open(&mut buffer[start..end]) {
                Ok(Some(count)) => return (Ok(count), buffer),
                Ok(None) => {}
                Err(error) => return (Err(error), buffer),
            }
            match self.absorb_some(cipher).await {
                Ok(0) => return (Ok(0), buffer),
                Ok(_) => {}
                Err(error) => return (Err(error), buffer),
            }
        }
    }

    /// Gives the cipher some sealed bytes, received now or before. It opens about a record at a
    /// time, and takes no more before that is fetched.
    async fn absorb_some(&mut self, cipher: &Cipher) -> io::Result<usize> {
        if self.sealed_start == self.sealed_end {
            let sealed = self.sealed.take().unwrap_or_else(|| IoBuffer::zeroed(SEALED_CAPACITY));
            let (outcome, sealed) =
                self.transport.socket().receive(sealed, 0, SEALED_CAPACITY).await;
            self.sealed = Some(sealed);
            (self.sealed_start, self.sealed_end) = (0, outcome?);
        }
        let Some(sealed) = &self.sealed else { return Ok(0) };
        let mut rest = &sealed[self.sealed_start..self.sealed_end];
        let count = rest.len();
        if count != 0 {
            cipher.absorb(&mut rest)?;
        }
        let absorbed = count - rest.len();
        self.sealed_start += absorbed;
        Ok(absorbed)
    }

    /// Encrypts the connection from here on; says whether that worked out. What came in the clear
    /// behind the request for it may be an injection, and ends the connection.
    pub(crate) async fn encrypt(&mut self, tls: &Tls) -> io::Result<bool> {
        if !self.available().is_empty() {
            return Ok(false);
        }
        let cipher = Rc::new(Cipher::new(tls)?);
        while cipher.is_shaking_hands() {
            let outcome = self.absorb_some(&cipher).await;
            // An alert tells the client what was wrong.
            self.transport.send_waiting(&cipher).await?;
            if outcome? == 0 {
                return Ok(false);
            }
        }
        self.transport.cipher = Some(cipher);
        Ok(true)
    }
}
