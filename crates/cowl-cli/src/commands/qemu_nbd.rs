//! The program under the name `qemu-nbd`: one image, and its defaults and words.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use cowl::CacheLimits;
use cowl_nbd::NbdUri;
use cowl_serve::{DetectZeros, Sandbox, ServeError, TlsPolicy, Until};

use crate::background::{has_sockets, is_background, run_in_background};
use crate::commands::Verb;
use crate::disk;
use crate::export_list;
use crate::failure::{Failure, Kind, Stop, Voice};
use crate::getopt::{Given, Opt, Parser, Takes, UsageError};
use crate::image_name::ImageName;
use crate::nbd_name;
use crate::option::{self, Common, Flag, long, short};
use crate::serve::{
    self, Address, ImageRequest, Log, LogFormat, Request, RunError, TlsFolder, TlsObject,
};
use crate::session::Session;
use crate::settings::Settings;
use crate::size::{SizeError, parse_size};
use crate::snapshot_name::SnapshotName;

/// Where clients arrive when nothing is said: anywhere, as in qemu-nbd.
const HOST: &str = "0.0.0.0";
const PORT: &str = "10809";

const OPTIONS: &[Opt<Flag>] = &[
    option::HELP,
    short(Flag::Version, 'V', &["version"], Takes::Nothing, "Show the version."),
    short(Flag::Address, 'b', &["bind"], Takes::Value("IFACE"), "Address of the host (0.0.0.0)."),
    short(Flag::Port, 'p', &["port"], Takes::Value("PORT"), "Port to listen on (10809)."),
    short(Flag::Socket, 'k', &["socket"], Takes::Value("PATH"), "Listen on a unix socket."),
    short(Flag::Offset, 'o', &["offset"], Takes::Value("OFFSET"), "Offset into the image."),
    short(Flag::ReadOnly, 'r', &["read-only"], Takes::Nothing, "Export read-only."),
    short(
        Flag::AllocationDepth,
        'A',
        &["allocation-depth"],
        Takes::Nothing,
        "Tell the depth of allocation; every client that asks is told in any case.",
    ),
    short(
        Flag::Bitmap,
        'B',
        &["bitmap"],
        Takes::Value("NAME"),
        "Expose a persistent dirty bitmap.",
    ),
    short(
        Flag::Connect,
        'c',
        &["connect"],
        Takes::Value("DEV"),
        "Not available: attach with nbd-client.",
    ),
    short(
        Flag::Disconnect,
        'd',
        &["disconnect"],
        Takes::Nothing,
        "Not available: detach with nbd-client.",
    ),
    short(
        Flag::Snapshot,
        's',
        &["snapshot"],
        Takes::Nothing,
        "Changes go to an overlay that is thrown away at the end.",
    ),
    short(
        Flag::LoadSnapshot,
        'l',
        &["load-snapshot"],
        Takes::Value("SNAPSHOT_PARAM"),
        "Show an internal snapshot, read-only.",
    ),
    short(Flag::NoCache, 'n', &["nocache"], Takes::Nothing, "Go around the cache of the host."),
    long(
        Flag::TargetCache,
        &["cache"],
        Takes::Value("MODE"),
        "none, writeback (default), writethrough, directsync or unsafe.",
    ),
    long(
        Flag::Aio,
        &["aio"],
        Takes::Value("MODE"),
        "native, io_uring or threads; requests go through io_uring whatever it is.",
    ),
    long(Flag::Discard, &["discard"], Takes::Value("MODE"), "ignore (default) or unmap."),
    long(
        Flag::DetectZeroes,
        &["detect-zeroes"],
        Takes::Value("MODE"),
        "off (default), on or unmap.",
    ),
    short(
        Flag::Shared,
        'e',
        &["shared"],
        Takes::Value("NUM"),
        "Clients at a time (1; 0 for no limit).",
    ),
    option::FORMAT,
    short(
        Flag::Persistent,
        't',
        &["persistent"],
        Takes::Nothing,
        "Do not end when the last client has gone.",
    ),
    short(Flag::Verbose, 'v', &["verbose"], Takes::Nothing, "Tell what happens."),
    option::OBJECT,
    short(
        Flag::ExportName,
        'x',
        &["export-name"],
        Takes::Value("NAME"),
        "The export's name (empty).",
    ),
    short(
        Flag::Description,
        'D',
        &["description"],
        Takes::Value("TEXT"),
        "A text about the export.",
    ),
    long(Flag::TlsCreds, &["tls-creds"], Takes::Value("ID"), "The object that provides TLS."),
    long(Flag::TlsHostname, &["tls-hostname"], Takes::Value("NAME"), "Not available."),
    long(Flag::TlsAuthz, &["tls-authz"], Takes::Value("ID"), "Not available."),
    long(Flag::ImageOpts, &["image-opts"], Takes::Nothing, "The image is a list of options."),
    short(Flag::Trace, 'T', &["trace"], Takes::Value("TRACE"), "Not available."),
    long(Flag::Fork, &["fork"], Takes::Nothing, "Return when clients can come."),
    long(Flag::PidFile, &["pid-file"], Takes::Value("PATH"), "Write the server's process ID."),
    long(Flag::SelinuxLabel, &["selinux-label"], Takes::Value("LABEL"), "Not available."),
    short(Flag::List, 'L', &["list"], Takes::Nothing, "List the exports of a server."),
    long(
        Flag::HandshakeLimit,
        &["handshake-limit"],
        Takes::Value("N"),
        "Cut clients that take longer to choose an export (10 seconds).",
    ),
];

