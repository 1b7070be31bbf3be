//! `serve`: hand images to clients.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cowl::CacheLimits;
use cowl_serve::{Sandbox, TlsPolicy, Until, VhostUserPlace};

mod images;
mod table;

use self::images::{export_name, export_text, queues, serial};
use self::table::OPTIONS;
use crate::background::{is_background, run_in_background};
use crate::commands::Verb;
use crate::failure::{Failure, Stop};
use crate::getopt::{Given, Parser};
use crate::number;
use crate::option::{Common, Flag};
use crate::serve::{self, Address, ImageRequest, Log, LogFormat, Request, TlsFolder};
use crate::session::Session;
use crate::settings::Settings;
use crate::snapshot_name::SnapshotName;

/// Where clients arrive when nothing is said: this machine alone.
const HOST: &str = "127.0.0.1";
const PORT: &str = "10809";

/// Queues of a virtual machine, where nothing is said: more than it has processors.
const QUEUES_MAX: u16 = 64;

/// Bytes of a serial number that guests see.
const SERIAL_MAX: usize = 20;

/// What the vhost-user conventions ask for.
const CAPABILITIES: &str =
    "{\n  \"type\": \"block\",\n  \"features\": [\"read-only\", \"blk-file\"]\n}\n";

pub(super) const VERB: Verb = Verb {
    name: "serve",
    summary: "Hand images to NBD clients, virtual machines and as files",
    usage: "[OPTIONS] IMAGE...",
    about: "Serves until SIGTERM, SIGINT or SIGHUP: then it accepts nothing more, answers what it \
            has, makes everything durable and closes the images. A second signal ends it at once; \
            what clients have flushed is safe either way.\nExit codes: 0 ended well, 1 could not \
            serve, or an image could not be closed.",
    options: OPTIONS,
    examples: &[
        "-k /run/disk.sock disk.qcow2",
        "-b 0.0.0.0 --tls=require --tls-certificates=/etc/pki/cowl disk.qcow2",
        "--control=/run/cowl.sock --metrics=127.0.0.1:9108 --allow=/srv/images a.qcow2 b.qcow2",
        "--export image=base.qcow2,read-only=on --export image=vm.qcow2,name=vm,snapshot=on",
    ],
    run,
};

/// What was said, image by image and for the whole.
struct Options {
    common: Common,
    settings: Settings,
    detect_zeroes: Option<String>,
    cache: CacheLimits,
    snapshot: Option<SnapshotName>,
    temporary: bool,
    name: Option<String>,
    description: String,
    start: u64,
    length: Option<u64>,
    bitmaps: Vec<String>,
    place: Option<VhostUserPlace>,
    mount_point: Option<PathBuf>,
    growable: bool,
    allow_other: bool,
    queues_max: u16,
    serial: String,
    blk_file: Option<OsString>,
    exports: Vec<String>,
    sockets: Vec<PathBuf>,
    host: Option<String>,
    port: Option<String>,
    inherits: bool,
    connections_max: usize,
    until: Until,
    handshake_timeout: Option<Duration>,
    tls: TlsPolicy,
    tls_folder: Option<PathBuf>,
    verifies_clients: bool,
    threads: Option<usize>,
    control: Option<PathBuf>,
    metrics: Option<SocketAddr>,
    sandbox: Sandbox,
    allowed: Vec<PathBuf>,
    forks: bool,
    pid_file: Option<PathBuf>,
    log: Log,
}

impl Options {
    fn new() -> Self {
        Self {
            common: Common::default(),
            settings: Settings::for_serving(),
            detect_zeroes: None,
            cache: CacheLimits::STANDARD,
            snapshot: None,
            temporary: false,
            name: None,
            description: String::new(),
            start: 0,
            length: None,
            bitmaps: Vec::new(),
            place: None,
            mount_point: None,
            growable: false,
            allow_other: false,
            queues_max: QUEUES_MAX,
            serial: String::new(),
            blk_file: None,
            exports: Vec::new(),
            sockets: Vec::new(),
            host: None,
            port: None,
            inherits: false,
            connections_max: serve::CONNECTIONS_MAX,
            until: Until::Stopped,
            handshake_timeout: Some(serve::HANDSHAKE_TIMEOUT),
            tls: TlsPolicy::Unavailable,
            tls_folder: None,
            verifies_clients: false,
            threads: None,
            control: None,
            metrics: None,
            sandbox: Sandbox::WherePossible,
            allowed: Vec::new(),
            forks: false,
            pid_file: None,
            log: Log { format: LogFormat::Text, filter: "info".to_owned(), file: None },
        }
    }

