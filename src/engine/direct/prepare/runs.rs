//! Segments that lie close together, as one.

/// A page of the system's. Zeros are never put where none of the segments reaches: an image does not get a page that an
/// instance would not have written.
const PAGE: u64 = 4096;

/// Data that goes to an offset of a memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placed<'a> {
    pub(super) at: u64,
    pub(super) data: &'a [u8],
}

impl Placed<'_> {
    fn end(&self) -> u64 {
        self.at + self.data.len() as u64
    }
}

/// What several of them come to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) at: u64,
    pub(super) data: Vec<u8>,
}

/// The same data in as few pieces as possible, in the order of their offsets. Of segments that overlap, the later one
/// counts. A gap that is smaller than a page is filled with zeros, while there are `zeros` left: only for a memory that
/// has nothing else there yet. `None` if they exceed the address space.
pub(super) fn join(segments: &[Placed<'_>], zeros: &mut u64) -> Option<Vec<Run>> {
    let is_something = |segment: &Placed<'_>| !segment.data.is_empty();
    let mut by_offset: Vec<_> = segments.iter().enumerate().filter(|(_, segment)| is_something(segment)).collect();
    by_offset.sort_by_key(|(_, segment)| segment.at);
    let mut bounds: Vec<(u64, u64)> = Vec::new();
    let mut run_of = vec![0; segments.len()];
    for (index, next) in by_offset {
        match bounds.last_mut() {
            Some((_, end)) if is_close(*end, next.at) && next.at.saturating_sub(*end) <= *zeros => {
                *zeros -= next.at.saturating_sub(*end);
                *end = next.end().max(*end);
            }
            _ => bounds.push((next.at, next.end())),
        }
        *run_of.get_mut(index)? = bounds.len() - 1;
    }
    let mut runs = Vec::with_capacity(bounds.len());
    for (at, end) in bounds {
        // No longer than the segments and the zeros between them.
        runs.push(Run { at, data: vec![0; usize::try_from(end - at).ok()?] });
    }
    for (next, run) in segments.iter().zip(run_of).filter(|(next, _)| is_something(next)) {
        let Run { at, data } = runs.get_mut(run)?;
        let at = usize::try_from(next.at - *at).ok()?;
        data.get_mut(at..at + next.data.len())?.copy_from_slice(next.data);
    }
    Some(runs)
}

/// Whether no whole page lies between the end of one segment, which is not empty, and the begin of another.
fn is_close(end: u64, at: u64) -> bool {
    at <= end || at / PAGE <= (end - 1) / PAGE + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(segments: &[(u64, &str)], zeros: u64) -> Vec<(u64, String)> {
        let placed: Vec<_> = segments.iter().map(|(at, data)| Placed { at: *at, data: data.as_bytes() }).collect();
        let runs = join(&placed, &mut { zeros }).unwrap();
        runs.into_iter().map(|run| (run.at, String::from_utf8(run.data).unwrap().replace('\0', "."))).collect()
    }

    #[test]
    fn the_later_of_two_that_overlap_counts() {
        assert_eq!(joined(&[(2, "abcd"), (4, "xy"), (0, "123")], 0), [(0, "123bxy".into())]);
        assert_eq!(joined(&[(4, "xy"), (2, "abcd")], 0), [(2, "abcd".into())]);
        assert_eq!(joined(&[(2, "abcd"), (3, "x"), (6, "e")], 0), [(2, "axcde".into())]);
    }

    #[test]
    fn gaps_are_filled_while_there_are_zeros() {
        let segments = [(9, "c"), (0, "a"), (3, "b")];
        assert_eq!(joined(&segments, 7), [(0, "a..b.....c".into())]);
        assert_eq!(joined(&segments, 6), [(0, "a..b".into()), (9, "c".into())]);
        assert_eq!(joined(&segments, 0), [(0, "a".into()), (3, "b".into()), (9, "c".into())]);
        assert_eq!(joined(&[(0, "a"), (1, "b")], 0), [(0, "ab".into())]);
    }

    #[test]
    fn a_whole_page_of_zeros_stays_out() {
        let at = |offsets: &[u64]| joined(&offsets.iter().map(|at| (*at, "x")).collect::<Vec<_>>(), u64::MAX).len();
        assert_eq!(at(&[0, PAGE, 2 * PAGE]), 1);
        assert_eq!(at(&[0, 2 * PAGE - 1]), 1);
        assert_eq!(at(&[0, 2 * PAGE]), 2);
        assert_eq!(at(&[PAGE - 1, 2 * PAGE]), 2);
        assert_eq!(at(&[PAGE - 1, 2 * PAGE - 1, 2 * PAGE]), 1);
    }

    #[test]
    fn empty_ones_go_and_nothing_comes_to_nothing() {
        assert_eq!(joined(&[(3, ""), (5, "a"), (5, "")], 9), [(5, "a".into())]);
        assert_eq!(joined(&[(3, "")], 9), []);
        assert_eq!(joined(&[], 9), []);
    }
}
