//! Plugins under their digests, and who needs each: a file that nobody needs is removed.

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::files;
use crate::{Digest, background};

/// The folder of plugins.
#[derive(Debug)]
pub(super) struct Blobs {
    folder: PathBuf,
    /// How many need each: evaluators, and claims. A file is removed under this lock, when its last claim goes; whoever
    /// claims it before writing it is thus never robbed of it.
    needed: Mutex<HashMap<Digest, usize>>,
}

impl Blobs {
    /// `needed`: the plugin of each evaluator.
    pub(super) fn new(folder: PathBuf, needed: impl Iterator<Item = Digest>) -> Self {
        let mut counts = HashMap::new();
        needed.for_each(|digest| *counts.entry(digest).or_default() += 1);
        Self { folder, needed: Mutex::new(counts) }
    }

    pub(super) fn path(&self, digest: Digest) -> PathBuf {
        self.folder.join(format!("sha256-{}.wasm", digest.hex()))
    }

    /// Removes what was not written to its end, and plugins that nobody needs if `may_remove` says so.
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
        // Counts are changed in one step each.
        self.needed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn digest_of(path: &Path) -> Option<Digest> {
    let hex = path.file_name()?.to_str()?.strip_prefix("sha256-")?.strip_suffix(".wasm")?;
    // Only the way that it is written here: another spelling of a digest would not be found again.
    format!("sha256:{hex}").parse().ok().filter(|digest: &Digest| digest.hex() == hex)
}

/// A need for a plugin's file. When the last one for it is dropped, the file is removed, on a thread that may block.
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

    /// Takes over a need that is counted already.
    pub(super) fn adopt(blobs: Arc<Blobs>, digest: Digest) -> Self {
        Self { blobs, digest, kept: false }
    }

    /// The need stays counted, without the claim.
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
            background::drop_elsewhere(Release { blobs: self.blobs.clone(), digest: self.digest });
        }
    }
}

/// The end of a claim, where it may block.
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
