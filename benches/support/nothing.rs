//! An engine that does nothing: an evaluation on it is what the pool itself costs.

use std::future::ready;

use bytes::Bytes;
use evalpool::{
    Error,
    engine::{BoxFuture, CallRequest, CompileRequest, CompiledPlugin, Engine, Instance, Permit},
};

#[derive(Debug)]
pub(crate) struct Nothing;

/// Plugin and instance of [`Nothing`]. Holds its permit like any engine's.
struct Held {
    _permit: Permit,
}

impl Engine for Nothing {
    fn compile(&self, request: CompileRequest) -> BoxFuture<'_, Result<Box<dyn CompiledPlugin>, Error>> {
        let compiled: Box<dyn CompiledPlugin> = Box::new(Held { _permit: request.permit });
        Box::pin(ready(Ok(compiled)))
    }
}

impl CompiledPlugin for Held {
    fn has_entry_point(&self, _name: &str) -> bool {
        true
    }

    fn instantiate(&self, permit: Permit) -> BoxFuture<'_, Result<Box<dyn Instance>, Error>> {
        let instance: Box<dyn Instance> = Box::new(Held { _permit: permit });
        Box::pin(ready(Ok(instance)))
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

impl Instance for Held {
    fn call<'a>(&'a mut self, request: CallRequest<'a>) -> BoxFuture<'a, Result<Bytes, Error>> {
        Box::pin(ready(Ok(request.input)))
    }

    fn is_sound(&self) -> bool {
        true
    }
}
