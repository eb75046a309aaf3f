//! `--manifest`: an Extism manifest in a file.
//!
//! It is read field by field, so that an error names its field, and because the reader of `extism_manifest` takes an address
//! of this process's memory for `data`.

use std::{collections::BTreeMap, path::Path};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use extism_manifest::{HttpRequest, Manifest, MemoryOptions, Wasm, WasmMetadata};
use serde_json::{Map, Value};

use super::read_text;
use crate::{
    Spec,
    config::{nearest, object, take},
    service::Exit,
};

/// A manifest without the data of its modules, in bytes.
const MOST: u64 = 1024 * 1024;

const FIELDS: [&str; 6] = ["wasm", "memory", "config", "allowed_hosts", "allowed_paths", "timeout_ms"];
const MEMORY: [&str; 3] = ["max_pages", "max_http_response_bytes", "max_var_bytes"];
const WASM: [&str; 7] = ["path", "data", "url", "name", "hash", "headers", "method"];

/// The spec that a manifest describes, whose modules have up to `plugin_size` bytes each.
pub(super) fn read(path: &Path, plugin_size: u64) -> Result<Spec, Exit> {
    // Its data is in base64, of one plugin and the modules that it is linked with.
    let text = read_text(path, plugin_size.saturating_mul(4).saturating_add(MOST));
    let text = text.map_err(|why| Exit::unusable(format!("--manifest: {why}")))?;
    let of_file = |why: String| Exit::unusable(format!("--manifest: {}: {why}", path.display()));
    let fields = object(&text).map_err(|why| of_file(format!("it is neither JSON nor TOML: {why}")))?;
    let described = Spec::from_manifest(&manifest(fields).map_err(of_file)?);
    described.map_err(|error| of_file(error.to_string()))
}

fn manifest(mut fields: Map<String, Value>) -> Result<Manifest, String> {
    let wasm: Vec<Map<_, _>> = take(&mut fields, "", "wasm")?.unwrap_or_default();
    let memory: Map<_, _> = take(&mut fields, "", "memory")?.unwrap_or_default();
    let manifest = Manifest {
        wasm: wasm
            .into_iter()
            .enumerate()
            .map(|(at, fields)| module(&format!("wasm[{at}]."), fields))
            .collect::<Result<_, _>>()?,
        memory: options("memory.", memory)?,
        config: texts(&mut fields, "", "config")?,
        allowed_hosts: take(&mut fields, "", "allowed_hosts")?,
        allowed_paths: take(&mut fields, "", "allowed_paths")?,
        timeout_ms: take(&mut fields, "", "timeout_ms")?,
    };
    none_left(&fields, "", &FIELDS).map(|()| manifest)
}

fn module(within: &str, mut fields: Map<String, Value>) -> Result<Wasm, String> {
    let meta = WasmMetadata { name: take(&mut fields, within, "name")?, hash: take(&mut fields, within, "hash")? };
    let path = take(&mut fields, within, "path")?;
    let data: Option<String> = take(&mut fields, within, "data")?;
    let url = take(&mut fields, within, "url")?;
    let headers = texts(&mut fields, within, "headers")?;
    let method = take(&mut fields, within, "method")?;
    none_left(&fields, within, &WASM)?;
    match (path, data, url) {
        (Some(path), None, None) => Ok(Wasm::File { path, meta }),
        (None, Some(data), None) => {
            let data = BASE64_STANDARD.decode(data).map_err(|error| format!("{within}data: {error}"))?;
            Ok(Wasm::Data { data, meta })
        }
        (None, None, Some(url)) => Ok(Wasm::Url { req: HttpRequest { url, headers, method }, meta }),
        _ => Err(format!("{}: it needs one of path, data and url", within.trim_end_matches('.'))),
    }
}

fn options(within: &str, mut fields: Map<String, Value>) -> Result<MemoryOptions, String> {
    let options = MemoryOptions {
        max_pages: take(&mut fields, within, "max_pages")?,
        max_http_response_bytes: take(&mut fields, within, "max_http_response_bytes")?,
        max_var_bytes: take(&mut fields, within, "max_var_bytes")?,
    };
    none_left(&fields, within, &MEMORY).map(|()| options)
}

/// An object of strings. Its values may be secrets, which no error shows.
fn texts(fields: &mut Map<String, Value>, within: &str, name: &str) -> Result<BTreeMap<String, String>, String> {
    let text = |(key, value)| match value {
        Value::String(text) => Ok((key, text)),
        _ => Err(format!("{within}{name}.{key}: expected a string")),
    };
    match fields.remove(name) {
        None | Some(Value::Null) => Ok(BTreeMap::new()),
        Some(Value::Object(fields)) => fields.into_iter().map(text).collect(),
        Some(_) => Err(format!("{within}{name}: expected an object of strings")),
    }
}

fn none_left(fields: &Map<String, Value>, within: &str, known: &[&str]) -> Result<(), String> {
    match fields.keys().next() {
        None => Ok(()),
        Some(key) => Err(format!("{within}{key}: a manifest has no such field{}", nearest(key, known.iter().copied()))),
    }
}