    fn take(&mut self, given: &Given<Flag>) -> Result<(), Stop> {
        let path = || PathBuf::from(given.value.clone().unwrap_or_default());
        let text = || given.text();
        match given.id {
            Flag::Socket => self.sockets.push(absolute(&path())?),
            Flag::Address => self.host = Some(text()),
            Flag::Port => self.port = Some(text()),
            Flag::SocketActivation => self.inherits = true,
            Flag::ReadOnly => self.settings.read_only = true,
            Flag::Snapshot => self.temporary = true,
            Flag::LoadSnapshot => self.snapshot = Some(SnapshotName::parse(&text())?),
            Flag::ExportName => self.name = Some(export_name(&text())?),
            Flag::Description => self.description = export_text(&text())?,
            Flag::Offset => self.start = number::size("offset", &text())?,
            Flag::Size => self.length = Some(number::size("size", &text())?),
            Flag::SocketPath => self.place = Some(VhostUserPlace::Path(absolute(&path())?)),
            Flag::Descriptor => {
                let number = number::count("descriptor", &text(), 0..=i32::MAX as u64)?;
                self.place = i32::try_from(number).ok().map(VhostUserPlace::Descriptor);
            }
            Flag::Fuse => self.mount_point = Some(absolute(&path())?),
            Flag::Growable => self.growable = true,
            Flag::AllowOther => self.allow_other = true,
            Flag::Queues => self.queues_max = queues(&text())?,
            Flag::Serial => self.serial = serial(&text())?,
            Flag::BlkFile => self.blk_file = given.value.clone(),
            Flag::PrintCapabilities => return Err(Stop::Answer(CAPABILITIES.to_owned())),
            Flag::Bitmap => self.bitmaps.push(text()),
            Flag::Export => self.exports.push(text()),
            Flag::Shared => self.connections_max = serve::connections(&text())?,
            Flag::Persistent => self.until = persistent(given)?,
            Flag::TargetCache => self.settings.set_cache(&text()).map_err(Failure::usage)?,
            Flag::NoCache => self.settings.set_no_cache(),
            Flag::CacheSize => {
                let bytes = number::within("cache size", &text(), 64 << 10..=64 << 30)?;
                self.cache.l2_bytes = cowl::ByteCount::new(bytes).as_usize();
            }
            Flag::Discard => self.settings.set_discard(&text()).map_err(Failure::usage)?,
            Flag::DetectZeroes => self.detect_zeroes = Some(text()),
            Flag::Threads => {
                let count = number::count("number of threads", &text(), 1..=1024)?;
                self.threads = usize::try_from(count).ok();
            }
            Flag::HandshakeLimit => self.handshake_timeout = serve::handshake_limit(&text())?,
            Flag::Quiet => self.common.quiet = true,
            _ => self.take_daemon(given, path())?,
        }
        Ok(())
    }

    /// Options of the process and not of an image.
    fn take_daemon(&mut self, given: &Given<Flag>, path: PathBuf) -> Result<(), Stop> {
        match given.id {
            Flag::Tls => self.tls = tls_policy(&given.text())?,
            Flag::TlsCertificates => self.tls_folder = Some(path),
            Flag::TlsVerifyPeer => self.verifies_clients = true,
            Flag::Control => self.control = Some(absolute(&path)?),
            Flag::Metrics => {
                let text = given.text();
                let bad =
                    |_| Failure::usage(format!("--metrics expects ADDRESS:PORT not '{text}'"));
                self.metrics = Some(text.parse().map_err(bad)?);
            }
            Flag::Sandbox => self.sandbox = sandbox(&given.text())?,
            Flag::Allow => self.allowed.push(path),
            Flag::Fork => self.forks = true,
            Flag::PidFile => self.pid_file = Some(absolute(&path)?),
            Flag::LogFormat => {
                self.log.format = match given.text().as_str() {
                    "text" => LogFormat::Text,
                    "json" => LogFormat::Json,
                    other => {
                        let message = format!("--log expects 'text' or 'json' not '{other}'");
                        return Err(Failure::usage(message).into());
                    }
                };
            }
            Flag::LogLevel => self.log.filter = given.text(),
            Flag::LogFile => self.log.file = Some(absolute(&path)?),
            _ => self.common.take(given)?,
        }
        Ok(())
    }

    /// Without a word about it, TCP; but not where the images are served in another way.
    fn addresses(&self, images: &[ImageRequest]) -> Vec<Address> {
        let mut addresses: Vec<_> = self.sockets.iter().cloned().map(Address::Unix).collect();
        if self.inherits {
            addresses.push(Address::Inherited);
        }
        let is_elsewhere =
            images.iter().any(|image| image.vhost_user.is_some() || image.fuse.is_some());
        let is_nowhere = addresses.is_empty() && !is_elsewhere;
        if is_nowhere || self.host.is_some() || self.port.is_some() {
            let host = self.host.clone().unwrap_or_else(|| HOST.to_owned());
            let port = self.port.clone().unwrap_or_else(|| PORT.to_owned());
            addresses.push(Address::Tcp { host, port });
        }
        addresses
    }

