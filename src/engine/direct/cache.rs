//! Keeps compiled code, so that an evicted plugin comes back in a millisecond.
//!
//! It is kept in memory, or in a folder that only this user can enter. Its key is the digest of the plugin's bytes with
//! wasmtime's version and settings; wasmtime checks the latter two again when it loads the code. The bound is in bytes, and
//! the least recently used code goes first.
//!
//! In memory, small code is kept as bytes, and is loaded anew each time. Large code is [mapped](super::sealed): it comes here
//! once nobody runs it, as it is, and leaves again when somebody does. So it is never held twice. Whatever lies here gives
//! way when the pool has no room for what runs.
//!
//! Considered and not taken: keeping the modules of small code as well (each takes four mappings, of which a process has
//! 65,530), and wasmtime's own cache (it has a worker thread for each cache, and exceeds its bound between clean-ups).

#[cfg(test)]
mod tests;

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use wasmtime::Engine;

use super::{
    classify,
    in_memory::{InMemory, Keeps, Key, Loaded, Unused},
    sealed::{Destination, Sealed},
};
use crate::{config::CodeCache, engine::Charge, error::Error, memory::MemoryBudget};

/// How the names of our files begin.
const OURS: &str = "evalpool-";

/// Compiled code, of at most `limit` bytes.
pub(super) struct Cache {
    kept: Kept,
    limit: u64,
}

enum Kept {
    Memory(Mutex<InMemory>),
    /// `storing` is held while a file is added: two at once could exceed the limit together.
    Folder {
        root: PathBuf,
        storing: Mutex<()>,
    },
}

/// What there must be room for before code is loaded, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// Code that is loaded.
    pub(super) loaded: u64,
    /// The same code beside it, not loaded.
    pub(super) unloaded: u64,
    /// Whether memories begin with what is mapped, instead of a copy of it.
    pub(super) is_mapped: bool,
}

impl Wanted {
    /// What code of so many bytes takes while it is loaded.
    pub(super) fn to_load(bytes: u64, is_mapped: bool) -> Self {
        Self { loaded: bytes, unloaded: if is_mapped { 0 } else { bytes }, is_mapped }
    }
}

impl Cache {
    /// Creates the folder, if the code is to be kept in one.
    pub(super) fn open(kind: &CodeCache, limit: u64) -> io::Result<Self> {
        let memory = |limit| Self { kept: Kept::Memory(Mutex::new(InMemory::new(limit))), limit };
        Ok(match kind {
            CodeCache::Off => memory(0),
            CodeCache::Memory => memory(limit),
            CodeCache::Folder(root) => {
                let created = fs::DirBuilder::new().recursive(true).mode(0o700).create(root);
                created.map_err(|error| io::Error::other(format!("{}: {error}", root.display())))?;
                check_private(root)?;
                Self { kept: Kept::Folder { root: root.clone(), storing: Mutex::default() }, limit }
            }
        })
    }

    /// The module, if its code is kept as bytes and there is `room` for it. Blocks while it reads a file. Fails also if the
    /// system has no room for the code: to compile it anew would not help.
    pub(super) fn load(
        &self,
        engine: &Engine,
        key: Key,
        maps: bool,
        room: impl FnOnce(Wanted) -> Result<(Charge, Charge), Error>,
    ) -> Result<Option<Loaded>, Error> {
        let load = |code, charge| match load(engine, code, charge) {
            Ok(loaded) => Ok(Some(loaded)),
            Err(error) => classify::shortage(&error).map_or(Ok(None), Err),
        };
        let folder = match &self.kept {
            Kept::Memory(kept) => {
                let Some((code, lent)) = lock(kept).plain(key) else { return Ok(None) };
                let room = room(Wanted { loaded: code.len(), unloaded: 0, is_mapped: false });
                let loaded = room.and_then(|(charge, _)| load(code, charge));
                lock(kept).loaded(key, lent);
                return loaded;
            }
            Kept::Folder { root, .. } => root,
        };
        let path = file(folder, key);
        let file = fs::File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
        let Ok((size, file)) = file else { return Ok(None) };
        let to = Destination::new(size.saturating_sub(Sealed::DIGEST), maps);
        let (charge, _unloaded) = room(Wanted::to_load(size, to.is_mapped()))?;
        let Ok(code) = to.read(file.take(size)) else { return Ok(None) };
        let loaded = code.map_or(Ok(None), |code| load(code, charge))?;
        // `make_room` takes this as the time of the last use. If it fails, the file goes sooner.
        let _ = match loaded {
            Some(_) => {
                fs::File::options().append(true).open(&path).and_then(|file| file.set_modified(SystemTime::now()))
            }
            None => fs::remove_file(&path),
        };
        Ok(loaded)
    }

