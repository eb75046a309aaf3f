//! The `OpenAPI` document is true: it has what the code, the README and the list of errors have, in the same words, and a server
//! does what it says.

mod answers;
mod schema;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::LazyLock,
};

use evalpool::ErrorKind;
use serde_json::Value;
use tempfile::TempDir;

pub(super) use self::answers::check;
use super::{answer::Answer, letter, server::Server};

const SOURCE: &str = include_str!("../../../../src/service/http/openapi.json");

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| serde_json::from_str(SOURCE).unwrap());

const METHODS: [&str; 5] = ["GET", "PUT", "PATCH", "POST", "DELETE"];

/// What a reference leads to, or what is there itself.
fn resolved(value: &Value) -> &Value {
    let Some(reference) = value.get("$ref") else { return value };
    let there = DOCUMENT.pointer(reference.as_str().and_then(|text| text.strip_prefix('#')).unwrap());
    resolved(there.unwrap_or_else(|| panic!("{reference} leads nowhere")))
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Every operation, as `GET /v1/evaluators`.
fn operations() -> BTreeMap<String, &'static Value> {
    let paths = DOCUMENT["paths"].as_object().unwrap().iter();
    let of_path = |(path, item): (&String, &'static Value)| {
        let operation = |method: &&str| Some((format!("{method} {path}"), item.get(method.to_lowercase())?));
        METHODS.iter().filter_map(operation).collect::<Vec<_>>()
    };
    paths.flat_map(of_path).collect()
}

/// What an operation takes in its query or in its headers, with its schema.
fn parameters(operation: &str, place: &str) -> BTreeMap<&'static str, &'static Value> {
    let (method, path) = operation.split_once(' ').unwrap();
    let item = &DOCUMENT["paths"][path];
    let all = [&item["parameters"], &item[method.to_lowercase()]["parameters"]];
    let all = all.into_iter().flat_map(|list| list.as_array().into_iter().flatten()).map(resolved);
    let here = all.filter(|parameter| parameter["in"] == place);
    here.map(|parameter| (parameter["name"].as_str().unwrap(), resolved(&parameter["schema"]))).collect()
}

/// The keys of an object in the document.
fn keys(value: &'static Value) -> BTreeSet<&'static str> {
    resolved(value).as_object().unwrap().keys().map(String::as_str).collect()
}

fn schema(name: &str) -> &'static Value {
    &DOCUMENT["components"]["schemas"][name]
}

/// What stands between two such marks.
fn quoted(text: &str, mark: char) -> BTreeSet<&str> {
    text.split(mark).skip(1).step_by(2).collect()
}

#[test]
fn whoever_reaches_the_server_may_read_it_and_no_page_of_elsewhere() {
    let folder = TempDir::new().unwrap();
    let tokens = folder.path().join("tokens");
    fs::write(&tokens, "secret\n").unwrap();
    for settings in [[("SERVICE_TOKEN_FILE", tokens.to_str().unwrap())], [("SERVICE_UI", "false")]] {
        let server = Server::start(&settings);
        let answer = server.get("/openapi.json");
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
        assert_eq!(answer.text(), SOURCE);
    }
    let server = Server::start(&[]);
    server.request("GET", "/openapi.json", &[("sec-fetch-site", "cross-site")], b"").is(403, "invalid_request");
    server.request("GET", "/openapi.json", &[("host", "evil.example")], b"").is(421, "invalid_request");
    assert_eq!(server.request("HEAD", "/openapi.json", &[], b"").status, 200);
    assert_eq!(DOCUMENT["info"]["version"], env!("CARGO_PKG_VERSION"));
    assert!(DOCUMENT["openapi"].as_str().unwrap().starts_with("3.1."));
}

