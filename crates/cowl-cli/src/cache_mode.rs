//! Cache modes: accepted because scripts pass them, checked because qemu-img does.

/// A cache mode that is none of the known ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UnknownCacheMode;

/// How a file is cached, as far as it matters for a command that ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CacheMode {
    /// Bypass the page cache of the host.
    pub(crate) direct: bool,
    /// Never make anything durable.
    pub(crate) unsafe_flush: bool,
}

/// Reads a cache mode.
pub(crate) fn parse(value: &str) -> Result<CacheMode, UnknownCacheMode> {
    match value {
        "none" | "off" | "directsync" => Ok(CacheMode { direct: true, unsafe_flush: false }),
        "writeback" | "writethrough" => Ok(CacheMode { direct: false, unsafe_flush: false }),
        "unsafe" => Ok(CacheMode { direct: false, unsafe_flush: true }),
        _ => Err(UnknownCacheMode),
    }
}

/// Whether `value` is a cache mode.
pub(crate) fn validate(value: &str) -> Result<(), UnknownCacheMode> {
    parse(value).map(|_| ())
}
