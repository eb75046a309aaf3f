//! The folder after others have been at it: killed servers, edited files, a disk that refuses.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use tempfile::TempDir;

use super::*;
use crate::{Isolation, Settings, Wasi, background::Background, service::log::tests::logged};

fn plugin(export: &str) -> Plugin {
    let bytes = wat::parse_str(format!("(module (func (export {export:?})))")).unwrap();
    Plugin::new(Bytes::from(bytes), None).unwrap()
}

fn document(entry_point: &str) -> Document {
    Document {
        entry_point: Some(entry_point.into()),
        isolation: Some(Isolation::Reuse),
        wasi: Some(Wasi::Off),
        debug: true,
        ..Document::default()
    }
}

fn opened(folder: &TempDir) -> (Store, Vec<(String, Spec)>) {
    Store::open(folder.path(), &Ceilings::new(&Settings::default())).unwrap()
}

#[expect(clippy::unnecessary_wraps, reason = "what the store asks for")]
fn anything(_: Option<u64>) -> Result<(), Error> {
    Ok(())
}

fn put(store: &Store, name: &str, export: &str) {
    let staged = store.stage("one", &plugin(export), &[], None).unwrap();
    store.commit(name, export, &document(export), staged, anything, || ()).unwrap();
}

fn open(folder: &TempDir) -> (Store, BTreeSet<String>) {
    let (store, specs) = opened(folder);
    (store, specs.into_iter().map(|(name, _)| name).collect())
}