pub(crate) const VERB: Verb = Verb {
    name: "qemu-nbd",
    summary: "Serve an image over NBD",
    usage: "[OPTIONS] FILE",
    about: "",
    options: OPTIONS,
    examples: &[],
    run,
};

/// What was said.
struct Options {
    common: Common,
    settings: Settings,
    cache: Option<CacheMode>,
    detect_zeroes: Option<String>,
    snapshot: Option<SnapshotName>,
    temporary: bool,
    name: String,
    description: String,
    bitmaps: Vec<String>,
    start: u64,
    offset: String,
    socket: Option<PathBuf>,
    host: Option<String>,
    port: Option<String>,
    connections_max: usize,
    until: Until,
    handshake_timeout: Option<Duration>,
    objects: Vec<TlsObject>,
    credentials: Option<String>,
    forks: bool,
    /// List what another server has.
    lists: bool,
    pid_file: Option<PathBuf>,
    verbose: bool,
}

/// The cache mode was given; it may be so once.
struct CacheMode;

impl Options {
    fn new() -> Self {
        let mut settings = Settings::for_serving();
        settings.set_discard("ignore").expect("it is a mode");
        Self {
            common: Common::default(),
            settings,
            cache: None,
            detect_zeroes: None,
            snapshot: None,
            temporary: false,
            name: String::new(),
            description: String::new(),
            bitmaps: Vec::new(),
            start: 0,
            offset: "0".to_owned(),
            socket: None,
            host: None,
            port: None,
            connections_max: 1,
            until: Until::LastClientGone,
            handshake_timeout: Some(serve::HANDSHAKE_TIMEOUT),
            objects: Vec::new(),
            credentials: None,
            forks: false,
            lists: false,
            pid_file: None,
            verbose: false,
        }
    }

    fn take(&mut self, given: &Given<Flag>, session: &Session) -> Result<(), Stop> {
        let text = || given.text();
        match given.id {
            Flag::Version => return Err(Stop::Answer(crate::help::version(session))),
            Flag::Address => self.host = Some(text()),
            Flag::Port => self.port = Some(text()),
            Flag::Socket => self.socket = Some(socket(given)?),
            Flag::Offset => (self.start, self.offset) = (offset(&text())?, text()),
            Flag::ReadOnly => self.settings.read_only = true,
            // Every client that asks for it gets it.
            Flag::AllocationDepth => {}
            Flag::Bitmap => self.bitmaps.push(text()),
            Flag::Snapshot => self.temporary = true,
            Flag::LoadSnapshot => self.snapshot = Some(SnapshotName::parse(&text())?),
            Flag::NoCache => {
                self.note_cache()?;
                self.settings.set_no_cache();
            }
            Flag::TargetCache => {
                self.note_cache()?;
                let bad = |_| Failure::usage(format!("Invalid cache mode `{}'", text()));
                self.settings.set_cache(&text()).map_err(bad)?;
            }
            Flag::Aio => {
                let bad = |_| Failure::usage(format!("Invalid aio mode '{}'", text()));
                self.settings.set_aio(&text()).map_err(bad)?;
            }
            Flag::Discard => {
                let bad = |_| Failure::usage(format!("Invalid discard mode `{}'", text()));
                self.settings.set_discard(&text()).map_err(bad)?;
            }
            Flag::DetectZeroes => self.detect_zeroes = Some(text()),
            Flag::Shared => self.connections_max = shared(&text())?,
            Flag::Persistent => self.until = Until::Stopped,
            Flag::Verbose => self.verbose = true,
            Flag::ExportName => self.name = serve::within_limit("export name", &text())?,
            Flag::Description => {
                self.description = serve::within_limit("export description", &text())?;
            }
            Flag::Object => self.object(given)?,
            Flag::TlsCreds => self.credentials = Some(text()),
            Flag::List => self.lists = true,
            Flag::Fork => self.forks = true,
            Flag::PidFile => self.pid_file = given.value.clone().map(PathBuf::from),
            Flag::HandshakeLimit => self.handshake_timeout = handshake_limit(&text())?,
            _ => self.refuse(given)?,
        }
        Ok(())
    }

