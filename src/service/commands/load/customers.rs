//! Whose the evaluators are, and who calls which of them.
//!
//! With `--customers` each evaluator belongs to one, whose name is the part of its own before the `/`, and so its tenant.
//! The last `--flooding` of them flood: each has as many callers of its own as all the others have together. These call
//! only that customer's evaluators, and the others' callers none of them, so that what the others get can be held against
//! a run without a flood.

use std::ops::Range;

use rand::rngs::StdRng;
use rand_distr::{Distribution, Zipf};

use crate::service::{Exit, cli::LoadArguments};

/// Callers of all customers who flood, each of which is a task.
const MOST_FLOODING: usize = 1_000_000;

/// Ranks of evaluators among which a caller chooses by Zipf's law: the first has the largest share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Choice {
    first: usize,
    zipf: Zipf<f64>,
}

impl Choice {
    fn new(ranks: &Range<usize>, skew: f64) -> Result<Self, Exit> {
        let zipf = Zipf::new(ranks.len() as f64, skew).map_err(|error| Exit::unusable(error.to_string()))?;
        Ok(Self { first: ranks.start, zipf })
    }

    pub(super) fn rank(&self, random: &mut StdRng) -> usize {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a whole number from 1, at most a million"
        )]
        let chosen = self.zipf.sample(random) as usize;
        self.first + chosen - 1
    }
}

/// Who has which ranks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Customers {
    evaluators: usize,
    /// Those who do not flood; `None` if there are no customers.
    ordinary: Option<usize>,
    flooding: usize,
    /// Evaluators of each customer who floods.
    each: usize,
}

impl Customers {
    pub(super) fn of(arguments: &LoadArguments) -> Result<Self, Exit> {
        let [evaluators, flooding] = [arguments.evaluators, arguments.flooding].map(|number| number as usize);
        let Some(customers) = arguments.customers.map(|number| number as usize) else {
            return Ok(Self { evaluators, ordinary: None, flooding: 0, each: 0 });
        };
        if customers > evaluators {
            let line = format!("--customers {customers}: each needs an evaluator, and --evaluators is {evaluators}");
            return Err(Exit::unusable(line));
        }
        if flooding >= customers {
            let line = format!("--flooding {flooding}: of {customers} customers, one at least must not flood");
            return Err(Exit::unusable(line));
        }
        let concurrency = arguments.concurrency.get();
        if flooding.saturating_mul(concurrency) > MOST_FLOODING {
            let line =
                format!("--flooding {flooding}: with --concurrency {concurrency}, over {MOST_FLOODING} would flood");
            return Err(Exit::unusable(line));
        }
        let each = evaluators / customers;
        Ok(Self { evaluators, ordinary: Some(customers - flooding), flooding, each })
    }

    /// Names of evaluators, by rank.
    pub(super) fn names(self) -> impl Iterator<Item = String> {
        let others = self.others();
        (0..self.evaluators).map(move |rank| match self.ordinary {
            None => format!("evaluator-{rank}"),
            // In turns, so that each has some that are often called and some that are not.
            Some(ordinary) if rank < others => format!("customer-{}/evaluator-{rank}", rank % ordinary),
            Some(ordinary) => format!("customer-{}/evaluator-{rank}", ordinary + (rank - others) / self.each),
        })
    }

    pub(super) fn flooding(self) -> usize {
        self.flooding
    }

    /// What callers of those who do not flood choose from.
    pub(super) fn choice(self, skew: f64) -> Result<Choice, Exit> {
        Choice::new(&(0..self.others()), skew)
    }

    /// The same of each who floods.
    pub(super) fn choices_of_flooding(self, skew: f64) -> Result<Vec<Choice>, Exit> {
        let first = |customer: usize| self.others() + customer * self.each;
        (0..self.flooding).map(|customer| Choice::new(&(first(customer)..first(customer + 1)), skew)).collect()
    }

    /// Evaluators of those who do not flood.
    fn others(self) -> usize {
        self.evaluators - self.flooding * self.each
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use rand::SeedableRng;

    use super::*;

    #[test]
    fn each_customer_has_evaluators_and_the_callers_of_one_who_floods_call_its_own() {
        for (customers, flooding, evaluators) in [(1, 0, 1), (3, 0, 10), (3, 1, 10), (4, 3, 4), (7, 2, 100)] {
            let ordinary = Some(customers - flooding);
            let spread = Customers { evaluators, ordinary, flooding, each: evaluators / customers };
            let names: Vec<String> = spread.names().collect();
            let whose = |rank: usize| names[rank].split_once('/').unwrap().0.to_owned();
            let mut owned = BTreeMap::<String, usize>::new();
            for rank in 0..evaluators {
                *owned.entry(whose(rank)).or_default() += 1;
            }
            assert_eq!((names.len(), owned.len()), (evaluators, customers), "{names:?}");
            assert!(owned.values().all(|owned| *owned >= evaluators / customers), "{owned:?}");

            let mut random = StdRng::seed_from_u64(7);
            let mut called =
                |choice: Choice| -> BTreeSet<String> { (0..10_000).map(|_| whose(choice.rank(&mut random))).collect() };
            let others = called(spread.choice(0.0).unwrap());
            assert_eq!(others.len(), customers - flooding);
            let flooded = spread.choices_of_flooding(0.0).unwrap();
            assert_eq!(flooded.len(), flooding);
            let flooded: Vec<_> = flooded.into_iter().map(&mut called).collect();
            assert!(flooded.iter().all(|each| each.len() == 1 && each.is_disjoint(&others)), "{flooded:?}");
            assert_eq!(flooded.into_iter().flatten().collect::<BTreeSet<_>>().len(), flooding);
        }
    }
}
