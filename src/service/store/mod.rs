//! The folder in which evaluators are stored.
//!
//! ```text
//! lock                          held by the one server that uses the folder
//! plugins/sha256-HEX.wasm       plugins, each under its digest, shared by evaluators
//! evaluators/NAME.json          one evaluator each, its config values included; see `file_name` for how NAME is written
//! ….part                        being written, or left by a server that was killed
//! ```
//!
//! Only the server's user may read the files, since they hold secrets.
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
mod record;

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use serde_json::Value;

pub(super) use self::blobs::Claim;
use self::{
    blobs::Blobs,
    record::{Blob, Record, Stored},
};
use super::document::{Ceilings, Document};
use crate::{Bound, Digest, Error, Plugin, Source, Spec, tenants::of_name};

/// Modules that are in the folder, but not committed. Dropping it removes those that no evaluator names.
#[derive(Debug)]
pub(super) struct Staged {
    plugin: (Claim, u64),
    linked: Vec<(String, Claim, u64)>,
    /// What the evaluator's tenant may store.
    most: Option<u64>,
}

impl Staged {
    /// The spec that builds the plugin from the folder.
    pub(super) fn spec(&self, document: &Document, ceilings: &Ceilings) -> Spec {
        let spec = document.spec(Source::File(self.plugin.0.path()), ceilings).digest(self.plugin.0.digest());
        self.linked.iter().fold(spec, |spec, (name, claim, _)| spec.link(name, Source::File(claim.path())))
    }

    pub(super) fn digest(&self) -> Digest {
        self.plugin.0.digest()
    }
}

/// What is stored of an evaluator, for a change of its spec.
pub(super) struct Current {
    pub(super) revision: u64,
    pub(super) document: Document,
    pub(super) staged: Staged,
}

/// What an evaluator's file names, and the revision that it is.
#[derive(Debug, Default)]
struct Named {
    blobs: Vec<Digest>,
    /// Bytes of these, whoever else has the same.
    bytes: u64,
    /// `None` for one that is not registered, because its plugin is missing.
    revision: Option<u64>,
}

/// The folder, locked by this process.
#[derive(Debug)]
pub(super) struct Store {
    evaluators: PathBuf,
    blobs: Arc<Blobs>,
    /// What each evaluator's file names. The lock is held while such a file is written or removed and the pool is told, so
    /// that folder and pool agree; never while a plugin is written or built.
    named: Mutex<BTreeMap<String, Named>>,
    /// The last revision that was given out. Changed only under the lock.
    last: AtomicU64,
    /// Keeps the folder locked until it is dropped or the process ends.
    _locks: [File; 2],
}

/// Locks the file `lock`, and the folder itself: somebody may delete the file. Some network file systems lock no folders.
fn lock(folder: &Path) -> io::Result<[File; 2]> {
    let taken = || io::Error::other("another evalpool is using it");
    let file = File::options().create(true).truncate(false).write(true).open(folder.join("lock"))?;
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => taken(),
        TryLockError::Error(error) => error,
    })?;
    let folder = File::open(folder)?;
    match folder.try_lock() {
        Err(TryLockError::WouldBlock) => Err(taken()),
        Ok(()) | Err(TryLockError::Error(_)) => Ok([file, folder]),
    }
}

