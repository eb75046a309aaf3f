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

use lru::LruCache;
use sha2::{Digest as _, Sha256};
use wasmtime::{Engine, Module};

use crate::{config::CodeCache, source::Digest};

/// How the names of our files begin.
const OURS: &str = "evalpool-";

/// Bytes of the SHA-256 at the beginning of a file.
const DIGEST: u64 = 32;

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
    code: LruCache<Key, Arc<[u8]>>,
    bytes: u64,
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
                fs::DirBuilder::new().recursive(true).mode(0o700).create(root)?;
                check_private(root)?;
                Self { kept: Kept::Folder { root: root.clone(), storing: Mutex::default() }, limit }
            }
        })
    }

    /// The module, if its code is kept. Blocks while it reads a file.
    pub(super) fn load(&self, engine: &Engine, key: Key) -> Option<Module> {
        let root = match &self.kept {
            Kept::Memory(kept) => {
                let code = lock(kept).code.get(&key)?.clone();
                return load(engine, &code);
            }
            Kept::Folder { root, .. } => root,
        };
        let path = file(root, key);
        let code = fs::read(&path).ok()?;
        let module = check(&code).and_then(|code| load(engine, code));
        // `make_room` takes this as the time of the last use. If it fails, the file goes sooner.
        let _ = match module {
            Some(_) => {
                fs::File::options().append(true).open(&path).and_then(|file| file.set_modified(SystemTime::now()))
            }
            None => fs::remove_file(&path),
        };
        module
    }

    /// Keeps a module's code, if there is room for it. A failure is logged, and the code is compiled again next time.
    pub(super) fn keep(&self, key: Key, module: &Module) {
        if self.limit == 0 {
            return;
        }
        let code = match module.serialize() {
            Ok(code) => code,
            Err(error) => return tracing::warn!(%error, "compiled code cannot be kept"),
        };
        let size = code.len() as u64 + DIGEST;
        let Some(room) = self.limit.checked_sub(size) else { return };
        match &self.kept {
            Kept::Memory(kept) => {
                let evicted = lock(kept).put(key, code.into(), self.limit);
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
    fn put(&mut self, key: Key, code: Arc<[u8]>, limit: u64) -> Vec<Arc<[u8]>> {
        self.bytes += code.len() as u64;
        let mut gone: Vec<_> = self.code.put(key, code).into_iter().collect();
        self.bytes -= gone.iter().map(|code| code.len() as u64).sum::<u64>();
        while self.bytes > limit
            && let Some((_, oldest)) = self.code.pop_lru()
        {
            self.bytes -= oldest.len() as u64;
            gone.push(oldest);
        }
        gone
    }
}

fn lock<T>(kept: &Mutex<T>) -> MutexGuard<'_, T> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Loads code that this crate has serialized.
#[expect(unsafe_code, reason = "the one exception: see below")]
fn load(engine: &Engine, code: &[u8]) -> Option<Module> {
    // SAFETY: wasmtime runs these bytes, so they must be what `Module::serialize` gave. In memory they are in a private
    // field that only `Cache::keep` fills, from `serialize`. A folder belongs to this user and nobody else can enter it
    // (`check_private`, at start); a file appears in it whole, by a rename, and begins with the SHA-256 of what was
    // written (`check`, at each load). Someone who can write other bytes there can as well replace this program.
    // wasmtime checks itself that the code is of its version and settings and for this processor.
    unsafe { Module::deserialize(engine, code) }.ok()
}

/// The code in a file, if it is what was written.
fn check(file: &[u8]) -> Option<&[u8]> {
    let (digest, code) = file.split_first_chunk::<32>()?;
    (Sha256::digest(code)[..] == digest[..]).then_some(code)
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

fn store(root: &Path, key: Key, code: &[u8]) -> io::Result<()> {
    static NEXT: AtomicU64 = AtomicU64::new(0);

    let path = file(root, key);
    // Each writer has a name of its own, in other processes too.
    let partial = path.with_extension(format!("{}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    let written = fs::File::create_new(&partial)
        .and_then(|mut file| file.write_all(&Sha256::digest(code)).and_then(|()| file.write_all(code)))
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

    fn folder(root: &Path, limit: u64) -> Cache {
        Cache::open(&CodeCache::Folder(root.join("code")), limit).unwrap()
    }

    #[test]
    fn what_is_kept_comes_back_and_the_oldest_goes_first() {
        let engine = Engine::default();
        let (a, module_a) = module(&engine, "(module (func (export \"a\")))");
        let (b, module_b) = module(&engine, "(module (func (export \"b\")))");
        let size = module_a.serialize().unwrap().len() as u64;
        let temporary = tempfile::tempdir().unwrap();
        for cache in [Cache::open(&CodeCache::Memory, size * 3 / 2).unwrap(), folder(temporary.path(), size * 3 / 2)] {
            assert!(cache.load(&engine, a).is_none());
            cache.keep(a, &module_a);
            assert!(cache.load(&engine, a).unwrap().get_export("a").is_some());
            cache.keep(b, &module_b);
            assert!(cache.load(&engine, a).is_none(), "no room for both");
            assert!(cache.load(&engine, b).is_some());
            assert!(cache.load(&engine, Key { engine: 2, ..b }).is_none(), "of another engine");
        }
    }

    #[test]
    fn a_file_that_was_changed_is_not_loaded() {
        let engine = Engine::default();
        let (key, module) = module(&engine, "(module (func (export \"a\")))");
        let temporary = tempfile::tempdir().unwrap();
        let cache = folder(temporary.path(), 1 << 20);
        cache.keep(key, &module);
        let path = file(&temporary.path().join("code"), key);
        let whole = fs::read(&path).unwrap();
        for at in [0, 40, whole.len() - 1] {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            fs::write(&path, changed).unwrap();
            assert!(cache.load(&engine, key).is_none(), "byte {at}");
            assert!(!path.exists(), "it is removed");
        }
        fs::write(&path, &whole[..20]).unwrap();
        assert!(cache.load(&engine, key).is_none());
        fs::write(&path, &whole).unwrap();
        assert!(cache.load(&engine, key).is_some());
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
