//! The bounds of tenants, as clients of the server and its operator see them.

use std::fs;

use serde_json::Value;

use super::{
    letter,
    server::{Server, program},
};
use crate::support::wasm;

#[test]
fn a_bound_is_429_names_itself_and_is_read_again_when_the_server_is_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("evalpool.toml");
    let write = |bounds: &str| fs::write(&file, format!("[tenants.named.acme]\n{bounds}")).unwrap();
    write("evaluators = 1\nstored_bytes = '1KiB'\n");
    let path = file.to_str().unwrap();
    let start = |settings: &[(&str, &str)]| {
        let mut command = program();
        command.args(["--config", path]);
        Server::start_as(command, folder.path(), settings)
    };
    let mut server = start(&[("TENANTS_DEFAULT_EVALUATORS", "3")]);
    assert_eq!(server.put("acme%2Fa", &letter('a')).status, 201);
    let refused = server.put("acme%2Fb", &letter('b'));
    refused.is(429, "quota_exceeded");
    assert!(refused.text().contains(r#"\"acme\" has used up its bound: evaluators = 1"#), "{refused:?}");
    assert_eq!(refused.header("retry-after"), Some("60"));
    assert_eq!(server.put("acme%2Fa", &letter('c')).status, 200, "it is no evaluator more");
    let large =
        wasm(&format!(r#"(module (memory 1) (data (i32.const 0) "{}") (func (export "run")))"#, "x".repeat(1000)));
    let refused = server.put("acme%2Fa", &large);
    refused.is(429, "quota_exceeded");
    assert!(refused.text().contains("stored_bytes = 1 KiB"), "{refused:?}");
    assert_eq!(server.put("other%2Fa", &large).status, 201);
    let tenant = server.request("GET", "/v1/tenants/acme", &[], b"").json();
    assert_eq!((&tenant["bounds"]["evaluators"], &tenant["bounds"]["stored_bytes"]), (&1.into(), &1024.into()));
    assert_eq!((&tenant["bounds"]["runtimes"], &tenant["evaluators"]), (&Value::Null, &1.into()));
    assert!(tenant["memory_bytes"].as_u64() > Some(0) && tenant["runtimes"] == 1, "{tenant}");

    write("evaluators = 2\n");
    server.signal("HUP");
    server.has_logged("the bounds of tenants were read again");
    assert_eq!(server.put("acme%2Fb", &large).status, 201);
    write("evaluators = many\n");
    server.signal("HUP");
    server.has_logged("the bounds of tenants stay as they are");
    server.put("acme%2Fc", &letter('c')).is(429, "quota_exceeded");
    // A server that may hold fewer begins with all it has.
    write("evaluators = 1\nstored_bytes = 10\n");
    server.signal("TERM");
    server.ended();
    let again = start(&[]);
    assert_eq!(again.post("acme%2Fb", b"").status, 200);
    assert_eq!(again.post("acme%2Fa", b"").status, 200);
    again.put("acme%2Fa", &letter('a')).is(429, "quota_exceeded");
}
