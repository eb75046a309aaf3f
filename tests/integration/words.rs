//! The same things have the same names in the code, the documents, the dashboards, the runbook, the page and the `OpenAPI`
//! document. (That metrics and labels exist, the tests of the dashboards hold; that each error kind is described, those of
//! problems; that the `OpenAPI` document is complete, its own.)

use std::{collections::BTreeSet, fs, path::Path};

/// What people read, beside the dashboards and the page.
const DOCUMENTS: [&str; 8] = [
    "README.md",
    "ARCHITECTURE.md",
    "SECURITY.md",
    "ERRORS.md",
    "RUNBOOK.md",
    "config/alerts.yml",
    "config/rules.yml",
    OPENAPI,
];

/// What programs read of the requests.
const OPENAPI: &str = "src/service/http/openapi.json";

const EXAMPLE: &str = include_str!("../../config/evalpool.toml");

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The files of a folder with this extension, with their texts.
fn files(folder: &str, extension: &str) -> Vec<(String, String)> {
    let found: Vec<_> = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder))
        .unwrap()
        .map(|entry| format!("{folder}/{}", entry.unwrap().file_name().to_str().unwrap()))
        .filter(|path| path.ends_with(extension))
        .map(|path| (path.clone(), read(&path)))
        .collect();
    assert!(!found.is_empty(), "{folder}");
    found
}

/// Words, as code has them.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|next: char| !next.is_ascii_alphanumeric() && next != '_').map(|word| word.trim_matches('_'))
}

/// `section.name` of each setting: the example has every one, those without a fixed default in comments.
fn settings() -> BTreeSet<String> {
    let (mut section, mut found) = ("", BTreeSet::new());
    for line in EXAMPLE.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name;
        }
        let Some((name, _)) = line.trim_start_matches("# ").split_once(" = ") else { continue };
        if is_name(name) && !section.contains('.') {
            found.insert(format!("{section}.{name}"));
        }
    }
    found
}

fn is_name(word: &str) -> bool {
    !word.is_empty() && word.chars().all(|next| next.is_ascii_lowercase() || next == '_')
}

#[test]
fn every_setting_that_is_named_exists() {
    let known = settings();
    let sections: BTreeSet<_> = known.iter().map(|name| name.split_once('.').unwrap().0).collect();
    let mut texts: Vec<_> = DOCUMENTS.map(|path| (path.to_owned(), read(path))).into();
    texts.extend(files("dashboards", ".json"));
    texts.extend(files("src/service/ui/page", ".js"));
    let (mut named, mut wrong) = (BTreeSet::new(), Vec::new());
    for (path, text) in &texts {
        // In backticks, as settings are written; code between them has spaces or brackets.
        for word in text.split('`').skip(1).step_by(2) {
            let word = word.split([' ', '=']).next().unwrap_or(word);
            let Some((section, name)) = word.split_once('.') else { continue };
            if sections.contains(section) && is_name(name) && !["toml", "rs"].contains(&name) {
                if !known.contains(word) {
                    wrong.push(format!("{path} names `{word}`"));
                }
                named.insert(word.to_owned());
            }
        }
    }
    assert!(wrong.is_empty(), "these are no settings: {wrong:#?}");
    let unnamed: Vec<_> = known.difference(&named).collect();
    assert!(unnamed.is_empty(), "no document has {unnamed:?}");
}

/// A word of several parts is a field of an answer, an error kind or a label's value: it is the code's word, too.
#[test]
fn the_page_and_the_openapi_document_use_the_words_of_the_code() {
    let mut code = BTreeSet::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                code.extend(words(&fs::read_to_string(path).unwrap()).map(str::to_owned));
            }
        }
    }
    let mut texts = files("src/service/ui/page", ".js");
    texts.push((OPENAPI.to_owned(), read(OPENAPI)));
    for (path, text) in texts {
        for word in words(&text).filter(|word| word.contains('_') && !word.contains(char::is_uppercase)) {
            assert!(code.contains(word), "{path} has {word}, which the code has not");
        }
    }
}
