//! One compile at a time for the same bytes. Whoever has them as well waits, and finds them compiled.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex as Lock, PoisonError, Weak},
};

use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::source::Digest;

/// A lock for each content that somebody compiles, or waits for.
#[derive(Default)]
pub(super) struct Contents(Lock<HashMap<Digest, Weak<Mutex<()>>>>);

/// The right to compile some contents.
#[derive(Default)]
pub(super) struct Once(Vec<OwnedMutexGuard<()>>);

/// Who else wants the contents of a [`Once`].
pub(super) struct Followers(Vec<Weak<Mutex<()>>>);

impl Contents {
    /// Waits until nobody else compiles any of these.
    pub(super) async fn only(&self, mut digests: Vec<Digest>) -> Once {
        // In one order for all: two that want two of the same never wait for each other.
        digests.sort_unstable();
        digests.dedup();
        let mut held = Vec::with_capacity(digests.len());
        for digest in digests {
            held.push(self.of(digest).lock_owned().await);
        }
        Once(held)
    }

    fn of(&self, digest: Digest) -> Arc<Mutex<()>> {
        // Only map operations happen under this lock.
        let mut contents = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        contents.retain(|_, content| content.strong_count() > 0);
        if let Some(content) = contents.get(&digest).and_then(Weak::upgrade) {
            return content;
        }
        let content = Arc::default();
        contents.insert(digest, Arc::downgrade(&content));
        content
    }
}

impl Once {
    pub(super) fn followers(&self) -> Followers {
        Followers(self.0.iter().map(|held| Arc::downgrade(OwnedMutexGuard::mutex(held))).collect())
    }
}

impl Followers {
    pub(super) fn are_none(&self) -> bool {
        // The one is who compiles.
        self.0.iter().all(|content| content.strong_count() <= 1)
    }
}
