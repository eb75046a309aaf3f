//! How values are written in a file or the environment: sizes, lists, words.

use std::time::Duration;

use serde::Deserialize;
#[cfg(feature = "service")]
use serde::Serialize;

/// `64MiB`, or a number of bytes.
pub(crate) fn size<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    // Its own error speaks of its parser.
    let expected = |_| serde::de::Error::custom("expected a size, such as \"64MiB\", or a number of bytes");
    bytesize::ByteSize::deserialize(deserializer).map(|size| size.as_u64()).map_err(expected)
}

/// The same, where it may be left out.
pub(super) fn size_if_any<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    struct Bytes(#[serde(deserialize_with = "size")] u64);

    Option::<Bytes>::deserialize(deserializer).map(|size| size.map(|Bytes(bytes)| bytes))
}

/// A number, or the word `off`.
pub(super) mod off_or_number {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u64),
        Word(String),
    }

    #[expect(clippy::ref_option, reason = "serde's signature")]
    pub(in crate::config) fn serialize<S: Serializer>(value: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(number) => serializer.serialize_u64(*number),
            None => serializer.serialize_str("off"),
        }
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
        match Either::deserialize(deserializer) {
            Ok(Either::Number(number @ 1..)) => Ok(Some(number)),
            Ok(Either::Word(word)) if word == "off" => Ok(None),
            _ => Err(D::Error::custom("expected a number of at least 1, or \"off\"")),
        }
    }
}

/// A duration, or the word `off`.
pub(super) mod off_or_duration {
    use std::time::Duration;

    use humantime_serde::re::humantime::{format_duration, parse_duration};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[expect(clippy::ref_option, reason = "serde's signature")]
    pub(in crate::config) fn serialize<S: Serializer>(value: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(duration) => to.collect_str(&format_duration(*duration)),
            None => to.serialize_str("off"),
        }
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        match String::deserialize(from)?.as_str() {
            "off" => Ok(None),
            text => parse_duration(text).map(Some).map_err(|error| {
                D::Error::custom(format_args!("{error}; expected a duration, such as \"1m\", or \"off\""))
            }),
        }
    }
}

/// The shortest time after which what initialisers drew is drawn anew, where it is said in words: attempts take turns.
const LEAST_REFRESH: Duration = Duration::from_secs(10);

/// How often initialisers that run once run once more, or the word `off`; no time is `off` as well.
pub(super) fn refresh<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    use serde::de::Error;

    match off_or_duration::deserialize(from)? {
        Some(every) if every < LEAST_REFRESH && !every.is_zero() => {
            Err(D::Error::custom(format_args!("init_refresh is {every:?}; it must be at least 10s, or \"off\"")))
        }
        every => Ok(every),
    }
}

/// `init_refresh`, as a spec says it.
#[cfg(feature = "service")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Refresh(
    #[serde(serialize_with = "off_or_duration::serialize", deserialize_with = "refresh")] pub(crate) Option<Duration>,
);

/// A word of a closed set. A wrong word gets serde's own error, which lists the right ones.
pub(super) fn word<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    use serde::de::IntoDeserializer;

    T::deserialize(String::deserialize(deserializer)?.into_deserializer())
}

/// A list, or one text with commas: the environment has no lists.
pub(super) fn list_or_commas<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        List(Vec<String>),
        Text(String),
    }
    Ok(match Either::deserialize(deserializer)? {
        Either::List(list) => list,
        Either::Text(text) => {
            text.split(',').map(str::trim).filter(|host| !host.is_empty()).map(str::to_owned).collect()
        }
    })
}

/// The texts in a JSON or TOML object, by their keys as they are written. An error quotes no value: it may be a secret.
#[cfg(feature = "service")]
pub(crate) fn strings(text: &str) -> Result<Vec<(String, String)>, String> {
    let unusable = |why: String| format!("is no JSON or TOML object of strings: {why}");
    let string = |(key, value): (String, serde_json::Value)| match value {
        serde_json::Value::String(value) => Ok((key, value)),
        _ => Err(unusable(format!("{key:?} has another value"))),
    };
    object(text).map_err(unusable)?.into_iter().map(string).collect()
}

/// A JSON object, or a TOML table as one, with its keys as they are written.
#[cfg(feature = "service")]
pub(crate) fn object(text: &str) -> Result<serde_json::Map<String, serde_json::Value>, String> {
    use config::{FileFormat, Source, ValueKind};

    let first = |error: &dyn std::fmt::Display| error.to_string().lines().next().unwrap_or_default().to_owned();
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text).map_err(|error| first(&error));
    }
    let table = config::File::from_str(text, FileFormat::Toml).collect().map_err(|error| first(&error))?;
    config::Value::new(None, ValueKind::Table(table)).try_deserialize().map_err(|error| first(&error))
}

/// A field, if it is there and not `null`. An error names it.
#[cfg(feature = "service")]
pub(crate) fn take<T: serde::de::DeserializeOwned>(
    fields: &mut serde_json::Map<String, serde_json::Value>,
    within: &str,
    name: &str,
) -> Result<Option<T>, String> {
    match fields.remove(name) {
        None | Some(serde_json::Value::Null) => Ok(None),
        Some(value) => serde_json::from_value(value).map(Some).map_err(|error| format!("{within}{name}: {error}")),
    }
}
