//! The spec document: a plugin gets what its owner says of it, within what the operator allows, and nobody sees a secret.

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    letter,
    server::{Server, eventually},
};
use crate::{
    conformance::{IMPORTS, http::http_server},
    http::Recorder,
    support::{CRASH, TEXT, TOTALS, WORDS, wasm},
};

/// A config value that must be seen nowhere but in the plugin and in its evaluator's file.
const SECRET: &str = "s3cret-m4rker";

/// A part of a form: its name and what is in it.
type Part<'a> = (&'a str, &'a [u8]);

fn spec(json: &Value) -> Vec<u8> {
    serde_json::to_vec(json).unwrap()
}

/// Makes the request that its input is, and gives the response's body.
fn asks() -> Vec<u8> {
    wasm(&format!(
        r#"(module {IMPORTS} (func (export "run") (result i32)
            (call $echo)
            (call $block (call $http (call $output_offset) (i64.const 0)))
            i32.const 0))"#
    ))
}

#[test]
fn an_upload_in_parts_says_what_its_plugin_needs() {
    let folder = TempDir::new().unwrap();
    let settings = [("ENGINE_ALLOWED_HOSTS", "*.example.com")];
    let mut server = Server::start_in(folder.path(), &settings);
    let said = json!({
        "entry_point": "setting", "isolation": "reuse", "wasi": "off", "vars": "kept", "init": "once",
        "init_refresh": "1h", "debug": true,
        "config": {"api_key": SECRET, "region": "eu"},
        "allowed_hosts": ["api.example.com"],
        "limits": {"memory": "32MiB", "output_size": 1024, "build_timeout": "1m", "exec_timeout": "1m", "fuel": 9_000_000,
                   "instances": 1},
        "labels": {"team": "billing"},
        "digest": evalpool::Digest::of(WORDS).to_string(),
    });
    let put = server.put_form("key", &[("spec", &spec(&said)), ("plugin", WORDS)]);
    assert_eq!((put.status, put.header("location")), (201, Some("/v1/evaluators/key")), "{put:?}");
    let shown = json!({
        "entry_point": "setting", "isolation": "reuse", "wasi": "off", "vars": "kept", "init": "once",
        "init_refresh": "1h", "debug": true,
        "config": {"api_key": null, "region": null},
        "allowed_hosts": ["api.example.com"],
        "limits": {"memory": 32 << 20, "output_size": 1024, "build_timeout": "1m", "exec_timeout": "1m",
                   "fuel": 9_000_000, "instances": 1},
        "labels": {"team": "billing"},
    });
    assert_eq!(put.json()["spec"], shown);
    for _ in 0..2 {
        assert_eq!(server.info("key")["spec"], shown);
        assert_eq!(server.info("key")["revision"], put.json()["revision"]);
        assert_eq!(server.post("key", b"api_key").text(), SECRET, "the plugin has it");
        assert_eq!(server.post("key", b"region").text(), "eu");
        server.signal("TERM");
        assert!(server.ended().success());
        server = Server::start_in(folder.path(), &settings);
    }
    // A list shows no specs.
    assert!(server.get("/v1/evaluators").json()["evaluators"][1].get("spec").is_none());
    // The built-in evaluator has one that says nothing.
    assert_eq!((&server.info("greet")["spec"], &server.info("greet")["revision"]), (&json!({}), &json!(0)));
    server.has_logged("stored evaluators");
}