/// They come from below the routes; the document tells of them in words.
#[test]
fn what_is_no_request_gets_one_of_three_answers_without_a_body() {
    let server = Server::start(&[]);
    let headers = "x: y\r\n".repeat(100);
    let long = format!("/{}", "x".repeat(64 << 10));
    for (status, method, path, headers) in
        [(400, "NO REQUEST", "/", ""), (414, "GET", long.as_str(), ""), (431, "GET", "/", headers.as_str())]
    {
        let answer = Answer::of(server.begin(method, path, headers, b""));
        assert_eq!((answer.status, &*answer.body), (status, &b""[..]));
        assert!(DOCUMENT["info"]["description"].as_str().unwrap().contains(&format!(" {status} to ")));
    }
}

#[test]
fn its_references_lead_somewhere_and_nothing_in_it_is_left_over() {
    let led: BTreeSet<_> = SOURCE.split("\"$ref\": \"#/").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    for reference in &led {
        assert!(DOCUMENT.pointer(&format!("/{reference}")).is_some(), "{reference} leads nowhere");
    }
    for (kind, named) in
        DOCUMENT["components"].as_object().unwrap().iter().filter(|(kind, _)| *kind != "securitySchemes")
    {
        for name in named.as_object().unwrap().keys() {
            // What plugins get and answer with has no place in a request of a client.
            let is_plugins = name.starts_with("Plugin");
            let is_led_to = led.contains(format!("components/{kind}/{name}").as_str());
            assert!(is_led_to || is_plugins && SOURCE.contains(&format!("`{name}`")), "nothing leads to {kind}/{name}");
        }
    }
    let ids: BTreeSet<_> = operations().values().map(|operation| operation["operationId"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), operations().len(), "two operations have one id");
}

#[test]
fn it_has_every_route_and_no_other() {
    let code = read("src/service/http/mod.rs");
    let mut routed = BTreeSet::new();
    for route in code.split(".route(").skip(1) {
        let (path, rest) = route.split_once('"').unwrap().1.split_once('"').unwrap();
        // Up to where the next thing is done to the router.
        let handlers =
            rest.split(".route").next().unwrap().split(".fallback").next().unwrap().split(';').next().unwrap();
        let methods: Vec<_> =
            METHODS.iter().filter(|method| handlers.contains(&format!("{}(", method.to_lowercase()))).collect();
        assert!(!methods.is_empty(), "{path} takes {handlers}");
        // The page's own are no promise.
        routed.extend(methods.iter().filter(|_| !path.starts_with("/ui/")).map(|method| format!("{method} {path}")));
    }
    assert_eq!(operations().into_keys().collect::<BTreeSet<_>>(), routed);
}

#[test]
fn it_has_what_the_readme_lists_and_no_more() {
    let readme = read("README.md");
    let section = readme.split_once("\n## Requests\n").unwrap().1.split("\n## ").next().unwrap();
    let (mut listed, mut queries) = (BTreeSet::new(), BTreeMap::<String, BTreeSet<&str>>::new());
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let requests = row.replace("\\|", "/");
        let requests = requests.split(" | ").next().unwrap();
        for request in requests.split('`').skip(1).step_by(2).filter(|code| code.contains(" /")) {
            let (path, query) = request.split_once('?').unwrap_or((request, ""));
            listed.insert(path.to_owned());
            let known: BTreeSet<_> = parameters(path, "query").into_keys().collect();
            for name in query.split('&').filter(|name| !name.is_empty()).map(|name| name.split('=').next().unwrap()) {
                let known = known.get(name).unwrap_or_else(|| panic!("{path} takes no {name}"));
                queries.entry(path.to_owned()).or_default().insert(known);
            }
        }
    }
    // The page is for people.
    assert!(listed.remove("GET /"));
    assert_eq!(operations().into_keys().collect::<BTreeSet<_>>(), listed);
    for (operation, named) in queries {
        assert_eq!(named, parameters(&operation, "query").into_keys().collect(), "{operation}");
    }
}

