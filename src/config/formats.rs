//! How values are written: sizes, lists, words.

use serde::Deserialize;

/// `64MiB`, or a number of bytes.
pub(super) mod size {
    use serde::{Deserialize, Deserializer, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(in crate::config) fn serialize<S: Serializer>(bytes: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(*bytes)
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        Ok(bytesize::ByteSize::deserialize(deserializer)?.as_u64())
    }
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
            Ok(Either::Number(0)) | Err(_) => Err(D::Error::custom("expected a number of at least 1, or \"off\"")),
            Ok(Either::Number(number)) => Ok(Some(number)),
            Ok(Either::Word(word)) if word == "off" => Ok(None),
            Ok(Either::Word(word)) => {
                Err(D::Error::custom(format!("expected a number of at least 1, or \"off\", not {word:?}")))
            }
        }
    }
}

/// A word out of a closed set, with serde's own error, which names them all.
pub(super) fn word<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    use serde::de::IntoDeserializer;

    T::deserialize(String::deserialize(deserializer)?.into_deserializer())
}

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
