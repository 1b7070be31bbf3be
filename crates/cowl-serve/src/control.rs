//! The control socket: a JSON object a line, and a JSON object a line back.
//!
//! ```text
//!   {"command": "flush", "export": "disk", "id": 1}   ->   {"id": 1, "result": {}}
//!   {"command": "flush", "export": "x"}               ->   {"error": {"message": "...", ...}}
//! ```
//!
//! Commands of one connection are carried out one after the other; `id`, if any, comes back.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use compio::BufResult;
use compio::io::{AsyncRead, AsyncWriteExt};
use compio::net::{UnixListener, UnixStream};
use compio::runtime::JoinHandle;
use cowl::{Access, Format, OpenOptions};
use cowl_nbd::Clients;
use cowl_serverkit::Stop;
use futures_util::future::{Either, select};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::disk::{DetectZeros, Rules};
use crate::error::ServeError;
use crate::export::{Content, ExportOptions};
use crate::keeper::Keeper;
use crate::metrics::Metrics;
use crate::table::Loss;

/// The longest line: a path, a name and a text for people have room.
const LINE_MAX: usize = 64 << 10;

/// Connections at a time; more wait.
const CONNECTIONS_MAX: usize = 16;

/// How long a client may take for an answer to its command.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to leave clients waiting when there are too many, or the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How exports that are added later are made.
pub(crate) struct Additions {
    /// How images are opened, but for what the command says.
    pub(crate) open: OpenOptions,
    /// Where they may be; `None` for anywhere.
    pub(crate) allowed: Option<Vec<PathBuf>>,
}

/// What the socket obeys.
#[derive(Debug, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
#[serde(deny_unknown_fields)]
enum Command {
    /// What there is.
    Help {},
    /// Counts.
    Stats {},
    /// The same counts in Prometheus' format.
    Metrics {},
    /// Makes an export durable, or all.
    Flush {
        export: Option<String>,
    },
    AddExport(Box<AddExport>),
    /// Takes an export away; with `force` its clients are cut.
    RemoveExport {
        export: String,
        #[serde(default)]
        force: bool,
    },
    /// Changes the size of an export's disk, in bytes.
    Resize {
        export: String,
        size: u64,
        /// What lies behind the new size may be lost.
        #[serde(default)]
        shrink: bool,
    },
    /// Ends the daemon.
    Quit {},
}

/// A new export.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct AddExport {
    image: PathBuf,
    export: String,
    #[serde(default)]
    description: String,
    format: Option<String>,
    #[serde(default)]
    read_only: bool,
    /// Changes go to an overlay that is thrown away.
    #[serde(default)]
    temporary: bool,
    load_snapshot: Option<String>,
    #[serde(default)]
    offset: u64,
    size: Option<u64>,
    #[serde(default = "yes")]
    discard: bool,
    detect_zeroes: Option<String>,
    /// Dirty bitmaps that clients can ask about.
    #[serde(default)]
    bitmaps: Vec<String>,
}

fn yes() -> bool {
    true
}

const HELP: &[(&str, &str)] = &[
    ("help", "this list"),
    ("stats", "counts of the daemon, its exports and their images"),
    ("metrics", "the same in Prometheus' text format"),
    ("flush", "[export] - make an export durable, or all of them"),
    (
        "add-export",
        "image, export, [format, read-only, temporary, load-snapshot, offset, size, description, \
         discard, detect-zeroes, bitmaps]",
    ),
    ("remove-export", "export, [force] - new clients do not get it; with force all are cut"),
    ("resize", "export, size, [shrink] - change its disk's size, in bytes; shrink: even to less"),
    ("quit", "end: answer, make durable, close"),
];

/// Why a command was not carried out.
enum Refusal {
    /// The line is no command.
    Command(String),
    /// It failed.
    Failed(ServeError),
}

impl From<ServeError> for Refusal {
    fn from(error: ServeError) -> Self {
        Self::Failed(error)
    }
}

