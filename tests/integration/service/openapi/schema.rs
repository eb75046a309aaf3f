//! As much of JSON Schema as the document uses. What is not known here fails, so that nothing in it goes unread.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{DOCUMENT, resolved};

/// What says something to people, or bounds texts and numbers further than the server's answers are looked at.
const UNREAD: [&str; 10] = [
    "contentEncoding",
    "contentMediaType",
    "default",
    "description",
    "examples",
    "format",
    "maxLength",
    "minLength",
    "pattern",
    "title",
];

/// What is wrong with a value, in lines that name the place.
pub(super) fn check(schema: &Value, value: &Value, at: &str, wrong: &mut Vec<String>) {
    members(schema, value, at, wrong);
    keywords(schema, value, at, wrong);
}

/// A member that the schema does not have is one that nobody can know of.
fn members(schema: &Value, value: &Value, at: &str, wrong: &mut Vec<String>) {
    let (Some(object), Some(known)) = (value.as_object(), properties(schema)) else { return };
    wrong.extend(object.keys().filter(|key| !known.contains(*key)).map(|key| format!("{at} has {key}")));
}

/// The names that an object of this schema may have; `None` if they are its own to choose.
fn properties(schema: &Value) -> Option<BTreeSet<String>> {
    let schema = resolved(schema);
    if schema.get("additionalProperties").is_some_and(|more| *more != Value::Bool(false)) {
        return None;
    }
    let mut known = BTreeSet::new();
    for part in ["allOf", "anyOf"].iter().flat_map(|join| schema[*join].as_array().into_iter().flatten()) {
        known.extend(properties(part).unwrap_or_default());
    }
    known.extend(schema["properties"].as_object().into_iter().flat_map(Map::keys).cloned());
    (!known.is_empty()).then_some(known)
}

fn keywords(schema: &Value, value: &Value, at: &str, wrong: &mut Vec<String>) {
    let schema = resolved(schema);
    let Some(keywords) = schema.as_object() else { panic!("{at} has the schema {schema}") };
    for (keyword, said) in keywords {
        let holds = match keyword.as_str() {
            "type" => said.as_array().map_or_else(|| is(said, value), |any| any.iter().any(|kind| is(kind, value))),
            "const" => said == value,
            "enum" => said.as_array().unwrap().contains(value),
            "minimum" => value.as_f64().is_none_or(|number| number >= said.as_f64().unwrap()),
            "maximum" => value.as_f64().is_none_or(|number| number <= said.as_f64().unwrap()),
            "anyOf" => said.as_array().unwrap().iter().any(|part| {
                let mut why = Vec::new();
                check(part, value, at, &mut why);
                why.is_empty()
            }),
            "allOf" => {
                said.as_array().unwrap().iter().for_each(|part| self::keywords(part, value, at, wrong));
                true
            }
            "required" => {
                let missing =
                    said.as_array().unwrap().iter().filter(|name| value.get(name.as_str().unwrap()).is_none());
                value.is_object() && missing.map(|name| wrong.push(format!("{at} lacks {name}"))).count() == 0
            }
            "properties" => {
                let there =
                    said.as_object().unwrap().iter().filter_map(|(name, part)| Some((name, part, value.get(name)?)));
                there.for_each(|(name, part, value)| check(part, value, &format!("{at}.{name}"), wrong));
                true
            }
            "additionalProperties" => {
                let others = value
                    .as_object()
                    .into_iter()
                    .flatten()
                    .filter(|(name, _)| schema["properties"].get(name).is_none());
                others
                    .filter(|_| said.is_object())
                    .for_each(|(name, value)| check(said, value, &format!("{at}.{name}"), wrong));
                true
            }
            "propertyNames" => {
                let names = value.as_object().into_iter().flat_map(Map::keys);
                names.for_each(|name| check(said, &name.as_str().into(), &format!("the name {at}.{name}"), wrong));
                true
            }
            "items" => {
                value.as_array().into_iter().flatten().for_each(|value| check(said, value, &format!("{at}[]"), wrong));
                true
            }
            unread => {
                assert!(UNREAD.contains(&unread), "{at}: who reads {unread}?");
                true
            }
        };
        if !holds {
            wrong.push(format!("{at} is {value}, against {keyword}: {said}"));
        }
    }
}

fn is(kind: &Value, value: &Value) -> bool {
    match kind.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        kind => panic!("there is no type {kind}"),
    }
}

#[test]
fn what_a_schema_does_not_say_is_found() {
    let spec = &DOCUMENT["components"]["schemas"]["ShownSpec"];
    let found = |value: &str| {
        let mut wrong = Vec::new();
        check(spec, &serde_json::from_str(value).unwrap(), "spec", &mut wrong);
        wrong
    };
    assert_eq!(found(r#"{"debug": true, "limits": {"fuel": 7}, "config": {"key": null}}"#), [""; 0]);
    assert_eq!(found(r#"{"bug": true}"#), ["spec has bug"]);
    assert_eq!(found(r#"{"limits": {"fool": 7}}"#), ["spec.limits has fool"]);
    assert_eq!(found(r#"{"isolation": "wild"}"#).len(), 1);
    assert_eq!(found(r#"{"limits": {"fuel": -7}}"#).len(), 1);
    assert_eq!(found(r#"{"config": {"key": "shown"}}"#).len(), 1);
}