    /// The module of code that was just compiled. The code is kept, if there is room for it. Fails if the module wants more
    /// than a slot of this engine has, which a compiler does not know, or if the system has no room for the code.
    pub(super) fn take(
        &self,
        engine: &Engine,
        key: Key,
        code: Sealed,
        (charge, unloaded): (Charge, Charge),
        keeps: Keeps,
    ) -> wasmtime::Result<Loaded> {
        let in_memory = matches!(self.kept, Kept::Memory(_));
        let may_keep = match keeps {
            Keeps::Anywhere => true,
            Keeps::InMemory => in_memory,
            Keeps::Nowhere => false,
        };
        // What is mapped is kept in memory once nobody runs it.
        let keeps = may_keep && self.limit >= code.len() && !(code.is_mapped() && in_memory);
        let kept = if keeps { code.try_clone().ok() } else { None };
        let loaded = load(engine, code, charge)?;
        if let Some(code) = kept {
            self.keep(key, code, unloaded);
        }
        Ok(loaded)
    }

    /// A failure is logged, and the code is compiled again next time.
    fn keep(&self, key: Key, code: Sealed, charge: Charge) {
        match &self.kept {
            Kept::Memory(kept) => {
                let evicted = lock(kept).put(key, Unused::Plain(code, Arc::new(charge)));
                // Outside the lock.
                drop(evicted);
            }
            Kept::Folder { root, storing } => {
                let _storing = lock(storing);
                let room = self.limit.saturating_sub(code.len());
                if let Err(error) = make_room(root, room).and_then(|()| store(root, key, &code)) {
                    tracing::warn!(%error, folder = %root.display(), "compiled code cannot be kept");
                }
            }
        }
    }

    /// Mapped code that nobody has run since it was [given back](Self::give_back).
    pub(super) fn mapped(&self, key: Key) -> Option<Arc<Loaded>> {
        let Kept::Memory(kept) = &self.kept else { return None };
        lock(kept).mapped(key)
    }

    /// Nobody runs this code any more. Gives what is not kept: the caller drops it, without a lock.
    pub(super) fn give_back(&self, key: Key, loaded: Arc<Loaded>, keeps: Keeps) -> Vec<Unused> {
        match &self.kept {
            _ if keeps == Keeps::Nowhere => {}
            Kept::Memory(kept) if loaded.is_mapped => return lock(kept).put(key, Unused::Mapped(loaded)),
            Kept::Memory(kept) => lock(kept).used(key),
            Kept::Folder { .. } => {}
        }
        vec![Unused::Mapped(loaded)]
    }

    /// Drops what was unused longest, until that was so many bytes of this account. Gives how many it was.
    pub(super) fn give_way(&self, account: &Arc<MemoryBudget>, bytes: u64) -> u64 {
        let Kept::Memory(kept) = &self.kept else { return 0 };
        let gone = lock(kept).oldest(account, bytes);
        gone.iter().map(|unused| unused.charge().bytes()).sum()
    }
}

pub(super) fn lock<T>(kept: &Mutex<T>) -> MutexGuard<'_, T> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

fn load(engine: &Engine, code: Sealed, charge: Charge) -> wasmtime::Result<Loaded> {
    let is_mapped = code.is_mapped();
    Ok(Loaded { module: code.load(engine)?, is_mapped, charge: Arc::new(charge) })
}

fn check_private(root: &Path) -> io::Result<()> {
    let folder = fs::symlink_metadata(root)?;
    let shown = root.display();
    if !folder.is_dir() {
        return Err(io::Error::other(format!("{shown} is not a folder")));
    }
    let mode = folder.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(io::Error::other(format!("others can enter {shown} (mode {mode:o}); chmod 700 it")));
    }
    // The owner of `/proc/self` is the user that this process runs as.
    if folder.uid() != fs::metadata("/proc/self")?.uid() {
        return Err(io::Error::other(format!("{shown} belongs to another user")));
    }
    Ok(())
}

fn file(root: &Path, key: Key) -> PathBuf {
    root.join(format!("{OURS}{:016x}-{}", key.engine, key.plugin.hex()))
}

fn store(root: &Path, key: Key, code: &Sealed) -> io::Result<()> {
    static NEXT: AtomicU64 = AtomicU64::new(0);

    let path = file(root, key);
    // Each writer has a name of its own, in other processes too.
    let partial = path.with_extension(format!("{}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    let written =
        fs::File::create_new(&partial).and_then(|file| code.write(file)).and_then(|()| fs::rename(&partial, &path));
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written
}

/// Removes the least recently used files, of any version, until they take no more than `limit` bytes. Leaves files alone
/// that are not named like ours.
fn make_room(root: &Path, limit: u64) -> io::Result<()> {
    let mut kept = Vec::new();
    for file in fs::read_dir(root)?.flatten() {
        if file.file_name().as_encoded_bytes().starts_with(OURS.as_bytes())
            && let Ok(metadata) = file.metadata()
            && metadata.is_file()
        {
            kept.push((metadata.modified()?, metadata.len(), file.path()));
        }
    }
    kept.sort();
    let mut total: u64 = kept.iter().map(|(_, size, _)| size).sum();
    for (_, size, path) in kept {
        if total <= limit {
            break;
        }
        match fs::remove_file(path) {
            // Not found: another process has removed it.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => total -= size,
        }
    }
    Ok(())
}
