//! Extism manifests: as specs in Rust, and by `--manifest`.

use std::{collections::BTreeMap, path::PathBuf, process::Output};

use evalpool::{
    Digest, Error, EvaluatorPool, Spec,
    config::EngineKind,
    extism_manifest::{HttpRequest, Manifest, MemoryOptions, Wasm, WasmMetadata},
};
use serde_json::{Value, json};

use crate::{
    http::{Recorder, answer, values},
    options::{ADDS, FETCH, GROWS, MATH, NUMBERS, SPINS},
    program::{Folder, printed, refusal, refusal_of_guest, run},
    service::program,
    support::{TEXT, WORDS, settings, wasm},
};

/// Nobody asks there.
const URL: &str = "https://plugins.example.com/x.wasm";

/// The name of an evaluation's outcome, or its output.
async fn outcome(engine: EngineKind, manifest: &Manifest, entry_point: &str, input: &str) -> String {
    let mut settings = settings(engine);
    if engine == EngineKind::Direct {
        settings.engine.allowed_hosts = vec!["127.0.0.1".to_owned()];
    }
    let pool = EvaluatorPool::from_settings(&settings).unwrap();
    let spec = Spec::from_manifest(manifest).unwrap().entry_point(entry_point);
    let outcome = pool.evaluator("described", spec).unwrap().evaluate(input).await;
    pool.close().await;
    outcome.map_or_else(|error| error.to_string(), |response| response.text().unwrap().to_owned())
}

fn hash(bytes: &[u8]) -> String {
    Digest::of(bytes).hex()
}

async fn what_a_manifest_says_is_what_the_plugin_gets(engine: EngineKind) {
    let words = Manifest::new([Wasm::data(WORDS).with_hash(hash(WORDS))]).with_config_key("currency", "EUR");
    assert_eq!(outcome(engine, &words, "setting", "currency").await, "EUR");
    let folder = Folder::new();
    let file = Manifest::new([Wasm::file(folder.file("text.wasm", TEXT)).with_name("whatever").with_hash(hash(TEXT))]);
    assert_eq!(outcome(engine, &file, "upper", "x").await, "X");

    let grows = Manifest::new([wasm(GROWS)]).with_memory_max(1500);
    assert!(outcome(engine, &grows, "run", "").await.contains("limits.memory"));
    let spins = Manifest::new([wasm(SPINS)]).with_timeout(std::time::Duration::from_millis(60));
    assert!(outcome(engine, &spins, "run", "").await.contains("limits.exec_timeout, 60 ms"));
}

async fn a_module_with_another_hash_is_refused(engine: EngineKind) {
    let other = |module: &str| Wasm::data(wasm(module)).with_hash(hash(b"other"));
    for manifest in
        [Manifest::new([other(SPINS)]), Manifest::new([other(NUMBERS).with_name("numbers"), Wasm::data(wasm(ADDS))])]
    {
        let said = outcome(engine, &manifest, "run", "").await;
        assert!(said.starts_with("the plugin's digest is ") && said.contains(&hash(b"other")), "{said}");
    }
}

async fn the_module_named_main_or_else_the_last_is_the_plugin(engine: EngineKind) {
    let [adds, math, numbers] = [ADDS, MATH, NUMBERS].map(|text| Wasm::data(wasm(text)));
    let [math, numbers] = [math.with_name("math"), numbers.with_name("numbers")];
    for order in [
        [math.clone(), numbers.clone(), adds.clone()],
        [math.clone(), numbers.clone(), adds.clone().with_name("last")],
        [math.clone(), adds.clone().with_name("main"), numbers.clone()],
        [adds.clone(), math.clone(), numbers.clone()],
    ] {
        assert_eq!(outcome(engine, &Manifest::new(order), "run", "").await, "");
    }
}

/// Answers with the plugin that is asked for by name, to whoever has the key.
fn server() -> Recorder {
    let modules = [("adds", wasm(ADDS)), ("math", wasm(MATH)), ("numbers", wasm(NUMBERS))];
    Recorder::start(move |request| {
        let name = request.split(['/', '?']).nth(1).unwrap();
        let module = modules.iter().find(|(module, _)| *module == name);
        match module.filter(|_| values(request, "authorization") == ["s3cret"]) {
            Some((_, module)) => answer("200 OK", &[], module),
            None => answer("403 Forbidden", &[], b""),
        }
    })
}

