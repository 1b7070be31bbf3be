//! What a daemon does besides requests: upkeep of disks, commands, the end.

use std::cell::RefCell;
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Duration;

use compio::runtime::JoinHandle;
use cowl_nbd::Clients;
use cowl_serverkit::Stop;
use futures_util::future::select;

use crate::daemon::Until;
use crate::disk::{DiskRef, OpenDisk};
use crate::error::ServeError;
use crate::export::{ExportOptions, explain_lock, is_same_file};
use crate::table::{ExportTable, Ground};

/// At this pace tables that wait are made durable: nothing waits for longer than twice that.
const TICK: Duration = Duration::from_secs(1);

/// Looks after disks and exports. Belongs to the thread that runs it.
pub(crate) struct Keeper {
    pub(crate) table: Arc<ExportTable>,
    pub(crate) stop: Stop,
    kept: RefCell<Vec<Kept>>,
    /// Disks that wait for their last client.
    leaving: RefCell<Vec<Leaving>>,
}

/// A disk whose exports are gone, or were gone at the time: one task waits for its last user.
struct Leaving {
    disk: Weak<OpenDisk>,
    closed: Stop,
    task: JoinHandle<Result<(), ServeError>>,
}

/// A disk, and the task that looks after it.
struct Kept {
    disk: DiskRef,
    closing: Stop,
    upkeep: JoinHandle<()>,
}

impl Keeper {
    pub(crate) fn new(table: Arc<ExportTable>, stop: Stop) -> Rc<Self> {
        let (kept, leaving) = (RefCell::default(), RefCell::default());
        Rc::new(Self { table, stop, kept, leaving })
    }

    /// Looks after `disk` from now on.
    pub(crate) fn keep(&self, disk: DiskRef) {
        let closing = Stop::default();
        let upkeep = compio::runtime::spawn(look_after(disk.clone(), closing.clone()));
        self.kept.borrow_mut().push(Kept { disk, closing, upkeep });
    }

    /// Returns when the daemon is to end.
    pub(crate) async fn until_end(&self, until: Until) {
        let stop = pin!(self.stop.requested());
        match until {
            Until::Stopped => stop.await,
            Until::LastClientGone => {
                let gone = pin!(self.table.server.all_gone());
                select(stop, gone).await;
            }
        }
    }

    /// Shows a new export to clients.
    pub(crate) async fn add(&self, options: ExportOptions) -> Result<(), ServeError> {
        let ground = self.table.ground(&options).await;
        let ground = ground.map_err(|error| explain_lock(error, |path| self.has_open(path)))?;
        let disk = ground.disk().clone();
        let bitmaps = options.read_bitmaps(&disk).await?;
        let added = self.table.add(options, disk.clone(), bitmaps);
        match (ground, added) {
            (Ground::New(_), Ok(())) => self.keep(disk),
            // Somebody was faster with that name. Nothing was changed through this disk.
            (_, Err(error)) => return Err(error),
            (Ground::Shared(_), Ok(())) => {}
        }
        Ok(())
    }

    /// Whether this process has the image at `path` open, for exports or for clients of one that
    /// was removed.
    fn has_open(&self, path: &Path) -> bool {
        let kept = self.kept.borrow();
        kept.iter().any(|kept| is_same_file(&kept.disk.path, path))
    }

    /// Takes an export away; its disk is closed when its last client has gone. Returns then, or at
    /// once where clients stay. Says whether the disk is closed or belongs to another export.
    pub(crate) async fn remove(
        self: &Rc<Self>,
        name: &str,
        clients: Clients,
    ) -> Result<bool, ServeError> {
        let Some(disk) = self.table.remove(name, clients)? else { return Ok(true) };
        let waits = self.is_leaving(&disk);
        // Ours, and that of whoever closes it already.
        let known = 1 + usize::from(waits.is_some()) + self.upkeep_references(&disk);
        let is_idle = disk.count() <= known;
        let closed = match waits {
            Some(closed) => closed,
            None => self.close_in_time(disk),
        };
        if !is_idle && clients == Clients::Stay {
            return Ok(false);
        }
        closed.requested().await;
        Ok(true)
    }

