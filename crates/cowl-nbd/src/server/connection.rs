//! One connection, from the greeting to the last reply.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use cowl_block::BlockDevice;
use cowl_serverkit::{Pool, is_done_at_once};
use cowl_storage::yield_now;
use futures_channel::mpsc;

use super::Shared;
use super::budget::{Account, Charge, OVERHEAD};
use super::busy_poll::{BusyPoll, Company};
use super::execute::{self, Received};
use super::export::{Export, Offer};
use super::intake::Intake;
use super::outbox::{self, Body, Message, Outbox};
use super::transport::Transport;
use super::watch::Watch;
use crate::protocol::command::{Command, Judged, Payload, Terms, judge, select_contexts};
use crate::protocol::errno::Errno;
use crate::protocol::handshake::{Handshake, Session, Step, TlsPolicy};
use crate::protocol::limits::DESCRIPTOR_COUNT_MAX;
use crate::protocol::metadata::Contexts;
use crate::protocol::reply::{Addressee, Head};
use crate::protocol::request::{Headers, Request};

/// Answers to options that are gathered before they are sent.
const ANSWERS_MAX: usize = 64 << 10;

/// Requests served in a row before other connections of the thread get their turn.
const TURN_MAX: u32 = 64;

/// A connection that is past its handshake.
pub(crate) struct Connection<E> {
    pub(crate) export: Arc<Export<E>>,
    pub(crate) headers: Headers,
    pub(crate) contexts: Contexts,
    pub(crate) pool: Rc<Pool>,
    account: Rc<Account>,
    busy_poll: BusyPoll,
    outbox: Outbox,
}

/// Whether a connection goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    Continue,
    End,
}

/// Serves a client to the end. Its mistakes and its going away are no errors of the server's.
pub(crate) async fn serve<E: BlockDevice + 'static>(
    shared: Arc<Shared<E>>,
    watch: Rc<Watch>,
    pool: Rc<Pool>,
    company: &Rc<Company>,
) {
    let transport = Transport { watch, cipher: None };
    let mut intake = Intake::new(transport);
    let session = match shake_hands(&shared, &mut intake).await {
        Ok(Some(session)) => session,
        Ok(None) => return intake.transport.finish().await,
        Err(_gone) => return,
    };
    let Offer { export, revoked } = session.export;
    tracing::info!(export = export.name, "a client took an export");
    shared.guests.served();
    intake.transport.watch.handshake_is_done(revoked);
    let (outbox, messages) = mpsc::unbounded();
    let sender = outbox::run(messages, intake.transport.clone(), Rc::clone(&pool));
    let sender = compio::runtime::spawn(sender);
    let connection = Rc::new(Connection {
        export,
        headers: session.headers,
        contexts: session.contexts,
        pool,
        account: Account::new(Arc::clone(&shared.budget)),
        busy_poll: BusyPoll::new(company),
        outbox,
    });
    let _gone_or_out_of_step = connection.receive(&mut intake, &shared).await;
    intake.transport.watch.idle();
    // The sender ends when the requests in flight, which hold the connection too, have ended.
    drop((connection, intake));
    let _panicked = sender.await;
}

async fn shake_hands<E: BlockDevice>(
    shared: &Shared<E>,
    intake: &mut Intake,
) -> io::Result<Option<Session<Offer<E>>>> {
    let tls = shared.options.tls.as_ref();
    let policy = tls.map_or(TlsPolicy::Unavailable, |tls| tls.policy);
    let mut handshake = Handshake::new(policy);
    let mut answers = Handshake::greeting().to_vec();
    intake.transport.send([std::mem::take(&mut answers)]).await.0?;
    loop {
        let (taken, step) = handshake.step(intake.available(), &shared.exports, &mut answers);
        intake.consume(taken);
        let is_due = ANSWERS_MAX <= answers.len() || !matches!(step, Step::Continue);
        if is_due && !answers.is_empty() {
            intake.transport.send([std::mem::take(&mut answers)]).await.0?;
        }
        match step {
            Step::Continue => {}
            Step::Ready(session) => return Ok(Some(session)),
            Step::Close(_) => return Ok(None),
            Step::NeedMore => {
                if shared.stop.is_requested() || intake.fill().await? == 0 {
                    return Ok(None);
                }
            }
            Step::StartTls => match tls {
                Some(tls) if intake.encrypt(tls).await? => handshake.encrypted(),
                _ => return Ok(None),
            },
        }
    }
}

