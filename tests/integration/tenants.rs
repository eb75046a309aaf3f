//! Tenants: whom an evaluator belongs to.

use evalpool::{ErrorKind, EvaluatorPool};

use crate::support::spy::Spy;

fn pool() -> EvaluatorPool {
    Spy::default().pool(|builder| builder.capacity(4))
}

fn tenant(pool: &EvaluatorPool, evaluator: &str) -> String {
    pool.info(evaluator).unwrap().tenant
}

#[tokio::test]
async fn an_evaluator_belongs_to_the_first_part_of_its_name_unless_its_spec_says_otherwise() {
    let pool = pool();
    for name in ["acme/price", "alone", "/odd"] {
        pool.register(name, Spy::spec()).unwrap();
    }
    pool.register("price", Spy::spec().tenant("acme")).unwrap();
    pool.register("globex/price", Spy::spec().tenant("acme/eu")).unwrap();
    let tenants = ["acme/price", "alone", "/odd", "price", "globex/price"].map(|name| tenant(&pool, name));
    assert_eq!(tenants, ["acme", "alone", "/odd", "acme", "acme/eu"]);
    let listed: Vec<_> = pool.list(Some("alone"), 2).into_iter().map(|info| info.tenant).collect();
    assert_eq!(listed, ["acme/eu", "acme"]);
}

#[tokio::test]
async fn a_replacement_may_belong_to_another() {
    let pool = pool();
    pool.register("price", Spy::spec().tenant("acme")).unwrap();
    let prepared = pool.prepare("price", Spy::spec().tenant("globex")).await.unwrap();
    assert_eq!((prepared.info().unwrap().tenant.as_str(), tenant(&pool, "price").as_str()), ("globex", "acme"));
    let (evaluator, _) = prepared.publish();
    assert_eq!(tenant(&pool, "price"), "globex");
    evaluator.close().await;
    assert_eq!(tenant(&pool, "price"), "globex", "also when it is closed");
}

#[tokio::test]
async fn a_name_that_no_tenant_can_have_is_refused() {
    let pool = pool();
    for (name, part) in [("", "is empty"), ("a b", "are allowed"), ("a..b", "hold .."), (&"x".repeat(129), "longer")] {
        let error = pool.register("price", Spy::spec().tenant(name)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(error.to_string().starts_with("the spec's tenant, ") && error.to_string().contains(part), "{error}");
    }
}
