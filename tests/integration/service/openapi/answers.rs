//! Every answer that a test gets from a server is one that the document has.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{DOCUMENT, METHODS, quoted, resolved, schema};
use crate::service::answer::Answer;

/// The operation that a request is, by its method and its path without a query. `None` for what is not in the document.
pub(super) fn operation(method: &str, path: &str) -> Option<&'static Value> {
    let matches = |template: &str| {
        let (template, path) = (template.split('/'), path.split('/'));
        template.clone().count() == path.clone().count()
            && template.zip(path).all(|(own, part)| if own.starts_with('{') { !part.is_empty() } else { own == part })
    };
    let (_, item) = DOCUMENT["paths"].as_object().unwrap().iter().find(|(template, _)| matches(template))?;
    item.get(method.to_lowercase()).filter(|_| METHODS.contains(&method))
}

/// The error kinds with which an answer comes: its description ends with them.
pub(super) fn kinds(answer: &'static Value) -> BTreeSet<&'static str> {
    let kinds = answer["description"].as_str().unwrap().split_once(" Kinds: ");
    kinds.map_or_else(BTreeSet::new, |(_, kinds)| quoted(kinds, '`'))
}

/// Holds an answer against the document: its status, its type, its headers, and all that is in it.
#[track_caller]
pub(in crate::service) fn check(method: &str, path: &str, answer: &Answer) {
    let Some(operation) = operation(method, path.split('?').next().unwrap()) else {
        // The page's, what is not there, and what a path does not take.
        return;
    };
    let Answer { status, body, .. } = answer;
    // A plugin may choose its status.
    let is_plugins = answer.header("server-timing").is_some();
    let said = operation["responses"].get(if is_plugins && *status != 200 {
        "default".to_owned()
    } else {
        status.to_string()
    });
    let said = resolved(said.unwrap_or_else(|| panic!("{method} {path}: {status} is not in the document: {answer:?}")));
    for (name, header) in said["headers"].as_object().into_iter().flatten() {
        let there = answer.header(&name.to_lowercase());
        assert!(there.is_some() || resolved(header)["required"] != true, "{method} {path} has no {name}: {answer:?}");
    }
    let Some(content) = said.get("content") else { return assert_eq!(body, b"", "{method} {path}: {answer:?}") };
    let kind = answer.header("content-type").map(|kind| kind.split(';').next().unwrap());
    let media = kind.and_then(|kind| content.get(kind)).or_else(|| content.get("*/*"));
    let media = media.unwrap_or_else(|| panic!("{method} {path}: {kind:?} is not in the document: {answer:?}"));
    if let Some(schema) = media.get("schema").filter(|_| !is_plugins && kind.is_some_and(|kind| kind.ends_with("json")))
    {
        let mut wrong = Vec::new();
        schema::check(schema, &answer.json(), "it", &mut wrong);
        assert!(wrong.is_empty(), "{method} {path}: {wrong:#?}\n{answer:?}");
    }
    if *status >= 400 && !is_plugins {
        assert!(kinds(said).contains(&*answer.kind()), "{method} {path}: {answer:?}");
    }
    if let Some(usage) = answer.header("evalpool-usage") {
        let mut wrong = Vec::new();
        let schema = &DOCUMENT["components"]["schemas"]["Usage"];
        schema::check(schema, &serde_json::from_str(usage).unwrap(), "its usage", &mut wrong);
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}

#[test]
fn an_answer_that_the_document_has_not_is_found() {
    let problem = |status: u16, kind: &str| Answer {
        status,
        headers: vec![("content-type".to_owned(), "application/problem+json".to_owned())],
        body: format!(r#"{{"type": "x:", "title": "", "status": {status}, "detail": "", "kind": "{kind}"}}"#).into(),
    };
    let holds = |method, path, answer| std::panic::catch_unwind(|| check(method, path, &answer)).is_ok();
    assert!(holds("GET", "/v1/tenants/acme", problem(404, "not_found")));
    assert!(!holds("GET", "/v1/tenants/acme", problem(404, "closed")), "of another kind");
    assert!(!holds("GET", "/v1/tenants", problem(404, "not_found")), "of a status that it does not have");
    assert!(!holds("POST", "/v1/evaluators/acme", problem(429, "saturated")), "without a header that it needs");
    assert!(!holds("GET", "/v1/tenants", problem(200, "not_found")), "of another type");
}
