//! The program as its users meet it: what it prints, where, and with which exit code.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;

use crate::{
    service::{Server, program},
    support::{GREET, NO_ABORT, TEXT, TOTALS, wasm},
};

/// A plugin that imports `proc_exit`, and calls it with 3.
const EXITS: &str = r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 1) (func (export "run") (call $exit (i32.const 3))))"#;

/// A folder with the files that a test wants.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    pub(crate) fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

pub(crate) fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().unwrap()
}

fn run_with_input(arguments: &[&str], input: &[u8]) -> Output {
    let mut child =
        program().args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

/// The one line that says why the program ended so.
#[track_caller]
pub(crate) fn refusal(output: &Output, code: i32) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    text.strip_prefix("error: ").unwrap_or_else(|| panic!("{text}")).trim_end().to_owned()
}

/// The same where a guest may have left something behind, which follows, indented.
#[track_caller]
pub(crate) fn refusal_of_guest(output: &Output, code: i32) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    let (line, rest) = text.split_once('\n').unwrap();
    assert!(rest.lines().all(|line| line.starts_with("  ")), "{text}");
    refusal(&Output { stderr: line.into(), ..output.clone() }, code)
}

#[track_caller]
pub(crate) fn printed(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

// ---- run --------------------------------------------------------------------------------------------------------------

#[test]
fn the_output_of_a_plugin_is_printed_as_it_is() {
    let folder = Folder::new();
    let (totals, text) = (folder.file("totals.wasm", TOTALS), folder.file("text.wasm", TEXT));
    let bytes: Vec<u8> = (0..=255).collect();
    let input = format!("@{}", folder.file("input", &bytes));
    let output = run(&["run", &totals, "--entry", "echo", "--input", &input]);
    assert_eq!((output.status.code(), output.stdout, output.stderr), (Some(0), bytes.clone(), Vec::new()));
    let output = run_with_input(&["run", &totals, "--entry", "echo", "--input", "-"], &bytes);
    assert_eq!((output.status.code(), output.stdout), (Some(0), bytes));
    assert_eq!(printed(&run(&["run", &text, "--entry", "upper", "--input", "-a"])), "-A");
    assert_eq!(printed(&run(&["run", &text, "--entry", "count_vowels"])), r#"{"count":0}"#, "no input is an empty one");
    let greet = folder.file("greet.wasm", GREET);
    assert_eq!(
        printed(&run(&["run", &greet, "--input", r#"{"name":"Ada"}"#])),
        r#"{"greeting":"Hello, Ada!"}"#,
        "the only export need not be named"
    );
}

#[test]
fn what_a_plugin_logs_is_beside_its_output() {
    let folder = Folder::new();
    let totals = folder.file("totals.wasm", TOTALS);
    let output = run(&["run", &totals, "--entry", "log_it", "--input", "one two"]);
    assert_eq!((output.status.code(), output.stdout), (Some(0), Vec::new()));
    assert!(String::from_utf8_lossy(&output.stderr).contains("one two"));
}

#[test]
fn a_refused_plugin_is_one_line_and_1() {
    let folder = Folder::new();
    let strange = wasm("(module (import \"a\\u{1b}[31m\\n\" \"b\" (func)) (func (export \"run\")))");
    let refused = [
        ("empty", Vec::new(), "it is empty"),
        ("text", b"hello\nthere".to_vec(), "not a WebAssembly binary"),
        ("wat", b"(module)".to_vec(), "not a WebAssembly binary"),
        ("truncated", TEXT[..TEXT.len() / 2].to_vec(), "unexpected end"),
        ("nothing", wasm(r#"(module (func (export "f") (param i32)))"#), "no function that could be"),
        ("strange", strange, r"a\u{1b}[31m"),
    ];
    for (name, bytes, said) in refused {
        let path = folder.file(name, bytes);
        for command in ["run", "check"] {
            let line = refusal(&run(&[command, &path]), 1);
            assert!(line.contains(said), "{line} lacks {said}");
        }
    }
    let start = folder.file("start", wasm(r#"(module (func $f unreachable) (start $f) (func (export "run")))"#));
    let text = folder.file("text.wasm", TEXT);
    for command in ["run", "check"] {
        assert!(refusal_of_guest(&run(&[command, &start]), 1).contains("unreachable"));
        let line = refusal(&run(&[command, &folder.file("abort", NO_ABORT), "--entry", "word_count"]), 1);
        assert!(line.contains("env::abort"), "{line}");
        let line = refusal(&run(&[command, &text, "--entry", "lower"]), 1);
        assert!(line.starts_with("entry_point_missing: the plugin has no entry point \"lower\""), "{line}");
        let small =
            program().args([command, &text, "--entry", "upper"]).env("EVALPOOL_LIMITS_PLUGIN_SIZE", "1KiB").output();
        let line = refusal(&small.unwrap(), 1);
        assert_eq!(line, "payload_too_large: the plugin is over limits.plugin_size, 1 KiB");
    }
}

#[test]
fn a_failed_evaluation_is_one_line_and_1() {
    let folder = Folder::new();
    let text = folder.file("text.wasm", TEXT);
    let line = refusal(&run(&["run", &text, "--entry", "fail", "--input", "two\nlines"]), 1);
    assert_eq!(line, "guest_error: the plugin reported an error: two lines");
    let exits = folder.file("exits.wasm", wasm(EXITS));
    assert_eq!(refusal_of_guest(&run(&["run", &exits]), 1), "guest_exit: the plugin exited with code 3");
    assert!(refusal(&run(&["run", &exits, "--wasi", "off"]), 1).ends_with("and WASI is off"));
    let spins = folder.file("spins.wasm", wasm(r#"(module (func (export "run") (loop (br 0))))"#));
    let line = refusal_of_guest(&run(&["run", &spins, "--timeout", "100ms"]), 1);
    assert_eq!(line, "exec_timeout: the plugin ran longer than limits.exec_timeout, 100 ms, and was stopped");
    let command = program()
        .args(["run", &text, "--entry", "upper", "--input", "12345"])
        .env("EVALPOOL_LIMITS_INPUT_SIZE", "4B")
        .output();
    assert!(refusal(&command.unwrap(), 1).starts_with("payload_too_large"));
}

#[test]
fn what_cannot_be_read_is_one_line_and_2() {
    let folder = Folder::new();
    let (missing, directory) = (folder.path("missing"), folder.0.path().to_owned());
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    for unreadable in [path(&missing), path(&directory)] {
        for arguments in [&["run", &unreadable][..], &["check", &unreadable], &["load", "--plugin", &unreadable]] {
            assert!(refusal(&run(arguments), 2).starts_with(&format!("cannot read {unreadable}: ")));
        }
        let text = folder.file("text.wasm", TEXT);
        let input = format!("@{unreadable}");
        let line = refusal(&run(&["run", &text, "--entry", "upper", "--input", &input]), 2);
        assert!(line.starts_with(&format!("cannot read {unreadable}: ")), "{line}");
    }
}

// ---- Usage and settings ----------------------------------------------------------------------------------------------

#[test]
fn usage_that_cannot_be_understood_is_one_line_and_2() {
    for (arguments, said) in [
        (&["fly"][..], "fly"),
        (&["run"], "<PLUGIN>"),
        (&["run", "a", "b"], "'b'"),
        (&["run", "a", "--wasm", "off"], "--wasi"),
        (&["run", "a", "--wasi", "yes"], "`auto` or `off`"),
        (&["run", "a", "--timeout", "5"], "250ms"),
        (&["run", "a", "--timeout", "0s"], "longer"),
        (&["check", "a", "--input", "x"], "--input"),
        (&["serve", "--listen", "here"], "--listen"),
        (&["serve", "--port", "1"], "--port"),
        (&["load", "--tenants", "0"], "--evaluators"),
        (&["load", "--capacity", "-1"], "-1"),
        (&["load", "--skew", "nan"], "from 0 to 100"),
        (&["load", "--duration", "soon"], "250ms"),
        (&["load", "--isolation", "used"], "`fresh` or `reuse`"),
        (&["load", "--entry", "x"], "--plugin"),
        (&["top", "--url"], "--url"),
        (&["top", "localhost"], "'localhost'"),
    ] {
        let line = refusal(&run(arguments), 2);
        assert!(line.contains(said), "{arguments:?}: {line} lacks {said}");
    }
}

#[test]
fn help_is_printed_for_who_asks_and_for_who_says_nothing() {
    let help = printed(&run(&["--help"]));
    for command in ["serve", "run", "check", "load", "top"] {
        assert!(help.contains(command));
        let of_command = printed(&run(&[command, "--help"]));
        assert!(of_command.contains("--config") && of_command.contains("Usage: evalpool"), "{of_command}");
    }
    assert_eq!(printed(&run(&["--version"])), concat!("evalpool ", env!("CARGO_PKG_VERSION"), "\n"));
    let nothing = run(&[]);
    assert_eq!((nothing.status.code(), nothing.stdout), (Some(2), Vec::new()));
    assert_eq!(String::from_utf8(nothing.stderr).unwrap(), help);
}

#[test]
fn settings_that_cannot_be_used_are_one_line_and_2() {
    let folder = Folder::new();
    let greet = folder.file("greet.wasm", GREET);
    let bad = [
        (folder.file("unknown.toml", "[pool]\ncapasity = 3"), "did you mean pool.capacity?"),
        (folder.file("range.toml", "[pool]\ncapacity = 0"), "at least 1"),
        (folder.file("type.toml", "[limits]\nmemory = 'much'"), "limits.memory"),
        (folder.file("not.toml", "{"), "not.toml"),
        (folder.path("missing.toml").to_str().unwrap().to_owned(), "missing.toml"),
    ];
    for (file, said) in bad {
        for arguments in
            [&["serve", "--config", &file][..], &["--config", &file, "check", &greet], &["load", "--config", &file]]
        {
            let line = refusal(&run(arguments), 2);
            assert!(line.contains(said), "{line} lacks {said}");
        }
    }
    let output = program().arg("load").env("EVALPOOL_POOL_CAPASITY", "3").output().unwrap();
    assert!(refusal(&output, 2).ends_with("did you mean EVALPOOL_POOL_CAPACITY?"));
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let folder = Folder::new();
    let spins = folder.file("spins.wasm", wasm(r#"(module (func (export "run") (loop (br 0))))"#));
    let file = folder.file("settings.toml", "[limits]\nexec_timeout = '110ms'");
    let stopped = |command: &mut Command| refusal_of_guest(&command.output().unwrap(), 1);
    let mut command = program();
    command.args(["run", &spins, "--config", &file]);
    assert!(stopped(&mut command).contains(", 110 ms,"));
    command.env("EVALPOOL_LIMITS_EXEC_TIMEOUT", "120ms");
    assert!(stopped(&mut command).contains(", 120 ms,"));
    command.args(["--timeout", "130ms"]);
    assert!(stopped(&mut command).contains(", 130 ms,"));
}

// ---- serve -----------------------------------------------------------------------------------------------------------

#[test]
fn a_server_that_cannot_serve_says_so_in_one_line_and_leaves_no_trace() {
    let folder = Folder::new();
    let (data, file) = (folder.path("data"), folder.file("file", ""));
    let data = data.to_str().unwrap();
    let server = Server::start(&[]);
    let empty = folder.file("tokens", "\n \n");
    let here = "127.0.0.1:0";
    for (arguments, tokens, said) in [
        (["--listen", &server.address, "--data", data], None, "cannot listen on 127.0.0.1"),
        (["--listen", "0.0.0.0:0", "--data", data], None, "set service.token_file"),
        (["--listen", "[::]:0", "--data", data], None, "set service.token_file"),
        (["--listen", here, "--data", data], Some(empty.as_str()), "holds no token"),
        (["--listen", here, "--data", data], Some("/nowhere/tokens"), "cannot use service.token_file"),
        (["--listen", here, "--data", &file], None, "cannot use the data folder"),
        (["--listen", here, "--data", "s3://bucket/evaluators"], None, "only a local folder"),
    ] {
        let mut command = program();
        command.arg("serve").args(arguments).envs(tokens.map(|tokens| ("EVALPOOL_SERVICE_TOKEN_FILE", tokens)));
        let line = refusal(&command.output().unwrap(), 2);
        assert!(line.contains(said), "{line} lacks {said}");
    }
    assert!(!Path::new(data).exists());
}

#[test]
fn a_second_server_on_a_folder_is_refused() {
    let server = Server::start(&[]);
    let data = server.data().to_str().unwrap();
    // Then once more without the file that tells of the first.
    for _ in 0..2 {
        let mut command = program();
        command.args(["serve", "--listen", "127.0.0.1:0", "--data", data]).env("EVALPOOL_LOG_LEVEL", "warn");
        let line = refusal(&command.output().unwrap(), 2);
        assert_eq!(line, format!("cannot use the data folder {data}: another evalpool is using it"));
        std::fs::remove_file(server.data().join("lock")).unwrap();
    }
}

#[test]
fn a_server_on_extism_that_trusts_no_plugin_is_refused() {
    let folder = Folder::new();
    let data = folder.path("data");
    let output = run(&["serve", "--engine", "extism", "--listen", "127.0.0.1:0", "--data", data.to_str().unwrap()]);
    assert!(refusal(&output, 2).contains("set engine.trusted = true"));
    assert!(!data.exists());
}
