//! What a load does: which evaluators there are, who calls them, and when.

use std::time::Duration;

use bytes::Bytes;

use super::{
    customers::{Choice, Customers},
    open::{self, Schedule},
    tally::Caller,
    trace::Trace,
};
use crate::{
    Data,
    service::{Exit, cli::LoadArguments},
};

/// How long a load takes, if nothing else says so.
const DURATION: Duration = Duration::from_secs(5);

/// Which evaluators there are.
pub(super) enum Evaluators {
    Customers(Customers),
    Trace(Trace),
}

impl Evaluators {
    /// Reads the trace, if there is one, whose inputs may have so many bytes.
    pub(super) fn of(arguments: &LoadArguments, input_size: u64) -> Result<Self, Exit> {
        Ok(match &arguments.trace {
            Some(path) => Self::Trace(Trace::read(path, input_size)?),
            None => Self::Customers(Customers::of(arguments)?),
        })
    }

    /// By rank.
    pub(super) fn names(&self) -> Vec<String> {
        match self {
            Self::Customers(customers) => customers.names().collect(),
            Self::Trace(trace) => trace.names.clone(),
        }
    }
}

/// Who calls which of them, and when.
pub(super) struct Plan {
    /// Evaluations that are due at times of their own.
    pub(super) schedule: Option<Schedule>,
    /// Those who evaluate without pause, each of them so many tasks as `concurrency` says.
    pub(super) callers: Vec<(Caller, Choice)>,
    pub(super) concurrency: usize,
    pub(super) chaos: bool,
    /// When it is over; without it, at the end of the schedule.
    pub(super) duration: Option<Duration>,
    /// How long it will take, as far as is known.
    pub(super) length: Duration,
    /// Customers who flood.
    pub(super) flooding: usize,
    pub(super) seed: u64,
}

impl Plan {
    pub(super) fn of(arguments: &LoadArguments, evaluators: Evaluators, input: &Data, seed: u64) -> Result<Self, Exit> {
        let LoadArguments { skew, chaos, rate, duration, .. } = *arguments;
        let concurrency = arguments.concurrency.get();
        let plan = |schedule, callers, duration: Option<Duration>, length, flooding| Self {
            schedule,
            callers,
            concurrency,
            chaos,
            duration,
            length,
            flooding,
            seed,
        };
        let customers = match evaluators {
            Evaluators::Customers(customers) => customers,
            Evaluators::Trace(trace) => {
                let length = trace.length();
                let length = duration.map_or(length, |duration| duration.min(length));
                let input = match input {
                    Data::Bytes(bytes) => bytes.clone(),
                    // Such as there are only with data of the evaluator's own, which the command line does not take here.
                    _ => Bytes::new(),
                };
                return Ok(plan(Some(trace.schedule(&input)), Vec::new(), duration, length, 0));
            }
        };
        let duration = duration.unwrap_or(DURATION);
        let ordinary = customers.choice(skew)?;
        let schedule = rate.map(|rate| open::poisson(rate, ordinary, input.clone(), seed)).transpose()?;
        // Those who do not flood come first, so that their choices are the same with and without a flood.
        let mut callers = Vec::new();
        if schedule.is_none() {
            callers.push((Caller::Ordinary, ordinary));
        }
        callers.extend(customers.choices_of_flooding(skew)?.into_iter().map(|choice| (Caller::Flooding, choice)));
        Ok(plan(schedule, callers, Some(duration), duration, customers.flooding()))
    }
}
