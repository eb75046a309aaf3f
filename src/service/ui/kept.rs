//! What is kept of evaluators' own texts: so much of each, and so many bytes in all, which tenants share fairly.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use crate::EvaluatorId;

/// What an evaluator takes beside its entries: its place in the maps, and its tenant's.
const OWN: usize = 640;

/// What an entry takes beside itself and its texts: its place among its tenant's, and what the allocator adds.
const BESIDE: usize = 64;

/// A collection has room for at most so many times what it holds.
const ROOM: usize = 4;

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Most {
    /// Entries of one evaluator.
    pub(super) of_one: usize,
    /// Bytes of one evaluator.
    pub(super) bytes_of_one: usize,
    /// Bytes in all.
    pub(super) bytes: usize,
}

/// Entries by evaluator. When there is too much in all, the oldest goes of the tenant that has most: so a tenant with less than
/// its share of the bytes loses nothing by what another does.
pub(super) struct Kept<T> {
    most: Most,
    bytes: usize,
    of: HashMap<EvaluatorId, Own<T>>,
    tenants: HashMap<Arc<str>, Tenant>,
    /// Tenants by their bytes.
    largest: BTreeSet<(usize, Arc<str>)>,
    /// The number of the next entry.
    next: u64,
}

/// One evaluator's.
struct Own<T> {
    tenant: Arc<str>,
    bytes: usize,
    /// With their numbers and bytes, the oldest first.
    entries: VecDeque<(u64, usize, T)>,
}

#[derive(Default)]
struct Tenant {
    bytes: usize,
    /// Whose each entry is, the oldest first.
    entries: BTreeMap<u64, EvaluatorId>,
}

impl<T> Kept<T> {
    /// What one entry takes beside its texts.
    const ENTRY: usize = ROOM * size_of::<(u64, usize, T)>() + BESIDE;

    pub(super) fn new(most: Most) -> Self {
        let (of, tenants, largest) = (HashMap::new(), HashMap::new(), BTreeSet::new());
        Self { most, bytes: 0, of, tenants, largest, next: 0 }
    }

    /// An evaluator's entries, the oldest first.
    pub(super) fn of(&self, evaluator: EvaluatorId) -> impl DoubleEndedIterator<Item = &T> {
        self.of.get(&evaluator).into_iter().flat_map(|own| own.entries.iter().map(|(_, _, entry)| entry))
    }

    pub(super) fn last_of(&mut self, evaluator: EvaluatorId) -> Option<&mut T> {
        self.of.get_mut(&evaluator)?.entries.back_mut().map(|(_, _, entry)| entry)
    }

    /// Adds an entry whose texts take so many bytes, and drops what is too much.
    pub(super) fn add(&mut self, evaluator: EvaluatorId, tenant: &str, entry: T, texts: usize) {
        if self.of.get(&evaluator).is_some_and(|own| *own.tenant != *tenant) {
            // It belongs to another now, whose it was not.
            self.forget(evaluator);
        }
        let (number, bytes) = (self.next, texts + Self::ENTRY);
        self.next += 1;
        let tenant = self.tenants.get_key_value(tenant).map_or_else(|| tenant.into(), |(known, _)| known.clone());
        let new = Own { tenant: tenant.clone(), bytes: 0, entries: VecDeque::new() };
        let own = self.of.entry(evaluator).or_insert(new);
        let more = if own.entries.is_empty() { bytes + OWN } else { bytes };
        own.entries.push_back((number, bytes, entry));
        own.bytes += more;
        self.tenants.entry(tenant.clone()).or_default().entries.insert(number, evaluator);
        self.weigh(&tenant, more, 0);
        let Most { of_one, bytes_of_one, bytes } = self.most;
        while self.of.get(&evaluator).is_some_and(|own| own.entries.len() > of_one || own.bytes > bytes_of_one) {
            self.drop_at(evaluator, 0);
        }
        while self.bytes > bytes
            && let Some((_, tenant)) = self.largest.last()
            && let Some((_, evaluator)) = self.tenants.get(tenant).and_then(|tenant| tenant.entries.first_key_value())
        {
            self.drop_at(*evaluator, 0);
        }
    }

    pub(super) fn forget(&mut self, evaluator: EvaluatorId) {
        while self.of.contains_key(&evaluator) {
            self.drop_at(evaluator, 0);
        }
    }

    /// Drops an evaluator's entry that has so many older ones before it.
    pub(super) fn drop_at(&mut self, evaluator: EvaluatorId, at: usize) {
        let Some(own) = self.of.get_mut(&evaluator) else { return };
        let (tenant, dropped) = (own.tenant.clone(), own.entries.remove(at));
        let Some((number, mut bytes, _)) = dropped else { return };
        own.bytes -= bytes;
        if own.entries.is_empty() {
            bytes += OWN;
            self.of.remove(&evaluator);
            if self.of.capacity() > ROOM * self.of.len() {
                self.of.shrink_to(2 * self.of.len());
            }
        } else if own.entries.capacity() > ROOM * own.entries.len() {
            own.entries.shrink_to(2 * own.entries.len());
        }
        if let Some(tenant) = self.tenants.get_mut(&tenant) {
            tenant.entries.remove(&number);
        }
        self.weigh(&tenant, 0, bytes);
    }