#[test]
fn a_config_value_is_seen_by_its_plugin_alone() {
    let server = Server::start(&[("LOG_LEVEL", "trace")]);
    let answers = [
        server.put_form("a", &[("spec", &spec(&json!({"config": {"k": SECRET}}))), ("plugin", WORDS)]),
        server.put_form(
            "a",
            &[("spec", &spec(&json!({"entry_point": "setting", "config": {"k": SECRET}}))), ("plugin", WORDS)],
        ),
        server.put_form("a", &[("spec", &spec(&json!({"config": {"k": [SECRET]}}))), ("plugin", WORDS)]),
        server.put_form("a", &[("spec", &spec(&json!({"config": SECRET}))), ("plugin", WORDS)]),
        server.put_form("a", &[("spec", format!(r#"{{"config":{{"k":"{SECRET}"}}"#).as_bytes()), ("plugin", WORDS)]),
        server.put_form("a", &[("spec", format!(r#"{{"config":{{"k":{SECRET}}}}}"#).as_bytes()), ("plugin", WORDS)]),
        server.put_form("b", &[("spec", &spec(&json!({"config": {"k": SECRET}}))), ("plugin", b"not a plugin")]),
        server.patch("a", &[], &json!({"config": {"l": SECRET}}).to_string()),
        server.patch("a", &[], &json!({"config": {"l": [SECRET]}}).to_string()),
        server.patch("a", &[], &json!({"entry_point": "nobody", "config": {"l": SECRET}}).to_string()),
        server.get("/v1/evaluators/a"),
        server.get("/v1/evaluators"),
        server.get("/metrics"),
    ];
    let statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [422, 201, 400, 400, 400, 400, 422, 200, 400, 422, 200, 200, 200]);
    for answer in &answers {
        assert!(!answer.lossy().contains(SECRET), "{answer:?}");
        assert!(answer.headers.iter().all(|(_, value)| !value.contains(SECRET)), "{answer:?}");
    }
    assert_eq!(server.post("a", b"l").text(), SECRET, "it was there all the time");
    // What was logged until now, the last request included.
    server.get("/healthz");
    server.has_logged("path=\"/healthz\"");
    assert!(!server.log().contains(SECRET));
    for folder in ["evaluators", "plugins"] {
        for file in server.files(folder) {
            let mode = fs::metadata(server.data.join(folder).join(&file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
    }
    // What GET shows has lost the values, so that it cannot be an upload.
    let shown = server.info("a")["spec"].clone();
    let refused = server.put_form("a", &[("spec", &spec(&shown)), ("plugin", WORDS)]);
    refused.is(400, "invalid_request");
    assert!(refused.text().contains("values are never shown"), "{refused:?}");
    assert_eq!(server.post("a", b"l").text(), SECRET);
}

#[test]
fn a_bad_form_is_refused_in_its_own_words_and_leaves_nothing() {
    let server = Server::start(&[("LIMITS_PLUGIN_SIZE", "32KiB")]);
    let large = vec![b' '; 256 * 1024 + 1];
    let (lib, huge) = (letter('l'), vec![0; 33 * 1024]);
    let plugin: Part = ("plugin", WORDS);
    let names: Vec<_> = ('a'..='i').map(|name| format!("link.{name}")).collect();
    let nine: Vec<Part> = names.iter().map(|name| (name.as_str(), &lib[..])).chain([plugin]).collect();
    let (long, told) = ("x".repeat(1025), format!(r#"the name of the part \"{}\"… is over 1 KiB"#, "x".repeat(100)));
    let cases: &[(&[Part], u16, &str)] = &[
        (&[], 400, "no part plugin"),
        (&[("spec", b"{}")], 400, "no part plugin"),
        (&[("plugn", TEXT)], 400, r#"there is no part \"plugn\"; a form takes spec, plugin and link.NAME; did you mean plugin?"#),
        (&[plugin, plugin], 400, r#"the part \"plugin\" twice"#),
        (&[("spec", b"{}"), ("spec", b"{}"), plugin], 400, r#"the part \"spec\" twice"#),
        (&[("link.", &lib), plugin], 400, r#"there is no part \"link.\""#),
        (&[("link.a", &lib), ("link.a", &lib), plugin], 400, r#"the part \"link.a\" twice"#),
        (&nine, 400, "link.i is one linked module too many"),
        (&[("link.main", &lib), ("plugin", &lib)], 400, r#"cannot be named \"main\""#),
        (&[(&long, b""), plugin], 400, &told),
        (&[("plugin", &huge)], 413, "limits.plugin_size, 32 KiB"),
        (&[("link.a", &huge), plugin], 413, "limits.plugin_size, 32 KiB"),
        (&[("spec", &large), plugin], 413, "the spec is over 256 KiB"),
        (&[("spec", b""), plugin], 400, "the spec is not JSON"),
        (&[("spec", b"[]"), plugin], 400, "must be a JSON object"),
        (&[("spec", br#"{"allowed_host": []}"#), plugin], 400, "did you mean allowed_hosts?"),
        (&[("spec", br#"{"limits": {"memry": 1}}"#), plugin], 400, "did you mean memory?"),
        (&[("spec", br#"{"trusted": true}"#), plugin], 400, r#"no field \"trusted\""#),
        (&[("spec", br#"{"isolation": "shared"}"#), plugin], 400, "isolation: unknown variant"),
        (&[("spec", br#"{"limits": {"memory": "much"}}"#), plugin], 400, r#"limits.memory: expected a size, such as \"64MiB\", or a number of bytes"#),
        (&[("spec", br#"{"limits": {"output_size": -1}}"#), plugin], 400, "limits.output_size: expected a size"),
        (&[("spec", br#"{"limits": {"memory": 65535}}"#), plugin], 400, "under 64 KiB"),
        (&[("spec", br#"{"limits": {"exec_timeout": "0s"}}"#), plugin], 400, "limits.exec_timeout = 0s"),
        (&[("spec", br#"{"limits": {"instances": 0}}"#), plugin], 400, "limits.instances: "),
        (&[("spec", br#"{"labels": {"a": 1}}"#), plugin], 400, "must be a string"),
        (&[("spec", br#"{"digest": "sha256:12"}"#), plugin], 400, "digest: a digest is"),
        (&[("spec", br#"{"entry_point": "setting", "digest": "sha256:0000000000000000000000000000000000000000000000000000000000000000"}"#), plugin], 422, "as declared"),
    ];
    for (parts, status, said) in cases {
        let answer = server.put_form("x", parts);
        assert_eq!(answer.status, *status, "{said}: {answer:?}");
        assert!(answer.text().contains(said), "{answer:?} lacks {said:?}");
    }
    // A form and parameters would say the same thing twice; a boundary that is not there.
    let answer = server.put_form("x?entry_point=setting", &[plugin]);
    answer.is(400, "invalid_request");
    for kind in ["multipart/form-data", "multipart/mixed; boundary=b0undary"] {
        let answer = server.request("PUT", "/v1/evaluators/x", &[("content-type", kind)], b"--b0undary--\r\n");
        answer.is(400, "invalid_request");
    }
    let cut = ("content-type", "multipart/form-data; boundary=b0undary");
    let body = b"--b0undary\r\ncontent-disposition: form-data; name=\"plugin\"\r\n\r\nabc";
    server.request("PUT", "/v1/evaluators/x", &[cut], body).is(400, "invalid_request");
    assert_eq!(server.names(), ["greet"]);
    assert_eq!(server.files("evaluators"), BTreeSet::new());
    eventually("no plugin is left in the folder", || server.files("plugins").is_empty());
    assert_eq!(server.put_form("x", &[("plugin", &lib)]).status, 201, "a form needs no spec");
}

#[test]
fn a_spec_lowers_what_the_operator_allows_and_never_raises_it() {
    let settings = [
        ("LIMITS_MEMORY", "64MiB"),
        ("LIMITS_OUTPUT_SIZE", "1MiB"),
        ("LIMITS_BUILD_TIMEOUT", "10s"),
        ("LIMITS_EXEC_TIMEOUT", "5s"),
        ("LIMITS_FUEL", "100000000"),
        ("POOL_MAX_INSTANCES_PER_EVALUATOR", "4"),
        ("ENGINE_ALLOWED_HOSTS", "*.example.com,127.0.0.1:1"),
        ("ENGINE_WASI", "off"),
    ];
    let server = Server::start(&settings);
    let put = |more: Value| {
        let mut said = json!({"entry_point": "setting"});
        said.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.put_form("x", &[("spec", &spec(&said)), ("plugin", WORDS)])
    };
    for (limits, said) in [
        (json!({"memory": "128MiB"}), "limits.memory = 128 MiB is over the operator's limits.memory, 64 MiB"),
        (json!({"output_size": "2MiB"}), "limits.output_size = 2 MiB is over the operator's limits.output_size, 1 MiB"),
        (
            json!({"build_timeout": "11s"}),
            "limits.build_timeout = 11 s is over the operator's limits.build_timeout, 10 s",
        ),
        (json!({"exec_timeout": "6s"}), "limits.exec_timeout = 6 s is over the operator's limits.exec_timeout, 5 s"),
        (json!({"fuel": 100_000_001}), "limits.fuel = 100000001 is over the operator's limits.fuel, 100000000"),
        (json!({"instances": 5}), "limits.instances = 5 is over the operator's pool.max_instances_per_evaluator, 4"),
    ] {
        let answer = put(json!({"limits": limits}));
        answer.is(400, "invalid_request");
        assert_eq!(answer.json()["detail"], said);
    }
    assert!(put(json!({"wasi": "auto"})).text().contains("over the operator's engine.wasi, off"));
    for host in ["example.org", "*", "127.0.0.1", "127.0.0.1:2", "any", "http://a.example.com/"] {
        let answer = put(json!({"allowed_hosts": [host]}));
        answer.is(400, "invalid_request");
        assert!(answer.text().contains("allowed_hosts has "), "{answer:?}");
    }
    assert_eq!(server.names(), ["greet"]);
    let equal = json!({"memory": "64MiB", "output_size": "1MiB", "build_timeout": "10s", "exec_timeout": "5s",
                       "fuel": 100_000_000, "instances": 4});
    let hosts = json!(["a.example.com", "*.b.example.com:443", "127.0.0.1:1"]);
    assert_eq!(put(json!({"limits": equal, "allowed_hosts": hosts})).status, 201);
    // And what is lowered holds.
    assert_eq!(put(json!({"limits": {"output_size": 3}, "config": {"k": "four"}})).status, 200);
    server.post("x", b"k").is(422, "output_too_large");
    assert_eq!(put(json!({"limits": {"fuel": 10}, "config": {"k": "four"}})).status, 200);
    server.post("x", b"k").is(422, "out_of_fuel");
}

#[test]
fn stored_specs_stay_within_settings_that_were_lowered_since() {
    let folder = TempDir::new().unwrap();
    let said = json!({"entry_point": "setting", "config": {"k": "four"}, "limits": {"output_size": "1MiB"}});
    {
        let mut server = Server::start_in(folder.path(), &[]);
        assert_eq!(server.put_form("x", &[("spec", &spec(&said)), ("plugin", WORDS)]).status, 201);
        assert_eq!(server.post("x", b"k").text(), "four");
        server.signal("TERM");
        server.ended();
    }
    let server = Server::start_in(folder.path(), &[("LIMITS_OUTPUT_SIZE", "3")]);
    server.has_logged("the settings allow less than before");
    server.post("x", b"k").is(422, "output_too_large");
}

#[test]
fn a_plugin_reaches_the_hosts_that_its_spec_names_and_the_operator_allows() {
    let port = http_server(|_| b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok".to_vec());
    let asks = asks();
    let request = json!({"url": format!("http://127.0.0.1:{port}/"), "method": "GET"}).to_string();
    let outcome = |allowed: &str, hosts: Option<&str>| {
        let server = Server::start(&[("ENGINE_ALLOWED_HOSTS", allowed)]);
        let said = hosts.map_or(json!({}), |host| json!({"allowed_hosts": [host]}));
        let put = server.put_form("asks", &[("spec", &spec(&said)), ("plugin", &asks)]);
        if put.status == 201 { server.post("asks", request.as_bytes()).status } else { put.status }
    };
    let exact = format!("127.0.0.1:{port}");
    assert_eq!(outcome(&exact, None), 200, "the operator's own entries hold for whoever says nothing");
    assert_eq!(outcome(&exact, Some(&exact)), 200);
    assert_eq!(outcome(&exact, Some("127.0.0.1")), 400);
    // A pattern leads to no private address, also where a client names one.
    assert_eq!(outcome("*", Some(&exact)), 422);
    // The operator leaves it to the clients.
    assert_eq!(outcome("any", Some(&exact)), 422, "whom they name, at public addresses");
    assert_eq!(outcome(&format!("any,{exact}"), Some(&exact)), 200);
    assert_eq!(outcome("any", None), 422, "and gives nothing to whoever says nothing");
}

#[test]
fn a_plugin_is_linked_with_the_modules_that_come_with_it() {
    let folder = TempDir::new().unwrap();
    let mut server = Server::start_in(folder.path(), &[]);
    let lib = |code: i32| wasm(&format!(r#"(module (func (export "code") (result i32) i32.const {code}))"#));
    let plugin = wasm(
        r#"(module
            (import "lib" "code" (func $code (result i32)))
            (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
            (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
            (import "extism:host/env" "output_set" (func $output (param i64 i64)))
            (func (export "run") (local $at i64)
                (local.set $at (call $alloc (i64.const 1)))
                (call $store (local.get $at) (call $code))
                (call $output (local.get $at) (i64.const 1))))"#,
    );
    server.put_form("x", &[("plugin", &plugin)]).is(422, "invalid_plugin");
    assert_eq!(server.put_form("x", &[("link.lib", &lib(65)), ("plugin", &plugin)]).status, 201);
    assert_eq!(server.post("x", b"").text(), "A");
    assert_eq!(server.files("plugins").len(), 2);
    assert_eq!(server.put_form("x", &[("link.lib", &lib(66)), ("plugin", &plugin)]).status, 200);
    assert_eq!(server.patch("x", &[], r#"{"isolation": "reuse"}"#).status, 200);
    assert_eq!(server.post("x", b"").text(), "B");
    eventually("the first module is gone", || server.files("plugins").len() == 2);
    server.signal("TERM");
    assert!(server.ended().success());
    let server = Server::start_in(folder.path(), &[]);
    assert_eq!(server.post("x", b"").text(), "B");
    assert_eq!(server.delete("x").status, 204);
    eventually("both modules are gone", || server.files("plugins").is_empty());
}

/// A module of so many bytes.
fn of_size(size: usize, text: &str) -> Vec<u8> {
    let mut module = wasm(text);
    // A custom section's id, three bytes of its size, and the length of its name, which is empty.
    let rest = size - module.len() - 4;
    let seven = |bits: usize| u8::try_from(rest >> bits & 0x7f).unwrap();
    module.extend([0, seven(0) | 0x80, seven(7) | 0x80, seven(14)]);
    module.extend(vec![0; rest]);
    module
}

#[test]
fn a_form_has_room_for_a_plugin_all_modules_and_a_spec_of_the_largest_size() {
    let server = Server::start(&[("LIMITS_PLUGIN_SIZE", "1MiB")]);
    let links: Vec<_> = (0..8).map(|n| format!("link.l{n}")).collect();
    let imports: String = (0..8).fold(String::new(), |all, n| all + &format!(r#"(import "l{n}" "f" (func))"#));
    let plugin = of_size(1 << 20, &format!(r#"(module {imports} (func (export "run")))"#));
    let linked = of_size(1 << 20, r#"(module (func (export "f")))"#);
    let document = format!("{}{{}}", " ".repeat(256 * 1024 - 2));
    let mut parts = vec![("spec", document.as_bytes()), ("plugin", &plugin)];
    parts.extend(links.iter().map(|name| (name.as_str(), &linked[..])));
    assert_eq!(server.put_form("large", &parts).status, 201);
    let larger = [&plugin[..], &[0, 1, 0]].concat();
    server.put_form("larger", &[("plugin", &larger)]).is(413, "payload_too_large");
    for (length, status) in [(1024, 201), (1025, 400)] {
        let name = format!("link.{}", "n".repeat(length - 5));
        assert_eq!(server.put_form("named", &[("plugin", &letter('x')), (&name, &linked)]).status, status);
    }
}

#[test]
fn static_data_is_what_each_call_is_merged_into_and_labels_are_logged() {
    let server = Server::start(&[]);
    let echo = wasm(&format!(r#"(module {IMPORTS} (func (export "run") (result i32) (call $echo) i32.const 0))"#));
    let said = json!({"static_data": {"a": {"b": 1}, "c": 2}, "labels": {"team": "billing"}});
    assert_eq!(server.put_form("x", &[("spec", &spec(&said)), ("plugin", &echo)]).status, 201);
    server.has_logged("billing");
    assert_eq!(server.post("x", b"").json(), json!({"a": {"b": 1}, "c": 2}));
    assert_eq!(server.post("x", br#"{"a": {"d": 3}}"#).json(), json!({"a": {"b": 1, "d": 3}, "c": 2}));
    let large = json!({"a": "x".repeat(256 * 1024)}).to_string();
    server.post("x", large.as_bytes()).is(413, "payload_too_large");
    assert_eq!(server.put("without", &echo).status, 201);
    assert_eq!(server.post("without", large.as_bytes()).body.len(), large.len(), "there is nothing to merge it into");
    assert_eq!(server.post("x", format!("[{large}]").as_bytes()).body.len(), large.len() + 2);
    assert_eq!(server.post("x", b"{1}").text(), "{1}");
    assert_eq!(server.post("x", b"[1]").text(), "[1]", "what is no object replaces it");
    assert_eq!(server.info("x")["spec"], said);
    let said = json!({"entry_point": "say", "labels": {"team": "billing", "region": "eu"}});
    assert_eq!(server.put_form("say", &[("spec", &spec(&said)), ("plugin", CRASH)]).status, 201);
    assert_eq!(server.post("say", b"hello").status, 200);
    server.has_logged(r#"evaluator="say" labels="region=eu team=billing" stderr="#);
    let said = json!({"entry_point": "log_it", "labels": {"team": "billing"}});
    let long = json!({"entry_point": "log_it", "labels": {"long": "x".repeat(5000)}});
    let plain = json!({"entry_point": "log_it"});
    for (name, spec) in [("logs", spec(&said)), ("plain", spec(&plain)), ("long", spec(&long))] {
        assert_eq!(server.put_form(name, &[("spec", &spec), ("plugin", TOTALS)]).status, 201);
        assert_eq!(server.post(name, format!("from {name}").as_bytes()).status, 200);
    }
    server.has_logged(r#"evalpool::plugin: from logs evaluator="logs" labels="team=billing" plugin=sha256:"#);
    server.has_logged(r#"evalpool::plugin: from plain evaluator="plain" plugin=sha256:"#);
    // How many lines there are is the plugin's to decide, so a line has no more than 1 KiB of them.
    server.has_logged(&format!(r#"from long evaluator="long" labels="long={}…" plugin=sha256:"#, "x".repeat(1024 - 5)));
}

#[test]
fn what_a_call_is_merged_into_counts_as_its_input() {
    let server = Server::start(&[("LIMITS_INPUT_SIZE", "64")]);
    let echo = wasm(&format!(r#"(module {IMPORTS} (func (export "run") (result i32) (call $echo) i32.const 0))"#));
    let said = json!({"static_data": {"a": "x".repeat(20)}});
    assert_eq!(server.put_form("x", &[("spec", &spec(&said)), ("plugin", &echo)]).status, 201);
    let of = |bytes: usize| server.post("x", json!({"b": "y".repeat(bytes)}).to_string().as_bytes());
    // {"a":"…","b":"…"}
    assert_eq!(of(64 - 20 - 15).body.len(), 64);
    let refused = of(64 - 20 - 14);
    refused.is(413, "payload_too_large");
    let detail = refused.json()["detail"].to_string();
    assert!(detail.contains("64") && !detail.contains("the JSON that its plugin gets"), "{detail}");
}

#[test]
fn static_data_that_is_taken_is_read_again_however_deep_it_is_nested() {
    let folder = TempDir::new().unwrap();
    let nested = |levels| format!(r#"{{"static_data": {}{}}}"#, "[".repeat(levels), "]".repeat(levels));
    let mut server = Server::start_in(folder.path(), &[]);
    let put = |levels| server.put_form("x", &[("spec", nested(levels).as_bytes()), ("plugin", &letter('x'))]);
    let answer = put(126);
    answer.is(400, "invalid_request");
    assert!(answer.text().contains("static_data is nested deeper than 125 levels"), "{answer:?}");
    assert_eq!(put(125).status, 201);
    assert_eq!(server.patch("x", &[], r#"{"labels": {"a": "b"}}"#).status, 200);
    server.patch("x", &[], &nested(126)).is(400, "invalid_request");
    server.signal("TERM");
    assert!(server.ended().success());
    let server = Server::start_in(folder.path(), &[]);
    assert_eq!(server.post("x", b"").text(), "x");
}

#[test]
fn variables_are_kept_if_the_spec_says_so() {
    let server = Server::start(&[]);
    let put = |query: &str| server.put(&format!("words?entry_point=remember{query}"), WORDS);
    assert_eq!(put("&vars=kept").status, 201);
    assert_eq!(server.info("words")["spec"]["vars"], "kept");
    assert_eq!(server.post("words", b"one ").body, b"one ");
    assert_eq!(server.post("words", b"two").body, b"one two");
    assert_eq!(server.patch("words", &[], r#"{"vars": null}"#).status, 200);
    assert_eq!(server.info("words")["spec"].get("vars"), None);
    assert_eq!(server.post("words", b"one").body, b"one");
    assert_eq!(server.post("words", b"two").body, b"two");
    put("&vars=shared").is(400, "invalid_request");
    assert_eq!(server.info("words")["init"], json!({"mode": "each", "in_use": false}));
    assert_eq!(put("&init=once").status, 200);
    assert_eq!(server.info("words")["spec"]["init"], "once");
    assert_eq!(server.info("words")["init"]["mode"], "once");
    put("&init=twice").is(400, "invalid_request");
}

#[test]
fn an_upload_cannot_name_where_its_plugin_comes_from() {
    let asked = Recorder::ok();
    let url = asked.url("/plugin.wasm");
    let server = Server::start(&[("ENGINE_ALLOWED_HOSTS", "any")]);
    for field in ["url", "source", "plugin", "wasm", "manifest", "link"] {
        for named in [json!(url), json!({"url": url}), json!([{"url": url}])] {
            let named = spec(&json!({ field: named, "entry_point": "upper" }));
            server.put_form("fetched", &[("spec", &named), ("plugin", TEXT)]).is(400, "invalid_request");
        }
    }
    server.put("fetched", url.as_bytes()).is(422, "invalid_plugin");
    server.put_form("fetched", &[("plugin", url.as_bytes())]).is(422, "invalid_plugin");
    server.get("/v1/evaluators/fetched").is(404, "not_found");
    assert_eq!(asked.heard(), [""; 0]);
}
