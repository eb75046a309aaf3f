//! Compiled code that is kept in memory: small code as bytes, large code mapped and ready to run.

use std::{ops::Deref, sync::Arc};

use lru::LruCache;
use rustix::process::Resource;
use wasmtime::Module;

use super::sealed::Sealed;
use crate::{
    engine::Charge,
    host_limits::soft_limit,
    memory::{MemoryBudget, MemoryKind},
    source::Digest,
};

/// Code that is kept mapped holds at most this part of the files that this process may open.
const MOST_FILES: u64 = 8;

/// A plugin under one engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) plugin: Digest,
    /// wasmtime's version and settings.
    pub(super) engine: u64,
}

/// Where code may be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keeps {
    /// Where all is.
    Anywhere,
    /// In memory, if that is where code is kept: it may hold secrets.
    InMemory,
    /// Nowhere: nobody would find it again.
    Nowhere,
}

/// Code that nobody runs, of at most `limit` bytes.
pub(super) struct InMemory {
    code: LruCache<Key, Unused>,
    bytes: u64,
    /// How many of them are mapped: each holds a file.
    mapped: u64,
    limit: u64,
    pub(super) most_mapped: u64,
}

/// Code that is kept for the next build. Dropping it may take long.
pub(super) enum Unused {
    Plain(Sealed, Arc<Charge>),
    Mapped(Arc<Loaded>),
}

/// A module whose code is loaded.
pub(super) struct Loaded {
    pub(super) module: Module,
    pub(super) is_mapped: bool,
    /// Given back once the code is unmapped.
    pub(super) charge: Arc<Charge>,
}

impl Deref for Loaded {
    type Target = Module;

    fn deref(&self) -> &Module {
        &self.module
    }
}

impl Unused {
    pub(super) fn charge(&self) -> &Charge {
        match self {
            Self::Plain(_, charge) => charge,
            Self::Mapped(loaded) => &loaded.charge,
        }
    }

    /// Whether somebody is loading it.
    fn is_lent(&self) -> bool {
        matches!(self, Self::Plain(_, charge) if Arc::strong_count(charge) > 1)
    }
}

impl InMemory {
    pub(super) fn new(limit: u64) -> Self {
        let most_mapped = soft_limit(Resource::Nofile) / MOST_FILES;
        Self { code: LruCache::unbounded(), bytes: 0, mapped: 0, limit, most_mapped }
    }

    /// Gives what is not kept.
    pub(super) fn put(&mut self, key: Key, unused: Unused) -> Vec<Unused> {
        if unused.charge().bytes() > self.limit {
            // Others would go for it in vain.
            return vec![unused];
        }
        unused.charge().turn(MemoryKind::Unused);
        self.bytes += unused.charge().bytes();
        self.mapped += u64::from(matches!(unused, Unused::Mapped(_)));
        let mut gone: Vec<_> = self.code.put(key, unused).into_iter().inspect(|old| self.forget(old)).collect();
        while let Some(oldest) = self.too_many().and_then(|key| self.code.pop(&key)) {
            self.forget(&oldest);
            gone.push(oldest);
        }
        gone
    }

    /// What goes next, if there is too much. For a file only what holds one.
    fn too_many(&self) -> Option<Key> {
        let files = self.mapped > self.most_mapped;
        let mut oldest = self.code.iter().rev().filter(|(_, unused)| !files || matches!(unused, Unused::Mapped(_)));
        oldest.next().filter(|_| files || self.bytes > self.limit).map(|(key, _)| *key)
    }

    fn forget(&mut self, unused: &Unused) {
        self.bytes -= unused.charge().bytes();
        self.mapped -= u64::from(matches!(unused, Unused::Mapped(_)));
    }

    /// Small code, which stays here. It does not give way until it is [loaded](Self::loaded).
    pub(super) fn plain(&mut self, key: Key) -> Option<(Sealed, Arc<Charge>)> {
        let Unused::Plain(code, charge) = self.code.get(&key)? else { return None };
        let code = code.try_clone().ok()?;
        charge.turn(MemoryKind::Cache);
        Some((code, charge.clone()))
    }

