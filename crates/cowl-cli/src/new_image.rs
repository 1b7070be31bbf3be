//! From `-o` options to what a new image shall be; used by every verb that makes one.
//!
//! Whether the options make sense together is decided where images are made. Here names become
//! values, and what this version cannot make is refused.

use std::path::Path;

use cowl_format::{ByteCount, CompressionType, Version};
use cowl_qcow2::{CreateError, CreateOptions, Preallocation};
use cowl_storage::{Operation, StorageError};

use crate::creation_options::CreationOptions;
use crate::disk::{lock_words, system_words};

/// The qcow2 image that `options` describe.
pub(crate) fn qcow2(options: &CreationOptions, size: u64) -> Result<CreateOptions, String> {
    if let Some((name, _)) = options.iter().find(|(name, value)| {
        name.starts_with("encrypt.") || (*name == "encryption" && value.to_string() == "on")
    }) {
        return Err(format!("Encryption ('{name}') is not available in this version"));
    }
    let defaults = CreateOptions::new(ByteCount::new(size));
    let bytes = |name| options.text(name).map(|text| text.as_bytes().to_vec());
    Ok(CreateOptions {
        version: version(options.text("compat"))?,
        cluster_size: options.number("cluster_size").unwrap_or(defaults.cluster_size),
        refcount_bits: options.number("refcount_bits").unwrap_or(defaults.refcount_bits),
        extended_l2: options.switch("extended_l2").unwrap_or(defaults.extended_l2),
        compression_type: compression_type(options.text("compression_type"))?,
        lazy_refcounts: options.switch("lazy_refcounts").unwrap_or(defaults.lazy_refcounts),
        backing: bytes("backing_file"),
        backing_format: bytes("backing_fmt"),
        data_file: bytes("data_file"),
        data_file_raw: options.switch("data_file_raw").unwrap_or(defaults.data_file_raw),
        ..defaults
    })
}

fn version(compat: Option<&str>) -> Result<Version, String> {
    match compat {
        None | Some("1.1" | "v3") => Ok(Version::V3),
        Some("0.10" | "v2") => Ok(Version::V2),
        Some(other) => Err(unaccepted("version", other)),
    }
}

fn compression_type(name: Option<&str>) -> Result<CompressionType, String> {
    match name {
        None | Some("zlib") => Ok(CompressionType::Zlib),
        Some("zstd") => Ok(CompressionType::Zstd),
        Some(other) => Err(unaccepted("compression-type", other)),
    }
}

/// When the space of the image is allocated.
pub(crate) fn preallocation(
    options: &CreationOptions,
    format: &str,
) -> Result<Preallocation, String> {
    match options.text("preallocation") {
        None | Some("off") => Ok(Preallocation::Off),
        Some("metadata") if format == "raw" => {
            Err("Unsupported preallocation mode: metadata".into())
        }
        Some("metadata") => Ok(Preallocation::Metadata),
        Some("falloc") => Ok(Preallocation::Falloc),
        Some("full") => Ok(Preallocation::Full),
        Some(other) => Err(unaccepted("preallocation", other)),
    }
}

fn unaccepted(name: &str, value: &str) -> String {
    format!("Parameter '{name}' does not accept value '{value}'")
}

/// Why the image `target` was not made, in qemu-img's words.
pub(crate) fn words(error: &CreateError, target: &Path) -> String {
    match error {
        CreateError::Storage(error) => storage_words(error, target),
        other => other.to_string(),
    }
}

/// The same for an error of the host.
pub(crate) fn storage_words(error: &StorageError, target: &Path) -> String {
    // The user knows the target by the name that was given, not by where that leads.
    let is_target = std::fs::canonicalize(target).is_ok_and(|path| path == error.path());
    let path = if is_target { target } else { error.path() };
    lock_words(error).unwrap_or_else(|| match error.operation() {
        Operation::Open => {
            format!("Could not create '{}': {}", path.display(), system_words(error.io_error()))
        }
        _ => error.to_string(),
    })
}
