//! The files of `engine::direct` import each other in one direction only: down the table in its docs.

use std::collections::BTreeSet;

use super::{crate_names, files};

/// The name of a file's module below `engine::direct`: `mod` for the room itself, `kernel` for a file of `kernel/`.
fn module(path: &str) -> Option<&str> {
    path.strip_prefix("engine/direct/")?.split(['/', '.']).next()
}

#[test]
fn imports_within_direct_point_down() {
    let files = files();
    let text = &files.iter().find(|file| file.path == "engine/direct/mod.rs").unwrap().text;
    let (_, table) = text.split_once("//! # Files").unwrap();
    let listed: Vec<_> = table.lines().filter_map(|line| line.strip_prefix("//! | `")?.split('`').next()).collect();
    let there: BTreeSet<_> = files.iter().filter_map(|file| module(&file.path)).collect();
    assert_eq!(listed.iter().copied().collect::<BTreeSet<_>>(), there);
    assert_eq!(listed.len(), there.len(), "a file is listed twice");

    let rank = |name: &str| listed.iter().position(|listed| *listed == name);
    for file in &files {
        let Some(own) = module(&file.path).and_then(rank) else { continue };
        assert!(!file.code.contains("engine::direct"), "{} names its room; say `super::`", file.path);
        for name in crate_names(&file.code.replace("crate::", "").replace("super::", "crate::")) {
            let is_below = rank(&name).is_none_or(|target| target > own);
            assert!(is_below, "{} uses super::{name}, which is not below it in the table", file.path);
        }
    }
}
