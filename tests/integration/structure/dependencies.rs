//! Which crates an embedder gets.

use std::{collections::BTreeSet, process::Command};

use serde_json::Value;

use super::{files, root, rust::words};

pub(super) fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .args(["--offline", "--locked", "--manifest-path"])
        .arg(root().join("Cargo.toml"))
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A crate as `cargo tree` takes it: `name@version`.
type Crate = String;

fn name(of: &Crate) -> &str {
    of.split_once('@').map_or(of, |(name, _)| name)
}

fn names<'a>(crates: impl IntoIterator<Item = &'a Crate>) -> BTreeSet<&'a str> {
    crates.into_iter().map(name).collect()
}

/// The crates that `cargo tree` lists.
fn tree(arguments: &[&str]) -> BTreeSet<Crate> {
    let arguments = [&["tree", "--edges", "normal", "--prefix", "none"], arguments].concat();
    let listed = cargo(&arguments);
    let crates = listed.lines().filter_map(|line| line.split_once(" v"));
    crates.map(|(name, rest)| format!("{name}@{}", rest.split(' ').next().unwrap_or(rest))).collect()
}

/// Of this crate, with no features but these.
fn library(features: &str, more: &[&str]) -> BTreeSet<Crate> {
    tree(&[&["--package", "evalpool", "--no-default-features", "--features", features], more].concat())
}

/// The optional dependencies that each of these features turns on, as Cargo.toml has them.
fn dependencies_of<const N: usize>(features: [&str; N]) -> [BTreeSet<String>; N] {
    let metadata: Value = serde_json::from_str(&cargo(&["metadata", "--no-deps", "--format-version", "1"])).unwrap();
    let of = |feature: &str| -> BTreeSet<String> {
        let words = metadata["packages"][0]["features"][feature].as_array().unwrap();
        let words = words.iter().map(|word| word.as_str().unwrap());
        words.filter_map(|word| word.strip_prefix("dep:")).map(str::to_owned).collect()
    };
    features.map(of)
}

#[test]
fn an_embedder_does_without_the_services_dependencies() {
    let [service, direct, extism] = dependencies_of(["service", "direct", "extism"]);
    assert!(service.len() > 5, "{service:?}");
    let files = files();
    let own = || files.iter().filter(|file| !["service", "bin"].contains(&file.path.split('/').next().unwrap()));
    for (engine, of_engine) in [("direct", direct), ("extism", extism)] {
        // One that is no longer optional is not in the lists above either: so the library itself must use each.
        let first = library(engine, &["--depth", "1"]);
        assert!(names(&first).contains("tokio"), "{first:?}");
        for name in names(&first).into_iter().filter(|name| *name != "evalpool") {
            // In the text rather than in the code: serde's attributes name a crate in quotes.
            let used = own().any(|file| words(&file.text, &name.replace('-', "_")).next().is_some());
            assert!(used, "{engine} alone has {name}, which only the service uses");
        }
        // What an engine needs, a server may need as well.
        let below: BTreeSet<Crate> = first
            .iter()
            .filter(|dependency| of_engine.contains(name(dependency)))
            .flat_map(|dependency| tree(&["--package", dependency]))
            .collect();
        let all = library(engine, &[]);
        let only: Vec<_> =
            names(&all).into_iter().filter(|name| service.contains(*name) && !names(&below).contains(name)).collect();
        assert!(only.is_empty(), "{engine} alone brings {only:?}");
    }
}

#[test]
fn manifests_bring_the_one_crate_that_reads_them() {
    let (all, without) = (library("manifest", &[]), library("", &[]));
    assert_eq!(names(all.difference(&without)), BTreeSet::from(["extism-manifest"]));
}

#[test]
fn the_library_can_do_without_any_engine_and_with_one_has_not_the_other() {
    for (features, engines) in [("", &[][..]), ("direct", &["wasmtime"]), ("extism", &["extism", "wasmtime"])] {
        let all = library(features, &[]);
        let found: Vec<_> = all.iter().map(name).filter(|name| ["extism", "wasmtime"].contains(name)).collect();
        assert_eq!(found, engines, "with {features:?}");
    }
}

#[test]
fn direct_alone_reads_webassembly_with_one_crate_and_no_text_of_it() {
    let all = library("direct", &[]);
    let readers: Vec<_> = all.iter().filter(|each| name(each) == "wasmparser").collect();
    assert_eq!(readers.len(), 1, "{readers:?}");
    assert!(!names(&all).contains("wat"), "WebAssembly's text format is for tests");
}
