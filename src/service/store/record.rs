//! An evaluator's file.

use std::{collections::BTreeMap, fs, io, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::document::{Document, MAX_DOCUMENT};
use crate::{Digest, Isolation, ParseDigestError, Wasi};

/// A larger file was not written by this program. A document grows a little by how numbers are written.
pub(super) const MAX_RECORD: u64 = 16 * MAX_DOCUMENT;

/// Unknown fields are refused: this version must not ignore a restriction that a later one wrote.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) name: String,
    #[serde(default)]
    pub(super) revision: u64,
    digest: String,
    /// Which the plugin was validated with, also if the document leaves it open.
    pub(super) entry_point: String,
    pub(super) size_bytes: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    linked: BTreeMap<String, Linked>,
    /// The document with its config values. Records of before have the three fields below instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spec: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    isolation: Option<Isolation>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wasi: Option<Wasi>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    debug: bool,
}

/// A module that the plugin imports from.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Linked {
    digest: String,
    size_bytes: u64,
}

/// A stored module: the plugin itself, or one that it is linked with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Blob {
    pub(super) digest: Digest,
    pub(super) size: u64,
}

/// What a file says.
pub(super) struct Stored {
    pub(super) record: Record,
    pub(super) plugin: Blob,
    pub(super) linked: Vec<(String, Blob)>,
    pub(super) document: Document,
}

impl Stored {
    pub(super) fn blobs(&self) -> impl Iterator<Item = Blob> {
        [self.plugin].into_iter().chain(self.linked.iter().map(|(_, blob)| *blob))
    }
}

impl Record {
    pub(super) fn new(
        name: &str,
        revision: u64,
        entry_point: &str,
        plugin: Blob,
        linked: &[(String, Blob)],
        document: Value,
    ) -> Self {
        let linked = linked.iter().map(|(name, Blob { digest, size })| {
            (name.clone(), Linked { digest: digest.to_string(), size_bytes: *size })
        });
        Self {
            name: name.to_owned(),
            revision,
            digest: plugin.digest.to_string(),
            entry_point: entry_point.to_owned(),
            size_bytes: plugin.size,
            linked: linked.collect(),
            spec: Some(document),
            isolation: None,
            wasi: None,
            debug: false,
        }
    }
}

/// Reads a file. The reason of a failure shows nothing of the document's config.
pub(super) fn read(path: &Path) -> io::Result<Stored> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() || metadata.len() > MAX_RECORD {
        return Err(io::Error::other("it is not a small regular file"));
    }
    parse(&fs::read(path)?, path).map_err(io::Error::other)
}

fn parse(bytes: &[u8], path: &Path) -> Result<Stored, String> {
    let mut record: Record = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    crate::pool::check_name(&record.name).map_err(|error| error.to_string())?;
    let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let former = super::former_file_name(&record.name);
    if file != super::file_name(&record.name) && !file.eq_ignore_ascii_case(&former) {
        return Err(format!("it describes {:?}", record.name));
    }
    let parse = |digest: &str| digest.parse().map_err(|error: ParseDigestError| error.to_string());
    let plugin = Blob { digest: parse(&record.digest)?, size: record.size_bytes };
    let linked = record.linked.iter().map(|(name, Linked { digest, size_bytes })| {
        Ok((name.clone(), Blob { digest: parse(digest)?, size: *size_bytes }))
    });
    let linked = linked.collect::<Result<_, String>>()?;
    let document = match record.spec.take() {
        Some(json) => Document::read(json).map_err(|error| error.to_string())?,
        None => Document {
            entry_point: Some(record.entry_point.clone()),
            isolation: record.isolation,
            wasi: record.wasi,
            debug: record.debug,
            ..Document::default()
        },
    };
    Ok(Stored { record, plugin, linked, document })
}
