//! Which evaluator's revision a runtime is of, in words. The registry knows revisions by number alone; the [`Directory`] has
//! the words for each number for as long as anything of the revision exists: its build, its runtime, the evaluator.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use crate::registry::RevisionId;

/// What one revision is called.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) revision: RevisionId,
    pub(crate) evaluator: Arc<str>,
    pub(crate) tenant: Box<str>,
    listed: Arc<Directory>,
}

/// The revisions of one pool, by their numbers.
#[derive(Debug, Default)]
pub(crate) struct Directory(Mutex<HashMap<u64, Weak<Identity>>>);

impl Directory {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Weak<Identity>>> {
        // Map operations only.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists a revision until its identity is dropped.
    pub(crate) fn list(self: &Arc<Self>, revision: RevisionId, evaluator: Arc<str>, tenant: &str) -> Arc<Identity> {
        let identity = Arc::new(Identity { revision, evaluator, tenant: tenant.into(), listed: self.clone() });
        self.lock().insert(revision.number, Arc::downgrade(&identity));
        identity
    }

    /// The identities of these revisions, in their order.
    pub(crate) fn find(&self, numbers: impl Iterator<Item = u64>) -> Vec<Option<Arc<Identity>>> {
        let listed = self.lock();
        numbers.map(|number| listed.get(&number).and_then(Weak::upgrade)).collect()
    }
}

impl Identity {
    /// The names of the evaluator and of its tenant.
    pub(crate) fn words(&self) -> (String, String) {
        (self.evaluator.to_string(), self.tenant.to_string())
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        self.listed.lock().remove(&self.revision.number);
    }
}
