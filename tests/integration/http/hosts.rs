//! Which hosts and ports `allowed_hosts` lets a plugin reach.

use evalpool::{EvaluatorPool, config::EngineKind};
use serde_json::json;

use super::{Recorder, answer, ask, requester};
use crate::support::{builder, settings};

#[tokio::test]
async fn an_entry_with_a_port_allows_that_port_alone() {
    let (server, other) = (Recorder::ok(), Recorder::ok());
    let named = format!("127.0.0.1:{}", server.port);
    let local = format!("localhost:{}", server.port);
    for (entries, host, port, reached) in [
        (vec![named.as_str()], "127.0.0.1", server.port, true),
        (vec![named.as_str()], "127.0.0.1", other.port, false),
        (vec![local.as_str()], "localhost", server.port, true),
        (vec![local.as_str()], "localhost", other.port, false),
        // A wildcard does not open the other ports of a private host that is named.
        (vec!["*", local.as_str()], "localhost", other.port, false),
        (vec!["*", named.as_str()], "127.0.0.1", other.port, false),
        (vec!["127.0.0.1"], "127.0.0.1", other.port, true),
        (vec!["LOCALHOST"], "localhost", other.port, true),
    ] {
        let spec = requester(false, false).allowed_hosts(entries.clone());
        let given = ask(spec, json!({"url": format!("http://{host}:{port}/")})).await;
        match given {
            Ok(body) => assert!(reached && body == b"ok", "{entries:?} {host}:{port}"),
            Err((kind, text)) => assert!(!reached && kind == "guest_trap", "{entries:?} {host}:{port}: {text}"),
        }
        let heard = server.heard().len() + other.heard().len();
        assert_eq!(heard, usize::from(reached), "{entries:?} {host}:{port}");
    }
}

#[tokio::test]
async fn a_redirect_to_another_port_is_not_followed() {
    let other = Recorder::ok();
    let to = other.url("/");
    let server = Recorder::start(move |_| answer("302 Found", &[&format!("location: {to}")], b""));
    let spec = requester(false, false).allowed_hosts(["*".to_owned(), format!("127.0.0.1:{}", server.port)]);
    let (kind, text) = ask(spec, json!({"url": server.url("/")})).await.unwrap_err();
    assert_eq!(kind, "guest_trap");
    assert!(text.contains("it redirects to") && text.contains("names its host with another port"), "{text}");
    assert_eq!(other.heard(), [""; 0]);
}

#[tokio::test]
async fn an_entry_that_no_request_could_match_is_refused_where_it_is_given() {
    let advice = r#"allowed_hosts has "http://127.0.0.1:18090", which no request could match; write "127.0.0.1:18090""#;
    let pool = builder(EngineKind::Direct).capacity(1).max_instances(2).build().unwrap();
    let spec = || requester(false, false).allowed_hosts(["http://127.0.0.1:18090"]);
    let refusals =
        [pool.evaluator("a", spec()).err(), pool.register("b", spec()).err(), pool.prepare("c", spec()).await.err()];
    for refusal in refusals {
        let refusal = refusal.expect("it is refused");
        assert_eq!(refusal.kind(), "invalid_request");
        assert!(refusal.to_string().contains(advice), "{refusal}");
    }
    assert!(pool.get("b").is_none() && pool.get("c").is_none());
    pool.close().await;
    for engine in crate::support::ENGINES {
        let mut settings = settings(engine);
        settings.engine.allowed_hosts = vec!["http://127.0.0.1:18090".to_owned()];
        let error = EvaluatorPool::from_settings(&settings).unwrap_err().to_string();
        assert!(error.starts_with(&format!("engine.{advice}")), "{error}");
    }
}

#[tokio::test]
async fn extism_which_knows_no_ports_takes_no_entry_that_has_one() {
    let mut settings = settings(EngineKind::Extism);
    settings.engine.allowed_hosts = vec!["127.0.0.1:18090".to_owned()];
    let error = EvaluatorPool::from_settings(&settings).unwrap_err().to_string();
    assert!(error.contains("does not tell the ports of allowed hosts apart"), "{error}");
}
