//! An Extism manifest as a spec. For those who own the process: a manifest may name any file of this host, so no client's
//! upload is ever read as one.

use std::{collections::BTreeMap, time::Duration};

use extism_manifest::{HttpRequest, Manifest, MemoryOptions, Wasm, WasmMetadata};

#[cfg(feature = "direct")]
use crate::source::{HttpSource, Secret};
use crate::{
    compiler,
    config::HostPattern,
    error::Error,
    source::{Digest, Source},
    spec::{Linked, Spec},
};

/// The module that Extism calls.
const MAIN: &str = "main";

/// A page of linear memory, in bytes, and how many a memory can have.
const PAGE: u64 = 64 * 1024;
const MOST_PAGES: u32 = 64 * 1024;

/// Bytes of variables, as both engines bound them. What Extism takes unless a manifest says otherwise, and what its reader
/// fills in.
const VARIABLES: u64 = 1024 * 1024;

impl Spec {
    /// The spec that runs what an Extism manifest describes.
    ///
    /// As in Extism, the module named `main` is the plugin, or else the last one; it is linked with the others by their
    /// names. `hash` is the SHA-256 of a module in hexadecimal; a build of other bytes fails with
    /// [`DigestMismatch`](Error::DigestMismatch). A relative path starts from the working directory of the process, and is
    /// read at each build.
    ///
    /// A `url` (feature `direct`) is fetched at each build, by the rules of `Source::http`, except that the manifest names
    /// the URL's host and port: at `https://` they may have a private address. By `http://` only this machine is reached.
    /// The values of `headers` are sent and shown nowhere.
    ///
    /// A manifest that allows no hosts, or does not speak of them, allows none, whatever the pool's settings say. What it
    /// leaves open beside (`memory.max_pages`, `timeout_ms`) the pool's settings decide.
    ///
    /// Only for manifests of your own: they name files of this host. And read only your own into a [`Manifest`]: its reader
    /// takes an address of this process's memory for a module's `data`. The crate is re-exported as
    /// [`evalpool::extism_manifest`](crate::extism_manifest).
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`](Error::InvalidRequest), which names the field, for what cannot be done: `allowed_paths`, a URL
    /// that may not be fetched, a `method` other than GET, `memory.max_http_response_bytes` (the limit of the output is that
    /// of responses too) and another `memory.max_var_bytes` than 1 MiB; for names that are taken, and for hosts that no
    /// request could match.
    pub fn from_manifest(manifest: &Manifest) -> Result<Self, Error> {
        let Manifest { wasm, memory, config, allowed_hosts, allowed_paths, timeout_ms } = manifest;
        let hosts = allowed_hosts.as_deref().unwrap_or_default();
        HostPattern::parse_all(hosts).map_err(|why| refused("allowed_hosts", &format!("it has {why}")))?;
        if allowed_paths.as_ref().is_some_and(|paths| !paths.is_empty()) {
            return Err(refused("allowed_paths", "plugins get no files of the host; remove it"));
        }
        if *timeout_ms == Some(0) {
            return Err(refused("timeout_ms", "it is 0; remove it for the limit of the settings"));
        }
        let (main, linked) = modules(wasm)?;
        Ok(Self {
            digest: main.digest,
            linked,
            memory: pages(memory)?.map(|pages| u64::from(pages.min(MOST_PAGES)) * PAGE),
            exec_timeout: timeout_ms.map(Duration::from_millis),
            config: config.clone().into(),
            allowed_hosts: Some(hosts.into()),
            ..Self::new(main.source)
        })
    }
}

/// `max_pages`, once the bounds beside it are known to hold.
fn pages(memory: &MemoryOptions) -> Result<Option<u32>, Error> {
    let MemoryOptions { max_pages, max_http_response_bytes, max_var_bytes } = memory;
    if max_http_response_bytes.is_some() {
        let why = "HTTP responses have the limit of the plugin's output, limits.output_size; remove it";
        return Err(refused("memory.max_http_response_bytes", why));
    }
    if max_var_bytes.is_some_and(|bytes| bytes != VARIABLES) {
        return Err(refused("memory.max_var_bytes", "variables are bounded at 1 MiB; remove it"));
    }
    if *max_pages == Some(0) {
        return Err(refused("memory.max_pages", "it is 0, and a plugin needs at least one"));
    }
    Ok(*max_pages)
}

/// The module that is called, and those that it is linked with.
fn modules(wasm: &[Wasm]) -> Result<(Linked, Vec<Linked>), Error> {
    let is_main = |module: &Wasm| module.meta().name.as_deref().is_none_or(|name| name == MAIN);
    let mut modules = wasm.iter().enumerate().map(|(at, wasm)| module(at, wasm)).collect::<Result<Vec<_>, _>>()?;
    let at = wasm.iter().position(is_main).or(wasm.len().checked_sub(1));
    let main = at.map(|at| modules.remove(at)).ok_or_else(|| refused("wasm", "it names no module"))?;
    for (at, Linked { name, .. }) in modules.iter().enumerate() {
        if compiler::is_taken(name) || modules.iter().take(at).any(|other| other.name == *name) {
            return Err(refused("wasm", &format!("a linked module cannot be named {name:?}: the name is taken")));
        }
    }
    Ok((main, modules))
}

fn module(at: usize, wasm: &Wasm) -> Result<Linked, Error> {
    let WasmMetadata { name, hash } = wasm.meta();
    let field = |name: &str| format!("wasm[{at}].{name}");
    let source = match wasm {
        Wasm::File { path, .. } => Source::file(path),
        Wasm::Data { data, .. } => Source::bytes(data.clone()),
        Wasm::Url { req: HttpRequest { url, headers, method }, .. } => {
            if method.as_ref().is_some_and(|method| !method.eq_ignore_ascii_case("GET")) {
                return Err(refused(&field("method"), "plugins are fetched by GET; remove it"));
            }
            fetched(url, headers).map_err(|(name, why)| refused(&field(name), &why))?
        }
    };
    let digest = hash.as_ref().map(|hash| format!("sha256:{hash}").parse::<Digest>()).transpose();
    let digest = digest.map_err(|_| refused(&field("hash"), "expected the 64 hexadecimal digits of a SHA-256"))?;
    Ok(Linked { name: name.as_deref().unwrap_or(MAIN).to_owned(), source, digest })
}

/// A module on a server. An error comes with the name of its field.
#[cfg(feature = "direct")]
fn fetched(url: &str, headers: &BTreeMap<String, String>) -> Result<Source, (&'static str, String)> {
    let http = HttpSource::named(url).map_err(|why| ("url", why))?;
    Source::Http(http.clone()).check().map_err(|error| ("url", error.to_string()))?;
    let http = headers.iter().fold(http, |http, (name, value)| http.header(name, Secret::value(value.as_str())));
    let source = Source::Http(http);
    source.check().map_err(|error| ("headers", error.to_string()))?;
    Ok(source)
}

#[cfg(not(feature = "direct"))]
fn fetched(_: &str, _: &BTreeMap<String, String>) -> Result<Source, (&'static str, String)> {
    Err(("url", "this build fetches none, for want of the cargo feature direct; name a file by its path".to_owned()))
}

fn refused(field: &str, why: &str) -> Error {
    Error::invalid_request(format!("the manifest cannot be used: {field}: {why}"))
}