    /// Refuses options that would change nothing: whoever gave them expects something.
    fn check_effects(&self, images: &[ImageRequest]) -> Result<(), Failure> {
        let is_file = images.iter().any(|image| image.fuse.is_some());
        let is_machine = images.iter().any(|image| image.vhost_user.is_some());
        let idle = if (self.growable || self.allow_other) && !is_file {
            "--growable and --allow-other have no effect without --fuse"
        } else if (self.queues_max != QUEUES_MAX || !self.serial.is_empty()) && !is_machine {
            "--queues and --serial have no effect without --socket-path or --fd"
        } else if !self.allowed.is_empty() && self.control.is_none() {
            "--allow has no effect without --control"
        } else if self.verifies_clients && self.tls == TlsPolicy::Unavailable {
            "--tls-verify-peer has no effect without --tls"
        } else {
            return Ok(());
        };
        Err(Failure::usage(idle))
    }

    fn tls(&self) -> Result<Option<(TlsFolder, TlsPolicy)>, Failure> {
        match (self.tls, &self.tls_folder) {
            (TlsPolicy::Unavailable, None) => Ok(None),
            (TlsPolicy::Unavailable, Some(_)) => {
                Err(Failure::usage("--tls-certificates has no effect without --tls"))
            }
            (_, None) => Err(Failure::usage("--tls needs --tls-certificates")),
            (policy, Some(path)) => {
                let verifies_clients = self.verifies_clients;
                Ok(Some((TlsFolder { path: path.clone(), verifies_clients }, policy)))
            }
        }
    }
}

fn run(arguments: Vec<OsString>, session: &Session) -> Result<u8, Stop> {
    let mut options = Options::new();
    let mut parser = Parser::new(OPTIONS, arguments);
    while let Some(given) = parser.next()? {
        options.take(&given)?;
    }
    let mut operands = parser.operands();
    operands.extend(options.blk_file.take());
    let images = options.images(&operands)?;
    if images.is_empty() {
        return Err(Failure::usage_with_help("Expecting an image file name").into());
    }
    options.check_effects(&images)?;
    let request = Request {
        addresses: options.addresses(&images),
        images,
        connections_max: options.connections_max,
        until: options.until,
        handshake_timeout: options.handshake_timeout,
        tls: options.tls()?,
        threads: options.threads,
        control: options.control,
        metrics: options.metrics,
        sandbox: options.sandbox,
        allowed: options.allowed,
        pid_file: options.pid_file,
        log: options.log,
        announces: !options.common.quiet,
    };
    if options.forks && !is_background() {
        return Ok(run_in_background(session)?);
    }
    serve::run(request, &options.common, session).map_err(Failure::from)?;
    Ok(0)
}

/// Paths stay what they are whatever becomes of the working folder.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| {
        let reason = crate::disk::system_words(&error);
        Failure::usage(format!("Invalid path '{}': {reason}", path.display()))
    })
}

fn switch(value: &str) -> Option<bool> {
    match value {
        "on" | "yes" | "true" => Some(true),
        "off" | "no" | "false" => Some(false),
        _ => None,
    }
}

fn persistent(given: &Given<Flag>) -> Result<Until, Failure> {
    let text = given.value.is_some().then(|| given.text());
    match text.as_deref().map_or(Some(true), switch) {
        Some(true) => Ok(Until::Stopped),
        Some(false) => Ok(Until::LastClientGone),
        None => {
            let text = given.text();
            Err(Failure::usage(format!("--persistent expects 'on' or 'off' not '{text}'")))
        }
    }
}

fn tls_policy(text: &str) -> Result<TlsPolicy, Failure> {
    match text {
        "off" => Ok(TlsPolicy::Unavailable),
        "on" => Ok(TlsPolicy::Offered),
        "require" => Ok(TlsPolicy::Required),
        _ => Err(Failure::usage(format!("--tls expects 'off', 'on' or 'require' not '{text}'"))),
    }
}

fn sandbox(text: &str) -> Result<Sandbox, Failure> {
    match text {
        "on" => Ok(Sandbox::WherePossible),
        "require" => Ok(Sandbox::Required),
        "off" => Ok(Sandbox::Off),
        _ => {
            Err(Failure::usage(format!("--sandbox expects 'on', 'require' or 'off' not '{text}'")))
        }
    }
}
