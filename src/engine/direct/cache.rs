//! Keeps compiled code, so that an evicted plugin comes back in a millisecond.
//!
//! The code lies in memory, or in a folder that only this user can enter. Its key is the digest of the plugin's bytes
//! with wasmtime's version and settings; wasmtime checks the latter two again when it loads the code. The bound is in
//! bytes, and the least recently used code goes first.
//!
//! Considered and not taken: keeping the modules themselves (an evicted plugin's code would stay mapped), and
//! wasmtime's own cache (it has a worker thread for each cache, and exceeds its bound between clean-ups).

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use bytes::Bytes;
use lru::LruCache;
use sha2::{Digest as _, Sha256};
use wasmtime::{Engine, Module};

use super::classify;
use crate::{
    config::CodeCache,
    engine::{Charge, MemoryAccount},
    error::Error,
    pages,
    source::Digest,
};

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

struct InMemory {
    code: LruCache<Key, Sealed>,
    bytes: u64,
}

/// What `Module::serialize` gave, behind its SHA-256: as it lies in a file, and as a worker sends it.
#[derive(Clone)]
pub(super) struct Sealed {
    bytes: Bytes,
    _charge: Option<Arc<Charge>>,
}

impl Sealed {
    /// Bytes of the digest.
    pub(super) const DIGEST: u64 = 32;

    pub(super) fn digest(code: &[u8]) -> [u8; 32] {
        Sha256::digest(code).into()
    }

    fn seal(code: &[u8]) -> Self {
        Self { bytes: [&Self::digest(code), code].concat().into(), _charge: None }
    }

    /// Holds this charge for as long as it is in memory.
    pub(super) fn charged(self, charge: Charge) -> Self {
        Self { _charge: Some(Arc::new(charge)), ..self }
    }

    /// The same bytes, if they are what was sealed.
    pub(super) fn check(bytes: Bytes) -> Option<Self> {
        let (digest, code) = bytes.split_first_chunk::<32>()?;
        (Self::digest(code) == *digest).then(|| Self { bytes, _charge: None })
    }

    fn code(&self) -> &[u8] {
        self.bytes.get(32..).unwrap_or_default()
    }

    pub(super) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
}

/// A plugin under one engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) plugin: Digest,
    /// wasmtime's version and settings.
    pub(super) engine: u64,
}

impl Cache {
    /// Creates the folder, if the code is to be kept in one.
    pub(super) fn open(kind: &CodeCache, limit: u64) -> io::Result<Self> {
        let memory = || Kept::Memory(Mutex::new(InMemory { code: LruCache::unbounded(), bytes: 0 }));
        Ok(match kind {
            CodeCache::Off => Self { kept: memory(), limit: 0 },
            CodeCache::Memory => Self { kept: memory(), limit },
            CodeCache::Folder(root) => {
                let created = fs::DirBuilder::new().recursive(true).mode(0o700).create(root);
                created.map_err(|error| io::Error::other(format!("{}: {error}", root.display())))?;
                check_private(root)?;
                Self { kept: Kept::Folder { root: root.clone(), storing: Mutex::default() }, limit }
            }
        })
    }

    /// The module and its charge, if its code is kept and there is `room` for so many bytes that are loaded, and so many that
    /// are not. Blocks while it reads a file. Fails also if the system has no room for the code: to compile it anew would not
    /// help.
    pub(super) fn load(
        &self,
        engine: &Engine,
        key: Key,
        room: impl FnOnce(u64, u64) -> Result<(Charge, Charge), Error>,
    ) -> Result<Option<(Module, Charge)>, Error> {
        let load = |code: &Sealed, charge| match load(engine, code) {
            Ok(module) => Ok(Some((module, charge))),
            Err(error) => classify::shortage(&error).map_or(Ok(None), Err),
        };
        let folder = match &self.kept {
            Kept::Memory(kept) => {
                let code = lock(kept).code.get(&key).cloned();
                let Some(code) = code else { return Ok(None) };
                let (charge, _) = room(code.len(), 0)?;
                return load(&code, charge);
            }
            Kept::Folder { root, .. } => root,
        };
        let path = file(folder, key);
        let file = fs::File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
        let Ok((size, file)) = file else { return Ok(None) };
        let (charge, _unloaded) = room(size, size)?;
        let Ok(bytes) = pages::read(&file, size) else { return Ok(None) };
        let module = Sealed::check(bytes).map_or(Ok(None), |code| load(&code, charge))?;
        // `make_room` takes this as the time of the last use. If it fails, the file goes sooner.
        let _ = match module {
            Some(_) => {
                fs::File::options().append(true).open(&path).and_then(|file| file.set_modified(SystemTime::now()))
            }
            None => fs::remove_file(&path),
        };
        Ok(module)
    }

    /// The module of code that a worker has just sent. The code is kept, if there is room for it. Fails if the module wants
    /// more than a slot of this engine has, which a worker does not know, or if the system has no room for the code.
    pub(super) fn take(&self, engine: &Engine, key: Key, code: Sealed) -> wasmtime::Result<Module> {
        let module = load(engine, &code)?;
        self.keep(key, code);
        Ok(module)
    }

    /// Keeps the code of a module that was compiled here.
    pub(super) fn keep_module(&self, key: Key, module: &Module, account: &MemoryAccount) {
        if self.limit == 0 {
            return;
        }
        match module.serialize() {
            Ok(code) => {
                let code = Sealed::seal(&code);
                let charge = account.unloaded(code.len());
                self.keep(key, code.charged(charge));
            }
            Err(error) => tracing::warn!(%error, "compiled code cannot be kept"),
        }
    }

