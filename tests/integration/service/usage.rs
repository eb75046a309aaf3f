//! Tenants and what they use, as clients of the server see it.

use serde_json::{Value, json};

use super::{
    letter,
    server::{Server, eventually},
};
use crate::support::TEXT;

#[test]
fn a_tenant_is_the_first_part_of_the_name_and_no_client_can_choose_another() {
    let server = Server::start(&[]);
    let plugin = letter('x');
    let put = server.put("acme%2Fprice", &plugin);
    assert_eq!((put.status, &put.json()["tenant"]), (201, &Value::from("acme")));
    assert_eq!(server.info("acme%2Fprice")["tenant"], "acme");
    let list = server.get("/v1/evaluators").json();
    let tenants: Vec<_> = list["evaluators"].as_array().unwrap().iter().map(|it| &it["tenant"]).collect();
    assert_eq!(tenants, ["acme", "greet"]);
    let form = server.put_form("mine", &[("spec", br#"{"tenant": "acme"}"#), ("plugin", &plugin)]);
    form.is(400, "invalid_request");
    assert!(form.text().contains("no field"), "{form:?}");
    server.patch("acme%2Fprice", &[], r#"{"tenant": "globex"}"#).is(400, "invalid_request");
    server.put("mine?tenant=acme", &plugin).is(400, "invalid_request");
}

#[test]
fn what_an_evaluation_used_is_in_its_answers_headers() {
    let server = Server::start(&[]);
    assert_eq!(server.put("quiet?entry_point=upper", TEXT).status, 201);
    assert_eq!(server.put("open?entry_point=upper&debug=true", TEXT).status, 201);
    let quiet = server.post("quiet", b"tea");
    let entries = quiet.header("server-timing").unwrap().split(", ").map(|entry| entry.split_once(";dur=").unwrap());
    let (names, times): (Vec<_>, Vec<f64>) = entries.map(|(name, time)| (name, time.parse::<f64>().unwrap())).unzip();
    assert_eq!(names, ["wait", "build", "exec", "guest", "total"]);
    assert!(times.iter().all(|time| (0.0..=times[4]).contains(time)), "{times:?}");
    assert_eq!(quiet.header("evalpool-usage"), None, "only who debugs the plugin sees all");
    let open = server.post("open", b"tea");
    let usage: Value = serde_json::from_str(open.header("evalpool-usage").unwrap()).unwrap();
    assert_eq!((&usage["bytes_in"], &usage["bytes_out"], &usage["host_calls"]), (&3.into(), &3.into(), &0.into()));
    assert!(
        usage["guest_seconds"].as_f64() > Some(0.0) && usage["guest_seconds"].as_f64() <= usage["seconds"].as_f64()
    );
    assert!(usage["peak_memory_bytes"].as_u64() >= Some(65_536), "{usage}");
    assert_eq!(usage["http"]["requests"], 0);
    assert_eq!(usage["fuel"], Value::Null);
}

#[test]
fn totals_are_shown_by_evaluator_and_by_tenant() {
    let server = Server::start(&[("POOL_CAPACITY", "1")]);
    for name in ["acme%2Fa?entry_point=upper", "acme%2Fb?entry_point=fail", "globex?entry_point=upper"] {
        assert_eq!(server.put(name, TEXT).status, 201);
    }
    for _ in 0..3 {
        assert_eq!(server.post("acme%2Fa", b"tea").status, 200);
        server.post("acme%2Fb", b"no tea").is(422, "guest_error");
    }
    let usage = server.info("acme%2Fa")["usage"].clone();
    assert_eq!((&usage["evaluations"], &usage["outcomes"]), (&json!(3), &json!({"ok": 3})));
    assert_eq!((&usage["bytes_in"], &usage["bytes_out"]), (&json!(9), &json!(9)));
    assert!(usage["guest_seconds"].as_f64() > Some(0.0) && usage["seconds"].as_f64() > usage["guest_seconds"].as_f64());
    assert_eq!(server.delete("acme%2Fb").status, 204);
    let acme = server.get("/v1/tenants/acme").json();
    assert_eq!((&acme["name"], &acme["evaluators"]), (&json!("acme"), &json!(1)));
    assert_eq!(acme["usage"]["outcomes"], json!({"ok": 3, "guest_error": 3}));
    assert_eq!(acme["usage"]["bytes_in"], 27);
    let unknown = server.get("/v1/tenants/nobody");
    unknown.is(404, "not_found");
    assert!(unknown.text().contains("no tenant is named"), "{unknown:?}");

    let first = server.get("/v1/tenants?limit=2").json();
    let names = |page: &Value| -> Vec<String> {
        page["tenants"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!((names(&first), &first["next"]), (vec!["acme".to_owned(), "globex".to_owned()], &json!("globex")));
    assert_eq!(first["tenants"][0], acme);
    let last = server.get("/v1/tenants?limit=2&after=globex").json();
    assert_eq!((names(&last), &last["next"]), (vec!["greet".to_owned()], &Value::Null));
    server.get("/v1/tenants?limit=0").is(400, "invalid_request");
    server.get("/v1/tenants/acme?limit=1").is(400, "invalid_request");
    server.request("POST", "/v1/tenants/acme", &[], b"").is(405, "invalid_request");
}

/// The lines for billing so far.
fn lines(server: &Server) -> Vec<Value> {
    let log = server.log();
    log.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What they say that was evaluated by this evaluator.
fn billed(server: &Server, evaluator: &str) -> u64 {
    let lines = lines(server);
    let own = lines.iter().filter(|line| line["evaluator"] == evaluator);
    own.map(|line| line["usage"]["evaluations"].as_u64().unwrap()).sum()
}

#[test]
fn lines_for_billing_come_at_each_interval_and_at_the_end() {
    let mut server = Server::start(&[("USAGE_INTERVAL", "1s"), ("LOG_LEVEL", "error")]);
    for name in ["acme%2Ftext?entry_point=upper", "acme%2Fidle?entry_point=upper"] {
        assert_eq!(server.put(name, TEXT).status, 201);
    }
    let call = || assert_eq!(server.post("acme%2Ftext", b"tea").status, 200);
    (0..3).for_each(|_| call());
    eventually("they are billed", || billed(&server, "acme/text") == 3);
    (0..3).for_each(|_| call());
    assert_eq!(server.post("greet", br#"{"name":"Ada"}"#).status, 200);
    server.signal("TERM");
    assert!(server.ended().success());
    eventually("the rest is billed", || billed(&server, "acme/text") == 6 && billed(&server, "greet") == 1);
    let lines = lines(&server);
    for line in &lines {
        assert_eq!((&line["target"], line["node"].as_str() > Some("")), (&json!("evalpool::usage"), true), "{line}");
        assert!(line["from"].as_str() < line["to"].as_str() && line["usage"]["seconds"].as_f64() > Some(0.0), "{line}");
    }
    let own: Vec<_> = lines.iter().filter(|line| line["evaluator"] == "acme/text").collect();
    assert!(own.iter().all(|line| line["tenant"] == "acme" && line["id"] == own[0]["id"]));
    assert!(own.windows(2).all(|pair| pair[0]["to"].as_str() <= pair[1]["from"].as_str()), "no time is billed twice");
    assert!(lines.iter().all(|line| line["evaluator"] != "acme/idle"), "it has done nothing");
}

#[test]
fn an_evaluator_that_is_deleted_is_billed_at_once() {
    let server = Server::start(&[("USAGE_INTERVAL", "1h"), ("LOG_LEVEL", "error")]);
    assert_eq!(server.put("acme%2Ftext?entry_point=upper", TEXT).status, 201);
    assert_eq!(server.post("acme%2Ftext", b"tea").status, 200);
    assert_eq!(server.post("greet", br#"{"name":"Ada"}"#).status, 200);
    assert_eq!(server.delete("acme%2Ftext").status, 204);
    eventually("it is billed", || billed(&server, "acme/text") == 1);
    assert_eq!((lines(&server).len(), billed(&server, "greet")), (1, 0), "not before its interval is over");
}
