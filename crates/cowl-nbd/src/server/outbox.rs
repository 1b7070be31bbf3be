//! Replies on their way to the client: whatever is ready goes out in one vectored send.

use std::rc::Rc;

use compio::buf::IoVectoredBuf;
use cowl_serverkit::Pool;
use cowl_storage::IoBuffer;
use futures_channel::mpsc;
use futures_util::StreamExt;

use super::budget::Charge;
use super::transport::Transport;
use crate::protocol::reply::Head;

/// Messages of one send: two pieces of memory each, and the kernel takes 1024 of them.
const BATCH_MAX: usize = 256;

/// What follows the head of a message.
pub(crate) enum Body {
    Nothing,
    Buffer(IoBuffer),
    Bytes(Vec<u8>),
}

/// A simple reply or a chunk, with the bytes of the budget that it holds until it is sent.
pub(crate) struct Message {
    pub(crate) head: Head,
    pub(crate) body: Body,
    pub(crate) charge: Option<Charge>,
}

impl Message {
    fn body(&self) -> &[u8] {
        match &self.body {
            Body::Nothing => &[],
            Body::Buffer(buffer) => buffer,
            Body::Bytes(bytes) => bytes,
        }
    }
}

/// Where replies are put. Its clones going away means that no more come.
pub(crate) type Outbox = mpsc::UnboundedSender<Message>;

struct Batch(Vec<Message>);

impl IoVectoredBuf for Batch {
    fn iter_slice(&self) -> impl Iterator<Item = &[u8]> {
        let pieces = self.0.iter().flat_map(|message| [message.head.as_bytes(), message.body()]);
        pieces.filter(|piece| !piece.is_empty())
    }
}

/// Sends messages until no more can come, then ends sending. A client that does not take them
/// loses the connection, and the rest is dropped.
pub(crate) async fn run(
    mut messages: mpsc::UnboundedReceiver<Message>,
    transport: Transport,
    pool: Rc<Pool>,
) {
    let mut batch = Batch(Vec::new());
    while let Some(first) = messages.next().await {
        batch.0.push(first);
        while batch.0.len() < BATCH_MAX
            && let Ok(next) = messages.try_recv()
        {
            batch.0.push(next);
        }
        let outcome;
        (outcome, batch) = transport.send(batch).await;
        for message in batch.0.drain(..) {
            drop(message.charge);
            if let Body::Buffer(buffer) = message.body {
                pool.put(buffer);
            }
        }
        if outcome.is_err() {
            // Wakes the receiving side, too. Requests that still run find nobody listening.
            transport.socket().cut();
            return;
        }
    }
    transport.finish().await;
}
