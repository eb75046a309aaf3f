//! Spans, to be looked at.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, LazyLock, Mutex},
};

use tracing::{
    Dispatch, Id, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span::{Attributes, Record},
    subscriber::{DefaultGuard, NoSubscriber},
};
use tracing_subscriber::{Layer, filter::Targets, layer::Context, prelude::*, registry::LookupSpan};

/// A span of the pool.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) name: &'static str,
    /// The name of the span that it is a part of; empty if it is of none.
    pub(crate) parent: &'static str,
    /// The names of those that caused it.
    pub(crate) causes: Vec<&'static str>,
    pub(crate) fields: BTreeMap<&'static str, String>,
    pub(crate) has_ended: bool,
}

/// All spans that this thread makes while it is there, in the order in which they began.
pub(crate) struct Spans {
    seen: Arc<Mutex<Vec<(Id, Seen)>>>,
    _guard: DefaultGuard,
}

impl Seen {
    pub(crate) fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }
}

impl Spans {
    pub(crate) fn here() -> Self {
        // While there is only one dispatcher, `tracing` asks that of the thread that comes by a place first: another test's,
        // which wants nothing, and nobody is asked again.
        static OTHER: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(NoSubscriber::new()));
        LazyLock::force(&OTHER);
        let seen = Arc::<Mutex<Vec<(Id, Seen)>>>::default();
        let only = Targets::new().with_target("evalpool::span", LevelFilter::INFO);
        let subscriber = tracing_subscriber::registry().with(Look(seen.clone()).with_filter(only));
        Self { seen, _guard: subscriber.set_default() }
    }

    /// Those so far that are not forgotten.
    pub(crate) fn all(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().iter().map(|(_, seen)| seen.clone()).collect()
    }

    /// Names and those of their parents.
    pub(crate) fn names(&self) -> Vec<(&'static str, &'static str)> {
        self.all().into_iter().map(|seen| (seen.name, seen.parent)).collect()
    }

    /// The last of this name.
    pub(crate) fn last(&self, name: &str) -> Seen {
        let found = self.all().into_iter().rev().find(|seen| seen.name == name);
        found.unwrap_or_else(|| panic!("no span {name}: {:?}", self.names()))
    }

    pub(crate) fn forget(&self) {
        self.seen.lock().unwrap().clear();
    }
}

struct Look(Arc<Mutex<Vec<(Id, Seen)>>>);

impl Look {
    fn with(&self, id: &Id, change: impl FnOnce(&mut Seen)) {
        // Numbers are used again.
        if let Some((_, seen)) = self.0.lock().unwrap().iter_mut().rev().find(|(other, _)| other == id) {
            change(seen);
        }
    }
}

struct Fields<'a>(&'a mut BTreeMap<&'static str, String>);

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }
}

impl<S: Subscriber + for<'span> LookupSpan<'span>> Layer<S> for Look {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        let parent = span.parent().map_or("", |parent| parent.name());
        let mut seen = Seen { name: span.name(), parent, ..Seen::default() };
        attributes.record(&mut Fields(&mut seen.fields));
        self.0.lock().unwrap().push((id.clone(), seen));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        self.with(id, |seen| values.record(&mut Fields(&mut seen.fields)));
    }

    fn on_follows_from(&self, id: &Id, cause: &Id, context: Context<'_, S>) {
        let name = context.span(cause).unwrap().name();
        self.with(id, |seen| seen.causes.push(name));
    }

    fn on_close(&self, id: Id, _: Context<'_, S>) {
        self.with(&id, |seen| seen.has_ended = true);
    }
}