#[test]
fn it_has_every_error_kind_with_its_status_and_its_title() {
    let errors = read("ERRORS.md");
    let (mut rows, mut statuses) = (BTreeSet::new(), BTreeSet::new());
    for kind in ErrorKind::ALL.iter().filter(|kind| **kind != ErrorKind::Cancelled) {
        let (_, section) = errors.split_once(&format!("\n### `{kind}`\n\n**")).unwrap();
        let (status, title) = section.split_once(".**").unwrap().0.split_once(' ').unwrap();
        rows.insert(format!("`{kind}` | {status} | {title}"));
        statuses.insert((status.to_owned(), kind.as_str()));
    }
    let kinds: BTreeSet<_> =
        schema("ErrorKind")["enum"].as_array().unwrap().iter().map(|kind| kind.as_str().unwrap()).collect();
    assert_eq!(kinds, statuses.iter().map(|(_, kind)| *kind).collect());
    let description = schema("ErrorKind")["description"].as_str().unwrap();
    let shown = description.lines().filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |"));
    assert_eq!(shown.map(|row| format!("`{row}")).collect::<BTreeSet<_>>(), rows);

    // Some requests are refused as `invalid_request` with a status of their own, which ERRORS.md names.
    let (_, own) = errors.split_once("The same kind comes with").unwrap();
    let own =
        own.split("\n\n").next().unwrap().split(|next: char| !next.is_ascii_digit()).filter(|word| word.len() == 3);
    let own: Vec<_> = own.map(str::to_owned).collect();
    for status in &own {
        assert!(description.lines().last().unwrap().contains(status), "{status} is not named");
    }
    // 405 is of no operation.
    statuses.extend(own.into_iter().filter(|status| status != "405").map(|status| (status, "invalid_request")));
    let mut said = BTreeSet::new();
    for (status, answer) in operations().values().flat_map(|operation| operation["responses"].as_object().unwrap()) {
        let kinds = answers::kinds(resolved(answer));
        assert_eq!(kinds.is_empty(), !status.starts_with(['4', '5']), "{answer}");
        said.extend(kinds.into_iter().map(|kind| (status.clone(), kind)));
    }
    assert_eq!(said, statuses);
}

