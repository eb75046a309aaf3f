//! Reading Rust, as far as these tests need it.

/// A text without its comments (docs are comments) and without what its strings hold; line breaks stay.
pub(super) fn code_of(text: &str) -> String {
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
pub(super) fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let is_part = |next: char| next.is_alphanumeric() || next == '_';
    code.match_indices(word)
        .filter(move |(at, _)| !code[..*at].ends_with(is_part) && !code[at + word.len()..].starts_with(is_part))
        .map(|(at, _)| at)
}

/// The names right below `crate::` in code: `a` and `b` for `crate::{a::{c, d}, b}`.
pub(super) fn crate_names(code: &str) -> Vec<String> {
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