/// Carries out commands until the daemon is to end; those that were begun then are finished.
pub(crate) async fn serve(
    keeper: Rc<Keeper>,
    listener: std::os::unix::net::UnixListener,
    additions: Additions,
    metrics: Metrics,
) {
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "no control socket"),
    };
    let (additions, metrics) = (Rc::new(additions), Rc::new(metrics));
    let mut connections: Vec<JoinHandle<()>> = Vec::new();
    loop {
        connections.retain(|connection| !connection.is_finished());
        if CONNECTIONS_MAX <= connections.len() && !keeper.stop.is_requested() {
            compio::runtime::time::sleep(ACCEPT_PAUSE).await;
            continue;
        }
        let accepted = unless_stopped(&keeper.stop, listener.accept()).await;
        let Some(accepted) = accepted else { break };
        match accepted {
            Ok((stream, _)) => {
                let (additions, metrics) = (Rc::clone(&additions), Rc::clone(&metrics));
                let desk = Desk { keeper: Rc::clone(&keeper), additions, metrics };
                connections.push(compio::runtime::spawn(async move { desk.talk(stream).await }));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the control socket");
                compio::runtime::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    for connection in connections {
        // A panic of it has been reported.
        let _ended = connection.await;
    }
}

/// What `work` gives; `None` when the daemon is to end before.
async fn unless_stopped<T>(stop: &Stop, work: impl Future<Output = T>) -> Option<T> {
    match select(pin!(stop.requested()), pin!(work)).await {
        Either::Left(_) => None,
        Either::Right((outcome, _)) => Some(outcome),
    }
}

/// Sends an answer. Says whether it was taken, and in time.
async fn say(stream: &mut UnixStream, answer: &Value) -> bool {
    let send = stream.write_all(format!("{answer}\n").into_bytes());
    match compio::runtime::time::timeout(ANSWER_TIMEOUT, send).await {
        Ok(BufResult(sent, _)) => sent.is_ok(),
        Err(_elapsed) => false,
    }
}

/// One connection.
struct Desk {
    keeper: Rc<Keeper>,
    additions: Rc<Additions>,
    metrics: Rc<Metrics>,
}

impl Desk {
    async fn talk(&self, mut stream: UnixStream) {
        let mut received = Vec::new();
        loop {
            while let Some(end) = received.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = received.drain(..=end).collect();
                let answer = self.answer(line.trim_ascii()).await;
                let Some(answer) = answer else { continue };
                if !say(&mut stream, &answer).await {
                    return;
                }
            }
            if LINE_MAX <= received.len() {
                let answer = refused(None, &Refusal::Command("the line is too long".to_owned()));
                // The rest of it cannot be told from a new one.
                say(&mut stream, &answer).await;
                return;
            }
            let read = unless_stopped(&self.keeper.stop, stream.read(vec![0; 4096])).await;
            let Some(BufResult(count, bytes)) = read else { return };
            match count {
                Ok(0) | Err(_) => return,
                Ok(count) => received.extend_from_slice(&bytes[..count]),
            }
        }
    }

    /// `None` for an empty line.
    async fn answer(&self, line: &[u8]) -> Option<Value> {
        if line.is_empty() {
            return None;
        }
        let mut object: Map<String, Value> = match serde_json::from_slice(line) {
            Ok(object) => object,
            Err(error) => {
                let refusal = Refusal::Command(format!("no JSON object: {error}"));
                return Some(refused(None, &refusal));
            }
        };
        let id = object.remove("id");
        let outcome = match serde_json::from_value(Value::Object(object)) {
            Ok(command) => self.carry_out(command).await,
            Err(error) => Err(Refusal::Command(format!("{error}; \"help\" lists the commands"))),
        };
        Some(match outcome {
            Ok(result) => with_id(id, "result", result),
            Err(refusal) => refused(id, &refusal),
        })
    }

    async fn carry_out(&self, command: Command) -> Result<Value, Refusal> {
        let table = &self.keeper.table;
        match command {
            Command::Help {} => {
                let list: Map<_, _> =
                    HELP.iter().map(|(name, text)| ((*name).to_owned(), json!(text))).collect();
                return Ok(Value::Object(list));
            }
            Command::Stats {} => return Ok(self.metrics.to_json()),
            Command::Metrics {} => return Ok(json!({ "text": self.metrics.to_text() })),
            Command::Flush { export: Some(name) } => table.flush(&table.find(&name)?).await?,
            Command::Flush { export: None } => {
                for entry in table.entries() {
                    table.flush(&entry).await?;
                }
            }
            Command::AddExport(new) => {
                self.keeper.add(self.additions.export(*new)?).await?;
            }
            Command::RemoveExport { export, force } => {
                let clients = if force { Clients::Cut } else { Clients::Stay };
                let closed = self.keeper.remove(&export, clients).await?;
                return Ok(json!({ "closed": closed }));
            }
            Command::Resize { export, size, shrink } => {
                let loss = if shrink { Loss::Accepted } else { Loss::Refused };
                table.resize(&table.find(&export)?, size, loss).await?;
            }
            Command::Quit {} => self.keeper.stop.request(),
        }
        Ok(json!({}))
    }
}

impl Additions {
    fn export(&self, new: AddExport) -> Result<ExportOptions, Refusal> {
        self.check_place(&new.image)?;
        let bad = |text: String| Refusal::Command(text);
        let format = match &new.format {
            None => None,
            Some(name) => Some(
                Format::from_name(name.as_bytes())
                    .ok_or_else(|| bad(format!("unknown format '{name}'")))?,
            ),
        };
        let detect_zeros = match new.detect_zeroes.as_deref() {
            None | Some("off") => DetectZeros::Off,
            Some("on") => DetectZeros::On,
            Some("unmap") if new.discard => DetectZeros::Unmap,
            Some("unmap") => return Err(bad("detect-zeroes 'unmap' needs discard".to_owned())),
            Some(other) => return Err(bad(format!("detect-zeroes is no '{other}'"))),
        };
        let is_read_only = new.read_only || new.load_snapshot.is_some();
        if new.temporary && is_read_only {
            return Err(bad("a temporary overlay is for writing".to_owned()));
        }
        if new.temporary && self.allowed.is_some() {
            let message = "a temporary overlay needs a new file, which the sandbox refuses; start \
                           the daemon with this export, or with --sandbox=off";
            return Err(bad(message.to_owned()));
        }
        let access = if is_read_only { Access::ReadOnly } else { Access::ReadWrite };
        let snapshot = new.load_snapshot;
        let open = OpenOptions { access, format, snapshot, ..self.open.clone() };
        let content = if new.temporary { Content::Temporary } else { Content::Image };
        Ok(ExportOptions {
            description: new.description,
            content,
            start: new.offset,
            length: new.size,
            bitmaps: new.bitmaps,
            rules: Rules { discard: new.discard, detect_zeros, ..Rules::standard() },
            ..ExportOptions::whole(new.export, &new.image, open)
        })
    }

    /// The sandbox refuses as well; this says why.
    fn check_place(&self, image: &Path) -> Result<(), Refusal> {
        let Some(allowed) = &self.allowed else { return Ok(()) };
        let place = std::fs::canonicalize(image).unwrap_or_else(|_| image.to_owned());
        if allowed.iter().any(|folder| place.starts_with(folder)) {
            return Ok(());
        }
        Err(Refusal::Command(format!(
            "'{}' is outside of what the daemon may open; start it with --allow FOLDER",
            image.display()
        )))
    }
}

fn with_id(id: Option<Value>, key: &str, value: Value) -> Value {
    let mut answer = Map::new();
    answer.extend(id.map(|id| ("id".to_owned(), id)));
    answer.insert(key.to_owned(), value);
    Value::Object(answer)
}

fn refused(id: Option<Value>, refusal: &Refusal) -> Value {
    let error = match refusal {
        Refusal::Command(message) => json!({ "kind": "usage", "message": message }),
        Refusal::Failed(error) => json!({ "kind": "failed", "message": error.to_string() }),
    };
    with_id(id, "error", error)
}
