//! The spy, with weights: its plugins and instances charge what their evaluator's name says.

use std::{
    any::Any,
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
};

use bytes::Bytes;
use evalpool::{
    Error, LastWords,
    engine::{BoxFuture, CallRequest, Charge, CompileRequest, CompiledPlugin, Engine, Instance, MemoryAccount, Permit},
};

use crate::support::spy::Spy;

/// Names are `NAME-CODE-INSTANCE`, in MiB. Those with the same NAME share their code. The inputs `grow N` and
/// `hold N` make the instance that much heavier.
#[derive(Debug, Clone, Default)]
pub(super) struct Heavy {
    pub(super) spy: Spy,
    code: Arc<Mutex<HashMap<String, Weak<Charge>>>>,
}

const MIB: u64 = 1 << 20;

impl Engine for Heavy {
    fn compile(&self, request: CompileRequest) -> BoxFuture<'_, Result<Box<dyn CompiledPlugin>, Error>> {
        Box::pin(async move {
            let account = request.memory.clone();
            let parts: Vec<String> = request.evaluator.split('-').map(str::to_owned).collect();
            let [code, weight] = [&parts[1], &parts[2]].map(|part| part.parse::<u64>().unwrap() * MIB);
            let plugin = self.spy.compile(request).await?;
            let shared = self.code.lock().unwrap().get(&parts[0]).and_then(Weak::upgrade);
            let bytes = if shared.is_some() { 0 } else { code };
            let (own, _, first) = account.reserve(bytes, 0, weight).await?;
            let code = shared.unwrap_or_else(|| Arc::new(own));
            self.code.lock().unwrap().insert(parts[0].clone(), Arc::downgrade(&code));
            account.runs(code.clone());
            let first = Mutex::new(Some(first));
            Ok(Box::new(HeavyPlugin { plugin, _code: code, account, weight, first }) as Box<dyn CompiledPlugin>)
        })
    }
}

struct HeavyPlugin {
    plugin: Box<dyn CompiledPlugin>,
    _code: Arc<Charge>,
    account: MemoryAccount,
    weight: u64,
    first: Mutex<Option<Charge>>,
}

impl CompiledPlugin for HeavyPlugin {
    fn has_entry_point(&self, name: &str) -> bool {
        self.plugin.has_entry_point(name)
    }

    fn instantiate(&self, permit: Permit) -> BoxFuture<'_, Result<Box<dyn Instance>, Error>> {
        Box::pin(async move {
            let first = self.first.lock().unwrap().take();
            let charge = self.account.instance(self.weight);
            drop(first);
            let instance = self.plugin.instantiate(permit).await?;
            Ok(Box::new(HeavyInstance { charge, instance }) as Box<dyn Instance>)
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct HeavyInstance {
    charge: Charge,
    instance: Box<dyn Instance>,
}

impl Instance for HeavyInstance {
    fn call<'a>(&'a mut self, request: CallRequest<'a>) -> BoxFuture<'a, Result<Bytes, Error>> {
        let mut words = std::str::from_utf8(&request.input).unwrap().split(' ');
        if let (Some("grow" | "hold"), Some(more)) = (words.next(), words.next()) {
            self.charge.grow(more.parse::<u64>().unwrap_or(0) * MIB);
        }
        self.instance.call(request)
    }

    fn last_words(&mut self) -> LastWords {
        self.instance.last_words()
    }

    fn is_sound(&self) -> bool {
        self.instance.is_sound()
    }
}
