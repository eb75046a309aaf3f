//! The plugin options of `run`, `check` and `load`: what each does, and how bad ones are refused.

use serde_json::Value;

use crate::{
    program::{Folder, printed, refusal, refusal_of_guest, run},
    service::{Server, program},
    support::{GREET, MIRROR, TOTALS, WORDS, wasm},
};

/// Fetches the URL that is its input, with the config value `key` as a bearer token.
pub(crate) const FETCH: &[u8] = include_bytes!("../plugins/wat/fetch.wasm");

/// Never ends.
pub(crate) const SPINS: &str = r#"(module (func (export "run") (loop (br 0))))"#;

/// Never ends to be initialised.
const NEVER_STARTS: &str = r#"(module (func $spin (loop (br 0))) (start $spin) (func (export "run")))"#;

/// Takes 100 MiB.
pub(crate) const GROWS: &str = r#"(module (memory 1) (func (export "run")
    (if (i32.lt_s (memory.grow (i32.const 1600)) (i32.const 0)) (then unreachable))))"#;

/// Fails unless `math` and `numbers`, from which that imports, give 42 together.
pub(crate) const ADDS: &str = r#"(module
    (import "math" "sum" (func $sum (result i32)))
    (func (export "run") (if (i32.ne (call $sum) (i32.const 42)) (then unreachable))))"#;
pub(crate) const MATH: &str = r#"(module
    (import "numbers" "first" (func $first (result i32)))
    (func (export "sum") (result i32) (i32.add (call $first) (i32.const 2))))"#;
pub(crate) const NUMBERS: &str = r#"(module (func (export "first") (result i32) (i32.const 40)))"#;

