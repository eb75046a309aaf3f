//! Sources that are asked for a plugin at each build: loaders of one's own, and HTTP servers.

#[cfg(feature = "service")]
mod commands;
#[cfg(feature = "service")]
mod fetches;
mod loaders;
#[cfg(feature = "service")]
mod secrets;

use evalpool::{Error, Spec, config::LimitSettings};

use crate::support::{spy::Spy, wasm};

fn module() -> Vec<u8> {
    wasm(r#"(module (func (export "run")))"#)
}

/// What an evaluation of a plugin with this spec comes to, where plugins may be as large as [`module`].
async fn evaluate(spec: Spec) -> Result<(), Error> {
    let spy = Spy::default();
    let limits = LimitSettings { plugin_size: module().len() as u64, ..LimitSettings::default() };
    let pool = spy.pool(|builder| builder.capacity(1).limits(limits));
    let evaluated = match pool.evaluator("fetched", spec) {
        Ok(evaluator) => evaluator.evaluate("").await.map(drop),
        Err(refused) => Err(refused),
    };
    pool.close().await;
    spy.assert_nothing_left();
    evaluated
}
