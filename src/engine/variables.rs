//! Extism's variables, and those that are kept from one evaluation to the next.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;

use crate::error::Error;

/// Variables by their names.
#[derive(Clone, Default)]
pub struct VariableSet {
    values: BTreeMap<String, Bytes>,
    /// The size of all. Kept up to date, because there may be thousands.
    bytes: usize,
}

impl VariableSet {
    /// Bytes of all variables of one instance, or of one evaluator: extism's default, counted as it counts.
    pub const MOST: usize = 1024 * 1024;
    const EACH: usize = size_of::<String>() + size_of::<Vec<u8>>();

    /// What one counts for.
    #[must_use]
    pub fn size(name: &str, value: &[u8]) -> usize {
        Self::EACH + name.len() + value.len()
    }

    /// What all count for.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The value of one.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Bytes> {
        self.values.get(name)
    }

    /// Sets one, whatever the size of all becomes.
    pub fn set(&mut self, name: String, value: Bytes) {
        self.remove(&name);
        self.bytes += Self::size(&name, &value);
        self.values.insert(name, value);
    }

    /// Removes one, if it is there.
    pub fn remove(&mut self, name: &str) {
        if let Some(value) = self.values.remove(name) {
            self.bytes -= Self::size(name, &value);
        }
    }
}

/// What one evaluation changed: `None` for a variable that it removed.
pub type Changes = BTreeMap<String, Option<Bytes>>;

/// What the kept variables of all evaluators of a pool may take.
#[derive(Debug)]
pub(crate) struct VariableBudget {
    left: AtomicUsize,
}

impl VariableBudget {
    pub(crate) fn new(bytes: u64) -> Self {
        Self { left: AtomicUsize::new(usize::try_from(bytes).unwrap_or(usize::MAX)) }
    }

    fn take(&self, bytes: usize) -> Result<(), Error> {
        let taken = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        taken
            .map(drop)
            .map_err(|_| Error::Saturated { reason: "the variables of all evaluators are over engine.vars_size" })
    }

    fn give_back(&self, bytes: usize) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The variables of one revision of an evaluator, which outlive its instances and runtimes: see
/// [`Vars::Kept`](crate::config::Vars).
#[derive(Debug)]
pub struct KeptVariables {
    /// Evaluations that run have the set with which they began. So who changes it makes another, unless none runs.
    current: Mutex<Arc<VariableSet>>,
    /// From which those were taken.
    budget: Arc<VariableBudget>,
}

impl KeptVariables {
    pub(crate) fn new(budget: Arc<VariableBudget>) -> Self {
        Self { current: Mutex::default(), budget }
    }

    /// What an evaluation begins with.
    #[must_use]
    pub fn current(&self) -> Arc<VariableSet> {
        self.lock().clone()
    }

    /// Takes over what an evaluation changed. Of two that change one variable, the later wins.
    ///
    /// # Errors
    ///
    /// [`Error::GuestError`] if that would be more than one instance may have, [`Error::Saturated`] if it would be more than
    /// all evaluators together may: then all stays as it was.
    pub fn change(&self, changes: Changes) -> Result<(), Error> {
        if changes.is_empty() {
            return Ok(());
        }
        let mut current = self.lock();
        let size = |name: &str, value: Option<&Bytes>| value.map_or(0, |value| VariableSet::size(name, value));
        let more: usize = changes.iter().map(|(name, value)| size(name, value.as_ref())).sum();
        let less: usize = changes.keys().map(|name| size(name, current.get(name))).sum();
        if (current.bytes() + more).saturating_sub(less) > VariableSet::MOST {
            return Err(Error::guest_error(
                "Variable store is full: with those that other evaluations wrote meanwhile, its variables are over 1 MiB",
            ));
        }
        self.budget.take(more.saturating_sub(less))?;
        self.budget.give_back(less.saturating_sub(more));
        let set = Arc::make_mut(&mut current);
        for (name, value) in changes {
            match value {
                Some(value) => set.set(name, value),
                None => set.remove(&name),
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Arc<VariableSet>> {
        // Only map operations happen under it.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for KeptVariables {
    fn drop(&mut self) {
        let held = self.lock().bytes();
        self.budget.give_back(held);
    }
}

/// Without names and values: they are the plugin's.
impl fmt::Debug for VariableSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VariableSet").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}
