//! Tenants and what they use, as clients of the server see it.

use serde_json::Value;

use super::{letter, server::Server};

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