fn at(server: &Recorder, module: &str) -> Wasm {
    let request = HttpRequest::new(server.url(&format!("/{module}?key=s3cret"))).with_header("Authorization", "s3cret");
    Wasm::Url { req: request, meta: WasmMetadata::default() }.with_name(module)
}

async fn modules_are_fetched_by_url_with_their_headers_and_held_to_their_hashes(engine: EngineKind) {
    let server = server();
    let fetched = |hash_of: &[u8]| {
        let numbers = at(&server, "numbers").with_hash(hash(hash_of));
        Manifest::new([at(&server, "math"), numbers, at(&server, "adds").with_hash(hash(&wasm(ADDS)))])
    };
    assert_eq!(outcome(engine, &fetched(&wasm(NUMBERS)), "run", "").await, "");
    let heard: Vec<String> = server.heard().iter().map(|heard| heard.lines().next().unwrap().to_owned()).collect();
    assert_eq!(heard, ["adds", "math", "numbers"].map(|name| format!("GET /{name}?key=s3cret HTTP/1.1")));
    let said = outcome(engine, &fetched(b"other"), "run", "").await;
    assert!(said.starts_with("the plugin's digest is ") && said.contains(&hash(b"other")), "{said}");
}

on_each_engine!(
    modules_are_fetched_by_url_with_their_headers_and_held_to_their_hashes,
    what_a_manifest_says_is_what_the_plugin_gets,
    a_module_with_another_hash_is_refused,
    the_module_named_main_or_else_the_last_is_the_plugin,
);

/// In Extism, no list of hosts allows none, and so does an empty one.
#[tokio::test]
async fn a_manifest_without_hosts_allows_none_whatever_the_settings_say() {
    let port = crate::conformance::http::http_server(|_| "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi");
    let url = format!("http://127.0.0.1:{port}/");
    let fetch = Manifest::new([FETCH.to_vec()]).with_config_key("key", "k");
    for manifest in [fetch.clone(), fetch.clone().disallow_all_hosts()] {
        let said = outcome(EngineKind::Direct, &manifest, "fetch", &url).await;
        assert!(said.contains("allowed"), "{said}");
    }
    let allowed = fetch.with_allowed_host("127.0.0.1");
    assert_eq!(outcome(EngineKind::Direct, &allowed, "fetch", &url).await, "hi");
}

