//! How values are written in a file or the environment: sizes, lists, words.

use serde::Deserialize;

/// `64MiB`, or a number of bytes.
pub(super) fn size<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    Ok(bytesize::ByteSize::deserialize(deserializer)?.as_u64())
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
