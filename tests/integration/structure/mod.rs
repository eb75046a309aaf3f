//! The shape of the code is what `src/lib.rs` says it is.

mod dependencies;
mod direct;
mod rust;
mod twins;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use self::rust::{code_of, crate_names, words};

/// Lines that a file may have. Past 400, it is worth asking whether it holds two ideas.
const MOST_LINES: usize = 450;

/// Lines that all of `src` may have.
const MOST_LINES_OF_SOURCE: usize = 52_500;

/// One file of Rust.
struct File {
    /// Below the folder that was looked through, with slashes.
    path: String,
    text: String,
    /// The text without comments and without what is inside quotes.
    code: String,
}

impl File {
    /// The room it belongs to; none for `lib.rs`, which is the hall, and for programs, which are other crates.
    fn room(&self) -> Option<&str> {
        let first = self.path.split('/').next()?;
        (!["lib.rs", "bin"].contains(&first)).then(|| first.trim_end_matches(".rs"))
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// The files of `src`.
fn files() -> Vec<File> {
    files_below("src")
}

/// The Rust files of a folder, without what cargo has built there.
fn files_below(top: &str) -> Vec<File> {
    let top = root().join(top);
    let (mut folders, mut files) = (vec![top.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let below: Vec<_> =
                    path.strip_prefix(&top).unwrap().iter().map(|part| part.to_str().unwrap()).collect();
                files.push(File { path: below.join("/"), code: code_of(&text), text });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(files.len() > 20, "where is the source?");
    files
}

/// The rooms in the order of the table in `lib.rs`, top first, then the leaf that the table leaves out.
fn rooms() -> Vec<String> {
    let text = std::fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let (_, rooms) = text.split_once("//! # Rooms").unwrap();
    let names = rooms.lines().filter_map(|line| {
        let name = line.strip_prefix("//! | ")?.split('|').next()?;
        let name = name.trim().trim_matches(|next| "[]`".contains(next)).to_lowercase();
        (name != "room").then(|| if name == "evaluatorpool" { "pool".to_owned() } else { name })
    });
    names.chain(["background", "clock"].map(str::to_owned)).collect()
}

/// The room that each name in `lib.rs`'s `pub use crate::{…}` comes from.
fn reexports() -> BTreeMap<String, String> {
    let code = code_of(&std::fs::read_to_string(root().join("src/lib.rs")).unwrap());
    let (_, list) = code.split_once("pub use crate::{").unwrap();
    let (list, _) = list.split_once("};").unwrap();
    let of_room = |part: &str| {
        let (room, names) = part.rsplit_once("::").unwrap();
        let room = room.trim_matches(|next: char| !next.is_alphanumeric()).to_owned();
        let names = names.trim_matches(|next: char| next.is_whitespace() || "{},".contains(next));
        names.split(',').map(|name| (name.trim().to_owned(), room.clone())).collect::<Vec<_>>()
    };
    // One room a line, as rustfmt writes it, with a list that may go over several.
    let mut parts = Vec::<String>::new();
    for line in list.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if line.contains("::") { parts.push(line.to_owned()) } else { parts.last_mut().unwrap().push_str(line) }
    }
    parts.iter().flat_map(|part| of_room(part)).collect()
}

/// A room's own file leaves it with one `super`, a module inside with as many more as it lies deeper.
fn leaves_by_super(file: &File) -> bool {
    let modules = file.path.trim_end_matches(".rs").trim_end_matches("/mod");
    match modules.matches('/').count() {
        // Further in, one `super` is this file again: that of its tests.
        0 => file.code.lines().any(|line| line.starts_with("use super::") || line.starts_with("pub use super::")),
        depth => file.code.contains(&"super::".repeat(depth + 1)),
    }
}

#[test]
fn the_list_of_rooms_is_complete() {
    let rooms = rooms();
    let there: BTreeSet<_> = files().iter().filter_map(|file| file.room().map(str::to_owned)).collect();
    assert_eq!(rooms.iter().cloned().collect::<BTreeSet<_>>(), there);
    assert_eq!(rooms.len(), there.len(), "a room is listed twice");
}

#[test]
fn imports_point_down() {
    let (rooms, reexports) = (rooms(), reexports());
    let mut wrong = Vec::new();
    for file in files() {
        let Some(room) = file.room() else { continue };
        let rank = |room: &str| rooms.iter().position(|listed| listed == room);
        for name in crate_names(&file.code) {
            let target = reexports.get(&name).unwrap_or(&name);
            let down = rank(target).zip(rank(room)).is_some_and(|(target, own)| target >= own);
            if !down {
                wrong.push(format!("{} uses crate::{name}, which is not below {room}", file.path));
            }
        }
        if leaves_by_super(&file) {
            wrong.push(format!("{} leaves its room by `super`; say `crate::`", file.path));
        }
    }
    assert!(wrong.is_empty(), "imports that point up:\n{}", wrong.join("\n"));
}

#[test]
fn only_an_engine_names_the_types_of_extism_and_wasmtime() {
    // What chooses the engine names ours, not extism's.
    let allowed = [("engine/mod.rs", "pub mod extism;"), ("pool/builder.rs", "crate::engine::extism::ExtismEngine")];
    for file in files() {
        let mut code = file.code.clone();
        for (_, phrase) in allowed.iter().filter(|(path, _)| *path == file.path) {
            assert!(code.contains(phrase), "{} does not say {phrase:?} any more: drop the exception", file.path);
            code = code.replace(phrase, "");
        }
        // Each engine has a wasmtime of its own.
        let foreign: &[&str] = match file.path.split('/').nth(1) {
            Some("extism") if file.room() == Some("engine") => &["wasmtime"],
            Some("direct") if file.room() == Some("engine") => &["extism", "wasmtime_of_extism"],
            _ => &["extism", "wasmtime", "wasmtime_of_extism"],
        };
        for word in foreign {
            assert_eq!(words(&code, word).count(), 0, "{} names {word}", file.path);
        }
    }
}

#[test]
fn only_the_compiler_calls_compile() {
    let callers: Vec<_> = files()
        .into_iter()
        .filter(|file| file.code.contains(".compile(") || file.code.contains("Engine::compile"))
        // Inside, an engine may call its own parts what it likes.
        .filter(|file| !file.path.starts_with("engine/"))
        .map(|file| file.path)
        .collect();
    assert_eq!(callers, ["compiler/mod.rs"]);
}

#[test]
fn nothing_is_unsafe_but_loading_our_own_compiled_code() {
    for file in files() {
        let allowed = usize::from(file.path == "engine/direct/sealed.rs");
        assert_eq!(words(&file.code, "unsafe").count(), allowed, "{}", file.path);
    }
}

#[test]
fn every_file_says_what_it_is() {
    for file in files() {
        assert!(file.text.starts_with("//! "), "{} does not begin with its docs", file.path);
    }
}

#[test]
fn no_file_is_too_long() {
    let mut long = Vec::new();
    for top in ["src", "tests"] {
        for file in files_below(top) {
            let lines = file.text.lines().count();
            if lines > MOST_LINES {
                long.push(format!("{top}/{}: {lines}", file.path));
            }
        }
    }
    assert!(long.is_empty(), "over {MOST_LINES} lines:\n{}", long.join("\n"));
}

#[test]
fn the_source_stays_small() {
    let lines: usize = files().iter().map(|file| file.text.lines().count()).sum();
    assert!(lines <= MOST_LINES_OF_SOURCE, "{lines} lines, more than {MOST_LINES_OF_SOURCE}");
}