impl Store {
    /// Creates the folder if it is missing, locks and tidies it, and returns the evaluators in it.
    ///
    /// Files that cannot be read are logged and left alone.
    ///
    /// # Errors
    ///
    /// The folder cannot be used, or another server uses it.
    pub(super) fn open(folder: &Path, ceilings: &Ceilings) -> io::Result<(Self, Vec<(String, Spec)>)> {
        let evaluators = folder.join("evaluators");
        let plugins = folder.join("plugins");
        fs::create_dir_all(&evaluators)?;
        fs::create_dir_all(&plugins)?;
        let locks = lock(folder)?;
        let (records, all_read) = read_records(&evaluators)?;
        let blobs = Blobs::new(plugins, records.iter().flat_map(Stored::blobs).map(|blob| blob.digest));
        // A file that cannot be read may name any of the plugins, and may be repaired later.
        blobs.tidy(all_read)?;
        let (mut named, mut specs) = (BTreeMap::new(), Vec::new());
        for stored in records {
            let blobs_of = stored.blobs().map(|blob| blob.digest).collect();
            let bytes = stored.blobs().map(|blob| blob.size).sum();
            let (name, revision) = (stored.record.name.clone(), stored.record.revision);
            let spec = found(&blobs, stored, ceilings);
            named.insert(name.clone(), Named { blobs: blobs_of, bytes, revision: spec.as_ref().map(|_| revision) });
            specs.extend(spec.map(|spec| (name, spec)));
        }
        let last = named.values().filter_map(|named: &Named| named.revision).max().unwrap_or(0).into();
        Ok((Self { evaluators, blobs: Arc::new(blobs), named: Mutex::new(named), last, _locks: locks }, specs))
    }

    fn named(&self) -> MutexGuard<'_, BTreeMap<String, Named>> {
        // Each change is one insertion or removal: a panic leaves nothing half-done.
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an evaluator that is registered without a file.
    pub(super) fn built_in(&self, name: &str) {
        self.named().insert(name.to_owned(), Named { blobs: Vec::new(), bytes: 0, revision: Some(0) });
    }

    /// The revision of a registered evaluator.
    pub(super) fn revision(&self, name: &str) -> Option<u64> {
        self.named().get(name)?.revision
    }

