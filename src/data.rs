//! The data of evaluations, and the rule by which it is merged into the guest's input.
//!
//! # The merge rule
//!
//! Later wins. Two JSON objects are merged key by key, at every depth: where both have an object under a key, these are
//! merged in turn; otherwise the later value replaces the earlier. Arrays, text and raw bytes are never merged: the
//! later replaces the earlier as a whole. [`Data::Empty`] changes nothing.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{config::Input, error::Error};

/// The data of one evaluation, or a part of it.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub enum Data {
    /// No data: the guest's input is empty.
    #[default]
    Empty,
    /// Passed to the guest unchanged. Never merged, even if they hold JSON.
    Bytes(Bytes),
    /// Merged by the [rule](self) and passed to the guest as compact JSON.
    Json(Value),
}

impl Data {
    /// Turns any serialisable value into JSON data.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`](Error::InvalidRequest) if it cannot be JSON, such as a map whose keys are not strings.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self, Error> {
        serde_json::to_value(value)
            .map(Data::Json)
            .map_err(|error| Error::invalid_request(format!("the data cannot be written as JSON: {error}")))
    }

    /// Merges `later` over this, by the [rule](self).
    #[must_use]
    pub fn merge(self, later: Data) -> Data {
        match (self, later) {
            (earlier, Data::Empty) => earlier,
            (Data::Json(mut earlier), Data::Json(later)) => {
                merge_json(&mut earlier, later);
                Data::Json(earlier)
            }
            (_, later) => later,
        }
    }

    /// The guest's input: this data, merged over `base`, the evaluator's own. Data is copied only to merge two JSON
    /// objects.
    ///
    /// # Errors
    ///
    /// [`PayloadTooLarge`](Error::PayloadTooLarge) if it is over `limit` bytes.
    pub(crate) fn to_input(&self, base: Data, limit: u64) -> Result<Bytes, Error> {
        let merged;
        let data = match (&base, self) {
            (_, Data::Empty) | (Data::Json(Value::Object(_)), Data::Json(Value::Object(_))) => {
                merged = base.merge(self.clone());
                &merged
            }
            _ => self,
        };
        let input = match data {
            Data::Empty => Bytes::new(),
            Data::Bytes(bytes) => bytes.clone(),
            Data::Json(value) => Bytes::from(value.to_string()),
        };
        if input.len() as u64 > limit {
            return Err(Error::PayloadTooLarge { what: "input", limit });
        }
        Ok(input)
    }
}

/// Where an evaluation's data comes from. Which form of it a revision wants is known only once that revision is at hand.
pub(crate) trait InputSource: Sync {
    /// The data for a revision with this [`Input`]. Asked again if the evaluator is replaced before its guest runs.
    fn data(&self, wanted: Input) -> Result<&Data, Error>;

    /// Whether it takes no time that anybody could measure to give it, and to make an input of it that is merged with nothing.
    fn is_at_hand(&self) -> bool {
        false
    }
}

/// A caller's own data is what it is.
impl InputSource for Data {
    fn data(&self, _: Input) -> Result<&Data, Error> {
        Ok(self)
    }

    fn is_at_hand(&self) -> bool {
        matches!(self, Data::Empty | Data::Bytes(_))
    }
}

/// A loop rather than recursion: a caller that nests deeply must not overflow this thread's stack.
fn merge_json(earlier: &mut Value, later: Value) {
    let mut left = vec![(earlier, later)];
    while let Some((earlier, later)) = left.pop() {
        match (earlier, later) {
            (Value::Object(earlier), Value::Object(later)) => {
                let (mut shared, new): (Map<_, _>, Map<_, _>) =
                    later.into_iter().partition(|(key, _)| earlier.contains_key(key));
                earlier.extend(new);
                left.extend(earlier.iter_mut().filter_map(|(key, slot)| Some((slot, shared.remove(key)?))));
            }
            (slot, later) => *slot = later,
        }
    }
}

macro_rules! from_bytes {
    ($(|$from:ident: $type:ty| $bytes:expr;)*) => {$(
        impl From<$type> for Data {
            fn from($from: $type) -> Self {
                Data::Bytes($bytes)
            }
        }
    )*};
}

from_bytes! {
    |bytes: Bytes| bytes;
    |bytes: Vec<u8>| bytes.into();
    |text: String| text.into();
    |bytes: &[u8]| Bytes::copy_from_slice(bytes);
    |text: &str| Bytes::copy_from_slice(text.as_bytes());
}

