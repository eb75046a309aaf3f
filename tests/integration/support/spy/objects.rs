//! What the spy compiles, and makes of that.

use std::{any::Any, sync::atomic::Ordering};

use bytes::Bytes;
use evalpool::{
    Error, LastWords,
    engine::{BoxFuture, CallRequest, Charge, CompiledPlugin, Instance, MemoryAccount, Permit},
};

use super::{Act, Live, Spy};

pub(super) struct SpyPlugin {
    pub(super) spy: Spy,
    pub(super) memory: MemoryAccount,
    pub(super) held: (Live, Permit),
}

impl Drop for SpyPlugin {
    fn drop(&mut self) {
        let mut script = self.spy.shared.script.lock().unwrap();
        script.closed_on.push(std::thread::current().id());
        if let Some(left) = script.keeps_permits.checked_sub(1) {
            script.keeps_permits = left;
            script.kept.push(self.held.1.clone());
        }
        drop(script);
        self.spy.works_here();
        self.spy.counts().closes.fetch_add(1, Ordering::SeqCst);
        self.spy.panic_in_drop();
    }
}

impl CompiledPlugin for SpyPlugin {
    fn has_entry_point(&self, _name: &str) -> bool {
        !self.spy.shared.script.lock().unwrap().vanish
    }

    fn instantiate(&self, permit: Permit) -> BoxFuture<'_, Result<Box<dyn Instance>, Error>> {
        let act = self.spy.next(|script| &mut script.instantiate);
        let spy = self.spy.clone();
        let charge = self.memory.instance(spy.shared.weighs.lock().unwrap().1);
        let live = Live::new(&spy.shared, |counts| &counts.instances_live);
        spy.counts().instances_live_max.fetch_max(spy.instances_live(), Ordering::SeqCst);
        Box::pin(async move {
            let held = (live, charge, permit);
            let working =
                (!spy.shared.interrupts_initialisers.load(Ordering::SeqCst)).then(|| Live::working(&spy.shared));
            spy.shared.act(act).await?;
            drop(working);
            spy.counts().instances_made.fetch_add(1, Ordering::SeqCst);
            Ok(Box::new(SpyInstance { spy, uses: 0, sound: true, _held: held }) as Box<dyn Instance>)
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct SpyInstance {
    spy: Spy,
    uses: usize,
    sound: bool,
    _held: (Live, Charge, Permit),
}

impl Drop for SpyInstance {
    fn drop(&mut self) {
        self.spy.panic_in_drop();
    }
}

impl Instance for SpyInstance {
    /// Answers with the input and how often this instance has been called.
    fn call<'a>(&'a mut self, request: CallRequest<'a>) -> BoxFuture<'a, Result<Bytes, Error>> {
        let CallRequest { input, context, .. } = request;
        Box::pin(async move {
            let _until_it_returns = context;
            let act = self.spy.next(|script| &mut script.call);
            self.spy.counts().calls_started.fetch_add(1, Ordering::SeqCst);
            self.uses += 1;
            self.sound = false;
            let shared = self.spy.shared.clone();
            if let Some(gate) = input.strip_prefix(b"hold ") {
                let gate = String::from_utf8_lossy(gate).into_owned();
                shared.until(|| shared.script.lock().unwrap().open_gates.contains(&gate)).await;
            }
            if act == Act::Fail || input == "trap" {
                return Err(Error::GuestTrap { reason: "told to trap".into(), last_words: LastWords::default() });
            }
            shared.act(act).await?;
            self.sound = true;
            self.spy.counts().calls_finished.fetch_add(1, Ordering::SeqCst);
            Ok(format!("{}#{}", String::from_utf8_lossy(&input), self.uses).into())
        })
    }

    fn is_sound(&self) -> bool {
        self.sound
    }
}
