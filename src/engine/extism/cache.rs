//! Compiled functions, kept in memory and bounded in bytes, for every `CompiledPlugin` of one engine.
//!
//! Keyed by cranelift's hash of a function's code and of the settings it was compiled with, so that plugins share what
//! they have in common and one plugin never gets another's code.

use std::{
    borrow::Cow,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use lru::LruCache;
use wasmtime_of_extism::CacheStore;

pub(super) struct CodeCache {
    max_bytes: usize,
    entries: Mutex<Entries>,
}

struct Entries {
    by_key: LruCache<Vec<u8>, std::sync::Arc<[u8]>>,
    /// The sum of all keys' and values' lengths.
    bytes: usize,
}

impl CodeCache {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { max_bytes, entries: Mutex::new(Entries { by_key: LruCache::unbounded(), bytes: 0 }) }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        // The sum and the map are changed together, with nothing between that can panic.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CacheStore for CodeCache {
    fn get(&self, key: &[u8]) -> Option<Cow<'_, [u8]>> {
        let found = self.entries().by_key.get(key).cloned();
        found.map(|code| Cow::Owned(code.to_vec()))
    }

    fn insert(&self, key: &[u8], value: Vec<u8>) -> bool {
        let size = key.len() + value.len();
        if size > self.max_bytes {
            return false;
        }
        let mut dropped = Vec::new();
        let mut entries = self.entries();
        if let Some(before) = entries.by_key.put(key.to_vec(), value.into()) {
            entries.bytes -= key.len() + before.len();
            dropped.push(before);
        }
        entries.bytes += size;
        while entries.bytes > self.max_bytes {
            let Some((key, code)) = entries.by_key.pop_lru() else { break };
            entries.bytes -= key.len() + code.len();
            dropped.push(code);
        }
        drop(entries);
        true
    }
}

impl fmt::Debug for CodeCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CodeCache").field("max_bytes", &self.max_bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_code_goes_when_the_bytes_are_used_up() {
        let cache = CodeCache::new(30);
        for key in [b"a", b"b", b"c"] {
            assert!(cache.insert(key, vec![0; 9]));
        }
        assert!(cache.get(b"a").is_some());
        assert!(cache.insert(b"d", vec![0; 9]));
        assert!(cache.get(b"b").is_none());
        assert!(cache.get(b"a").is_some());
        assert_eq!(cache.entries().bytes, 30);
    }

    #[test]
    fn replacing_and_oversized_values_keep_the_sum_right() {
        let cache = CodeCache::new(30);
        assert!(cache.insert(b"a", vec![0; 9]));
        assert!(cache.insert(b"a", vec![0; 3]));
        assert_eq!(cache.entries().bytes, 4);
        assert!(!cache.insert(b"b", vec![0; 30]));
    }
}
