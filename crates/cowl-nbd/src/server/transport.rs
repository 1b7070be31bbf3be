//! Sending on a connection, in the clear or sealed.

use std::io;
use std::rc::Rc;

use compio::buf::IoVectoredBuf;

use super::socket::Socket;
use super::tls::Cipher;
use super::watch::Watch;

/// Bytes that are sealed at a time: sealed bytes are a second copy of a reply.
const SEALED_MAX: usize = 256 << 10;

/// The way to the client.
#[derive(Clone)]
pub(crate) struct Transport {
    pub(crate) watch: Rc<Watch>,
    pub(crate) cipher: Option<Rc<Cipher>>,
}

impl Transport {
    pub(crate) fn socket(&self) -> &Socket {
        &self.watch.socket
    }

    /// Sends all of `bytes`, and gives them back.
    pub(crate) async fn send<B: IoVectoredBuf>(&self, bytes: B) -> (io::Result<()>, B) {
        self.watch.sending();
        let (outcome, bytes) = match &self.cipher {
            None => self.send_as_is(bytes).await,
            Some(cipher) => {
                let outcome = self.send_sealed(cipher, &bytes).await;
                (outcome, bytes)
            }
        };
        self.watch.sent();
        (outcome, bytes)
    }

    async fn send_as_is<B: IoVectoredBuf>(&self, mut bytes: B) -> (io::Result<()>, B) {
        let length = bytes.total_len();
        let mut sent = 0;
        while sent < length {
            let (outcome, back) = self.socket().send(bytes, sent).await;
            bytes = back;
            match outcome {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), bytes),
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (Err(error), bytes),
            }
            // Some progress: the client is slow, not gone.
            self.watch.sending();
        }
        (Ok(()), bytes)
    }

    async fn send_sealed<B: IoVectoredBuf>(&self, cipher: &Cipher, bytes: &B) -> io::Result<()> {
        let mut sealed = Vec::new();
        for piece in bytes.iter_slice().flat_map(|slice| slice.chunks(SEALED_MAX)) {
            cipher.seal(piece, &mut sealed)?;
            if SEALED_MAX <= sealed.len() {
                self.send_as_is([std::mem::take(&mut sealed)]).await.0?;
            }
        }
        self.send_as_is([sealed]).await.0
    }

    /// Sends what the cipher itself has to say.
    pub(crate) async fn send_waiting(&self, cipher: &Cipher) -> io::Result<()> {
        let mut sealed = Vec::new();
        cipher.take_waiting(&mut sealed)?;
        self.send_as_is([sealed]).await.0
    }

    /// Ends sending after everything that was sent.
    pub(crate) async fn finish(&self) {
        if let Some(cipher) = &self.cipher {
            let mut goodbye = Vec::new();
            if cipher.say_goodbye(&mut goodbye).is_ok() {
                self.watch.sending();
                // A client that is gone misses nothing.
                drop(self.send_as_is([goodbye]).await);
                self.watch.sent();
            }
        }
        self.socket().end_sending();
    }
}
