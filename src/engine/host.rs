//! Host functions in our own terms, so that one declaration serves every engine.

use std::{any::Any, cell::Cell, fmt, future::Future, pin::pin, sync::Arc};

use serde::{Serialize, de::DeserializeOwned};

use super::{BoxFuture, Guest, HostFunctionError};

/// The type of a parameter or result of a host function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[expect(missing_docs, reason = "WebAssembly's own names")]
pub enum ValType {
    I32,
    I64,
    F32,
    F64,
}

/// A parameter or result of a host function.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
#[expect(missing_docs, reason = "WebAssembly's own names")]
pub enum Val {
    I32(i32),
    I64(i64),
    F32(f32),
    F64(f64),
}

impl Val {
    /// Its type.
    #[must_use]
    pub fn ty(self) -> ValType {
        match self {
            Val::I32(_) => ValType::I32,
            Val::I64(_) => ValType::I64,
            Val::F32(_) => ValType::F32,
            Val::F64(_) => ValType::F64,
        }
    }
}

type Call = dyn for<'a> Fn(&'a mut dyn Guest, &'a [Val]) -> BoxFuture<'a, Returned> + Send + Sync;
type Returned = Result<Vec<Val>, HostFunctionError>;

/// A function of the host that plugins may import.
///
/// It runs on the thread of the guest that calls it, and nothing can interrupt it while it blocks. Keep it short;
/// declare a function that waits with [`new_async`](Self::new_async) or [`bytes_async`](Self::bytes_async). If it
/// panics, the evaluation ends as [`Error::Internal`](crate::Error::Internal) and its instance is discarded. If it
/// evaluates on its own pool, that evaluation never waits: it is [`Error::Saturated`](crate::Error::Saturated) unless an
/// instance is free at once.
///
/// What is the same for all calls, its closure captures. What differs from call to call, it asks for as the call's
/// [context](Guest#method.context).
#[derive(Clone)]
pub struct HostFunction {
    pub(super) module: String,
    pub(super) name: String,
    pub(super) kind: Kind,
}

#[derive(Clone)]
pub(super) enum Kind {
    Portable(Arc<Portable>),
    /// An engine's own function type, passed to that engine as it is.
    Native(Arc<dyn Any + Send + Sync>),
}

pub(super) struct Portable {
    /// For messages.
    name: String,
    pub(super) params: Vec<ValType>,
    pub(super) results: Vec<ValType>,
    /// One that blocks does so before it returns its future.
    pub(super) call: Box<Call>,
}

impl Portable {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Says what is wrong with a call's results if their types are not the declared ones.
    pub(super) fn check(&self, returned: &[Val]) -> Result<(), String> {
        if returned.iter().copied().map(Val::ty).eq(self.results.iter().copied()) {
            return Ok(());
        }
        Err(format!("the host function {} gave results of other types than declared", self.name))
    }
}

impl HostFunction {
    /// A function in `extism:host/user`, where PDKs import from unless told otherwise.
    ///
    /// The closure must return values of exactly the types in `results`; anything else ends the call as
    /// [`Error::Internal`](crate::Error::Internal).
    pub fn new<F>(
        name: impl Into<String>,
        params: impl Into<Vec<ValType>>,
        results: impl Into<Vec<ValType>>,
        call: F,
    ) -> Self
    where
        F: Fn(&mut dyn Guest, &[Val]) -> Result<Vec<Val>, HostFunctionError> + Send + Sync + 'static,
    {
        Self::new_async(name, params, results, move |guest, args| Box::pin(std::future::ready(call(guest, args))))
    }

