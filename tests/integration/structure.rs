//! The shape of the code is what `src/lib.rs` says it is.

mod direct;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// Lines that a file may have. Past 400, it is worth asking whether it holds two ideas.
const MOST_LINES: usize = 600;

/// The pool and its handles are two sides of one thing, and name each other: one rank.
const PEERS: [&str; 3] = ["pool", "evaluator", "executable"];

/// One file of `src`.
struct File {
    /// Below `src`, with slashes.
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

fn files() -> Vec<File> {
    let src = root().join("src");
    let (mut folders, mut files) = (vec![src.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let below: Vec<_> =
                    path.strip_prefix(&src).unwrap().iter().map(|part| part.to_str().unwrap()).collect();
                files.push(File { path: below.join("/"), code: code_of(&text), text });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(files.len() > 20, "where is the source?");
    files
}

// ---- Reading Rust ----------------------------------------------------------------------------------------------------

/// A text without its comments (docs are comments) and without what its strings hold; line breaks stay.
fn code_of(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut code, mut at) = (String::new(), 0);
    while at < bytes.len() {
        let rest = &text[at..];
        let in_word = code.ends_with(|last: char| last.is_alphanumeric() || last == '_');
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = raw_string(rest).filter(|_| !in_word) {
            length
        } else if rest.starts_with('"') {
            quoted(rest, '"')
        } else if let Some(length) = character(rest) {
            length
        } else {
            let next = rest.chars().next().map_or(1, char::len_utf8);
            code.push_str(&rest[..next]);
            at += next;
            continue;
        };
        code.extend(rest[..skipped].matches('\n'));
        at += skipped;
    }
    code
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

/// The length of `r"…"`, `r#"…"#` and the like.
fn raw_string(rest: &str) -> Option<usize> {
    let after = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'))?;
    let hashes = after.bytes().take_while(|byte| *byte == b'#').count();
    let inside = after[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let length = inside.find(&end)? + end.len();
    Some(rest.len() - inside.len() + length)
}

/// The length of what begins and ends with `quote`, in which a backslash protects what follows it.
fn quoted(rest: &str, quote: char) -> usize {
    let mut protected = false;
    for (at, next) in rest.char_indices().skip(1) {
        if !protected && next == quote {
            return at + next.len_utf8();
        }
        protected = !protected && next == '\\';
    }
    rest.len()
}

/// The length of a character literal; a lifetime is none.
fn character(rest: &str) -> Option<usize> {
    let mut inside = rest.strip_prefix('\'')?.chars();
    let first = inside.next()?;
    (first == '\\' || inside.next() == Some('\'')).then(|| quoted(rest, '\''))
}

/// Where a word stands in code, as a word of its own.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let is_part = |next: char| next.is_alphanumeric() || next == '_';
    code.match_indices(word)
        .filter(move |(at, _)| !code[..*at].ends_with(is_part) && !code[at + word.len()..].starts_with(is_part))
        .map(|(at, _)| at)
}

/// The names right below `crate::` in code: `a` and `b` for `crate::{a::{c, d}, b}`.
fn crate_names(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    for at in words(code, "crate") {
        let Some(path) = code[at + "crate".len()..].trim_start().strip_prefix("::") else { continue };
        let path = path.trim_start();
        match path.strip_prefix('{') {
            None => names.extend(first_word(path)),
            Some(group) => {
                let mut depth = 0;
                let end = group.find(|next: char| {
                    depth += i32::from(next == '{') - i32::from(next == '}');
                    depth < 0
                });
                let mut depth = 0;
                let items = group[..end.unwrap_or(group.len())].split(|next: char| {
                    depth += i32::from(next == '{') - i32::from(next == '}');
                    next == ',' && depth == 0
                });
                names.extend(items.filter_map(|item| first_word(item.trim_start())));
            }
        }
    }
    names
}

fn first_word(text: &str) -> Option<String> {
    let word: String = text.chars().take_while(|next| next.is_alphanumeric() || *next == '_').collect();
    (!word.is_empty()).then_some(word)
}

#[test]
fn comments_and_strings_are_no_code() {
    let text = "a /* b /* c */ \" */ \"d\\\"e\" 'f' '\\'' &'g h r#\"i\"j\"# // k\nl r\"m\" for\"n\" \"ö\"";
    assert_eq!(code_of(text), "a     &'g h  \nl  for ");
}

#[test]
fn names_below_the_crate_are_found() {
    let code = "use crate::{a::{self, b}, c, d::*};\nuse crate::e::f;\ncrate::G::new(); $crate::h!(); crates::i";
    assert_eq!(crate_names(code), ["a", "c", "d", "e", "G", "h"]);
}

// ---- Rooms -----------------------------------------------------------------------------------------------------------

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
        let rank = |room: &str| {
            let room = if PEERS.contains(&room) { PEERS[0] } else { room };
            rooms.iter().position(|listed| listed == room)
        };
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
    assert_eq!(callers, ["compiler.rs"]);
}

#[test]
fn nothing_is_unsafe_but_loading_our_own_compiled_code() {
    for file in files() {
        let allowed = usize::from(file.path == "engine/direct/cache.rs");
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
    let long: Vec<_> = files()
        .iter()
        .map(|file| (file.path.clone(), file.text.lines().count()))
        .filter(|(_, lines)| *lines > MOST_LINES)
        .collect();
    assert!(long.is_empty(), "over {MOST_LINES} lines: {long:?}");
}

// ---- Dependencies ----------------------------------------------------------------------------------------------------

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .args(["--offline", "--locked", "--manifest-path"])
        .arg(root().join("Cargo.toml"))
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The names of the crates that `cargo tree` lists.
fn tree(arguments: &[&str]) -> BTreeSet<String> {
    let arguments = [&["tree", "--edges", "normal", "--prefix", "none"], arguments].concat();
    cargo(&arguments).lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

/// The optional dependencies that only the feature `service` turns on, as Cargo.toml has them.
fn dependencies_of_the_service() -> BTreeSet<String> {
    let metadata: Value = serde_json::from_str(&cargo(&["metadata", "--no-deps", "--format-version", "1"])).unwrap();
    let features = &metadata["packages"][0]["features"];
    let of = |feature: &str| -> BTreeSet<String> {
        let words = features[feature].as_array().unwrap().iter().map(|word| word.as_str().unwrap());
        words.filter_map(|word| word.strip_prefix("dep:")).map(str::to_owned).collect()
    };
    &of("service") - &of("extism")
}

#[test]
fn the_library_alone_does_without_the_services_dependencies() {
    let service = dependencies_of_the_service();
    assert!(service.len() > 5, "{service:?}");
    let library = ["--package", "evalpool", "--no-default-features", "--features", "extism"];

    // One that is no longer optional is not in the list above either: so each must be used by the library itself.
    let direct = tree(&[&library[..], &["--depth", "1"]].concat());
    assert!(direct.contains("extism"), "{direct:?}");
    let files = files();
    let own = || files.iter().filter(|file| !["service", "bin"].contains(&file.path.split('/').next().unwrap()));
    for name in direct.iter().filter(|name| *name != "evalpool") {
        // In the text rather than in the code: serde's attributes name a crate in quotes.
        let used = own().any(|file| words(&file.text, &name.replace('-', "_")).next().is_some());
        assert!(used, "the library alone has {name}, which only the service uses");
    }

    let all = tree(&library);
    // What a plugin's HTTP requests need, a server needs as well.
    let shared = &tree(&["--package", "extism"]) | &tree(&["--package", "reqwest"]);
    assert!(all.is_superset(&direct) && all.len() > direct.len());
    assert_eq!(&(&all & &service) - &shared, BTreeSet::new(), "something below the library brings these");
}

#[test]
fn the_library_can_do_without_any_engine() {
    let bare = tree(&["--package", "evalpool", "--no-default-features"]);
    for engine in ["extism", "wasmtime"] {
        assert!(!bare.contains(engine), "{engine} is not optional");
    }
}
