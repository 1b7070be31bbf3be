//! `serve`: hand images to clients.

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cowl::CacheLimits;
use cowl_serve::{DetectZeros, FuseFile, Sandbox, TlsPolicy, Until, VhostUser, VhostUserPlace};

use crate::commands::Verb;
use crate::failure::{Failure, Stop};
use crate::getopt::{Given, Opt, Parser, Takes};
use crate::image_name::ImageName;
use crate::number;
use crate::option::{self, Common, Flag, long, short};
use crate::option_list::OptionList;
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

const OPTIONS: &[Opt<Flag>] = &[
    option::HELP,
    short(
        Flag::Socket,
        'k',
        &["socket"],
        Takes::Value("PATH"),
        "Listen on a unix socket. May be given again.",
    ),
    short(
        Flag::Address,
        'b',
        &["bind"],
        Takes::Value("ADDRESS"),
        "Listen on TCP at this address of the host (127.0.0.1 if nothing is said).",
    ),
    short(Flag::Port, 'p', &["port"], Takes::Value("PORT"), "The TCP port (10809)."),
    long(
        Flag::SocketActivation,
        &["socket-activation"],
        Takes::Nothing,
        "Listen on the sockets that a service manager hands over (LISTEN_FDS).",
    ),
    long(
        Flag::SocketPath,
        &["socket-path"],
        Takes::Value("PATH"),
        "Serve a virtual machine (vhost-user-blk) that connects to this unix socket.",
    ),
    long(
        Flag::Descriptor,
        &["fd"],
        Takes::Value("NUM"),
        "The same on a socket that this descriptor is, listening or connected.",
    ),
    long(
        Flag::Queues,
        &["queues"],
        Takes::Value("NUM"),
        "Queues that a virtual machine may use (64).",
    ),
    long(
        Flag::Serial,
        &["serial"],
        Takes::Value("TEXT"),
        "The disk's serial number in the virtual machine; up to 20 bytes.",
    ),
    long(Flag::BlkFile, &["blk-file"], Takes::Value("IMAGE"), "The image; the same as an operand."),
    long(
        Flag::PrintCapabilities,
        &["print-capabilities"],
        Takes::Nothing,
        "Say in JSON what this vhost-user back-end is, and end.",
    ),
    long(
        Flag::Fuse,
        &["fuse"],
        Takes::Value("PATH"),
        "Show the disk as a plain file, through FUSE: over the file PATH, or in the directory PATH \
         under the export's name (disk if that is empty).",
    ),
    long(
        Flag::Growable,
        &["growable"],
        Takes::Nothing,
        "Writing past the end of that file makes the disk longer.",
    ),
    long(
        Flag::AllowOther,
        &["allow-other"],
        Takes::Nothing,
        "Other users can use that file, as its permissions say.",
    ),
    option::FORMAT,
    option::IMAGE_OPTS,
    short(Flag::ReadOnly, 'r', &["read-only"], Takes::Nothing, "Clients change nothing."),
    short(
        Flag::Snapshot,
        's',
        &["snapshot"],
        Takes::Nothing,
        "Changes go to an overlay that is thrown away at the end; the image stays as it is.",
    ),
    short(
        Flag::LoadSnapshot,
        'l',
        &["load-snapshot"],
        Takes::Value("SNAPSHOT"),
        "Show an internal snapshot, read-only: its ID or name, or \
         snapshot.id=ID,snapshot.name=NAME.",
    ),
    short(
        Flag::ExportName,
        'x',
        &["export-name"],
        Takes::Value("NAME"),
        "The export's name. Without it a single image has the empty name, and several are named \
         as their files.",
    ),
    short(
        Flag::Description,
        'D',
        &["description"],
        Takes::Value("TEXT"),
        "A text about the export, for people.",
    ),
    short(
        Flag::Offset,
        'o',
        &["offset"],
        Takes::Value("OFFSET"),
        "The export begins at this byte of the disk.",
    ),
    long(Flag::Size, &["size"], Takes::Value("SIZE"), "The export has this many bytes."),
    short(
        Flag::Bitmap,
        'B',
        &["bitmap"],
        Takes::Value("NAME"),
        "Clients can ask about this persistent dirty bitmap (qemu:dirty-bitmap:NAME). The image \
         has to be served read-only where the bitmap records writes. May be given again.",
    ),
    long(
        Flag::Export,
        &["export"],
        Takes::Value("LIST"),
        "An export of its own: image=FILE with any of name, description, format, read-only, \
         snapshot, load-snapshot, offset, size, cache, discard, detect-zeroes, bitmap, \
         vhost-user (a socket), queues, serial, fuse (a mount point), growable, allow-other. May be \
         given again.",
    ),
    short(
        Flag::Shared,
        'e',
        &["shared"],
        Takes::Value("NUM"),
        "Clients at a time; more wait. 0 stands for no limit but the server's (1024).",
    ),
    short(
        Flag::Persistent,
        't',
        &["persistent"],
        Takes::OptionalValue("on|off"),
        "Whether to go on serving when the last client has gone (on).",
    ),
    long(
        Flag::TargetCache,
        &["cache"],
        Takes::Value("MODE"),
        "none, writeback (default), writethrough, directsync or unsafe.",
    ),
    short(Flag::NoCache, 'n', &["nocache"], Takes::Nothing, "The same as --cache=none."),
    long(
        Flag::CacheSize,
        &["cache-size"],
        Takes::Value("SIZE"),
        "Memory for the L2 tables of each image (32M, which describe 256G at clusters of 64k).",
    ),
    long(
        Flag::Discard,
        &["discard"],
        Takes::Value("MODE"),
        "unmap (default): discards give back space; ignore: they do nothing.",
    ),
    long(
        Flag::DetectZeroes,
        &["detect-zeroes"],
        Takes::Value("MODE"),
        "off (default), on or unmap: what becomes of writes that hold only zeros.",
    ),
    long(Flag::Threads, &["threads"], Takes::Value("NUM"), "Serving threads (one for each core)."),
    long(
        Flag::HandshakeLimit,
        &["handshake-limit"],
        Takes::Value("SECONDS"),
        "Cut clients that take longer to choose an export (10; 0 for no limit).",
    ),
    long(
        Flag::Tls,
        &["tls"],
        Takes::Value("MODE"),
        "off (default), on (for clients that ask for it) or require.",
    ),
    long(
        Flag::TlsCertificates,
        &["tls-certificates"],
        Takes::Value("FOLDER"),
        "Where server-cert.pem, server-key.pem and ca-cert.pem are.",
    ),
    long(
        Flag::TlsVerifyPeer,
        &["tls-verify-peer"],
        Takes::Nothing,
        "Clients have to show a certificate signed by ca-cert.pem.",
    ),
    long(
        Flag::Control,
        &["control"],
        Takes::Value("PATH"),
        "A unix socket that takes commands, a JSON object a line: {\"command\": \"help\"}.",
    ),
    long(
        Flag::Metrics,
        &["metrics"],
        Takes::Value("ADDRESS:PORT"),
        "Serve metrics for Prometheus over HTTP, at /metrics.",
    ),
    long(
        Flag::Sandbox,
        &["sandbox"],
        Takes::Value("MODE"),
        "on (default): give up files and system calls as far as the kernel can; require: wholly, \
         or do not serve; off.",
    ),
    long(
        Flag::Allow,
        &["allow"],
        Takes::Value("PATH"),
        "A file, or a folder with all in it, that exports added over the control socket may use. \
         May be given again.",
    ),
    long(
        Flag::Fork,
        &["fork"],
        Takes::Nothing,
        "Return when clients can come, and serve in the background.",
    ),
    long(
        Flag::PidFile,
        &["pid-file"],
        Takes::Value("PATH"),
        "Write the number of the serving process to a file.",
    ),
    long(
        Flag::LogFormat,
        &["log"],
        Takes::Value("text|json"),
        "What events look like on standard error.",
    ),
    long(
        Flag::LogLevel,
        &["log-level"],
        Takes::Value("LEVEL"),
        "error, warn, info (default), debug or trace, or levels by module: cowl_nbd=debug.",
    ),
    long(Flag::LogFile, &["log-file"], Takes::Value("PATH"), "Append events to a file instead."),
    short(Flag::Quiet, 'q', &["quiet"], Takes::Nothing, "Do not say where clients find what."),
    option::OBJECT,
    option::UNTRUSTED,
    option::ERRORS,
];

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
        "-r --export image=base.qcow2,name=base --export image=vm.qcow2,name=vm,snapshot=on",
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

    /// The images of the command line, then those of `--export`.
    fn images(&self, operands: &[OsString]) -> Result<Vec<ImageRequest>, Failure> {
        let format = self.common.format.as_deref();
        option::exclude_format_with_image_opts(self.common.image_opts, format)?;
        let is_single = operands.len() + self.exports.len() == 1;
        if (self.place.is_some() || self.mount_point.is_some()) && operands.len() != 1 {
            let message = "--socket-path, --fd and --fuse are for a single image; see --export";
            return Err(Failure::usage(message));
        }
        if self.name.is_some() && operands.len() != 1 {
            return Err(Failure::usage("--export-name is for a single image; see --export"));
        }
        let mut images = Vec::new();
        for operand in operands {
            let image = ImageName::parse(operand, format, self.common.image_opts)?;
            let name = match (&self.name, is_single) {
                (Some(name), _) => name.clone(),
                (None, true) => String::new(),
                (None, false) => file_name(&image.path),
            };
            images.push(self.image(name, image)?);
        }
        for list in &self.exports {
            images.push(self.export(list, is_single)?);
        }
        Ok(images)
    }

    /// An image with what was said for all of them.
    fn image(&self, name: String, image: ImageName) -> Result<ImageRequest, Failure> {
        let detect_zeros = self
            .detect_zeroes
            .as_deref()
            .map_or(Ok(DetectZeros::Off), |value| serve::detect_zeros(value, &self.settings));
        Ok(ImageRequest {
            export: name,
            description: self.description.clone(),
            image,
            settings: self.settings.clone(),
            snapshot: self.snapshot.clone(),
            temporary: self.temporary,
            start: self.start,
            length: self.length,
            detect_zeros: detect_zeros?,
            cache: self.cache,
            bitmaps: self.bitmaps.clone(),
            vhost_user: self.place.clone().map(|place| self.vhost_user(place)),
            fuse: self.mount_point.clone().map(|mount_point| self.fuse(mount_point)),
        })
    }

    fn fuse(&self, mount_point: PathBuf) -> FuseFile {
        FuseFile { mount_point, growable: self.growable, allow_other: self.allow_other }
    }

    fn vhost_user(&self, place: VhostUserPlace) -> VhostUser {
        VhostUser { place, queues_max: self.queues_max, serial: self.serial.clone() }
    }

    /// An image with what a list says besides.
    fn export(&self, list: &str, is_single: bool) -> Result<ImageRequest, Failure> {
        let wrong = |reason: String| Failure::usage(format!("--export '{list}': {reason}"));
        let pairs = OptionList::parse(list, Some("image"));
        let file = pairs.get("image").ok_or_else(|| wrong("it has no image=FILE".to_owned()))?;
        let format = pairs.get("format").or(self.common.format.as_deref());
        let image = ImageName::parse(OsStr::new(file), format, false)?;
        let name = match is_single {
            true => String::new(),
            false => file_name(&image.path),
        };
        let mut request = self.image(name, image)?;
        let (mut detect_zeroes, mut machines) = (None, None::<VhostUser>);
        for (key, value) in pairs.iter() {
            let switch = || switch(value).ok_or_else(|| wrong(format!("{key} is on or off")));
            match key {
                "image" | "format" => {}
                "name" => request.export = export_name(value)?,
                "description" => request.description = export_text(value)?,
                "read-only" => request.settings.read_only = switch()?,
                "snapshot" => request.temporary = switch()?,
                "load-snapshot" => request.snapshot = Some(SnapshotName::parse(value)?),
                "offset" => request.start = number::size("offset", value)?,
                "size" => request.length = Some(number::size("size", value)?),
                "cache" => request.settings.set_cache(value).map_err(wrong)?,
                "discard" => request.settings.set_discard(value).map_err(wrong)?,
                "bitmap" => request.bitmaps.push(value.to_owned()),
                "detect-zeroes" => detect_zeroes = Some(value),
                "vhost-user" => {
                    let place = VhostUserPlace::Path(absolute(Path::new(value))?);
                    machines = Some(self.vhost_user(place));
                }
                "fuse" => {
                    let file = self.fuse(absolute(Path::new(value))?);
                    request.fuse = Some(file);
                }
                // After the socket and the mount point, whatever the order: see below.
                "queues" | "serial" | "growable" | "allow-other" => {}
                _ => return Err(wrong(format!("there is no option '{key}'"))),
            }
        }
        match (&mut machines, pairs.get("queues"), pairs.get("serial")) {
            (None, None, None) => {}
            (None, ..) => return Err(wrong("queues and serial need vhost-user".to_owned())),
            (Some(machines), count, text) => {
                machines.queues_max = count.map_or(Ok(self.queues_max), queues)?;
                machines.serial = text.map_or(Ok(self.serial.clone()), serial)?;
            }
        }
        request.vhost_user = machines;
        for key in ["growable", "allow-other"] {
            let Some(value) = pairs.get(key) else { continue };
            let is_on = switch(value).ok_or_else(|| wrong(format!("{key} is on or off")))?;
            match (&mut request.fuse, key) {
                (None, _) => return Err(wrong(format!("{key} needs fuse"))),
                (Some(file), "growable") => file.growable = is_on,
                (Some(file), _) => file.allow_other = is_on,
            }
        }
        if let Some(value) = detect_zeroes {
            request.detect_zeros = serve::detect_zeros(value, &request.settings)?;
        }
        Ok(request)
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
    if options.forks
        && let Some(code) = serve::detach(session)?
    {
        return Ok(code);
    }
    serve::run(request, &options.common, session).map_err(Failure::from)?;
    Ok(0)
}

fn queues(text: &str) -> Result<u16, Failure> {
    let count = number::count("number of queues", text, 1..=256)?;
    Ok(u16::try_from(count).unwrap_or(QUEUES_MAX))
}

fn serial(text: &str) -> Result<String, Failure> {
    if SERIAL_MAX < text.len() {
        return Err(Failure::usage(format!("the serial number '{text}' has more than 20 bytes")));
    }
    Ok(text.to_owned())
}

/// Paths stay what they are whatever becomes of the working folder.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| {
        let reason = crate::disk::system_words(&error);
        Failure::usage(format!("Invalid path '{}': {reason}", path.display()))
    })
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
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

fn export_name(text: &str) -> Result<String, Failure> {
    serve::within_limit("export name", text)
}

fn export_text(text: &str) -> Result<String, Failure> {
    serve::within_limit("export description", text)
}