    /// A function that may wait. Its future is dropped when the evaluation is dropped or its deadline passes.
    ///
    /// On the `direct` engine it waits as any future does. On `extism` it blocks its guest's thread, and is dropped
    /// when the rest of `exec_timeout` is over. Needs a tokio runtime, as every evaluation does.
    ///
    /// ```
    /// use evalpool::engine::{HostFunction, Val, ValType};
    ///
    /// let later = HostFunction::new_async("later", [ValType::I64], [ValType::I64], |guest, args| {
    ///     Box::pin(async move {
    ///         tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    ///         let Val::I64(offset) = args[0] else { return Ok(vec![Val::I64(0)]) };
    ///         let block = guest.read(offset.cast_unsigned())?;
    ///         Ok(vec![Val::I64(guest.write(&block)?.cast_signed())])
    ///     })
    /// });
    /// assert_eq!(later.name(), "later");
    /// ```
    pub fn new_async<F>(
        name: impl Into<String>,
        params: impl Into<Vec<ValType>>,
        results: impl Into<Vec<ValType>>,
        call: F,
    ) -> Self
    where
        F: for<'a> Fn(&'a mut dyn Guest, &'a [Val]) -> BoxFuture<'a, Result<Vec<Val>, HostFunctionError>>
            + Send
            + Sync
            + 'static,
    {
        let (name, params, results) = (name.into(), params.into(), results.into());
        let portable = Portable { name: name.clone(), params, results, call: Box::new(call) };
        Self { module: "extism:host/user".into(), name, kind: Kind::Portable(Arc::new(portable)) }
    }

    /// A function that may wait, of the usual shape: a block of bytes in, a block of bytes out.
    ///
    /// ```
    /// use evalpool::HostFunction;
    ///
    /// let fetch = HostFunction::bytes_async("fetch", |key| async move {
    ///     tokio::task::yield_now().await;
    ///     Ok(key.repeat(2))
    /// });
    /// assert_eq!(fetch.name(), "fetch");
    /// ```
    pub fn bytes_async<F, R>(name: impl Into<String>, call: F) -> Self
    where
        F: Fn(Vec<u8>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Vec<u8>, HostFunctionError>> + Send + 'static,
    {
        Self::new_async(name, [ValType::I64], [ValType::I64], move |guest, args| {
            let output = guest.read(first_offset(args)).map(&call);
            Box::pin(async move { Ok(vec![Val::I64(guest.write(&output?.await?)?.cast_signed())]) })
        })
    }

    /// A function of the usual shape: a block of bytes in, a block of bytes out.
    ///
    /// ```
    /// use evalpool::HostFunction;
    ///
    /// let reverse = HostFunction::bytes("reverse", |input| Ok(input.iter().rev().copied().collect()));
    /// assert_eq!(reverse.name(), "reverse");
    /// ```
    pub fn bytes<F>(name: impl Into<String>, call: F) -> Self
    where
        F: Fn(&[u8]) -> Result<Vec<u8>, HostFunctionError> + Send + Sync + 'static,
    {
        Self::new(name, [ValType::I64], [ValType::I64], move |guest, args| {
            let input = guest.read(first_offset(args))?;
            let output = call(&input)?;
            Ok(vec![Val::I64(guest.write(&output)?.cast_signed())])
        })
    }

    /// A function of JSON, typed: deserialises its input, serialises its output. What it uses may fail with any error, by
    /// `?`. An input that is not the JSON expected ends the guest's call with an error that says so.
    ///
    /// ```
    /// use evalpool::HostFunction;
    ///
    /// #[derive(serde::Deserialize)]
    /// struct Item {
    ///     cents: String,
    /// }
    ///
    /// let half = HostFunction::json("half", |item: Item| Ok(item.cents.parse::<u64>()? / 2));
    /// assert_eq!(half.name(), "half");
    /// ```
    pub fn json<In, Out, F>(name: impl Into<String>, call: F) -> Self
    where
        In: DeserializeOwned,
        Out: Serialize,
        F: Fn(In) -> Result<Out, HostFunctionError> + Send + Sync + 'static,
    {
        Self::json_of(name.into(), move |_, input| call(input))
    }

    /// The same for a function that needs the [context](Guest#method.context) of the evaluation.
    ///
    /// ```
    /// use evalpool::HostFunction;
    ///
    /// struct Customer {
    ///     discount: u64,
    /// }
    ///
    /// let price = HostFunction::json_with("price", |customer: &Customer, cents: u64| {
    ///     Ok(cents.saturating_sub(customer.discount))
    /// });
    /// assert_eq!(price.name(), "price");
    /// ```
    pub fn json_with<C, In, Out, F>(name: impl Into<String>, call: F) -> Self
    where
        C: Send + Sync + 'static,
        In: DeserializeOwned,
        Out: Serialize,
        F: Fn(&C, In) -> Result<Out, HostFunctionError> + Send + Sync + 'static,
    {
        Self::json_of(name.into(), move |guest, input| call(&*guest.context::<C>()?, input))
    }

    fn json_of<In: DeserializeOwned, Out: Serialize>(
        name: String,
        call: impl Fn(&dyn Guest, In) -> Result<Out, HostFunctionError> + Send + Sync + 'static,
    ) -> Self {
        let wrong = |name: &str, what: &str, error: serde_json::Error| {
            HostFunctionError::new(format!("the host function {name} {what}: {error}"))
        };
        Self::new(name.clone(), [ValType::I64], [ValType::I64], move |guest, args| {
            let input = guest.read(first_offset(args))?;
            let input = serde_json::from_slice(&input);
            let input = input.map_err(|error| wrong(&name, "was not given the JSON that it expects", error))?;
            let output = serde_json::to_vec(&call(guest, input)?);
            let output = output.map_err(|error| wrong(&name, "gave what is not JSON", error))?;
            Ok(vec![Val::I64(guest.write(&output)?.cast_signed())])
        })
    }

    /// The same function in another module than `extism:host/user`.
    #[must_use]
    pub fn in_module(mut self, module: impl Into<String>) -> Self {
        self.module = module.into();
        self
    }

    /// The module that plugins import it from.
    #[must_use]
    pub fn module(&self) -> &str {
        &self.module
    }

    /// Whether plugins import it by this module and name.
    pub(crate) fn is(&self, module: &str, name: &str) -> bool {
        self.module == module && self.name == name
    }

    /// The name that plugins import it by.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

fn first_offset(args: &[Val]) -> u64 {
    match args {
        [Val::I64(offset)] => offset.cast_unsigned(),
        _ => 0,
    }
}

impl fmt::Debug for HostFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostFunction({}::{})", self.module, self.name)
    }
}