    /// What does not exist here, and why.
    fn refuse(&mut self, given: &Given<Flag>) -> Result<(), Stop> {
        let what = match given.id {
            Flag::Connect | Flag::Disconnect => {
                let reason = "attaching kernel devices needs rights that this server does not \
                              take; serve on a socket (-k or -p) and use nbd-client";
                let message = format!("-c and -d are not available in this version: {reason}");
                return Err(Failure::new(Kind::NotAvailable, message).into());
            }
            Flag::TlsHostname => "--tls-hostname",
            Flag::TlsAuthz => "--tls-authz",
            Flag::SelinuxLabel => "--selinux-label",
            Flag::Trace => "tracing (-T)",
            _ => return self.common.take(given),
        };
        Err(option::not_available(what).into())
    }

    fn note_cache(&mut self) -> Result<(), Failure> {
        match self.cache.replace(CacheMode) {
            None => Ok(()),
            Some(CacheMode) => Err(Failure::usage("-n and --cache can only be specified once")),
        }
    }

    fn object(&mut self, given: &Given<Flag>) -> Result<(), Stop> {
        match TlsObject::parse(&given.text())? {
            Some(object) => self.objects.push(object),
            None => self.common.take(given)?,
        }
        Ok(())
    }

    fn tls(&self) -> Result<Option<(TlsFolder, TlsPolicy)>, Failure> {
        let Some(id) = &self.credentials else { return Ok(None) };
        let found = self.objects.iter().find(|object| object.id == *id);
        let Some(object) = found else {
            let is_secret = self.common.secrets.iter().any(|secret| secret.id == *id);
            let reason = match is_secret {
                true => format!("Object with id '{id}' is not TLS credentials"),
                false => format!("No TLS credentials with id '{id}'"),
            };
            return Err(Failure::usage(format!("Failed to get TLS creds: {reason}")));
        };
        Ok(Some((object.folder.clone(), TlsPolicy::Required)))
    }

    /// What `-L` prints.
    fn list(&self, operands: &[OsString]) -> Result<String, Failure> {
        if !operands.is_empty() {
            return Err(Failure::usage("List mode is incompatible with a file name"));
        }
        let is_about_device = !self.name.is_empty()
            || !self.description.is_empty()
            || !self.bitmaps.is_empty()
            || self.start != 0
            || self.temporary
            || self.snapshot.is_some()
            || self.common.format.is_some();
        if is_about_device {
            return Err(Failure::usage("List mode is incompatible with per-device settings"));
        }
        let (name, uri) = match &self.socket {
            Some(path) => {
                let path = path.to_string_lossy().into_owned();
                let uri = nbd_name::unix(&path, "");
                (path, uri)
            }
            None => {
                let (host, port) = self.place();
                (format!("{host}:{port}"), nbd_name::tcp(&host, &port, ""))
            }
        };
        let place = NbdUri::parse(&uri).map_err(|error| Failure::usage(error.to_string()))?;
        export_list::list(&place, &name)
    }

    fn image(&self, operand: &OsString) -> Result<ImageRequest, Failure> {
        let format = self.common.format.as_deref();
        if self.common.image_opts && format.is_some() {
            return Err(Failure::usage("--image-opts and -f are mutually exclusive"));
        }
        let given = operand.to_string_lossy().into_owned();
        let failed = |reason: String| {
            Failure::new(Kind::Open, format!("Failed to blk_new_open '{given}': {reason}"))
        };
        let image =
            ImageName::try_parse(operand, format, self.common.image_opts).map_err(failed)?;
        let detect_zeros = match self.detect_zeroes.as_deref() {
            None => DetectZeros::Off,
            Some(value) => serve::detect_zeros(value, &self.settings)?,
        };
        if let Some(contradiction) = self.settings.contradiction() {
            return Err(failed(contradiction.to_owned()));
        }
        Ok(ImageRequest {
            export: self.name.clone(),
            description: self.description.clone(),
            image,
            settings: self.settings.clone(),
            snapshot: self.snapshot.clone(),
            temporary: self.temporary,
            start: self.start,
            length: None,
            detect_zeros,
            cache: CacheLimits::STANDARD,
            bitmaps: self.bitmaps.clone(),
            vhost_user: None,
            fuse: None,
        })
    }
}

