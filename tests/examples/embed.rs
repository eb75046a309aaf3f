//! One plugin in a pool: called, and closed.

use evalpool::{EvaluatorPool, Source, Spec};
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    evalpool::init_compile_workers();
    run()
}

#[tokio::main]
async fn run() -> Result<(), Box<dyn std::error::Error>> {
    let prometheus = PrometheusBuilder::new().install_recorder()?;
    let pool = EvaluatorPool::builder().capacity(64).build()?;

    // Nothing is compiled before the first call; the 65th plugin evicts the least recently used.
    let spec = Spec::new(Source::file("src/service/greet/greet.wasm")).entry_point("greet");
    let greet = pool.evaluator("greet", spec)?;
    let response = greet.evaluate(json!({"name": "Ada"})).await?;
    assert_eq!(response.json::<Value>()?, json!({"greeting": "Hello, Ada!"}));

    assert!(prometheus.render().contains(r#"evalpool_runtimes_live{state="live"} 1"#));
    pool.close().await; // Returns when every runtime is gone.
    assert!(prometheus.render().contains(r#"evalpool_runtimes_live{state="live"} 0"#));
    Ok(())
}