    /// A failure is logged, and the code is compiled again next time.
    fn keep(&self, key: Key, code: Sealed) {
        let Some(room) = self.limit.checked_sub(code.len()) else { return };
        match &self.kept {
            Kept::Memory(kept) => {
                let evicted = lock(kept).put(key, code, self.limit);
                // Outside the lock.
                drop(evicted);
            }
            Kept::Folder { root, storing } => {
                let _storing = lock(storing);
                if let Err(error) = make_room(root, room).and_then(|()| store(root, key, &code)) {
                    tracing::warn!(%error, folder = %root.display(), "compiled code cannot be kept");
                }
            }
        }
    }
}

impl InMemory {
    fn put(&mut self, key: Key, code: Sealed, limit: u64) -> Vec<Sealed> {
        self.bytes += code.len();
        let mut gone: Vec<_> = self.code.put(key, code).into_iter().collect();
        self.bytes -= gone.iter().map(Sealed::len).sum::<u64>();
        while self.bytes > limit
            && let Some((_, oldest)) = self.code.pop_lru()
        {
            self.bytes -= oldest.len();
            gone.push(oldest);
        }
        gone
    }
}

pub(super) fn lock<T>(kept: &Mutex<T>) -> MutexGuard<'_, T> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Loads code that this crate has serialized.
#[expect(unsafe_code, reason = "the one exception: see below")]
fn load(engine: &Engine, code: &Sealed) -> wasmtime::Result<Module> {
    // SAFETY: wasmtime runs these bytes, so they must be what wasmtime's own serialization gave. `Sealed` has them from one
    // of three. `Sealed::seal` gets them from `Module::serialize`. A file in the folder begins with the SHA-256 of what was
    // written (`Sealed::check`); the folder belongs to this user and nobody else can enter it (`check_private`, at start),
    // and a file appears in it whole, by a rename. A compile worker sends them, with their SHA-256, through a pipe that
    // only it and this process have; it is a process of this user, of the same release of this crate, and ran wasmtime's
    // `precompile_module`. Someone who can write other bytes there can as well replace this program. wasmtime checks itself
    // that the code is of its version and settings and for this processor.
    unsafe { Module::deserialize(engine, code.code()) }
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
    let written = fs::File::create_new(&partial)
        .and_then(|mut file| file.write_all(&code.bytes))
        .and_then(|()| fs::rename(&partial, &path));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn module(engine: &Engine, text: &str) -> (Key, Module) {
        let bytes = wat::parse_str(text).unwrap();
        (Key { plugin: Digest::of(&bytes), engine: 1 }, Module::new(engine, bytes).unwrap())
    }

    fn load(cache: &Cache, engine: &Engine, key: Key) -> Option<Module> {
        let account = MemoryAccount::unbounded();
        let room = |code, unloaded| Ok((account.unloaded(code), account.unloaded(unloaded)));
        cache.load(engine, key, room).unwrap().map(|(module, _)| module)
    }

    fn folder(root: &Path, limit: u64) -> Cache {
        Cache::open(&CodeCache::Folder(root.join("code")), limit).unwrap()
    }

    #[test]
    fn what_is_kept_comes_back_and_the_oldest_goes_first() {
        let engine = Engine::default();
        let (a, module_a) = module(&engine, "(module (func (export \"a\")))");
        let (b, module_b) = module(&engine, "(module (func (export \"b\")))");
        let account = MemoryAccount::unbounded();
        let size = module_a.serialize().unwrap().len() as u64;
        let temporary = tempfile::tempdir().unwrap();
        for cache in [Cache::open(&CodeCache::Memory, size * 3 / 2).unwrap(), folder(temporary.path(), size * 3 / 2)] {
            assert!(load(&cache, &engine, a).is_none());
            cache.keep_module(a, &module_a, &account);
            assert!(load(&cache, &engine, a).unwrap().get_export("a").is_some());
            cache.keep_module(b, &module_b, &account);
            assert!(load(&cache, &engine, a).is_none(), "no room for both");
            assert!(load(&cache, &engine, b).is_some());
            assert!(load(&cache, &engine, Key { engine: 2, ..b }).is_none(), "of another engine");
        }
    }

    #[test]
    fn a_file_that_was_changed_is_not_loaded() {
        let engine = Engine::default();
        let (key, module) = module(&engine, "(module (func (export \"a\")))");
        let temporary = tempfile::tempdir().unwrap();
        let cache = folder(temporary.path(), 1 << 20);
        cache.keep_module(key, &module, &MemoryAccount::unbounded());
        let path = file(&temporary.path().join("code"), key);
        let whole = fs::read(&path).unwrap();
        for at in [0, 40, whole.len() - 1] {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            fs::write(&path, changed).unwrap();
            assert!(load(&cache, &engine, key).is_none(), "byte {at}");
            assert!(!path.exists(), "it is removed");
        }
        fs::write(&path, &whole[..20]).unwrap();
        assert!(load(&cache, &engine, key).is_none());
        fs::write(&path, &whole).unwrap();
        assert!(load(&cache, &engine, key).is_some());
    }

    #[test]
    fn a_folder_that_others_can_enter_is_refused() {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path().join("open");
        fs::DirBuilder::new().mode(0o755).create(&root).unwrap();
        let error = Cache::open(&CodeCache::Folder(root), 1).err().unwrap().to_string();
        assert!(error.contains("chmod 700"), "{error}");
    }
}
