//! The status page, as a browser asks for it. `tests/ui` has a browser.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::TcpStream,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    SPIN, letter,
    server::{Server, eventually},
};
use crate::support::{CRASH, wasm};

/// The files that the page names, and it itself.
fn files(page: &str) -> Vec<&str> {
    let named = page.split('"').filter(|part| part.starts_with("/ui/"));
    let files: Vec<_> = named.chain(["/"]).collect();
    assert!(files.len() >= 3, "{page}");
    files
}

/// A stream of events.
struct Events(BufReader<TcpStream>);

impl Events {
    fn of(server: &Server, query: &str) -> Self {
        let mut stream = BufReader::new(server.begin("GET", &format!("/ui/events{query}"), "", b""));
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        assert_eq!(line, "HTTP/1.1 200 OK\r\n");
        Self(stream)
    }

    /// The next of this kind.
    fn next(&mut self, kind: &str) -> Value {
        let mut line = String::new();
        while line.trim_end() != format!("event: {kind}") {
            line.clear();
            assert_ne!(self.0.read_line(&mut line).unwrap(), 0, "the stream has ended");
        }
        line.clear();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(line.strip_prefix("data: ").unwrap()).unwrap()
    }

    /// Samples up to the first that `holds`.
    fn until(&mut self, holds: impl Fn(&Value) -> bool) -> Value {
        loop {
            let samples = self.next("samples");
            if let Some(found) = samples.as_array().unwrap().iter().find(|sample| holds(sample)) {
                return found.clone();
            }
        }
    }
}

#[test]
fn the_page_is_whole_by_itself_and_may_load_nothing_from_elsewhere() {
    let server = Server::start(&[]);
    let page = server.get("/");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    for file in files(page.text()) {
        let answer = server.get(file);
        assert_eq!(answer.status, 200, "{file}");
        let policy = answer.header("content-security-policy").unwrap();
        for part in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"] {
            assert!(policy.contains(part), "{file}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(answer.header("referrer-policy"), Some("no-referrer"));
        let text = answer.text();
        // The name of SVG's namespace is no address that is loaded.
        let text = text.replace("http://www.w3.org/2000/svg", "");
        for markup in
            ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "http://", "https://", "style="]
        {
            assert!(!text.contains(markup), "{file} has {markup}");
        }
        // What modules import is there as well.
        let imported = text.split("from './").skip(1).map(|rest| rest.split('\'').next().unwrap());
        for module in imported {
            assert_eq!(server.get(&format!("/ui/{module}")).status, 200, "{file} imports {module}");
        }
    }
}

#[test]
fn the_page_can_be_loaded_without_a_token_and_what_it_shows_cannot() {
    let folder = TempDir::new().unwrap();
    let tokens = folder.path().join("tokens");
    fs::write(&tokens, "sesame\n").unwrap();
    let server = Server::start(&[("SERVICE_TOKEN_FILE", tokens.to_str().unwrap())]);
    for file in files(server.get("/").text()) {
        assert_eq!(server.get(file).status, 200, "{file}");
    }
    for path in ["/ui/events", "/ui/evaluators", "/ui/evaluators/greet", "/ui/tenants"] {
        server.get(path).is(401, "unauthorized");
        if path != "/ui/events" {
            let shown = server.request("GET", path, &[("authorization", "Bearer sesame")], b"");
            assert_eq!(shown.status, 200, "{path}");
        }
    }
}

#[test]
fn without_the_setting_there_is_none_of_it() {
    let server = Server::start(&[("SERVICE_UI", "false")]);
    for path in ["/", "/ui/app.js", "/ui/events", "/ui/evaluators", "/ui/evaluators/greet", "/ui/tenants"] {
        server.get(path).is(404, "not_found");
    }
}