impl<E: BlockDevice + 'static> Connection<E> {
    /// Receives requests and gets them going, until the client or the server wants no more.
    async fn receive(self: &Rc<Self>, intake: &mut Intake, shared: &Shared<E>) -> io::Result<()> {
        let mut turn = 0;
        while !shared.stop.is_requested() {
            let Ok(request) = Request::decode(intake.available(), self.headers) else {
                return Ok(());
            };
            let Some(request) = request else {
                match intake.available().is_empty() {
                    true => intake.transport.watch.idle(),
                    false => intake.transport.watch.receiving(),
                }
                if self.busy_poll.wait(intake.fill()).await? == 0 {
                    return Ok(());
                }
                turn = 0;
                continue;
            };
            intake.consume(self.headers.request_length());
            if self.accept(&request, intake, shared).await? == Flow::End {
                return Ok(());
            }
            turn += 1;
            if turn == TURN_MAX {
                turn = 0;
                yield_now().await;
            }
        }
        Ok(())
    }

    /// Takes in the payload of `request` and starts it.
    async fn accept(
        self: &Rc<Self>,
        request: &Request,
        intake: &mut Intake,
        shared: &Shared<E>,
    ) -> io::Result<Flow> {
        let terms = self.terms();
        let Ok(judged) = judge(request, &terms) else { return Ok(Flow::End) };
        if judged.command == Ok(Command::Disconnect) {
            return Ok(Flow::End);
        }
        // Waiting for memory is not the client's fault.
        intake.transport.watch.idle();
        let charge = self.account.take(OVERHEAD + self.memory_of(&judged)).await;
        if shared.stop.is_requested() {
            return Ok(Flow::End);
        }
        let Some(received) = self.receive_payload(request, &judged, &terms, intake).await? else {
            return Ok(Flow::End);
        };
        let to = Addressee::of(request, self.headers);
        match (judged.command, received) {
            (Ok(command), Ok(received)) => self.start(to, command, received, charge).await,
            (Err(errno), _) | (_, Err(errno)) => {
                self.reply(to.failed(errno), Body::Nothing, charge)
            }
        }
        Ok(Flow::Continue)
    }

    fn terms(&self) -> Terms {
        Terms {
            headers: self.headers,
            contexts: self.contexts,
            size: self.export.size(),
            read_only: self.export.is_read_only(),
        }
    }

    /// The payload; `None` when the client stops before its end.
    async fn receive_payload(
        &self,
        request: &Request,
        judged: &Judged,
        terms: &Terms,
        intake: &mut Intake,
    ) -> io::Result<Option<Result<Received, Errno>>> {
        Ok(match judged.payload {
            Payload::None => Some(Ok(Received::Nothing)),
            Payload::Data => {
                let length = usize::try_from(request.length).unwrap_or(usize::MAX);
                let buffer = intake.read(self.pool.take(length)).await?;
                buffer.map(|buffer| Ok(Received::Data(buffer)))
            }
            Payload::Selection(length) => {
                let Some(bytes) = intake.read(self.pool.take(length)).await? else {
                    return Ok(None);
                };
                let selected = select_contexts(&bytes, request.offset, terms);
                Some(selected.map(|(contexts, range)| Received::Selection(contexts, range)))
            }
            Payload::Skip(length) => intake.skip(length).await?.then_some(Ok(Received::Nothing)),
        })
    }

    /// Runs a request: here and now as far as it goes, which is to the end when the page cache has
    /// everything, and as a task of its own from where it has to wait.
    async fn start(
        self: &Rc<Self>,
        to: Addressee,
        command: Command,
        received: Received,
        charge: Charge,
    ) {
        let work = execute::run(Rc::clone(self), to, command, received, charge);
        let mut work = Box::pin(work);
        if !is_done_at_once(work.as_mut()).await {
            compio::runtime::spawn(work).detach();
        }
    }

    /// Bytes that a request and its reply take.
    fn memory_of(&self, judged: &Judged) -> u64 {
        let buffer = |length: u64| {
            let length = usize::try_from(length).unwrap_or(usize::MAX / 2);
            self.pool.cost(length) as u64
        };
        match judged.command {
            Ok(Command::Read { range, .. } | Command::Write { range, .. }) => buffer(range.length),
            Ok(Command::Cache { range }) => buffer(range.length.min(execute::CACHE_PIECE)),
            Ok(Command::BlockStatus { first_only: false, .. }) => {
                u64::from(self.contexts.count()) * 16 * DESCRIPTOR_COUNT_MAX as u64
            }
            _ => 0,
        }
    }

    /// Puts a whole reply on its way.
    pub(crate) fn reply(&self, head: Head, body: Body, charge: Charge) {
        self.send(Message { head, body, charge: Some(charge) });
    }

    /// Puts a message on its way; a client that is gone gets nothing.
    pub(crate) fn send(&self, message: Message) {
        let _gone = self.outbox.unbounded_send(message);
    }
}
