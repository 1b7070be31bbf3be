//! The options of `serve`.

use crate::getopt::{Opt, Takes};
use crate::option::{self, Flag, long, short};

pub(super) const OPTIONS: &[Opt<Flag>] = &[
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
         vhost-user (a socket), queues, serial, fuse (a mount point), growable, allow-other. \
         May be given again.",
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
