//! The folder in which evaluators are stored.
//!
//! ```text
//! lock                          held by the one server that uses the folder
//! plugins/sha256-HEX.wasm       plugins, each under its digest, shared by evaluators
//! evaluators/NAME.json          one evaluator each; a `/` in its name is written `+`, which no name holds
//! ….part                        being written, or left by a server that was killed
//! ```
//!
//! # The order of an upload
//!
//! 1. [`stage`](Store::stage) writes the plugin under its digest. Nothing is committed yet: a file that no evaluator
//!    names is removed when its last [`Claim`] is dropped, or at the next start.
//! 2. The pool builds and validates the plugin from the bytes of the upload, and then drops them: an evaluator that is
//!    cold for weeks holds no memory. Later builds read the file and compare its digest.
//! 3. [`commit`](Store::commit) writes the evaluator's file and publishes to the pool, under one lock: when two uploads
//!    of one name race, folder and pool agree on which came last. The file's renaming is the commit.
//!
//! Considered and rejected: staging after the build (a full disk would be noticed only after a compile), and one lock
//! around all three steps (one slow build would hold up every upload).
//!
//! Everything here blocks: call it from a blocking thread.

mod blobs;
mod files;

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

use self::blobs::Blobs;
pub(super) use self::blobs::Claim;
use crate::{Digest, Isolation, Plugin, Source, Spec, Wasi};

/// A larger file was not written by this program.
const MAX_RECORD: u64 = 64 * 1024;

/// An evaluator's file. Unknown fields are refused: this version must not ignore a restriction that a later one wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) name: String,
    digest: String,
    entry_point: String,
    size_bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    isolation: Option<Isolation>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wasi: Option<Wasi>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    debug: bool,
}

/// How to run an evaluator. Where a field is `None` the settings decide, also after they have changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct RunOptions {
    pub(super) entry_point: Option<String>,
    pub(super) isolation: Option<Isolation>,
    pub(super) wasi: Option<Wasi>,
    /// Whether those who call it see the last words of its guests.
    pub(super) debug: bool,
}

impl RunOptions {
    /// The spec that runs a plugin from `source` so.
    pub(super) fn spec(self, source: Source) -> Spec {
        let Self { entry_point, isolation, wasi, debug } = self;
        Spec { entry_point, isolation, wasi, debug, ..Spec::new(source) }
    }
}

/// A plugin that is in the folder, but not committed. Dropping it removes the file unless an evaluator names it.
#[derive(Debug)]
pub(super) struct Staged {
    claim: Claim,
    size: u64,
}

impl Staged {
    /// The spec that builds it from the folder.
    pub(super) fn spec(&self, options: &RunOptions) -> Spec {
        options.clone().spec(Source::File(self.claim.path())).with_digest(self.claim.digest())
    }
}

/// The folder, locked by this process.
#[derive(Debug)]
pub(super) struct Store {
    evaluators: PathBuf,
    blobs: Arc<Blobs>,
    /// Which plugin each evaluator's file names. The lock is held while such a file is written or removed and the pool
    /// is told, so that folder and pool agree; never while a plugin is written or built.
    named: Mutex<BTreeMap<String, Digest>>,
    /// Keeps the folder locked until it is dropped or the process ends.
    _lock: File,
}

impl Store {
    /// Creates the folder if it is missing, locks and tidies it, and returns the evaluators in it.
    ///
    /// Files that cannot be read are logged and left alone.
    ///
    /// # Errors
    ///
    /// The folder cannot be used, or another server uses it.
    pub(super) fn open(folder: &Path) -> io::Result<(Self, Vec<(String, Spec)>)> {
        let evaluators = folder.join("evaluators");
        let plugins = folder.join("plugins");
        fs::create_dir_all(&evaluators)?;
        fs::create_dir_all(&plugins)?;
        let lock = File::options().create(true).truncate(false).write(true).open(folder.join("lock"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::other("another evalpool is using it"),
            TryLockError::Error(error) => error,
        })?;
        let (records, all_read) = read_records(&evaluators)?;
        let named: BTreeMap<_, _> = records.iter().map(|(record, digest)| (record.name.clone(), *digest)).collect();
        let blobs = Blobs::new(plugins, named.values().copied());
        // A file that cannot be read may name any of the plugins, and may be repaired later.
        blobs.tidy(all_read)?;
        let specs = records.into_iter().filter_map(|(record, digest)| found(&blobs, record, digest)).collect();
        Ok((Self { evaluators, blobs: Arc::new(blobs), named: Mutex::new(named), _lock: lock }, specs))
    }