    /// A registered evaluator's revision and its document, as clients may see it.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub(super) fn shown(&self, name: &str) -> Result<Option<(u64, Value)>, Error> {
        let named = self.named();
        let Some(Named { blobs, revision: Some(revision), .. }) = named.get(name) else { return Ok(None) };
        let document = if blobs.is_empty() { Document::default() } else { self.read(name)?.document };
        Ok(Some((*revision, document.shown()?)))
    }

    fn read(&self, name: &str) -> Result<Stored, Error> {
        const FAILED: &str = "the evaluator's file cannot be read";
        let read = record::read(&self.evaluators.join(file_name(name)));
        read.map_err(|error| Error::by_system(FAILED, error, |error| Error::internal(FAILED, error)))
    }

    /// What an evaluator's file says now, with a claim on its plugin. `None` if there is no evaluator, or it has no file.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub(super) fn current(&self, name: &str) -> Result<Option<Current>, Error> {
        // Under the lock, so that no plugin goes before it is claimed.
        let named = self.named();
        if named.get(name).is_none_or(|named| named.revision.is_none() || named.blobs.is_empty()) {
            return Ok(None);
        }
        let stored = self.read(name)?;
        let claim = |blob: Blob| (Claim::new(self.blobs.clone(), blob.digest), blob.size);
        let linked = stored.linked.into_iter().map(|(name, blob)| {
            let (claim, size) = claim(blob);
            (name, claim, size)
        });
        let staged = Staged { linked: linked.collect(), plugin: claim(stored.plugin), most: None };
        Ok(Some(Current { revision: stored.record.revision, document: stored.document, staged }))
    }

    /// Failures are only logged: the change is made, and lost only if the machine fails right now.
    fn sync_evaluators(&self, path: &Path) {
        if let Err(error) = files::sync_folder_of(path) {
            tracing::warn!(folder = %self.evaluators.display(), %error, "the folder cannot be synced");
        }
    }

    /// Writes a plugin, and the modules that it is linked with, each under its digest.
    ///
    /// # Errors
    ///
    /// The evaluator's tenant stores at `most` so many bytes, with these; or they cannot be written.
    pub(super) fn stage(
        &self,
        name: &str,
        plugin: &Plugin,
        linked: &[(String, Plugin)],
        most: Option<u64>,
    ) -> Result<Staged, Error> {
        let all = linked.iter().map(|(_, module)| module).chain([plugin]);
        check_stored(&self.named(), name, all.map(|plugin| plugin.bytes().len() as u64).sum(), most)?;
        let write = |plugin: &Plugin| {
            let claim = Claim::new(self.blobs.clone(), plugin.digest());
            // Also if the file exists: a new upload repairs one that a bad disk has damaged.
            files::write(&claim.path(), plugin.bytes()).map_err(not_stored)?;
            files::sync_folder_of(&claim.path()).map_err(not_stored)?;
            Ok((claim, plugin.bytes().len() as u64))
        };
        let plugin = write(plugin)?;
        let linked = linked.iter().map(|(name, module)| write(module).map(|(claim, size)| (name.clone(), claim, size)));
        Ok(Staged { plugin, linked: linked.collect::<Result<_, Error>>()?, most })
    }

    /// Writes the evaluator's file for a staged plugin, and calls `publish` before anyone else can change the folder.
    /// Returns the new revision as well. `check` is given the present one, if there is an evaluator of that name.
    ///
    /// # Errors
    ///
    /// That of `check`, or the file cannot be written. Then nothing has changed and `publish` was not called.
    pub(super) fn commit<T>(
        &self,
        name: &str,
        entry_point: &str,
        document: &Document,
        staged: Staged,
        check: impl FnOnce(Option<u64>) -> Result<(), Error>,
        publish: impl FnOnce() -> T,
    ) -> Result<(T, u64), Error> {
        let Staged { plugin: (plugin, size), linked, most } = staged;
        let bytes = size + linked.iter().map(|(_, _, size)| size).sum::<u64>();
        let blob = |claim: &Claim, size| Blob { digest: claim.digest(), size };
        let modules: Vec<_> = linked.iter().map(|(name, claim, size)| (name.clone(), blob(claim, *size))).collect();
        let path = self.evaluators.join(file_name(name));
        let document = document.json()?;
        let mut named = self.named();
        check(named.get(name).and_then(|named| named.revision))?;
        check_stored(&named, name, bytes, most)?;
        let revision = self.next_revision();
        let record = Record::new(name, revision, entry_point, blob(&plugin, size), &modules, document);
        let json = serde_json::to_vec(&record).map_err(|error| not_stored(error.into()))?;
        files::write(&path, &json).map_err(not_stored)?;
        self.sync_evaluators(&path);
        let blobs =
            [plugin].into_iter().chain(linked.into_iter().map(|(_, claim, _)| claim)).map(Claim::keep).collect();
        let replaced = named.insert(name.to_owned(), Named { blobs, bytes, revision: Some(revision) });
        let published = publish();
        drop(named);
        // Only now that the pool no longer builds the old plugin may its file go.
        drop(self.adopt(replaced));
        Ok((published, revision))
    }

    /// Removes the evaluator's file, if there is one, and calls `forget` before anyone else can change the folder.
    /// Returns claims on its plugin, to be dropped once the pool no longer needs the files. `check` is given its revision.
    ///
    /// # Errors
    ///
    /// That of `check`, or the file cannot be removed. Then nothing has changed and `forget` was not called.
    pub(super) fn forget<T>(
        &self,
        name: &str,
        check: impl FnOnce(Option<u64>) -> Result<(), Error>,
        forget: impl FnOnce() -> T,
    ) -> Result<(T, Vec<Claim>), Error> {
        let path = self.evaluators.join(file_name(name));
        let mut named = self.named();
        check(named.get(name).and_then(|named| named.revision))?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(not_stored(error)),
            _ => {}
        }
        self.sync_evaluators(&path);
        let removed = named.remove(name);
        let forgotten = forget();
        Ok((forgotten, self.adopt(removed)))
    }

    /// No revision comes again, also of an evaluator that was deleted before the server started: it is the time in
    /// milliseconds, or later. So no client takes another evaluator for the one that it has read.
    fn next_revision(&self) -> u64 {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        let last = self.last.load(Ordering::Relaxed).saturating_add(1);
        let next = u64::try_from(now).unwrap_or(0).max(last);
        self.last.store(next, Ordering::Relaxed);
        next
    }

    /// Claims on what an evaluator's file named.
    fn adopt(&self, named: Option<Named>) -> Vec<Claim> {
        let blobs = named.map(|named| named.blobs).unwrap_or_default();
        blobs.into_iter().map(|digest| Claim::adopt(self.blobs.clone(), digest)).collect()
    }
}