    /// Closes `disk` when nobody uses it any more. What it gives tells when that is done.
    fn close_in_time(self: &Rc<Self>, disk: DiskRef) -> Stop {
        let closed = Stop::default();
        let identity = disk.identity();
        let (keeper, tell) = (Rc::clone(self), closed.clone());
        let close = async move {
            let outcome = keeper.close(disk).await;
            if let Err(error) = &outcome {
                tracing::error!(%error, "a disk was not closed well");
            }
            tell.request();
            outcome
        };
        // A task of its own: whoever gave the command may go away.
        let task = compio::runtime::spawn(close);
        let leaving = Leaving { disk: identity, closed: closed.clone(), task };
        self.leaving.borrow_mut().push(leaving);
        closed
    }

    /// Whether a task waits to close `disk` already, and what tells when it has.
    ///
    /// An export can be added again while it waits; a second task for the same disk would wait for
    /// the first one, and that for the second.
    fn is_leaving(&self, disk: &DiskRef) -> Option<Stop> {
        let leaving = self.leaving.borrow();
        let known = leaving.iter().find(|leaving| disk.is(&leaving.disk));
        known.map(|leaving| leaving.closed.clone())
    }

    /// Closes all disks. Clients have gone by now. The first failure is the outcome, and those that
    /// commands ran into before count too.
    pub(crate) async fn close_all(self: &Rc<Self>) -> Result<(), ServeError> {
        let mut outcome = Ok(());
        for disk in self.table.remove_all() {
            if self.is_leaving(&disk).is_none() {
                outcome = outcome.and(self.close(disk).await);
            }
        }
        let leaving = std::mem::take(&mut *self.leaving.borrow_mut());
        for leaving in leaving {
            let panicked = |_| Err(ServeError::Thread { reason: "a close panicked".to_owned() });
            outcome = outcome.and(leaving.task.await.unwrap_or_else(panicked));
        }
        outcome
    }

    /// Waits until nobody uses `disk` any more, makes it durable and closes it.
    async fn close(&self, mut disk: DiskRef) -> Result<(), ServeError> {
        let whole = loop {
            let heard = disk.released();
            // Requests of clients that stay still need the upkeep: it goes last.
            if disk.count() <= 1 + self.upkeep_references(&disk) {
                self.end_upkeep(&disk).await;
            }
            match disk.into_inner() {
                Ok(whole) => break whole,
                Err(shared) => disk = shared,
            }
            heard.await;
        };
        let path = whole.path;
        let closed = whole.disk.shut().await;
        tracing::info!(image = %path.display(), is_ok = closed.is_ok(), "closed");
        closed.map_err(|source| ServeError::Close { path, source })
    }

    fn upkeep_references(&self, disk: &DiskRef) -> usize {
        let kept = self.kept.borrow();
        let is_kept = kept.iter().any(|kept| kept.disk.is_same(disk));
        // Its task's, and the list's.
        if is_kept { 2 } else { 0 }
    }

    async fn end_upkeep(&self, disk: &DiskRef) {
        let kept = {
            let mut kept = self.kept.borrow_mut();
            let at = kept.iter().position(|kept| kept.disk.is_same(disk));
            at.map(|at| kept.swap_remove(at))
        };
        let Some(Kept { disk, closing, upkeep }) = kept else { return };
        drop(disk);
        closing.request();
        // It holds the disk until it has ended; a panic of it has been reported.
        let _ended = upkeep.await;
    }
}

/// Writes tables back early, so that requests seldom have to wait for it.
async fn look_after(disk: DiskRef, closing: Stop) {
    // A raw image has no tables; its task stays all the same, as whoever counts references expects.
    let Some(image) = disk.disk.qcow2() else { return closing.requested().await };
    let work = async {
        let pressure = pin!(image.background());
        let ticks = pin!(async {
            loop {
                compio::runtime::time::sleep(TICK).await;
                image.tick().await?;
            }
            #[expect(unreachable_code, reason = "says what the block gives")]
            Ok::<(), cowl_qcow2::Error>(())
        });
        let failed = select(pressure, ticks).await.factor_first().0;
        if let Err(error) = failed {
            // Clients learn it from their next flush.
            tracing::error!(image = %disk.path.display(), %error, "tables cannot be written");
        }
    };
    select(pin!(work), pin!(closing.requested())).await;
}