fn run(arguments: Vec<OsString>, session: &Session) -> Result<u8, Stop> {
    let mut options = Options::new();
    let mut parser = Parser::new(OPTIONS, arguments);
    while let Some(given) = parser.next().map_err(|error| usage(&error, session))? {
        options.take(&given, session)?;
    }
    let operands = parser.operands();
    let handed_over = sockets_handed_over();
    if 0 < handed_over {
        options.check_activation(handed_over)?;
    }
    if options.lists {
        session.output.text(&options.list(&operands)?);
        return Ok(0);
    }
    let [operand] = operands.as_slice() else {
        let help = format!("Try `{} --help' for more information.", session.program);
        return Err(Failure::usage(format!("Invalid number of arguments\n{help}")).into());
    };
    let tls = options.tls()?;
    let address = match &options.socket {
        _ if 0 < handed_over => Address::Inherited,
        Some(path) => Address::Unix(path.clone()),
        None => {
            let (host, port) = options.place();
            Address::Tcp { host, port }
        }
    };
    let level = if options.verbose { "debug" } else { "off" };
    let request = Request {
        images: vec![options.image(operand)?],
        addresses: vec![address],
        connections_max: options.connections_max,
        until: options.until,
        handshake_timeout: options.handshake_timeout,
        tls,
        threads: None,
        control: None,
        metrics: None,
        sandbox: Sandbox::WherePossible,
        allowed: Vec::new(),
        pid_file: options.pid_file.clone(),
        log: Log { format: LogFormat::Text, filter: level.to_owned(), file: None },
        announces: false,
    };
    if options.forks && !is_background() {
        return Ok(run_in_background(session)?);
    }
    let given = operand.to_string_lossy();
    let words = |error| words(error, &given, &options.offset);
    serve::run(request, &options.common, session).map_err(words)?;
    Ok(0)
}

/// What getopt refuses.
fn usage(error: &UsageError, session: &Session) -> Failure {
    let program = &session.program;
    let message = format!("{error}\n{program}: Try `{program} --help' for more information.");
    Failure { voice: Voice::Invoked, ..Failure::usage(message) }
}

fn words(error: RunError, image: &str, offset: &str) -> Failure {
    match error {
        RunError::Serve(ServeError::OutsideOfDisk { .. }) => {
            Failure::usage(format!("Invalid offset '{offset}'"))
        }
        RunError::Serve(ServeError::Open { path, source }) => {
            let reason = disk::words(&source);
            let message = format!("Failed to blk_new_open '{image}': {reason}");
            Failure::new(Kind::Open, message).about(path)
        }
        other => other.into(),
    }
}

/// Sockets that a service manager hands to this process.
fn sockets_handed_over() -> u32 {
    let count = || std::env::var("LISTEN_FDS").ok()?.parse().ok();
    if has_sockets() { count().unwrap_or(0) } else { 0 }
}

impl Options {
    /// Where a server is on TCP when no socket is named.
    fn place(&self) -> (String, String) {
        let or = |given: &Option<String>, usual: &str| given.clone().unwrap_or(usual.to_owned());
        (or(&self.host, HOST), or(&self.port, PORT))
    }

    /// With a socket from a service manager nothing else may say where to listen.
    fn check_activation(&self, sockets: u32) -> Result<(), Failure> {
        let contradiction = if self.socket.is_some() {
            "Unix socket can't be set when using socket activation"
        } else if self.host.is_some() {
            "The interface can't be set when using socket activation"
        } else if self.port.is_some() {
            "TCP port number can't be set when using socket activation"
        } else if self.lists {
            "List mode is incompatible with socket activation"
        } else if 1 < sockets {
            "qemu-nbd does not support socket activation with LISTEN_FDS > 1"
        } else {
            return Ok(());
        };
        Err(Failure::usage(contradiction))
    }
}

fn socket(given: &Given<Flag>) -> Result<PathBuf, Failure> {
    let path = PathBuf::from(given.value.clone().unwrap_or_default());
    match path.is_absolute() {
        true => Ok(path),
        false => Err(Failure::usage("socket path must be absolute")),
    }
}

fn offset(text: &str) -> Result<u64, Failure> {
    if text.starts_with('-') {
        let message = format!("Value '{text}' is out of range for parameter 'offset'");
        return Err(Failure::usage(message));
    }
    parse_size(text).map_err(|error| match error {
        SizeError::Malformed => Failure::usage(format!("Invalid offset '{text}'")),
        SizeError::OutOfRange => {
            Failure::usage(format!("Value '{text}' is out of range for parameter 'offset'"))
        }
    })
}

fn shared(text: &str) -> Result<usize, Failure> {
    let wrong = |_| Failure::usage(format!("Invalid shared device number '{text}'"));
    serve::connections(text).map_err(wrong)
}

fn handshake_limit(text: &str) -> Result<Option<Duration>, Failure> {
    let wrong = |_| Failure::usage(format!("Invalid handshake limit '{text}'"));
    serve::handshake_limit(text).map_err(wrong)
}