/// Our values and their types in an engine's terms, and back. Each engine has its own version of the same types.
macro_rules! conversions {
    ($engine:ident) => {
        fn to_type(ty: &ValType) -> $engine::ValType {
            match ty {
                ValType::I32 => $engine::ValType::I32,
                ValType::I64 => $engine::ValType::I64,
                ValType::F32 => $engine::ValType::F32,
                ValType::F64 => $engine::ValType::F64,
            }
        }

        fn to_val(value: Val) -> $engine::Val {
            match value {
                Val::I32(value) => $engine::Val::I32(value),
                Val::I64(value) => $engine::Val::I64(value),
                Val::F32(value) => $engine::Val::F32(value.to_bits()),
                Val::F64(value) => $engine::Val::F64(value.to_bits()),
            }
        }

        /// `None` for a type that host functions do not take.
        fn from_val(value: &$engine::Val) -> Option<Val> {
            Some(match value {
                $engine::Val::I32(value) => Val::I32(*value),
                $engine::Val::I64(value) => Val::I64(*value),
                $engine::Val::F32(bits) => Val::F32(f32::from_bits(*bits)),
                $engine::Val::F64(bits) => Val::F64(f64::from_bits(*bits)),
                _ => return None,
            })
        }
    };
}
pub(super) use conversions;

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is running a guest or one of its host functions. An evaluation that waits here could wait for
/// itself.
pub(crate) fn inside_host_function() -> bool {
    INSIDE.get()
}

/// Marks this thread as running a guest until it is dropped.
pub(super) struct GuestScope {
    outer: bool,
}

impl GuestScope {
    pub(super) fn enter() -> Self {
        Self { outer: INSIDE.replace(true) }
    }
}

impl Drop for GuestScope {
    fn drop(&mut self) {
        INSIDE.set(self.outer);
    }
}

/// Runs a guest that is a future: marks the thread while it is polled. Has it made here: a future that is passed along is in
/// two places, and is copied from one to the other.
pub(super) async fn in_guest<F: Future>(guest: impl FnOnce() -> F) -> F::Output {
    let mut guest = pin!(guest());
    std::future::poll_fn(|context| {
        let _scope = GuestScope::enter();
        guest.as_mut().poll(context)
    })
    .await
}