/// Whether the evaluator's tenant may store so many bytes in place of what it has under this name.
fn check_stored(named: &BTreeMap<String, Named>, name: &str, bytes: u64, most: Option<u64>) -> Result<(), Error> {
    let Some(most) = most else { return Ok(()) };
    let tenant = of_name(name);
    let others = named.iter().filter(|(other, _)| *other != name && of_name(other) == tenant);
    let stored = others.map(|(_, named)| named.bytes).fold(bytes, u64::saturating_add);
    if stored > most { Err(Bound::StoredBytes.exceeded(most).of_tenant(tenant)) } else { Ok(()) }
}

fn not_stored(error: io::Error) -> Error {
    const FAILED: &str = "the evaluator cannot be stored";
    Error::by_system(FAILED, error, |error| Error::internal(FAILED, error))
}

/// `+` stands for `/`: no evaluator's name has one. Letters are small, for folders that do not tell case; after a `!`, which
/// no name has either, a number says which of them are capitals: the lowest bit is that of the first. A name has at most 128
/// characters.
fn file_name(name: &str) -> String {
    let capitals = name.bytes().take(128).enumerate().filter(|(_, byte)| byte.is_ascii_uppercase());
    let capitals: u128 = capitals.map(|(at, _)| 1 << at).sum();
    let plain = name.replace('/', "+").to_ascii_lowercase();
    if capitals == 0 { format!("{plain}.json") } else { format!("{plain}!{capitals:x}.json") }
}

/// The file's name in folders of before, which had its capitals, unless the folder took another's for it.
fn former_file_name(name: &str) -> String {
    format!("{}.json", name.replace('/', "+"))
}

/// Gives a file of before its present name. Fails if there is one of that name: nobody knows which of the two is right.
fn rename_former(path: &Path, name: &str) -> io::Result<()> {
    let present = path.with_file_name(file_name(name));
    let file = |path: &Path| path.symlink_metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()));
    // The same file also by another spelling, in a folder that does not tell case.
    if path == present || file(path).is_some_and(|this| file(&present) == Some(this)) {
        return Ok(());
    }
    if present.exists() {
        return Err(io::Error::other(format!("{} describes {name:?} as well; remove one of them", present.display())));
    }
    fs::rename(path, present)
}

/// Every evaluator's file that can be read, and whether all of them could.
fn read_records(folder: &Path) -> io::Result<(Vec<Stored>, bool)> {
    let mut records = Vec::new();
    let mut all_read = true;
    for entry in files::tidied(folder)? {
        let read = record::read(&entry).and_then(|stored| {
            rename_former(&entry, &stored.record.name)?;
            Ok(stored)
        });
        match read {
            Ok(record) => records.push(record),
            Err(reason) => {
                tracing::warn!(file = %entry.display(), %reason, "not an evaluator's file; it is left alone");
                all_read = false;
            }
        }
    }
    Ok((records, all_read))
}

/// The evaluator's spec, if its plugin is there and whole.
fn found(blobs: &Blobs, stored: Stored, ceilings: &Ceilings) -> Option<Spec> {
    let Stored { record: Record { name, entry_point, .. }, plugin, linked, document } = stored;
    let file = |blob: Blob| {
        let path = blobs.path(blob.digest);
        let size = fs::metadata(&path).ok().filter(fs::Metadata::is_file).map(|metadata| metadata.len());
        if size != Some(blob.size) {
            tracing::warn!(evaluator = name, file = %path.display(), "its plugin is missing or cut; it is left out");
            return None;
        }
        Some(Source::File(path))
    };
    if let Err(error) = ceilings.check(&document) {
        tracing::warn!(evaluator = name, %error, "the settings allow less than before; its spec is cut to them");
    }
    let spec = document.spec(file(plugin)?, ceilings).entry_point(entry_point).digest(plugin.digest);
    linked.into_iter().try_fold(spec, |spec, (name, blob)| Some(spec.link(name, file(blob)?)))
}

#[cfg(test)]
mod tests;