    /// Whoever got this charge has loaded the code, or has not.
    pub(super) fn loaded(&mut self, key: Key, lent: Arc<Charge>) {
        let is_kept = matches!(self.code.peek(&key), Some(Unused::Plain(_, kept)) if Arc::ptr_eq(kept, &lent));
        // One is this, and one is kept.
        if is_kept && Arc::strong_count(&lent) == 2 {
            lent.turn(MemoryKind::Unused);
        }
        drop(lent);
    }

    /// Somebody has run this until now.
    pub(super) fn used(&mut self, key: Key) {
        self.code.promote(&key);
    }

    /// Large code, which somebody is about to run.
    pub(super) fn mapped(&mut self, key: Key) -> Option<Arc<Loaded>> {
        let Unused::Mapped(_) = self.code.peek(&key)? else { return None };
        let unused = self.code.pop(&key)?;
        self.forget(&unused);
        let Unused::Mapped(loaded) = unused else { return None };
        loaded.charge.turn(MemoryKind::Code);
        Some(loaded)
    }

    /// Takes out what was unused longest, until that is so many bytes of this account.
    pub(super) fn oldest(&mut self, account: &Arc<MemoryBudget>, bytes: u64) -> Vec<Unused> {
        let mut found = 0;
        let unused = self.code.iter().rev().filter(|(_, unused)| !unused.is_lent());
        let charges = unused.map(|(key, unused)| (*key, unused.charge()));
        let of_account = charges.filter(|(_, charge)| charge.is_in(account));
        let keys: Vec<Key> = of_account
            .take_while(|(_, charge)| {
                let missing = found < bytes;
                found += charge.bytes();
                missing
            })
            .map(|(key, _)| key)
            .collect();
        let gone: Vec<_> = keys.iter().filter_map(|key| self.code.pop(key)).collect();
        for unused in &gone {
            self.forget(unused);
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::{super::sealed::Destination, *};

    fn key(name: &str) -> Key {
        Key { plugin: Digest::of(name.as_bytes()), engine: 1 }
    }

    /// Small code that is charged with so many bytes.
    fn small(account: &Arc<MemoryBudget>, bytes: u64) -> Unused {
        let code = Sealed::new(b"code", Destination::new(4, false)).unwrap();
        Unused::Plain(code, Arc::new(account.charge(MemoryKind::Cache, bytes)))
    }

    #[test]
    fn code_is_kept_up_to_the_limit_and_beyond_it_the_oldest_goes() {
        let account = MemoryBudget::new(u64::MAX);
        let mut kept = InMemory::new(100);
        for (name, bytes, goes, unused) in [
            ("large", 101, vec![101], 0),
            ("a", 100, vec![], 100),
            ("b", 60, vec![100], 60),
            ("c", 40, vec![], 100),
            ("b", 50, vec![60], 90),
            ("d", 20, vec![40], 70),
        ] {
            let gone = kept.put(key(name), small(&account, bytes));
            assert_eq!(gone.iter().map(|gone| gone.charge().bytes()).collect::<Vec<_>>(), goes, "{name}");
            drop(gone);
            assert_eq!((account.unused(), account.used()), (unused, unused), "{name}");
        }
        assert!(["large", "a", "c"].iter().all(|name| kept.plain(key(name)).is_none()));
    }

    #[test]
    fn code_gives_way_but_while_somebody_loads_it_the_oldest_first_and_no_more_than_must() {
        let (account, other) = (MemoryBudget::new(u64::MAX), MemoryBudget::new(u64::MAX));
        let mut kept = InMemory::new(u64::MAX);
        for name in ["a", "b", "c", "d", "e"] {
            assert!(kept.put(key(name), small(&account, 10)).is_empty());
        }
        assert!(kept.oldest(&other, u64::MAX).is_empty() && kept.oldest(&account, 0).is_empty());
        assert_eq!((kept.oldest(&account, 10).len(), kept.oldest(&account, 11).len()), (1, 2));
        assert!(kept.plain(key("c")).is_none());
        let [first, second] = [(); 2].map(|()| kept.plain(key("d")).unwrap().1);
        assert_eq!(account.unused(), 10, "one of the two that are left is being loaded");
        kept.loaded(key("d"), first);
        assert_eq!(kept.oldest(&account, u64::MAX).len(), 1, "by another as well");
        kept.loaded(key("d"), second);
        assert_eq!(account.unused(), 10);
        assert_eq!(kept.oldest(&account, u64::MAX).len(), 1);
        assert_eq!(account.used(), 0);
    }
}