#[test]
fn a_spec_has_the_fields_that_are_read_and_shown() {
    let code = read("src/service/document.rs");
    let list = |name: &str| {
        let (_, rest) = code.split_once(&format!("const {name}: [&str; ")).unwrap();
        quoted(rest.split_once("];").unwrap().0, '"').into_iter().map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let names =
        |schema: &'static Value| keys(&schema["properties"]).into_iter().map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(names(schema("Spec")), list("FIELDS"));
    // Generators do not follow references into schemas, so the patch has its fields once more.
    for (name, field) in schema("SpecPatch")["properties"].as_object().unwrap() {
        let is_own = ["config", "labels"].contains(&name.as_str());
        assert_eq!(*field == schema("Spec")["properties"][name], !is_own, "{name}");
    }
    assert_eq!(names(schema("SpecPatch")), list("FIELDS"));
    assert_eq!(names(schema("SpecLimits")), list("LIMITS"));
    assert_eq!(names(&schema("ShownSpec")["properties"]["limits"]), list("LIMITS"));
    let mut shown = names(schema("ShownSpec"));
    assert!(shown.insert("digest".to_owned()), "it is not kept");
    assert_eq!(shown, list("FIELDS"));
}

/// A server that holds what operations are about, and their paths with a name that is there.
fn with_evaluator() -> Server {
    let server = Server::start(&[]);
    assert_eq!(server.put("acme?debug=true", &letter('a')).status, 201);
    assert_eq!(server.post("acme", b"").text(), "a");
    server
}

fn filled(operation: &str) -> (String, String) {
    let (method, path) = operation.split_once(' ').unwrap();
    (method.to_owned(), path.replace("{name}", "acme"))
}

/// A request with a body of a type that it takes, and more headers.
fn ask(server: &Server, operation: &str, query: &str, headers: &[(&str, &str)]) -> Answer {
    let (method, path) = filled(operation);
    let kind = keys_if_any(&operations()[operation]["requestBody"]["content"]).into_iter().next();
    let kind = kind.filter(|kind| !headers.iter().any(|(name, _)| name == &"content-type") && !kind.contains('*'));
    let headers: Vec<_> = kind.map(|kind| ("content-type", kind)).into_iter().chain(headers.iter().copied()).collect();
    let body = match method.as_str() {
        "PUT" => letter('a'),
        "PATCH" => b"{}".into(),
        _ => Vec::new(),
    };
    server.request(&method, &format!("{path}{query}"), &headers, &body)
}

fn keys_if_any(value: &'static Value) -> BTreeSet<&'static str> {
    if value.is_object() { keys(value) } else { BTreeSet::new() }
}

#[test]
fn every_operation_is_there_and_its_path_takes_no_other_method() {
    let server = with_evaluator();
    let mut others = BTreeSet::new();
    for operation in operations().keys() {
        let (_, path) = filled(operation);
        let path_of = operation.split_once(' ').unwrap().1;
        others.extend(
            METHODS
                .iter()
                .filter(|method| DOCUMENT["paths"][path_of].get(method.to_lowercase()).is_none())
                .map(|method| (*method, path.clone())),
        );
        // Removed ones are there again for the next.
        server.put("acme", &letter('a'));
        let answer = ask(&server, operation, "", &[]);
        assert!((200..300).contains(&answer.status), "{operation}: {answer:?}");
    }
    for (method, path) in others {
        server.request(method, &path, &[], b"").is(405, "invalid_request");
    }
}

#[test]
fn it_has_the_parameters_that_are_read_and_no_other() {
    let server = with_evaluator();
    for operation in operations().keys().filter(|operation| operation.contains(" /v1/")) {
        let refused = ask(&server, operation, "?nobody_reads_this=1", &[]);
        refused.is(400, "invalid_request");
        let detail = refused.json()["detail"].as_str().unwrap().to_owned();
        let takes = detail.rsplit_once("this request takes ").unwrap().1;
        let takes: BTreeSet<_> = takes.split(", ").filter(|name| *name != "none").collect();
        let said = parameters(operation, "query");
        assert_eq!(said.keys().copied().collect::<BTreeSet<_>>(), takes, "{operation}");
        for (name, schema) in said {
            let Some(words) = schema["enum"].as_array() else { continue };
            let refused = ask(&server, operation, &format!("?{name}=nonsense"), &[]);
            let detail = refused.json()["detail"].as_str().unwrap().to_owned();
            let known = quoted(&detail, '`');
            let words: BTreeSet<_> = words.iter().map(|word| word.as_str().unwrap()).chain(["nonsense"]).collect();
            assert_eq!(words, known, "{operation}?{name}: {detail}");
        }
    }
}

#[test]
fn it_has_the_conditions_and_the_types_of_bodies_that_are_looked_at() {
    let server = with_evaluator();
    for (operation, said) in operations() {
        let headers = parameters(&operation, "header");
        let status = |header| ask(&server, &operation, "", &[header]).status;
        // It names no revision, or cannot be understood: nothing is changed where it is read.
        let is_read = [("If-Match", "\"other\"", 412), ("If-None-Match", "\"1\"", 400)];
        for (name, value, refused) in is_read.into_iter().filter(|(name, ..)| headers.contains_key(name)) {
            assert_eq!(status((name, value)), refused, "{operation} does not read {name}");
        }
        if !headers.contains_key("If-Match") {
            assert!(said["responses"].get("412").is_none(), "{operation}");
            let both = [("if-match", "\"other\""), ("if-none-match", "\"1\"")];
            let answer = ask(&server, &operation, "", &both);
            assert!((200..300).contains(&answer.status), "{operation} reads a condition: {answer:?}");
        }
        if let Some(types) = said["requestBody"]["content"].as_object() {
            let is_any = types.contains_key("*/*");
            assert_eq!(status(("content-type", "text/nonsense")) == 415, !is_any, "{operation}");
            assert_eq!(ask(&server, &operation, "", &[("content-encoding", "gzip")]).status, 415);
            for kind in types.keys().filter(|kind| !kind.contains('*')) {
                // One that is a form without a boundary is understood as one.
                assert_ne!(status(("content-type", kind)), 415, "{operation} does not take {kind}");
            }
        }
    }
}
