//! The stored plugins, each under its digest, with a count of its uses. A file that is no longer used is removed.

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::files;
use crate::{Digest, background::Background};

/// The folder of plugins.
#[derive(Debug)]
pub(super) struct Blobs {
    folder: PathBuf,
    /// How many evaluators and claims use each plugin. A file is removed under this lock when its count reaches 0. A
    /// writer claims it first, so that its file is never removed under it.
    needed: Mutex<HashMap<Digest, usize>>,
    /// Removes files: the runtime of the server.
    background: Background,
}

impl Blobs {
    /// `needed`: the plugin of each stored evaluator.
    pub(super) fn new(folder: PathBuf, needed: impl Iterator<Item = Digest>) -> Self {
        let mut counts = HashMap::new();
        needed.for_each(|digest| *counts.entry(digest).or_default() += 1);
        Self { folder, needed: Mutex::new(counts), background: Background::current() }
    }

    pub(super) fn path(&self, digest: Digest) -> PathBuf {
        self.folder.join(format!("sha256-{}.wasm", digest.hex()))
    }

    /// Removes temporary files and, if `may_remove`, plugins that no evaluator uses.
    pub(super) fn tidy(&self, may_remove: bool) -> io::Result<()> {
        for path in files::tidied(&self.folder)? {
            match digest_of(&path) {
                None => tracing::warn!(file = %path.display(), "not a plugin's file; it is left alone"),
                Some(digest) if may_remove && !self.needed().contains_key(&digest) => files::remove(&path),
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn needed(&self) -> MutexGuard<'_, HashMap<Digest, usize>> {
        // Each change is one step: a panic leaves no count half-changed.
        self.needed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn digest_of(path: &Path) -> Option<Digest> {
    let hex = path.file_name()?.to_str()?.strip_prefix("sha256-")?.strip_suffix(".wasm")?;
    // Only the spelling that `path` makes: a file with another would never be found again.
    format!("sha256:{hex}").parse().ok().filter(|digest: &Digest| digest.hex() == hex)
}

/// Keeps a plugin's file. When the last claim on it is dropped and no evaluator uses it, a background thread removes
/// the file.
#[derive(Debug)]
pub(in crate::service) struct Claim {
    blobs: Arc<Blobs>,
    digest: Digest,
    kept: bool,
}

impl Claim {
    pub(super) fn new(blobs: Arc<Blobs>, digest: Digest) -> Self {
        *blobs.needed().entry(digest).or_default() += 1;
        Self::adopt(blobs, digest)
    }

    /// Takes over a use that is counted already.
    pub(super) fn adopt(blobs: Arc<Blobs>, digest: Digest) -> Self {
        Self { blobs, digest, kept: false }
    }

    /// Leaves the use counted, for the evaluator that now has it.
    pub(super) fn keep(mut self) -> Digest {
        self.kept = true;
        self.digest
    }

    pub(super) fn digest(&self) -> Digest {
        self.digest
    }

    pub(super) fn path(&self) -> PathBuf {
        self.blobs.path(self.digest)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.kept {
            let release = Release { blobs: self.blobs.clone(), digest: self.digest };
            self.blobs.background.drop_elsewhere(release);
        }
    }
}

/// Ends a claim when dropped. Blocks, so it is dropped on another thread.
struct Release {
    blobs: Arc<Blobs>,
    digest: Digest,
}

impl Drop for Release {
    fn drop(&mut self) {
        let mut needed = self.blobs.needed();
        if let Entry::Occupied(mut count) = needed.entry(self.digest) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
                files::remove(&self.blobs.path(self.digest));
            }
        }
    }
}
