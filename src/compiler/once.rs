//! One compile at a time for the same bytes. Whoever has them as well waits, and finds them compiled.
//!
//! Only for plugins of one module. Whoever links a module with others would keep all who have that module waiting, for as
//! long as the others take to compile: so two builds of such plugins may compile what they share at the same time.

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

/// The right to compile a content, or none in particular.
#[derive(Default)]
pub(super) struct Once(Option<(Arc<Content>, OwnedMutexGuard<()>)>);

/// Who else wants the content of a [`Once`].
pub(super) struct Followers(Weak<Content>);

impl Contents {
    /// The right to compile this, unless somebody else does.
    pub(super) fn try_only(&self, digest: Digest) -> Option<Once> {
        let content = self.of(digest);
        let compiling = content.compiling.clone().try_lock_owned().ok()?;
        Some(Once(Some((content, compiling))))
    }

    /// Waits while somebody compiles this. Meanwhile, `renounce` says whether anybody wants this build.
    pub(super) async fn compiled(&self, digest: Digest, renounce: Arc<Renounce>) {
        let content = lock(&self.0).get(&digest).and_then(Weak::upgrade);
        if let Some(content) = content {
            content.follow(&renounce);
            drop(content.compiling.lock().await);
        }
    }

    /// Waits until nobody else compiles this. Meanwhile, `renounce` says whether anybody wants this build.
    pub(super) async fn only(&self, digest: Digest, renounce: Arc<Renounce>) -> Once {
        let content = self.of(digest);
        content.follow(&renounce);
        let compiling = content.compiling.clone().lock_owned().await;
        // Its own follower no more.
        drop(renounce);
        Once(Some((content, compiling)))
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
        Followers(self.0.as_ref().map(|(content, _)| Arc::downgrade(content)).unwrap_or_default())
    }
}

impl Followers {
    /// Whether no build that somebody wants waits for this content. Those that nobody wants end.
    pub(super) fn renounce(&self) -> bool {
        let followers = self.0.upgrade().map(|content| content.followers());
        // Asked without a lock.
        followers.is_none_or(|followers| followers.iter().all(|renounce| renounce()))
    }
}

fn lock<T>(held: &Lock<T>) -> MutexGuard<'_, T> {
    // Map and list operations only.
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_that_nobody_compiles_are_forgotten() {
        let contents = Contents::default();
        let [one, two] = [Digest::of(b"one"), Digest::of(b"two")];
        let first = contents.try_only(one).unwrap();
        assert!(contents.try_only(one).is_none(), "somebody compiles it");
        let second = contents.try_only(two).unwrap();
        assert_eq!(lock(&contents.0).len(), 2);
        drop(first);
        assert!(contents.try_only(two).is_none());
        assert_eq!(lock(&contents.0).len(), 1);
        drop(second);
        assert!(contents.try_only(one).is_some());
    }

    #[tokio::test]
    async fn one_compiles_a_content_at_a_time_and_knows_whether_those_that_wait_are_wanted() {
        let (contents, digest) = (Contents::default(), Digest::of(b"one"));
        let wanted = || Arc::new(|| false) as Arc<Renounce>;
        let first = contents.only(digest, wanted()).await;
        assert!(first.followers().renounce(), "nobody waits");
        let mut second = Box::pin(contents.only(digest, wanted()));
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        assert!(!first.followers().renounce(), "somebody wants it");
        drop(first);
        let second = second.await;
        assert!(contents.try_only(digest).is_none() && second.followers().renounce());
    }

    #[test]
    fn all_who_still_follow_are_asked_and_who_left_is_forgotten() {
        let content = Content::default();
        let follower = || Arc::new(|| true) as Arc<Renounce>;
        let [one, two, three] = [follower(), follower(), follower()];
        content.follow(&one);
        content.follow(&two);
        assert_eq!(content.followers().len(), 2);
        drop(one);
        content.follow(&three);
        assert_eq!((content.followers().len(), lock(&content.followers).len()), (2, 2));
        drop((two, three));
        assert!(content.followers().is_empty());
    }
}