/// What `load` reports of two evaluators in a fifth of a second.
fn load(arguments: &[&str]) -> Value {
    let output = run(&[&["load", "--json", "--evaluators", "2", "--duration", "200ms"], arguments].concat());
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn a_plugin_reads_the_config_values_that_it_is_given() {
    let folder = Folder::new();
    let words = folder.file("words.wasm", WORDS);
    let json =
        folder.file("config.json", r#"{"currency": "EUR", "API_Key": "from json", "a.b": "dotted", "both": "x"}"#);
    let toml = folder.file("config", "\"API_Key\" = 'from toml'\n'c.d' = 'dotted too'\nboth = 'y'\n");
    let files = ["--config-values", &json, "--config-values", &toml, "--config-value", "both=z=z"];
    for (key, value) in
        [("currency", "EUR"), ("API_Key", "from toml"), ("a.b", "dotted"), ("c.d", "dotted too"), ("both", "z=z")]
    {
        let call = ["run", &words, "--entry", "setting", "--input", key];
        assert_eq!(printed(&run(&[&call[..], &files].concat())), value, "{key}");
        assert!(refusal(&run(&call), 1).contains("no setting"));
        let loaded = load(&[&["--plugin"], &call[1..], &files].concat());
        assert_eq!(loaded["errors"], serde_json::json!({}), "{loaded}");
    }
    // A file wins over an earlier one wherever the single values stand.
    let first = ["--config-value", "both=z", "--config-values", &toml, "--config-value", "both=last"];
    assert_eq!(
        printed(&run(&[&["run", &words, "--entry", "setting", "--input", "both"], &first[..]].concat())),
        "last"
    );
}

#[test]
fn a_plugin_gets_the_key_and_the_host_that_it_is_given_and_no_others() {
    // The server lets nobody in but who has the key.
    let folder = Folder::new();
    let tokens = folder.file("tokens", "my-key\n");
    let server = Server::start(&[("SERVICE_TOKEN_FILE", &tokens)]);
    let (fetch, url) = (folder.file("fetch.wasm", FETCH), format!("http://{}/v1/evaluators/greet", server.address));
    let options = ["--config-value", "key=my-key", "--allow-host", &server.address];
    let words = [&["run", &fetch, "--input", &url], &options[..]].concat();
    assert_eq!(serde_json::from_str::<Value>(&printed(&run(&words))).unwrap()["name"], "greet");

    let without = |option: &str| {
        let at = words.iter().position(|word| *word == option).unwrap();
        run(&[&words[..at], &words[at + 2..]].concat())
    };
    assert!(refusal(&without("--config-value"), 1).contains(r#"set the config value "key""#));
    let line = refusal_of_guest(&without("--allow-host"), 1);
    assert!(line.starts_with("guest_trap: ") && line.contains("allowed"), "{line}");
}

#[test]
fn the_readmes_plugins_are_made_from_their_sources() {
    assert_eq!(wasm(include_str!("../plugins/wat/fetch.wat")), FETCH);
    assert_eq!(wasm(include_str!("../plugins/wat/mirror.wat")), MIRROR);
}

#[test]
fn a_limit_of_the_command_line_is_the_limit() {
    let folder = Folder::new();
    let spins = folder.file("spins.wasm", wasm(SPINS));
    let line = refusal_of_guest(&run(&["run", &spins, "--timeout", "60ms"]), 1);
    assert_eq!(line, "exec_timeout: the plugin ran longer than limits.exec_timeout, 60 ms, and was stopped");
    let line = refusal_of_guest(&run(&["run", &spins, "--fuel", "5000"]), 1);
    assert!(line.starts_with("out_of_fuel: ") && line.ends_with("limits.fuel is 5000"), "{line}");
    for (option, value, kind) in [("--timeout", "60ms", "exec_timeout"), ("--fuel", "5000", "out_of_fuel")] {
        let report = load(&["--plugin", &spins, option, value]);
        assert_eq!(report["errors"][kind], report["evaluations"], "{report}");
    }

    let never = folder.file("never.wasm", wasm(NEVER_STARTS));
    for command in ["run", "check"] {
        let line = refusal_of_guest(&run(&[command, &never, "--build-timeout", "150ms"]), 1);
        assert!(line.starts_with("build_timeout: ") && line.ends_with("limits.build_timeout, 150 ms"), "{line}");
        let line = refusal_of_guest(&run(&[command, &never, "--fuel", "5000"]), 1);
        assert!(line.starts_with("out_of_fuel: ") && line.contains("initialised"), "{line}");
    }

    let totals = folder.file("totals.wasm", TOTALS);
    let echo = ["run", &totals, "--entry", "echo", "--input", "0123456789", "--output-size"];
    assert_eq!(printed(&run(&[&echo[..], &["10B"]].concat())), "0123456789");
    let line = refusal(&run(&[&echo[..], &["9"]].concat()), 1);
    assert_eq!(line, "output_too_large: the plugin's output is over limits.output_size, 9 bytes");
}

#[test]
fn a_limit_above_the_settings_needs_no_settings_file() {
    let folder = Folder::new();
    let grows = folder.file("grows.wasm", wasm(GROWS));
    assert!(refusal_of_guest(&run(&["run", &grows]), 1).starts_with("out_of_memory: "));
    for size in ["128MiB", "4GiB"] {
        assert_eq!(printed(&run(&["run", &grows, "--memory", size])), "", "{size}");
    }
    let loaded = load(&["--plugin", &grows, "--memory", "128MiB"]);
    assert_eq!(loaded["errors"], serde_json::json!({}), "{loaded}");
    let large = folder.file("large.wasm", wasm(r#"(module (memory 1600) (func (export "run")))"#));
    assert!(refusal(&run(&["check", &large]), 1).starts_with("out_of_memory: "));
    let checked = printed(&run(&["check", &large, "--memory", "128MiB"]));
    assert!(checked.contains("100 MiB to start; limits.memory is 128 MiB"), "{checked}");

    // Over each of these settings, and over what the process has by default.
    let greet = folder.file("greet.wasm", GREET);
    let input = r#"{"name":"Ada"}"#;
    let mut raised = program();
    raised.args(["run", &greet, "--input", input, "--fuel", "1000000", "--output-size", "1KiB", "--instances", "2000"]);
    raised.args(["--timeout", "1m", "--build-timeout", "1m"]);
    for (setting, value) in
        [("FUEL", "1"), ("OUTPUT_SIZE", "1B"), ("EXEC_TIMEOUT", "1us"), ("BUILD_TIMEOUT", "1us"), ("MEMORY", "1MiB")]
    {
        raised.env(format!("EVALPOOL_LIMITS_{setting}"), value);
    }
    assert_eq!(printed(&raised.output().unwrap()), r#"{"greeting":"Hello, Ada!"}"#);
}

#[test]
fn a_load_has_as_many_instances_as_it_is_told() {
    let folder = Folder::new();
    let spins = folder.file("spins.wasm", wasm(SPINS));
    let callers = ["--plugin", &spins, "--evaluators", "1", "--concurrency", "16", "--timeout", "50ms"];
    // Nobody may wait, so that a caller without an instance of its own is refused.
    let refused = |instances: &str| {
        let mut command = program();
        command.args(["load", "--json", "--duration", "300ms", "--instances", instances]).args(callers);
        let output = command.env("EVALPOOL_POOL_MAX_WAITING", "0").output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        report["errors"]["saturated"].as_u64().unwrap_or(0)
    };
    assert!(refused("1") > 0);
    assert_eq!(refused("64"), 0);
}

#[test]
fn modules_are_linked_by_the_names_that_they_are_given() {
    let folder = Folder::new();
    let adds = folder.file("adds.wasm", wasm(ADDS));
    let math = format!("math={}", folder.file("math.wasm", wasm(MATH)));
    let numbers = format!("numbers={}", folder.file("numbers=2.wasm", wasm(NUMBERS)));
    let both = ["--link", &math, "--link", &numbers];
    assert_eq!(printed(&run(&[&["run", &adds], &both[..]].concat())), "");
    assert!(printed(&run(&[&["check", &adds], &both[..]].concat())).contains("math: sum"));
    let loaded = load(&[&["--plugin", &adds], &both[..]].concat());
    assert_eq!(loaded["errors"], serde_json::json!({}), "{loaded}");
    for command in ["run", "check"] {
        assert!(refusal(&run(&[command, &adds, "--link", &math]), 1).contains("numbers::first"));
        let text = format!("math={}", folder.file("math.txt", "no module"));
        assert!(refusal(&run(&[command, &adds, "--link", &text]), 1).starts_with("invalid_plugin: "));
    }
}

#[test]
fn static_data_is_there_for_each_call_and_a_json_input_is_merged_into_it() {
    let folder = Folder::new();
    let (greet, totals) = (folder.file("greet.wasm", GREET), folder.file("totals.wasm", TOTALS));
    let ada = r#"{"name":"Ada"}"#;
    assert_eq!(printed(&run(&["run", &greet, "--static-data", ada])), r#"{"greeting":"Hello, Ada!"}"#);
    let loaded = load(&["--plugin", &greet, "--static-data", ada]);
    assert_eq!(loaded["errors"], serde_json::json!({}), "{loaded}");
    let echo = |input: &str| {
        printed(&run(&["run", &totals, "--entry", "echo", "--static-data", r#"{"a":1,"b":{"c":2}}"#, "--input", input]))
    };
    assert_eq!(echo(r#"{"b": {"d": 3}}"#), r#"{"a":1,"b":{"c":2,"d":3}}"#);
    assert_eq!(echo("no JSON"), "no JSON");
    let spaced = printed(&run(&["run", &totals, "--entry", "echo", "--input", "{ }"]));
    assert_eq!(spaced, "{ }", "without static data an input is passed on as it is");
}

#[test]
fn wasi_can_be_off() {
    let folder = Folder::new();
    let exits = folder.file(
        "exits.wasm",
        wasm(r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func (param i32))) (func (export "run")))"#),
    );
    printed(&run(&["check", &exits, "--wasi", "auto"]));
    for command in ["run", "check"] {
        assert!(refusal(&run(&[command, &exits, "--wasi", "off"]), 1).ends_with("and WASI is off"));
    }
    let report = load(&["--plugin", &exits, "--wasi", "off"]);
    assert_eq!(report["errors"]["invalid_plugin"], report["evaluations"], "{report}");
}

#[test]
fn each_command_lists_the_same_options_under_their_heading() {
    let options = ["run", "check", "load"].map(|command| {
        let help = printed(&run(&[command, "--help"]));
        let (general, options) = help.split_once("Plugin options:\n").unwrap();
        assert!(general.contains("--entry") && general.contains("--engine") && general.contains("--trusted"), "{help}");
        options.to_owned()
    });
    assert!(options.iter().all(|of_command| *of_command == options[0]), "{options:?}");
    for option in [
        "--manifest <FILE>",
        "--config-value <KEY=VALUE>",
        "--config-values <FILE>",
        "--allow-host <GLOB>",
        "--memory <SIZE>",
        "--timeout <DURATION>",
        "--build-timeout <DURATION>",
        "--fuel <N>",
        "--output-size <SIZE>",
        "--instances <N>",
        "--link <NAME=FILE>",
        "--static-data <JSON>",
        "--wasi <auto|off>",
        "--vars <fresh|kept>",
        "--init <each|once>",
    ] {
        assert!(options[0].contains(option), "{option}");
    }
}

#[test]
fn an_option_that_cannot_be_used_is_one_line_that_names_it_and_2() {
    let folder = Folder::new();
    let greet = folder.file("greet.wasm", GREET);
    let numbers = folder.file("numbers.wasm", wasm(NUMBERS));
    let linked = |name: &str| format!("{name}={numbers}");
    let [a, taken] = ["a", "extism:host/env"].map(linked);
    let nine: Vec<_> = ('a'..='i').map(|name| linked(&name.to_string())).collect();
    let nine: Vec<_> = nine.iter().flat_map(|link| ["--link", link]).collect();
    let file = |name: &str, text: &str| folder.file(name, text);
    let array = file("array.json", "[1]");
    let number = file("number.json", r#"{"secret": 12345}"#);
    let cut = file("cut.json", r#"{"key": "secret"#);
    let toml = file("bad.toml", "key = secret");
    let nested = file("nested.toml", "[key]\nsecret = 'x'");
    let long = file("long.toml", &format!("key = '{}'", "secret".repeat(200_000)));
    let binary = folder.file("binary", b"key = '\xff'");
    for (options, said) in [
        (&["--config-value", "secret"][..], "--config-value: one is not KEY=VALUE"),
        (&["--config-value", "=secret"], "--config-value: one is not KEY=VALUE"),
        (&["--config-values", "/nowhere"], "--config-values: cannot read /nowhere: "),
        (&["--config-values", &array], "object of strings"),
        (&["--config-values", &number], "object of strings: \"secret\" has another value"),
        (&["--config-values", &cut], "object of strings: EOF"),
        (&["--config-values", &toml], "object of strings: TOML parse error at line 1"),
        (&["--config-values", &nested], "object of strings: \"key\" has another value"),
        (&["--config-values", &long], "is over 1 MiB"),
        (&["--config-values", &binary], "UTF-8"),
        (&["--allow-host", "http://127.0.0.1"], r#"'--allow-host <GLOB>': "http://127.0.0.1", which no request"#),
        (&["--memory", "much"], "'--memory <SIZE>': expected a size, such as 64MiB"),
        (&["--memory", "1KiB"], "'--memory <SIZE>': it must be from 64KiB to 4GiB"),
        (&["--memory", "5GiB"], "'--memory <SIZE>': it must be from 64KiB to 4GiB"),
        (&["--timeout", "5"], "'--timeout <DURATION>': expected a duration"),
        (&["--build-timeout", "0s"], "'--build-timeout <DURATION>': it must be longer"),
        (&["--fuel", "0"], "'--fuel <N>'"),
        (&["--output-size", "-"], "'--output-size <SIZE>'"),
        (&["--instances", "0"], "'--instances <N>'"),
        (&["--instances", "1000001"], "'--instances <N>'"),
        (&["--link", "name"], "'--link <NAME=FILE>': expected NAME=FILE"),
        (&["--link", "=file"], "'--link <NAME=FILE>': expected NAME=FILE"),
        (&["--link", "a=/nowhere"], "--link: cannot read /nowhere: "),
        (&["--link", "main=x"], r#"'--link <NAME=FILE>': the name "main" is taken"#),
        (&["--link", &taken], r#"'--link <NAME=FILE>': the name "extism:host/env" is taken"#),
        (&["--link", &a, "--link", &a], r#"--link: the name "a" is given twice"#),
        (&nine, "--link: at most 8 modules"),
        (&["--static-data", "{"], "'--static-data <JSON>': EOF"),
        (&["--wasi", "on"], "`auto` or `off`"),
    ] {
        for command in [&["run", &greet][..], &["check", &greet], &["load", "--plugin", &greet], &["load"]] {
            let line = refusal(&run(&[command, options].concat()), 2);
            assert!(line.contains(said), "{options:?}: {line} lacks {said}");
            assert!(line.contains(options[0]), "{line} does not name {}", options[0]);
            let told = line.replace("\"secret\" has", "");
            assert!(!told.contains("secret") && !told.contains("12345"), "{line} shows what may be a secret");
        }
    }
}