impl<const N: usize> From<&[u8; N]> for Data {
    fn from(bytes: &[u8; N]) -> Self {
        Data::from(bytes.as_slice())
    }
}

impl From<Value> for Data {
    fn from(value: Value) -> Self {
        Data::Json(value)
    }
}

impl From<()> for Data {
    fn from((): ()) -> Self {
        Data::Empty
    }
}

/// Gives an evaluator data of its own, over which each call's data is merged.
///
/// Called once for each evaluation, on the caller's task, before a runtime is leased. It must not block.
pub trait DataProvider: Send + Sync + 'static {
    /// The data for one evaluation.
    ///
    /// # Errors
    ///
    /// The evaluation fails with this error.
    fn provide(&self) -> Result<Data, Error>;
}

/// The same data for every call: `Static(data)`.
#[derive(Debug, Clone)]
pub struct Static(pub Data);

impl DataProvider for Static {
    fn provide(&self) -> Result<Data, Error> {
        Ok(self.0.clone())
    }
}

/// Data that a closure makes for each call: `PerCall(|| Ok(…))`.
#[derive(Debug, Clone)]
pub struct PerCall<F>(pub F);

impl<F: Fn() -> Result<Data, Error> + Send + Sync + 'static> DataProvider for PerCall<F> {
    fn provide(&self) -> Result<Data, Error> {
        (self.0)()
    }
}

/// Several providers, whose data is merged in order by the [rule](self): later wins.
#[derive(Clone, Default)]
pub struct Composite(Vec<Arc<dyn DataProvider>>);

impl Composite {
    /// A composite without providers, which provides [`Data::Empty`].
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a provider whose data wins over those before it.
    #[must_use]
    pub fn with(mut self, provider: impl DataProvider) -> Self {
        self.0.push(Arc::new(provider));
        self
    }
}

impl DataProvider for Composite {
    fn provide(&self) -> Result<Data, Error> {
        self.0.iter().try_fold(Data::Empty, |earlier, provider| Ok(earlier.merge(provider.provide()?)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn later_wins_and_objects_are_merged_inside() {
        let earlier = Data::from(json!({"a": 1, "deep": {"x": 1, "y": [1, 2]}, "gone": null}));
        let later = Data::from(json!({"b": 2, "deep": {"y": [3], "z": {}}, "gone": "here"}));
        let merged = json!({"a": 1, "b": 2, "deep": {"x": 1, "y": [3], "z": {}}, "gone": "here"});
        assert_eq!(earlier.merge(later), Data::Json(merged));
    }

    #[test]
    fn what_is_not_an_object_on_both_sides_is_replaced_whole() {
        let object = Data::from(json!({"a": 1}));
        assert_eq!(object.clone().merge(Data::from("{}")), Data::from("{}"));
        assert_eq!(Data::from("x").merge(object.clone()), object);
        assert_eq!(Data::from(json!([1])).merge(Data::from(json!([2]))), Data::from(json!([2])));
    }

    #[test]
    fn empty_gives_way_on_either_side() {
        let object = Data::from(json!({"a": 1}));
        assert_eq!(object.clone().merge(Data::Empty), object);
        assert_eq!(Data::Empty.merge(object.clone()), object);
    }

    #[test]
    fn a_composite_asks_its_providers_in_order() {
        let composite = Composite::new()
            .with(Static(json!({"who": "static", "kept": true}).into()))
            .with(PerCall(|| Ok(json!({"who": "call"}).into())));
        assert_eq!(composite.provide().unwrap(), json!({"who": "call", "kept": true}).into());
    }

    #[test]
    fn an_input_is_the_merged_data_as_bytes() {
        let all = [Data::Empty, "{}".into(), json!({"a": 1, "b": 1}).into(), json!({"b": 2}).into(), json!([1]).into()];
        for base in &all {
            for own in &all {
                let merged = match base.clone().merge(own.clone()) {
                    Data::Empty => Bytes::new(),
                    Data::Bytes(bytes) => bytes,
                    Data::Json(value) => value.to_string().into(),
                };
                assert_eq!(own.to_input(base.clone(), 64).unwrap(), merged, "{base:?}, {own:?}");
            }
        }
    }

    #[test]
    fn input_over_its_limit_is_refused() {
        assert_eq!(Data::from("1234").to_input(Data::Empty, 4).unwrap(), "1234");
        assert_eq!(Data::from("12345").to_input(Data::Empty, 4).unwrap_err().kind(), "payload_too_large");
        assert_eq!(Data::Empty.to_input("12345".into(), 4).unwrap_err().kind(), "payload_too_large");
    }
}
