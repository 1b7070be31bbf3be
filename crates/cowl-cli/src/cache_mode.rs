//! Cache modes: accepted because scripts pass them, checked because qemu-img does.

/// A cache mode that is none of the known ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UnknownCacheMode;

/// How a file is cached, as far as it matters for a command that ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CacheMode {
    /// Bypass the page cache of the host.
    pub(crate) direct: bool,
    /// Make every write durable before it is acknowledged.
    pub(crate) writethrough: bool,
    /// Never make anything durable.
    pub(crate) unsafe_flush: bool,
}

/// Reads a cache mode.
pub(crate) fn parse(value: &str) -> Result<CacheMode, UnknownCacheMode> {
    let (direct, writethrough, unsafe_flush) = match value {
        "none" | "off" => (true, false, false),
        "directsync" => (true, true, false),
        "writeback" => (false, false, false),
        "writethrough" => (false, true, false),
        "unsafe" => (false, false, true),
        _ => return Err(UnknownCacheMode),
    };
    Ok(CacheMode { direct, writethrough, unsafe_flush })
}

/// Whether `value` is a cache mode.
pub(crate) fn validate(value: &str) -> Result<(), UnknownCacheMode> {
    parse(value).map(|_| ())
}
