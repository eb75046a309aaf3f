//! The example settings and the README's table name every setting, and say its default.

use std::{collections::BTreeSet, fmt::Write, path::Path};

use evalpool::Settings;
use serde_json::Value;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// `section.key` of every setting, read off the defaults.
fn keys() -> BTreeSet<String> {
    fn collect(within: &str, value: &Value, keys: &mut BTreeSet<String>) {
        match value.as_object() {
            Some(own) => own.iter().for_each(|(key, value)| collect(&format!("{within}.{key}"), value, keys)),
            None => drop(keys.insert(within.trim_start_matches('.').to_owned())),
        }
    }
    let mut keys = BTreeSet::new();
    collect("", &serde_json::to_value(Settings::default()).unwrap(), &mut keys);
    keys
}

/// A line of the example that sets something.
struct Setting<'a> {
    key: String,
    /// The line above it.
    above: &'a str,
    /// Its place among the lines.
    at: usize,
}

/// The settings of a TOML text in the form of the example, those commented out too: `# key = value`.
fn settings(toml: &str) -> Vec<Setting<'_>> {
    let (mut section, mut above, mut found) = ("", "", Vec::new());
    for (at, line) in toml.lines().enumerate() {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name;
        }
        let said = line.strip_prefix("# ").unwrap_or(line).split_once(" = ");
        // Prose has more than a word before an equals sign.
        let is_word = |key: &str| key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        if let Some((key, _)) = said.filter(|(key, _)| is_word(key)) {
            found.push(Setting { key: format!("{section}.{key}"), above, at });
        }
        above = line;
    }
    found
}

#[test]
fn the_example_is_the_defaults() {
    let example = Settings::parse("config/evalpool.toml", &read("config/evalpool.toml"), []).unwrap();
    assert_eq!(example, Settings::default());
}

#[test]
fn the_example_names_every_setting_once_and_explains_it() {
    let toml = read("config/evalpool.toml");
    let settings = settings(&toml);
    let named: BTreeSet<_> = settings.iter().map(|setting| setting.key.clone()).collect();
    assert_eq!(named, keys());
    assert_eq!(named.len(), settings.len(), "a setting is there twice");
    for Setting { key, above, .. } in &settings {
        assert!(above.starts_with("# "), "{key} is not explained");
    }
}

#[test]
fn what_the_example_comments_out_is_right_as_well() {
    let toml = read("config/evalpool.toml");
    let set: BTreeSet<_> = settings(&toml).iter().map(|setting| setting.at).collect();
    let lines = toml.lines().enumerate().map(|(at, line)| match line.strip_prefix("# ") {
        Some(said) if set.contains(&at) => said,
        _ => line,
    });
    let uncommented = lines.collect::<Vec<_>>().join("\n");
    assert_ne!(uncommented, toml.trim_end());
    Settings::parse("config/evalpool.toml", &uncommented, []).unwrap();
}

/// The cells of the rows of a Markdown table that begin with `` | `section.key` | ``, as key and default.
fn rows(markdown: &str) -> Vec<(&str, &str)> {
    markdown
        .lines()
        .filter_map(|line| {
            let (key, rest) = line.strip_prefix("| `")?.split_once("` | ")?;
            let is_key =
                key.contains('.') && key.bytes().all(|byte| byte.is_ascii_lowercase() || b"._".contains(&byte));
            is_key.then_some((key, rest.split(" |").next()?.trim()))
        })
        .collect()
}

#[test]
fn the_readme_names_every_setting() {
    let readme = read("README.md");
    let rows = rows(&readme);
    let named: BTreeSet<_> = rows.iter().map(|(key, _)| (*key).to_owned()).collect();
    assert_eq!(named, keys());
    assert_eq!(named.len(), rows.len(), "a setting is there twice");
}

#[test]
fn the_readme_tells_the_defaults() {
    let readme = read("README.md");
    let mut told = String::new();
    for (key, default) in rows(&readme) {
        let default = default.trim_matches('`');
        // What depends on the machine, or is not set, cannot be written as a value.
        if ["none", "on loopback"].contains(&default) || default.contains("cores") || default.contains("half of") {
            continue;
        }
        let is_bare = default == "true" || default == "false" || default.parse::<u64>().is_ok();
        let value = if is_bare { default.to_owned() } else { format!("{default:?}") };
        writeln!(told, "{key} = {value}").unwrap();
    }
    assert_eq!(Settings::parse("README.md", &told, []).unwrap(), Settings::default());
}
