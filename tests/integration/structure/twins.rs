//! Two tables name tests: that of Extism's own suite, and that of what differs from it. What they name exists, and nothing
//! is left out.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{dependencies::cargo, files, files_below, root, rust::words};

const OFFICIAL: &str = "tests/integration/conformance/official/OFFICIAL.md";
const DIFFERENCES: &str = "src/engine/direct/DIFFERENCES.md";

/// The tables of a document: the cells of each row, by the heading above. Each table begins with its titles and a rule.
fn tables(document: &str) -> Vec<(String, Vec<Vec<String>>)> {
    let text = fs::read_to_string(root().join(document)).unwrap();
    let mut tables = Vec::new();
    for section in text.split("\n## ").skip(1) {
        let heading = section.lines().next().unwrap().to_owned();
        let rows = section.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
        let rows = rows.map(|row| row.split(" | ").map(|cell| cell.trim().to_owned()).collect());
        tables.push((heading, rows.skip(1).collect()));
    }
    tables
}

/// What stands in a cell between two of these.
fn quoted(cell: &str, quote: char) -> Vec<&str> {
    cell.split(quote).skip(1).step_by(2).collect()
}

/// The functions of `src` and `tests` that could be tests, and the texts of the conformance cases.
struct Tests {
    functions: BTreeSet<String>,
    cases: String,
}

impl Tests {
    fn read() -> Self {
        let mut functions = BTreeSet::new();
        let mut cases = String::new();
        for file in files().into_iter().chain(files_below("tests")) {
            for at in words(&file.code, "fn") {
                let name = file.code[at + 2..].trim_start();
                let end = name.find(|next: char| !next.is_alphanumeric() && next != '_').unwrap_or(name.len());
                functions.insert(name[..end].to_owned());
            }
            if file.path.starts_with("integration/conformance/cases") {
                cases += &file.text;
            }
        }
        assert!(functions.len() > 1000 && cases.len() > 10_000, "where are the tests?");
        Self { functions, cases }
    }

    /// The tests that a cell names, of which there must be one at least.
    fn missing(&self, cell: &str) -> Vec<String> {
        let (functions, cases) = (quoted(cell, '`'), quoted(cell, '"'));
        // Names of tests, not of types, settings or functions of a plugin.
        let functions: Vec<_> = functions.into_iter().filter(|name| name.matches('_').count() > 2).collect();
        if functions.is_empty() && cases.is_empty() {
            return vec![format!("no test in {cell:?}")];
        }
        let functions = functions.into_iter().filter(|name| !self.functions.contains(*name));
        let cases = cases.into_iter().filter(|case| !self.cases.contains(&format!("\"{case}\"")));
        functions.chain(cases).map(|name| format!("there is no {name}")).collect()
    }
}

/// The source of the crate `extism`, with the tests that it was published with.
fn extism() -> PathBuf {
    // Other systems' crates need not be there.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let metadata = cargo(&["metadata", "--format-version", "1", "--filter-platform", &platform]);
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let package = packages.iter().find(|package| package["name"] == "extism").unwrap();
    Path::new(package["manifest_path"].as_str().unwrap()).with_file_name("src/tests")
}

/// The tests of a file: functions below `#[test]`, or in `quickcheck!`.
fn tests_of(text: &str) -> BTreeSet<String> {
    let mut tests = BTreeSet::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim) {
        is_test |= line == "#[test]" || line == "quickcheck! {";
        if is_test && let Some((name, _)) = line.strip_prefix("fn ").and_then(|line| line.split_once('(')) {
            tests.insert(name.to_owned());
            is_test = false;
        }
    }
    tests
}

#[test]
fn each_test_of_extisms_own_suite_has_a_twin_or_a_reason() {
    let tests = Tests::read();
    let mut listed = BTreeMap::new();
    let mut wrong = Vec::new();
    for (heading, rows) in tables(OFFICIAL) {
        let mut names = BTreeSet::new();
        for row in &rows {
            let [official, asks, here] = &row[..] else { panic!("{row:?} has not three cells") };
            let name = official.trim_matches('`');
            assert!(names.insert(name.to_owned()), "{name} is listed twice");
            assert!(!asks.is_empty(), "what does {name} ask for?");
            let reason = here.strip_prefix("Does not apply");
            let missing = tests.missing(here);
            // A reason may name a test beside it.
            let must_exist = reason.is_none() || here.matches('_').count() > 2;
            wrong.extend(missing.into_iter().filter(|_| must_exist).map(|missing| format!("{name}: {missing}")));
            assert!(reason.is_none_or(|reason| reason.len() > 40), "{name} does not apply, for no reason");
        }
        listed.insert(heading.trim_matches('`').to_owned(), names);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    let suite = extism();
    let mut files: Vec<_> = fs::read_dir(&suite).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    assert!(files.len() > 3, "{} has no suite", suite.display());
    for file in files {
        let name = file.file_name().unwrap().to_str().unwrap();
        let official = tests_of(&fs::read_to_string(&file).unwrap());
        assert_eq!(listed.remove(name).unwrap_or_default(), official, "{name}");
    }
    // What is left is of the kernel, which is published as a binary only.
    assert_eq!(listed.into_keys().collect::<Vec<_>>(), ["kernel/src/lib.rs"]);
}

#[test]
fn each_difference_from_extism_has_a_reason_and_a_test() {
    let tests = Tests::read();
    let tables = tables(DIFFERENCES);
    assert_eq!(tables.len(), 2);
    let mut wrong = Vec::new();
    for row in tables.iter().flat_map(|(_, rows)| rows) {
        let [ours, theirs, why, test] = &row[..] else { panic!("{row:?} has not four cells") };
        assert!([ours, theirs, why].iter().all(|cell| !cell.is_empty()), "{row:?}");
        wrong.extend(tests.missing(test).into_iter().map(|missing| format!("{ours:.60}: {missing}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