#[test]
fn a_stream_begins_with_the_history_shows_what_happens_and_ends_with_the_server() {
    let mut server = Server::start(&[("POOL_CAPACITY", "7")]);
    let mut early = Events::of(&server, "");
    assert_eq!(early.next("hello")["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(server.put("acme%2Fa", &letter('a')).status, 201);
    assert_eq!(server.post("acme%2Fa", b"").status, 200);
    let changed = early.until(|sample| sample["changes"] != Value::Array(vec![]));
    assert_eq!(
        (&changed["changes"][0]["name"], &changed["changes"][0]["what"]),
        (&"acme/a".into(), &"uploaded".into())
    );
    // It may be counted in the same second or in the next one.
    let mut both = Events::of(&server, "?from=0&runtimes=true");
    let samples = both.next("samples");
    assert_eq!((&samples[0]["number"], &samples[0]["capacity"]), (&0.into(), &7.into()));
    let evaluated = Events::of(&server, "").until(|sample| sample["evaluations"]["ok"] == 1);
    assert!(evaluated["exec"][0].as_f64().unwrap() > 0.0 && evaluated["wait"].is_array(), "{evaluated}");
    let cell = &both.next("runtimes")["cells"][0];
    assert_eq!((&cell[0], &cell[1], &cell[3]), (&"acme/a".into(), &"acme".into(), &"live".into()));
    let last = early.next("samples")[0]["number"].as_u64().unwrap();
    let mut later = Events::of(&server, &format!("?from={last}"));
    assert_eq!(later.next("samples")[0]["number"], last, "what it knows it does not get again");
    server.signal("TERM");
    let mut rest = String::new();
    early.0.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("0\r\n\r\n"), "it is ended, not cut off: {rest:?}");
    assert!(server.ended().success());
    drop((both, later));
}

#[test]
fn as_many_pages_as_may_be_read_at_once_and_one_that_leaves_makes_room() {
    let server = Server::start(&[]);
    let mut open: Vec<_> = (0..16).map(|_| Events::of(&server, "")).collect();
    let refused = server.get("/ui/events");
    refused.is(429, "saturated");
    open.pop();
    super::eventually("there is room again", || {
        let mut stream = BufReader::new(server.begin("GET", "/ui/events", "", b""));
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        line == "HTTP/1.1 200 OK\r\n"
    });
}

#[test]
fn evaluators_are_looked_through_sorted_and_cut_by_the_server() {
    let server = Server::start(&[]);
    for name in ["acme%2Fprice", "acme%2Ftax", "zeta%2Fprice"] {
        assert_eq!(server.put(name, &letter('a')).status, 201);
    }
    for _ in 0..3 {
        assert_eq!(server.post("zeta%2Fprice", b"").status, 200);
    }
    let find = |query: &str| {
        let found = server.get(&format!("/ui/evaluators?{query}")).json();
        let names = found["rows"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap().to_owned());
        (names.collect::<Vec<_>>(), found["found"].as_u64().unwrap())
    };
    assert_eq!(find("q=PRICE"), (vec!["acme/price".into(), "zeta/price".into()], 2));
    assert_eq!(find("limit=1&page=1"), (vec!["acme/tax".into()], 4));
    assert_eq!(find("descending=true&limit=1"), (vec!["zeta/price".into()], 4));
    assert_eq!(find("tenant=acme&q=t"), (vec!["acme/tax".into()], 1));
    assert_eq!(find("sort=evaluations&descending=true&limit=1"), (vec!["zeta/price".into()], 4));
    assert_eq!(find("state=cold"), (vec!["greet".into()], 1));
    assert_eq!(find("page=9"), (vec![], 4));
    for bad in ["sort=beauty", "limit=0", "page=-1", "colour=red"] {
        server.get(&format!("/ui/evaluators?{bad}")).is(400, "invalid_request");
    }
    let tenants = server.get("/ui/tenants?sort=evaluations&descending=true&limit=1").json();
    assert_eq!((&tenants["rows"][0]["name"], &tenants["found"]), (&"zeta".into(), &3.into()));
}

#[test]
fn evaluators_are_sorted_by_how_slow_their_calls_were_of_late() {
    let server = Server::start(&[]);
    // It never ends by itself.
    assert_eq!(server.put("a%2Fslow?entry_point=run", &wasm(SPIN)).status, 201);
    let patch = br#"{"limits":{"exec_timeout":"300ms"}}"#;
    let json = [("content-type", "application/json")];
    assert_eq!(server.request("PATCH", "/v1/evaluators/a%2Fslow", &json, patch).status, 200);
    assert_eq!(server.put("b%2Fquick", &letter('a')).status, 201);
    server.post("a%2Fslow", b"").is(504, "exec_timeout");
    for _ in 0..200 {
        assert_eq!(server.post("b%2Fquick", b"").status, 200);
    }
    let found = server.get("/ui/evaluators?sort=p99&descending=true&tenant=a").json();
    assert!(found["rows"][0]["p99_seconds"].as_f64().unwrap() >= 0.3, "{found}");
    let all = server.get("/ui/evaluators?sort=p99&descending=true").json();
    assert_eq!(
        (&all["rows"][0]["name"], &all["rows"][2]["name"], &all["rows"][2]["p99_seconds"]),
        (&"a/slow".into(), &"greet".into(), &Value::Null),
        "{all}"
    );
    let by_name = server.get("/ui/evaluators").json();
    assert_eq!(by_name["rows"][0]["p99_seconds"], all["rows"][0]["p99_seconds"]);
    let one = server.get("/ui/evaluators/a%2Fslow").json();
    assert_eq!((&one["p99_seconds"], &one["p50_seconds"]), (&all["rows"][0]["p99_seconds"], &one["p99_seconds"]));
    let quick = server.get("/ui/evaluators/b%2Fquick").json();
    assert!(quick["p50_seconds"].as_f64().unwrap() <= quick["p99_seconds"].as_f64().unwrap(), "{quick}");
}

#[test]
fn a_call_whose_client_gives_up_counts_among_the_slow_ones() {
    let server = Server::start(&[("LIMITS_EXEC_TIMEOUT", "10m")]);
    // It never ends by itself.
    assert_eq!(server.put("slow?entry_point=run", &wasm(SPIN)).status, 201);
    assert_eq!(server.get("/ui/evaluators/slow").json()["p99_seconds"], Value::Null);
    drop(server.begin_evaluation("slow"));
    eventually("its time is known", || server.get("/ui/evaluators/slow").json()["p99_seconds"].is_f64());
}

#[test]
fn from_a_slow_or_failed_call_one_comes_to_its_trace() {
    const SAMPLED: &str = "0af7651916cd43dd8448eb211c80319c";
    const NOT: &str = "1bf7651916cd43dd8448eb211c80319d";
    let url = "https://traces.example/{trace_id}";
    let server = Server::start(&[("TELEMETRY_TRACE_URL", url), ("LIMITS_EXEC_TIMEOUT", "300ms")]);
    // It never ends by itself.
    assert_eq!(server.put("slow?entry_point=run", &wasm(SPIN)).status, 201);
    let call = |parent: &str| server.request("POST", "/v1/evaluators/slow", &[("traceparent", parent)], b"");
    call(&format!("00-{SAMPLED}-b7ad6b7169203331-01")).is(504, "exec_timeout");
    let shown = server.get("/ui/evaluators/slow").json();
    assert_eq!(shown["trace_url"], url);
    let (slowest, trace) = (&shown["slowest"], json!({"id": SAMPLED, "is_sampled": true}));
    assert_eq!((slowest.as_array().unwrap().len(), &slowest[0]["outcome"]), (1, &"exec_timeout".into()));
    assert_eq!((&slowest[0]["trace"], &shown["failures"][0]["trace"]), (&trace, &trace), "{shown}");
    let seconds = |part: &str| slowest[0][part].as_f64().unwrap();
    let parts = ["wait_seconds", "build_seconds", "exec_seconds"].map(seconds);
    assert!(parts[2] >= 0.3 && parts.iter().sum::<f64>() <= seconds("seconds") + 1e-6, "{shown}");
    server.has_logged(&format!("trace_id=\"{SAMPLED}\""));

    call(&format!("00-{NOT}-b7ad6b7169203331-00")).is(504, "exec_timeout");
    drop(server.begin_evaluation("slow"));
    eventually("all are kept", || {
        let slowest = server.get("/ui/evaluators/slow").json()["slowest"].clone();
        let traces: Vec<_> = slowest.as_array().unwrap().iter().map(|slow| slow["trace"].to_string()).collect();
        traces.len() == 3 && traces.contains(&json!({"id": NOT, "is_sampled": false}).to_string())
    });
    assert_eq!(server.request("DELETE", "/v1/evaluators/slow", &[], b"").status, 204);
    assert_eq!(server.put("slow?entry_point=run", &wasm(SPIN)).status, 201);
    assert_eq!(server.get("/ui/evaluators/slow").json()["slowest"], json!([]), "another by the same name");
}

#[test]
fn what_a_plugin_writes_to_its_streams_is_kept_as_well_if_its_debug_is_on() {
    let server = Server::start(&[]);
    assert_eq!(server.put("open?entry_point=say&debug=true", CRASH).status, 201);
    assert_eq!(server.put("closed?entry_point=say", CRASH).status, 201);
    for name in ["open", "closed"] {
        assert_eq!(server.post(name, b"hello").status, 200);
    }
    let open = server.get("/ui/evaluators/open").json();
    let log = open["log"].as_array().unwrap();
    let lines: Vec<_> = log.iter().map(|line| (line["level"].as_str(), line["text"].as_str())).collect();
    assert_eq!(lines, [(Some("stderr"), Some("err: hello")), (Some("stdout"), Some("out: hello"))], "{open}");
    let json = [("content-type", "application/json")];
    let debug = server.request("PATCH", "/v1/evaluators/closed", &json, br#"{"debug":true}"#);
    assert_eq!(debug.status, 200);
    assert_eq!(server.get("/ui/evaluators/closed").json()["log"], Value::Array(vec![]), "nothing from before");
}

/// A plugin that does this when it is run, and can log its input.
fn logging(does: &str) -> Vec<u8> {
    wasm(&format!(
        r#"(module
            (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
            (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
            (import "extism:host/env" "input_length" (func $length (result i64)))
            (import "extism:host/env" "input_load_u8" (func $load (param i64) (result i32)))
            (import "extism:host/env" "get_log_level" (func $level (result i32)))
            (import "extism:host/env" "log_trace" (func $trace (param i64)))
            (import "extism:host/env" "log_error" (func $error (param i64)))
            (func $input (result i64) (local $at i64) (local $block i64)
                (local.set $block (call $alloc (call $length)))
                (loop $each
                    (call $store (i64.add (local.get $block) (local.get $at)) (call $load (local.get $at)))
                    (local.set $at (i64.add (local.get $at) (i64.const 1)))
                    (br_if $each (i64.lt_u (local.get $at) (call $length))))
                (local.get $block))
            (func (export "run") (local $times i32)
                {does}))"#
    ))
}

#[test]
fn the_log_has_what_it_shows_however_much_a_plugin_says_for_the_page_alone() {
    let server = Server::start(&[("LOG_LEVEL", "debug")]);
    let says = logging(
        "(loop $again
            (call $trace (call $input))
            (local.set $times (i32.add (local.get $times) (i32.const 1)))
            (br_if $again (i32.lt_u (local.get $times) (i32.const 150))))
         (call $error (call $input))",
    );
    assert_eq!(server.put("says?debug=true", &says).status, 201);
    assert_eq!(server.post("says", b"it matters").status, 200);
    server.has_logged("it matters");
    let log = server.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("it matters")).collect();
    assert!(lines.len() == 1 && lines[0].contains("ERROR"), "{log}");
    let page = server.get("/ui/evaluators/says").json();
    assert_eq!(page["log"].as_array().unwrap().len(), 100, "{page}");
}

#[test]
fn what_a_plugin_says_is_kept_line_by_line_while_its_debug_is_on_and_only_then() {
    let server = Server::start(&[("LOG_LEVEL", "warn")]);
    // It logs its input, at two levels, and writes down what levels it is asked for.
    let says = logging(
        "(if (i32.eqz (call $level)) (then (call $trace (call $input))))
         (call $error (call $input))",
    );
    assert_eq!(server.put("says", &says).status, 201);
    assert_eq!(server.post("says", b"a secret").status, 200);
    let quiet = server.get("/ui/evaluators/says");
    assert_eq!(quiet.json()["log"], Value::Null);
    assert!(!quiet.text().contains("a secret"), "{quiet:?}");
    let json = [("content-type", "application/json")];
    let debug = |on: &[u8]| assert_eq!(server.request("PATCH", "/v1/evaluators/says", &json, on).status, 200);
    debug(br#"{"debug":true}"#);
    assert_eq!(server.get("/ui/evaluators/says").json()["log"], Value::Array(vec![]), "nothing from before");
    assert_eq!(server.post("says", "<b>\n\u{1b}[2J é".as_bytes()).status, 200);
    let loud = server.get("/ui/evaluators/says").json();
    let line = |at: usize| (loud["log"][at]["level"].as_str().unwrap(), loud["log"][at]["text"].as_str().unwrap());
    let said = r"<b>\n\u{1b}[2J é";
    assert_eq!((line(0), line(1)), (("trace", said), ("error", said)), "{loud}");
    for _ in 0..150 {
        assert_eq!(server.post("says", b"!").status, 200);
    }
    assert_eq!(server.get("/ui/evaluators/says").json()["log"].as_array().unwrap().len(), 200);
    debug(br#"{"debug":false}"#);
    assert_eq!(server.get("/ui/evaluators/says").json()["log"], Value::Null);
    debug(br#"{"debug":true}"#);
    assert_eq!(server.get("/ui/evaluators/says").json()["log"], Value::Array(vec![]), "they went with its debug");
    assert_eq!(server.post("says", b"!").status, 200);
    assert_ne!(server.get("/ui/evaluators/says").json()["log"], Value::Array(vec![]));
    assert_eq!(server.delete("says").status, 204);
    assert_eq!(server.put("says?debug=true", &says).status, 201);
    assert_eq!(server.get("/ui/evaluators/says").json()["log"], Value::Array(vec![]), "they went with it");
}

#[test]
fn streams_of_events_leave_half_of_the_connections_to_others() {
    let server = Server::start(&[("SERVICE_MAX_CONNECTIONS", "4")]);
    let open: Vec<_> = (0..2).map(|_| Events::of(&server, "?runtimes=true")).collect();
    server.get("/ui/events").is(429, "saturated");
    assert_eq!(server.post("greet", br#"{"name":"Ada"}"#).status, 200);
    drop(open);
}

#[test]
fn an_evaluator_shows_its_last_failures_and_what_was_left_behind_only_if_its_clients_may_see_it() {
    let server = Server::start(&[]);
    assert_eq!(server.put("open?entry_point=crash&debug=true", CRASH).status, 201);
    assert_eq!(server.put("closed?entry_point=crash", CRASH).status, 201);
    for name in ["open", "closed"] {
        server.post(name, b"17").is(422, "guest_trap");
    }
    let open = server.get("/ui/evaluators/open").json();
    let failure = &open["failures"][0];
    assert_eq!((&failure["kind"], &failure["stderr"]), (&"guest_trap".into(), &"no such order: 17\n".into()), "{open}");
    assert!(failure["stack"][0].as_str().unwrap().ends_with(" - give_up"), "{open}");
    let closed = server.get("/ui/evaluators/closed");
    assert_eq!(
        (closed.json()["failures"][0]["kind"].as_str(), closed.json()["failures"][0]["hides"].as_bool()),
        (Some("guest_trap"), Some(true))
    );
    assert!(!closed.text().contains("no such order") && !closed.text().contains("give_up"), "{closed:?}");
    assert_eq!(server.delete("open").status, 204);
    assert_eq!(server.put("open?entry_point=crash&debug=true", CRASH).status, 201);
    assert_eq!(server.get("/ui/evaluators/open").json()["failures"], Value::Array(vec![]), "they went with it");
    server.get("/ui/evaluators/nobody").is(404, "not_found");
}