    fn named(&self) -> MutexGuard<'_, BTreeMap<String, Digest>> {
        // Each change is one insertion or removal: a panic leaves nothing half-done.
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Failures are only logged: the change is made, and lost only if the machine fails right now.
    fn sync_evaluators(&self, path: &Path) {
        if let Err(error) = files::sync_folder_of(path) {
            tracing::warn!(folder = %self.evaluators.display(), %error, "the folder cannot be synced");
        }
    }

    /// Writes a plugin under its digest.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub(super) fn stage(&self, plugin: &Plugin) -> io::Result<Staged> {
        let claim = Claim::new(self.blobs.clone(), plugin.digest());
        // Also if the file exists: a new upload repairs one that a bad disk has damaged.
        files::write(&claim.path(), plugin.bytes())?;
        files::sync_folder_of(&claim.path())?;
        Ok(Staged { claim, size: plugin.bytes().len() as u64 })
    }

    /// Writes the evaluator's file for a staged plugin, and calls `publish` before anyone else can change the folder.
    ///
    /// # Errors
    ///
    /// The file cannot be written. Then nothing has changed and `publish` was not called.
    pub(super) fn commit<T>(
        &self,
        name: &str,
        entry_point: &str,
        options: &RunOptions,
        staged: Staged,
        publish: impl FnOnce() -> T,
    ) -> io::Result<T> {
        let Staged { claim, size } = staged;
        let record = Record {
            name: name.to_owned(),
            digest: claim.digest().to_string(),
            entry_point: entry_point.to_owned(),
            size_bytes: size,
            isolation: options.isolation,
            wasi: options.wasi,
            debug: options.debug,
        };
        let path = self.evaluators.join(file_name(name));
        let json = serde_json::to_vec_pretty(&record)?;
        let mut named = self.named();
        files::write(&path, &json)?;
        self.sync_evaluators(&path);
        let replaced = named.insert(name.to_owned(), claim.keep());
        let published = publish();
        drop(named);
        // Only now that the pool no longer builds the old plugin may its file go.
        drop(replaced.map(|digest| Claim::adopt(self.blobs.clone(), digest)));
        Ok(published)
    }

    /// Removes the evaluator's file, if there is one, and calls `forget` before anyone else can change the folder.
    /// Returns a claim on its plugin, to be dropped once the pool no longer needs the file.
    ///
    /// # Errors
    ///
    /// The file cannot be removed. Then nothing has changed and `forget` was not called.
    pub(super) fn forget<T>(&self, name: &str, forget: impl FnOnce() -> T) -> io::Result<(T, Option<Claim>)> {
        let path = self.evaluators.join(file_name(name));
        let mut named = self.named();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.sync_evaluators(&path);
        let removed = named.remove(name);
        let forgotten = forget();
        Ok((forgotten, removed.map(|digest| Claim::adopt(self.blobs.clone(), digest))))
    }
}

/// `+` stands for `/`: no evaluator's name has one.
fn file_name(name: &str) -> String {
    format!("{}.json", name.replace('/', "+"))
}

/// Every evaluator's file that can be read, and whether all of them could.
fn read_records(folder: &Path) -> io::Result<(Vec<(Record, Digest)>, bool)> {
    let mut records = Vec::new();
    let mut all_read = true;
    for entry in files::tidied(folder)? {
        match read_record(&entry) {
            Ok(record) => records.push(record),
            Err(reason) => {
                tracing::warn!(file = %entry.display(), %reason, "not an evaluator's file; it is left alone");
                all_read = false;
            }
        }
    }
    Ok((records, all_read))
}

fn read_record(path: &Path) -> Result<(Record, Digest), String> {
    let metadata = fs::metadata(path).map_err(|error| error.to_string())?;
    if !metadata.is_file() || metadata.len() > MAX_RECORD {
        return Err("it is not a small regular file".to_owned());
    }
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    let record: Record = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    crate::pool::check_name(&record.name).map_err(|error| error.to_string())?;
    if path.file_name().and_then(|name| name.to_str()) != Some(&file_name(&record.name)) {
        return Err(format!("it describes {:?}", record.name));
    }
    let digest = record.digest.parse().map_err(|error: crate::ParseDigestError| error.to_string())?;
    Ok((record, digest))
}

/// The evaluator's spec, if its plugin is there and whole.
fn found(blobs: &Blobs, record: Record, digest: Digest) -> Option<(String, Spec)> {
    let path = blobs.path(digest);
    let size = fs::metadata(&path).ok().filter(fs::Metadata::is_file).map(|metadata| metadata.len());
    if size != Some(record.size_bytes) {
        tracing::warn!(evaluator = record.name, file = %path.display(), "its plugin is missing or cut; it is left out");
        return None;
    }
    let Record { name, entry_point, isolation, wasi, debug, .. } = record;
    let options = RunOptions { entry_point: Some(entry_point), isolation, wasi, debug };
    Some((name, options.spec(Source::File(path)).with_digest(digest)))
}

#[cfg(test)]
mod tests;