#[test]
fn what_cannot_be_done_is_refused_by_its_name() {
    let plain = || Manifest::new([wasm(SPINS)]);
    let memory = |memory: MemoryOptions| plain().with_memory_options(memory);
    let requested = |request| Manifest::new([Wasm::Url { req: request, meta: WasmMetadata::default() }]);
    let named = |names: [&str; 3]| Manifest::new(names.map(|name| Wasm::data(wasm(SPINS)).with_name(name)));
    for (manifest, field) in [
        (plain().with_allowed_path("/".to_owned(), "/"), "allowed_paths"),
        (plain().with_allowed_host("http://x"), r#"allowed_hosts: it has "http://x", which no request could match"#),
        (plain().with_timeout(std::time::Duration::ZERO), "timeout_ms"),
        (memory(MemoryOptions::new().with_max_pages(0)), "memory.max_pages"),
        (memory(MemoryOptions::new().with_max_http_response_bytes(9)), "memory.max_http_response_bytes"),
        (memory(MemoryOptions::new().with_max_var_bytes(0)), "memory.max_var_bytes"),
        (Manifest::default(), "wasm: it names no module"),
        (plain().with_wasm(Wasm::url("example.com/x.wasm")), "wasm[1].url: its URL cannot be read: "),
        (
            plain().with_wasm(Wasm::url("ftp://example.com/x.wasm")),
            "wasm[1].url: a source over HTTP has the URL ftp://example.com/x.wasm: plugins",
        ),
        (
            plain().with_wasm(Wasm::url("http://10.0.0.1/x.wasm?key=s3cret")),
            "wasm[1].url: http://10.0.0.1/x.wasm: http:// is for this machine only; use https://",
        ),
        (requested(HttpRequest::new(URL).with_method("POST")), "wasm[0].method: plugins are fetched by GET; remove it"),
        (requested(HttpRequest::new(URL).with_header("x y", "s3cret")), "wasm[0].headers: "),
        (Manifest::new([Wasm::data(TEXT).with_hash("abc")]), "wasm[0].hash: expected the 64 hexadecimal digits"),
        (named(["main", "a", "a"]), r#"wasm: a linked module cannot be named "a""#),
        (named(["main", "a", "main"]), r#""main""#),
        (named(["extism:host/env", "a", "b"]), r#""extism:host/env""#),
    ] {
        let error = Spec::from_manifest(&manifest).unwrap_err();
        assert!(matches!(error, Error::InvalidRequest { .. }), "{error}");
        let said = error.to_string();
        assert!(said.starts_with("the manifest cannot be used: ") && said.contains(field), "{said} lacks {field}");
        assert!(!said.contains("s3cret"), "{said}");
    }
    // The first as Extism's reader fills it in.
    for manifest in [
        memory(MemoryOptions::new().with_max_var_bytes(1 << 20)),
        plain().with_allowed_paths(std::iter::empty::<(String, PathBuf)>()),
        requested(HttpRequest::new(URL).with_method("get")),
    ] {
        assert!(Spec::from_manifest(&manifest).is_ok(), "{manifest:?}");
    }
}

// ---- --manifest -------------------------------------------------------------------------------------------------------

fn in_folder(folder: &Folder, arguments: &[&str]) -> Output {
    program().args(arguments).current_dir(folder.path(".")).output().unwrap()
}

/// What Extism's own suite asks of manifests: TOML, and JSON; files by paths from the working directory, as there.
#[test]
fn toml_manifest_and_one_in_json_run_a_plugin_from_the_working_directory() {
    let folder = Folder::new();
    folder.file("words.wasm", WORDS);
    let hash = hash(WORDS);
    let toml = format!(
        "timeout_ms = 60000\n[[wasm]]\npath = 'words.wasm'\nhash = '{hash}'\n[memory]\nmax_pages = 100\n\
         [config]\nAPI_Key = 'from TOML'\n"
    );
    let json = json!({
        "wasm": [{"path": "words.wasm", "hash": hash, "name": null}],
        "config": {"API_Key": "from JSON"}, "allowed_hosts": null, "allowed_paths": {}, "memory": {"max_pages": 100},
    });
    std::fs::create_dir(folder.path("elsewhere")).unwrap();
    folder.file("elsewhere/toml", toml);
    folder.file("elsewhere/json", json.to_string());
    let input = ["--entry", "setting", "--input", "API_Key"];
    for (manifest, value) in [("elsewhere/toml", "from TOML"), ("elsewhere/json", "from JSON")] {
        let run = |more: &[&str]| in_folder(&folder, &[&["run", "--manifest", manifest], &input[..], more].concat());
        assert_eq!(printed(&run(&[])), value);
        assert_eq!(printed(&run(&["--config-value", "API_Key=from here"])), "from here");
        let checked = printed(&in_folder(&folder, &["check", "--manifest", manifest]));
        assert!(checked.contains(&hash) && checked.contains("limits.memory is 6.2 MiB"), "{checked}");
        let load = ["load", "--json", "--evaluators", "2", "--duration", "200ms", "--manifest", manifest];
        let loaded = in_folder(&folder, &[&load, &input[..]].concat());
        assert_eq!(serde_json::from_slice::<Value>(&loaded.stdout).unwrap()["errors"], json!({}));
    }
}

#[test]
fn options_win_over_a_manifest_and_its_limits_over_the_settings() {
    let folder = Folder::new();
    let base64 = |text: &str| {
        // The manifest crate writes data as a manifest has it.
        serde_json::to_value(Wasm::data(wasm(text))).unwrap()["data"].clone()
    };
    let file = |name: &str, manifest: Value| folder.file(name, manifest.to_string());
    let [adds, math, spins] = [ADDS, MATH, SPINS].map(base64);
    let grows = file("grows", json!({"wasm": [{"data": base64(GROWS)}], "memory": {"max_pages": 2000}}));
    assert_eq!(printed(&run(&["run", "--manifest", &grows])), "");
    assert!(
        refusal_of_guest(&run(&["run", "--manifest", &grows, "--memory", "1MiB"]), 1).starts_with("out_of_memory: ")
    );
    let slow = file("slow", json!({"wasm": [{"data": spins}], "timeout_ms": 3_600_000}));
    let line = refusal_of_guest(&run(&["run", "--manifest", &slow, "--timeout", "60ms"]), 1);
    assert!(line.starts_with("exec_timeout: ") && line.contains("60 ms"), "{line}");

    let linked = file(
        "linked",
        json!({"wasm": [{"data": math, "name": "math"}, {"data": spins, "name": "numbers"}, {"data": adds}]}),
    );
    assert!(refusal(&run(&["run", "--manifest", &linked]), 1).starts_with("invalid_plugin: "));
    let numbers = format!("numbers={}", folder.file("numbers.wasm", wasm(NUMBERS)));
    assert_eq!(printed(&run(&["run", "--manifest", &linked, "--link", &numbers])), "");
    let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "main"];
    let modules = names.map(|name| json!({"data": base64(NUMBERS), "name": name}));
    let line = refusal(&run(&["run", "--manifest", &file("many", json!({"wasm": modules}))]), 2);
    assert_eq!(line, "--manifest: at most 8 modules can be linked with a plugin");
    // With the two of the manifest, of which one is replaced.
    let more: Vec<_> = names[..7].iter().map(|name| numbers.replacen("numbers", name, 1)).collect();
    let more = more.iter().flat_map(|link| ["--link", link.as_str()]);
    let command: Vec<_> = ["run", "--manifest", &linked, "--link", &numbers].into_iter().chain(more).collect();
    let line = refusal(&run(&command), 2);
    assert!(line.starts_with("--link: at most 8 modules"), "{line}");
}

#[test]
fn a_manifest_that_cannot_be_used_is_one_line_that_names_file_and_field_and_2() {
    let folder = Folder::new();
    let plugin = folder.file("text.wasm", TEXT);
    let pointer = json!({"ptr": TEXT.as_ptr() as usize, "len": TEXT.len()});
    let wasm = json!([{"path": plugin}]);
    for (at, (manifest, said)) in [
        (json!({"wasm": [{"data": pointer}]}).to_string(), "wasm[0].data: "),
        (json!({"wasm": [{"data": "***"}]}).to_string(), "wasm[0].data: "),
        (json!({"wasm": [{"name": "main"}]}).to_string(), "wasm[0]: it needs one of path, data and url"),
        (json!({"wasm": [{"path": plugin, "url": "x"}]}).to_string(), "wasm[0]: it needs one of path, data and url"),
        (
            json!({"wasm": [{"path": "x", "hsh": "x"}]}).to_string(),
            "wasm[0].hsh: a manifest has no such field; did you mean hash?",
        ),
        (json!({"wasm": [{"path": "/nowhere"}]}).to_string(), "wasm: cannot read /nowhere: "),
        (json!({"wasm": wasm, "memory": {"max_page": 1}}).to_string(), "memory.max_page: "),
        (json!({"wasm": wasm, "config": {"key": 12345}}).to_string(), "config.key: expected a string"),
        (json!({"wasm": wasm, "config": "12345"}).to_string(), "config: expected an object of strings"),
        (
            json!({"wasm": [{"url": URL, "headers": {"key": 12345}}]}).to_string(),
            "wasm[0].headers.key: expected a string",
        ),
        (json!({"wasm": wasm, "allowed_paths": {"/": "/"}}).to_string(), "allowed_paths: "),
        (json!({"wasm": wasm, "timeout_ms": -1}).to_string(), "timeout_ms: "),
        (
            json!({"wasm": wasm, "timeout": 1}).to_string(),
            "timeout: a manifest has no such field; did you mean timeout_ms?",
        ),
        (json!({}).to_string(), "wasm: it names no module"),
        ("{\"wasm\":".to_owned(), "it is neither JSON nor TOML: EOF"),
        ("wasm = x".to_owned(), "it is neither JSON nor TOML: TOML parse error at line 1"),
    ]
    .into_iter()
    .enumerate()
    {
        let path = folder.file(&format!("manifest-{at}"), &manifest);
        for command in ["run", "check", "load"] {
            let line = refusal(&run(&[command, "--manifest", &path]), 2);
            assert!(line.starts_with(&format!("--manifest: {path}: ")) && line.contains(said), "{line} lacks {said}");
            assert!(!line.contains("12345"), "{line} shows what may be a secret");
        }
    }
    assert!(refusal(&run(&["run", "--manifest", "/nowhere"]), 2).starts_with("--manifest: cannot read /nowhere: "));
    let binary = folder.file("manifest.wasm", TEXT);
    assert!(refusal(&run(&["run", "--manifest", &binary]), 2).starts_with("--manifest: "));
    for (command, plugin) in [("run", &[&*plugin][..]), ("check", &[&plugin]), ("load", &["--plugin", &plugin])] {
        let line = refusal(&run(&[&[command, "--manifest", "m"], plugin].concat()), 2);
        assert!(line.contains("cannot be used with"), "{line}");
    }
    let wrong: BTreeMap<_, _> = [("wasm", json!([{"path": plugin, "hash": hash(b"other")}]))].into();
    let wrong = folder.file("wrong", json!(wrong).to_string());
    for command in ["run", "check", "load"] {
        let line = refusal(&run(&[command, "--manifest", &wrong]), 1);
        assert!(line.starts_with("digest_mismatch: "), "{line}");
    }
    // A manifest is no plugin.
    assert!(refusal(&run(&["run", &wrong]), 1).starts_with("invalid_plugin: "));
}

#[test]
fn modules_of_a_manifest_come_from_urls_and_are_warned_of_without_a_hash() {
    let (server, folder) = (server(), Folder::new());
    let module = |name: &str, hash: Option<String>| {
        let url = server.url(&format!("/{name}?key=s3cret"));
        json!({"url": url, "name": name, "hash": hash, "method": "GET", "headers": {"authorization": "s3cret"}})
    };
    let file = |name: &str, math: Option<String>| {
        let [numbers, adds] =
            [("numbers", NUMBERS), ("adds", ADDS)].map(|(at, text)| module(at, Some(hash(&wasm(text)))));
        folder.file(name, json!({"wasm": [module("math", math), numbers, adds]}).to_string())
    };
    let known = file("known", Some(hash(&wasm(MATH))));
    for command in ["run", "check"] {
        let output = run(&[command, "--manifest", &known]);
        assert_eq!(String::from_utf8(output.stderr.clone()).unwrap(), "");
        printed(&output);
        assert_eq!(server.heard().len(), 3);
    }
    let load = run(&["load", "--json", "--evaluators", "2", "--duration", "200ms", "--manifest", &known]);
    assert_eq!(serde_json::from_str::<Value>(&printed(&load)).unwrap()["errors"], json!({}));
    assert_eq!(server.heard().len(), 3);

    let unknown = file("unknown", None);
    let warned = run(&["run", "--manifest", &unknown]);
    let text = String::from_utf8(warned.stderr.clone()).unwrap();
    let hash_of_math = format!("\"hash\": \"{}\"", hash(&wasm(MATH)));
    let (url, advice) = (server.url("/math"), format!("to run these bytes only: {hash_of_math}"));
    assert!(text.starts_with(&format!("warning: {url} ")) && text.trim_end().ends_with(&advice), "{text}");
    assert!(warned.status.success() && text.lines().count() == 1 && !text.contains("s3cret"), "{text}");
    // What an option takes the place of is not fetched.
    server.heard();
    let given = format!("math={}", folder.file("math.wasm", wasm(MATH)));
    assert_eq!(printed(&run(&["run", "--manifest", &unknown, "--link", &given])), "");
    assert_eq!(server.heard().len(), 2);

    let missing = folder.file("missing", json!({"wasm": [module("nothing", None)]}).to_string());
    let line = refusal(&run(&["run", "--manifest", &missing]), 2);
    let url = server.url("/nothing");
    assert_eq!(line, format!("--manifest: {missing}: wasm: cannot read {url}: the server answered 403 Forbidden"));
    let wrong = file("wrong", Some(hash(b"other")));
    for command in ["run", "check", "load"] {
        let line = refusal(&run(&[command, "--manifest", &wrong]), 1);
        assert!(line.starts_with("digest_mismatch: ") && !line.contains("s3cret"), "{line}");
    }
}