    /// Adds to a tenant's bytes and takes from them. One that has none is not known.
    fn weigh(&mut self, name: &Arc<str>, more: usize, less: usize) {
        let Some(tenant) = self.tenants.get_mut(name) else { return };
        self.bytes = self.bytes + more - less;
        self.largest.remove(&(tenant.bytes, name.clone()));
        tenant.bytes = tenant.bytes + more - less;
        if tenant.bytes > 0 {
            self.largest.insert((tenant.bytes, name.clone()));
        } else {
            self.tenants.remove(name);
            if self.tenants.capacity() > ROOM * self.tenants.len() {
                self.tenants.shrink_to(2 * self.tenants.len());
            }
        }
    }
}

/// A text, or its end if it is longer than so many bytes: what comes last says why.
pub(super) fn cut(text: &str, most: usize) -> String {
    let from = text.len().saturating_sub(most);
    let kept = text.get(text.ceil_char_boundary(from)..).unwrap_or_default();
    if from > 0 { ["…", kept].concat() } else { kept.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: usize = Kept::<u64>::ENTRY;
    const MOST: Most = Most { of_one: 4, bytes_of_one: OWN + 8 * ENTRY, bytes: 40 * (OWN + ENTRY) };

    fn check(kept: &Kept<u64>) {
        assert!(kept.of.values().all(|own| own.entries.capacity() <= ROOM * own.entries.len()));
        assert!(kept.of.capacity() <= ROOM * kept.of.len() && kept.tenants.capacity() <= ROOM * kept.tenants.len());
        let of: usize = kept.of.values().map(|own| own.bytes).sum();
        let entries = kept.of.values().flat_map(|own| &own.entries);
        let (bytes, count) = entries.fold((0, 0), |(bytes, count), (_, own, _)| (bytes + own, count + 1));
        assert_eq!((of, bytes + OWN * kept.of.len()), (kept.bytes, kept.bytes));
        assert_eq!(kept.tenants.values().map(|tenant| tenant.bytes).sum::<usize>(), kept.bytes);
        assert_eq!(kept.tenants.values().map(|tenant| tenant.entries.len()).sum::<usize>(), count);
        assert_eq!(kept.largest.len(), kept.tenants.len());
        assert!(kept.bytes <= kept.most.bytes, "{}", kept.bytes);
    }

    #[test]
    fn each_has_its_last_few_and_no_more_than_its_bytes() {
        let mut kept = Kept::new(MOST);
        for at in 0..10 {
            kept.add(EvaluatorId(1), "a", at, 0);
            check(&kept);
        }
        assert!(kept.of(EvaluatorId(1)).eq(&[6, 7, 8, 9]));
        kept.add(EvaluatorId(1), "a", 10, 5 * ENTRY);
        assert!(kept.of(EvaluatorId(1)).eq(&[8, 9, 10]));
        kept.drop_at(EvaluatorId(1), 1);
        kept.drop_at(EvaluatorId(1), 7);
        check(&kept);
        assert!(kept.of(EvaluatorId(1)).eq(&[8, 10]));
        kept.add(EvaluatorId(1), "a", 11, 9 * ENTRY);
        assert_eq!(kept.of(EvaluatorId(1)).count(), 0, "one that is too large alone is not kept");
        kept.add(EvaluatorId(2), "a", 1, 0);
        kept.forget(EvaluatorId(2));
        check(&kept);
        assert!(kept.tenants.is_empty() && kept.of.is_empty());
    }

    #[test]
    fn one_that_had_many_entries_has_no_room_left_for_them() {
        let mut kept = Kept::new(Most { of_one: 200, bytes_of_one: OWN + 300 * ENTRY, bytes: 1 << 20 });
        for at in 0..1000 {
            kept.add(EvaluatorId(at), "a", at, 0);
        }
        for at in 0..200 {
            kept.add(EvaluatorId(1), "a", at, 0);
            check(&kept);
        }
        kept.add(EvaluatorId(1), "a", 1, 299 * ENTRY);
        assert_eq!(kept.of(EvaluatorId(1)).count(), 1);
        check(&kept);
        for at in 0..1000 {
            kept.forget(EvaluatorId(at));
            check(&kept);
        }
    }

    #[test]
    fn a_tenant_with_less_than_its_share_loses_nothing_by_what_another_does() {
        let mut kept = Kept::new(MOST);
        for evaluator in 0..3 {
            kept.add(EvaluatorId(evaluator), "quiet", evaluator, 0);
        }
        for at in 0..1000 {
            kept.add(EvaluatorId(100 + at), "loud", at, if at % 2 == 0 { 0 } else { 100 });
            kept.add(EvaluatorId(10_000 + at), "louder", at, 3 * ENTRY);
            check(&kept);
        }
        assert!((0..3).all(|evaluator| kept.of(EvaluatorId(evaluator)).count() == 1));
        assert!(kept.tenants["loud"].bytes > MOST.bytes / 3 && kept.tenants["louder"].bytes > MOST.bytes / 3);
        assert_eq!(kept.of(EvaluatorId(1099)).count(), 1, "the newest is there");
    }

    #[test]
    fn what_was_kept_of_an_evaluator_does_not_go_with_it_to_another_tenant() {
        let mut kept = Kept::new(MOST);
        kept.add(EvaluatorId(1), "a", 1, 0);
        kept.add(EvaluatorId(1), "b", 2, 0);
        check(&kept);
        assert!(kept.of(EvaluatorId(1)).eq(&[2]) && kept.tenants.len() == 1);
    }
}