fn files(folder: &TempDir, below: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(folder.path().join(below)).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn blob(export: &str) -> String {
    format!("sha256-{}.wasm", plugin(export).digest().hex())
}

/// Files are removed on another thread.
fn eventually(holds: impl Fn() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("not within ten seconds");
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

#[test]
fn what_was_committed_is_found_again_as_it_was() {
    let folder = TempDir::new().unwrap();
    let (store, found) = open(&folder);
    assert_eq!(found, set([]));
    put(&store, "a/b", "run");
    drop(store);
    assert_eq!(files(&folder, "evaluators"), set(["a+b.json"]));
    let (_store, specs) = opened(&folder);
    let [(name, spec)] = specs.as_slice() else { panic!("{specs:?}") };
    assert_eq!(name, "a/b");
    assert_eq!(spec.digest, Some(plugin("run").digest()));
    assert_eq!(spec.entry_point.as_deref(), Some("run"));
    assert_eq!((spec.isolation, spec.wasi), (Some(Isolation::Reuse), Some(Wasi::Off)));
}

#[test]
fn a_plugin_is_kept_for_as_long_as_any_evaluator_needs_it() {
    let folder = TempDir::new().unwrap();
    let (store, _) = open(&folder);
    put(&store, "a", "one");
    put(&store, "b", "one");
    put(&store, "a", "two");
    assert_eq!(files(&folder, "plugins"), [blob("one"), blob("two")].into());
    let ((), claim) = store.forget("b", anything, || ()).unwrap();
    assert!(files(&folder, "plugins").contains(&blob("one")), "the pool may still read it");
    drop(claim);
    eventually(|| files(&folder, "plugins") == [blob("two")].into());
    // Uploaded again, it must survive being replaced by itself.
    put(&store, "a", "two");
    drop(store);
    assert_eq!(open(&folder).1, set(["a"]));
}

#[test]
fn the_old_plugin_stays_until_the_new_one_is_published() {
    // One thread drops what is dropped elsewhere, in order.
    let mut one = tokio::runtime::Builder::new_multi_thread();
    let runtime = one.worker_threads(1).max_blocking_threads(1).build().unwrap();
    let _within = runtime.enter();
    let folder = TempDir::new().unwrap();
    let (store, _) = open(&folder);
    put(&store, "a", "one");
    let staged = store.stage("one", &plugin("two"), &[], None).unwrap();
    let published = store.commit("a", "two", &document("two"), staged, anything, || {
        // Whatever was dropped before this is gone when this is.
        let (sender, gone) = std::sync::mpsc::channel::<()>();
        Background::current().drop_elsewhere(sender);
        gone.recv().unwrap_err();
        files(&folder, "plugins")
    });
    assert_eq!(published.unwrap().0, [blob("one"), blob("two")].into());
    eventually(|| files(&folder, "plugins") == [blob("two")].into());
}

#[test]
fn what_is_staged_and_not_committed_leaves_nothing() {
    let folder = TempDir::new().unwrap();
    let (store, _) = open(&folder);
    let (first, second) = (
        store.stage("one", &plugin("one"), &[], None).unwrap(),
        store.stage("one", &plugin("one"), &[], None).unwrap(),
    );
    drop(first);
    put(&store, "a", "two");
    assert!(files(&folder, "plugins").contains(&blob("one")), "the second upload still needs it");
    drop(second);
    eventually(|| files(&folder, "plugins") == [blob("two")].into());
}

#[test]
fn what_a_killed_server_left_behind_is_removed_at_start() {
    let folder = TempDir::new().unwrap();
    put(&open(&folder).0, "a", "one");
    fs::write(folder.path().join("plugins").join(blob("two")), plugin("two").bytes()).unwrap();
    for below in ["plugins", "evaluators"] {
        fs::write(folder.path().join(below).join(".evalpool-x1y2z3.part"), "half of").unwrap();
    }
    let (_store, found) = open(&folder);
    assert_eq!(found, set(["a"]));
    assert_eq!(files(&folder, "plugins"), [blob("one")].into());
    assert_eq!(files(&folder, "evaluators"), set(["a.json"]));
}

#[test]
fn a_file_that_cannot_be_read_is_left_alone_and_so_is_every_plugin() {
    let folder = TempDir::new().unwrap();
    let (store, _) = open(&folder);
    put(&store, "a", "one");
    put(&store, "b", "two");
    drop(store);
    let evaluators = folder.path().join("evaluators");
    let whole = fs::read_to_string(evaluators.join("b.json")).unwrap();
    let damaged = [
        whole.get(..20).unwrap().to_owned(),
        String::new(),
        "[]".to_owned(),
        whole.replace("sha256:", "sha1:"),
        whole.replace("\"b\"", "\"../../b\""),
        whole.replace("\"b\"", "\"a\""),
        whole.replace("\"b\",", "\"b\", \"memory\": 1,"),
        " ".repeat(100_000),
    ];
    for text in damaged {
        fs::write(evaluators.join("b.json"), &text).unwrap();
        assert_eq!(open(&folder).1, set(["a"]), "{text:?}");
        assert_eq!(files(&folder, "plugins"), [blob("one"), blob("two")].into(), "{text:?}");
        assert_eq!(fs::read_to_string(evaluators.join("b.json")).unwrap(), text);
    }
    fs::write(evaluators.join("b.json"), whole).unwrap();
    assert_eq!(open(&folder).1, set(["a", "b"]), "mended");
}

#[test]
fn names_that_differ_in_case_have_files_that_differ_in_more() {
    let folder = TempDir::new().unwrap();
    let (store, _) = open(&folder);
    let longest = ["a", "A"].map(|letter| letter.repeat(128));
    let names = ["foo", "Foo", "fOo", "FOO", "a/B", "A/b", "1", &longest[0], &longest[1]];
    for name in names {
        put(&store, name, "run");
    }
    let kept = files(&folder, "evaluators");
    assert_eq!(kept.iter().map(|file| file.to_lowercase()).collect::<BTreeSet<_>>().len(), names.len(), "{kept:?}");
    assert!(kept.is_superset(&set(["foo.json", "foo!1.json", "foo!2.json", "foo!7.json", "a+b!4.json"])), "{kept:?}");
    store.forget("Foo", anything, || ()).unwrap();
    drop(store);
    let left = names.into_iter().filter(|name| *name != "Foo").map(str::to_owned).collect();
    assert_eq!(open(&folder).1, left);
}

#[test]
fn a_file_of_before_is_renamed_unless_that_would_overwrite_another() {
    let folder = TempDir::new().unwrap();
    put(&open(&folder).0, "Foo", "one");
    let file = |name: &str| folder.path().join("evaluators").join(name);
    // The second is what a folder that does not tell case made of an upload of Foo after one of foo.
    for former in ["Foo.json", "foo.json"] {
        fs::rename(file("foo!1.json"), file(former)).unwrap();
        assert_eq!(open(&folder).1, set(["Foo"]));
        assert_eq!(files(&folder, "evaluators"), set(["foo!1.json"]));
    }
    fs::hard_link(file("foo!1.json"), file("Foo.json")).unwrap();
    rename_former(&file("Foo.json"), "Foo").expect("it is the same file, as where the folder does not tell case");
    fs::remove_file(file("Foo.json")).unwrap();
    fs::copy(file("foo!1.json"), file("Foo.json")).unwrap();
    assert_eq!(open(&folder).1, set(["Foo"]));
    assert_eq!(files(&folder, "evaluators"), set(["foo!1.json", "Foo.json"]), "nobody knows which is right");
}

#[test]
fn strangers_in_the_folder_harm_nobody() {
    let folder = TempDir::new().unwrap();
    put(&open(&folder).0, "a", "one");
    fs::write(folder.path().join("README"), "mine").unwrap();
    fs::create_dir(folder.path().join("evaluators").join("c.json")).unwrap();
    fs::write(folder.path().join("plugins").join("notes.txt"), "mine").unwrap();
    fs::write(folder.path().join("plugins").join(format!("sha256-{}.wasm", "A".repeat(64))), "mine").unwrap();
    let (_store, found) = open(&folder);
    assert_eq!(found, set(["a"]));
    assert_eq!(files(&folder, "plugins").len(), 3);
}

#[test]
fn an_evaluator_whose_plugin_is_missing_or_cut_is_left_out() {
    let folder = TempDir::new().unwrap();
    let (store, _) = open(&folder);
    put(&store, "a", "one");
    put(&store, "b", "two");
    drop(store);
    fs::write(folder.path().join("plugins").join(blob("two")), "cut").unwrap();
    assert_eq!(open(&folder).1, set(["a"]));
    fs::remove_file(folder.path().join("plugins").join(blob("two"))).unwrap();
    assert_eq!(open(&folder).1, set(["a"]));
    assert_eq!(files(&folder, "evaluators"), set(["a.json", "b.json"]), "it may come back");
}

#[test]
fn only_temporary_files_are_tidied_away() {
    let folder = TempDir::new().unwrap();
    let left = ["a.part", ".evalpool-notes", "evalpool-a.part", "a.json"];
    for name in left.iter().chain(&[".evalpool-a.part"]) {
        fs::write(folder.path().join(name), "x").unwrap();
    }
    let rest: BTreeSet<_> = files::tidied(folder.path()).unwrap().into_iter().collect();
    assert_eq!(rest, left.iter().map(|name| folder.path().join(name)).collect());
    assert_eq!(files(&folder, "."), left.iter().map(|name| (*name).to_owned()).collect());
}

#[test]
fn a_record_larger_than_any_is_not_read() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("large.json");
    let file = fs::File::create(&path).unwrap();
    let reason = |bytes| {
        file.set_len(bytes).unwrap();
        record::read(&path).err().unwrap().to_string()
    };
    assert!(reason(record::MAX_RECORD + 1).contains("not a small regular file"));
    // It is read, and is no record.
    assert!(reason(record::MAX_RECORD).contains("expected value"));
}

#[test]
fn what_a_tenant_may_store_counts_what_it_has_under_other_names() {
    let named = |bytes| Named { blobs: Vec::new(), bytes, revision: Some(1) };
    let stored: BTreeMap<String, Named> =
        [("a/1", 10), ("a/2", 20), ("a", 5), ("b/1", 1000)].map(|(name, bytes)| (name.to_owned(), named(bytes))).into();
    for (name, bytes, most, fits) in [
        ("a/1", 25, Some(50), true),
        ("a/1", 26, Some(50), false),
        ("a/3", 15, Some(50), true),
        ("a/3", 16, Some(50), false),
        ("b/1", 1000, Some(1000), true),
        ("c/1", 1001, Some(1000), false),
        ("c/1", u64::MAX, None, true),
    ] {
        let checked = check_stored(&stored, name, bytes, most);
        assert_eq!(checked.is_ok(), fits, "{name} of {bytes} within {most:?}: {checked:?}");
    }
}

#[test]
fn what_an_evaluator_stores_is_its_plugin_and_all_modules_it_is_linked_with() {
    let folder = TempDir::new().unwrap();
    let (store, _) = open(&folder);
    let modules = ["run", "a", "bb"].map(plugin);
    let linked = [("a".to_owned(), modules[1].clone()), ("b".to_owned(), modules[2].clone())];
    let bytes: u64 = modules.iter().map(|plugin| plugin.bytes().len() as u64).sum();
    for (most, fits) in [(bytes - 1, false), (bytes, true)] {
        let stored = store
            .stage("t/one", &modules[0], &linked, Some(most))
            .and_then(|staged| store.commit("t/one", "run", &document("run"), staged, anything, || ()).map(drop));
        assert_eq!(stored.is_ok(), fits, "{stored:?}");
    }
}

#[test]
fn a_file_that_cannot_be_removed_is_told_and_one_that_is_not_there_is_not() {
    let folder = TempDir::new().unwrap();
    assert_eq!(logged(|| files::remove(&folder.path().join("nothing"))), "");
    let log = logged(|| files::remove(folder.path()));
    assert!(log.contains("a file that nobody needs cannot be removed"), "{log}");
}

#[test]
fn an_evaluator_whose_file_is_gone_can_be_forgotten() {
    let folder = TempDir::new().unwrap();
    let (store, _) = open(&folder);
    for name in ["gone", "refuses"] {
        put(&store, name, name);
    }
    fs::remove_file(folder.path().join("evaluators/gone.json")).unwrap();
    store.forget("gone", anything, || ()).unwrap();
    let file = folder.path().join("evaluators/refuses.json");
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    let mut is_forgotten = false;
    store.forget("refuses", anything, || is_forgotten = true).unwrap_err();
    assert!(!is_forgotten);
}
