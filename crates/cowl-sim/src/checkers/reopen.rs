//! The state is opened for writing by a fresh engine, which goes on as if nothing had happened;
//! where refcounts were delayed it brings them up to date first.

use cowl_block::{BlockDevice, BlockError};
use cowl_format::{ByteCount, GuestOffset};
use cowl_storage::{Access, IoBuffer};

use crate::checkers::{Case, look};
use crate::executor::run_calm;
use crate::guest::{describe, read_all};
use crate::model::{Model, Value};
use crate::stamp::{self, Texture};
use crate::subject::Subject;
use crate::{Random, SimWorld, WorldOptions};

/// Stamps of these writes are no stamps of the history.
const FIRST_WRITE: u64 = 1 << 32;

pub(crate) fn check<S: Subject>(case: &Case<'_, S>, random: &mut Random) -> Result<(), String> {
    let world = case.world();
    let ended = run_calm(go_on(case, &world, random)).ok_or("stuck")?;
    ended??;
    let Some(after) = look(case.subject, &world)? else { return Ok(()) };
    if 0 < after.corruptions {
        return Err(format!("corrupt after going on: {}", after.text));
    }
    let before = leaks_before(case, &world)?;
    if before < after.leaks {
        let (after, text) = (after.leaks, after.text);
        return Err(format!("{after} leaks after a clean close, {before} before: {text}"));
    }
    Ok(())
}

/// Leaks of the state in a file as long as it is now: a check counts none behind the end.
fn leaks_before<S: Subject>(case: &Case<'_, S>, now: &SimWorld) -> Result<u64, String> {
    let mut files = case.files.to_vec();
    for (file, now) in files.iter_mut().zip(now.files()) {
        file.bytes.resize(file.bytes.len().max(now.bytes.len()), 0);
    }
    let world = SimWorld::new(WorldOptions::calm(), files);
    Ok(look(case.subject, &world)?.map_or(0, |report| report.leaks))
}

type Outcome = Result<Result<(), String>, String>;

async fn go_on<S: Subject>(case: &Case<'_, S>, world: &SimWorld, random: &mut Random) -> Outcome {
    let failed = |error: BlockError| format!("a fresh engine fails: {error}");
    let device = case.subject.open(world, Access::ReadWrite).await.map_err(failed)?;
    let bytes = read_all(&device).await.map_err(failed)?;
    if let Err(illegal) = case.model.check_crash(&bytes) {
        return Ok(Err(format!("opened for writing: {}", describe(&illegal))));
    }
    let mut model = Model::new(bytes);
    let traits = case.subject.traits();
    for write in FIRST_WRITE..FIRST_WRITE + 6 {
        let size = model.size();
        let unit = traits.alignment.max(512);
        let at = random.below(size) / unit * unit;
        let length = (1 + random.below(2 * traits.cluster)).next_multiple_of(unit).min(size - at);
        let texture = Texture::Plain;
        let mut buffer = IoBuffer::zeroed(ByteCount::new(length).as_usize());
        stamp::fill(write, texture, at, &mut buffer);
        let id = model.issue(Value::Stamp { write, texture }, at, length);
        device.write(GuestOffset::new(at), buffer).await.0.map_err(failed)?;
        model.succeed(id);
    }
    let flush = model.issue_flush();
    device.flush().await.map_err(failed)?;
    model.succeed_flush(flush);
    let read = model.issue_read();
    let bytes = read_all(&device).await.map_err(failed)?;
    if let Err(illegal) = model.end_read(read, 0, Some(&bytes)) {
        return Ok(Err(format!("after going on: {}", describe(&illegal))));
    }
    case.subject.close(device).await.map_err(failed)?;
    let device = case.subject.open(world, Access::ReadOnly).await.map_err(failed)?;
    let bytes = read_all(&device).await.map_err(failed)?;
    Ok(model
        .check_crash(&bytes)
        .map_err(|illegal| format!("closed after going on, and opened: {}", describe(&illegal))))
}
