//! One compile at a time for the same bytes. Whoever has them as well waits, and finds them compiled.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex as Lock, MutexGuard, PoisonError, Weak},
};

use tokio::sync::{Mutex, OwnedMutexGuard};

use super::slots::Renounce;
use crate::source::Digest;

/// The contents that somebody compiles, or waits for.
#[derive(Default)]
pub(super) struct Contents(Lock<HashMap<Digest, Weak<Content>>>);

#[derive(Default)]
struct Content {
    /// Held by who compiles it.
    compiling: Arc<Mutex<()>>,
    /// Builds that wait for that, and some that did.
    followers: Lock<Vec<Weak<Renounce>>>,
}

/// The right to compile some contents.
#[derive(Default)]
pub(super) struct Once(Vec<(Arc<Content>, OwnedMutexGuard<()>)>);

/// Who else wants the contents of a [`Once`].
pub(super) struct Followers(Vec<Weak<Content>>);

impl Contents {
    /// Waits until nobody else compiles any of these. Meanwhile, `renounce` says whether anybody wants this build.
    pub(super) async fn only(&self, mut digests: Vec<Digest>, renounce: Arc<Renounce>) -> Once {
        // In one order for all: two that want two of the same never wait for each other.
        digests.sort_unstable();
        digests.dedup();
        let mut held = Vec::with_capacity(digests.len());
        for digest in digests {
            let content = self.of(digest);
            let free = content.compiling.clone().try_lock_owned();
            let compiling = if let Ok(free) = free {
                free
            } else {
                content.follow(&renounce);
                content.compiling.clone().lock_owned().await
            };
            held.push((content, compiling));
        }
        // Its own follower no more.
        drop(renounce);
        Once(held)
    }

    fn of(&self, digest: Digest) -> Arc<Content> {
        // Only map operations happen under this lock.
        let mut contents = lock(&self.0);
        contents.retain(|_, content| content.strong_count() > 0);
        if let Some(content) = contents.get(&digest).and_then(Weak::upgrade) {
            return content;
        }
        let content = Arc::default();
        contents.insert(digest, Arc::downgrade(&content));
        content
    }
}

impl Content {
    fn follow(&self, renounce: &Arc<Renounce>) {
        let mut followers = lock(&self.followers);
        followers.retain(|follower| follower.strong_count() > 0);
        followers.push(Arc::downgrade(renounce));
    }

    fn followers(&self) -> Vec<Arc<Renounce>> {
        lock(&self.followers).iter().filter_map(Weak::upgrade).collect()
    }
}

impl Once {
    pub(super) fn followers(&self) -> Followers {
        Followers(self.0.iter().map(|(content, _)| Arc::downgrade(content)).collect())
    }
}

impl Followers {
    /// Whether no build that somebody wants waits for these contents. Those that nobody wants end.
    pub(super) fn renounce(&self) -> bool {
        // Asked without a lock.
        self.0.iter().filter_map(Weak::upgrade).all(|content| content.followers().iter().all(|renounce| renounce()))
    }
}

fn lock<T>(held: &Lock<T>) -> MutexGuard<'_, T> {
    // Map and list operations only.
    held.lock().unwrap_or_else(PoisonError::into_inner)
}
