//! The functions of `extism:host/env` as extism has them, for plugins with initialisers.

use extism::{CurrentPlugin, EXTISM_ENV_MODULE, Error, Function, UserData, Val, ValType};
use tracing::{Level, level_filters::LevelFilter};
use wasmparser::{Parser, Payload};

use super::{Call, give, take};

const INITIALISERS: [&str; 3] = ["_initialize", "__wasm_call_ctors", "hs_init"];

/// Whether a module has code that runs before it is called.
pub(crate) fn initialises(wasm: &[u8]) -> bool {
    Parser::new(0).parse_all(wasm).map_while(Result::ok).any(|payload| match payload {
        Payload::StartSection { .. } => true,
        Payload::ExportSection(exports) => {
            exports.into_iter().flatten().any(|export| INITIALISERS.contains(&export.name))
        }
        _ => false,
    })
}

/// All that extism has and that reaches into a guest's memory, less HTTP.
pub(crate) fn environment(call: &Call) -> Vec<Function> {
    let mut functions = vec![
        function(call, "config_get", 1, true, |plugin, args| {
            let key = take_text(plugin, first(args), "config key")?;
            let value = plugin.manifest().config.get(&key).cloned();
            put(plugin, value.as_deref().map(str::as_bytes))
        }),
        function(call, "var_get", 1, true, |plugin, args| {
            let name = take_text(plugin, first(args), "var key")?;
            let value = plugin.vars().get(&name).cloned();
            put(plugin, value.as_deref())
        }),
        function(call, "var_set", 2, false, |plugin, args| {
            let (name, value) = (take_text(plugin, first(args), "var key")?, first(args.get(1..).unwrap_or_default()));
            if value == 0 {
                plugin.vars_mut().remove(&name);
                return Ok(0);
            }
            let value = take(plugin, value, "var value")?;
            let each = size_of::<String>() + size_of::<Vec<u8>>();
            let held: usize = plugin.vars().iter().map(|(name, value)| each + name.len() + value.len()).sum();
            let most = plugin.manifest().memory.max_var_bytes.unwrap_or(u64::MAX);
            if (held + each + name.len() + value.len()) as u64 > most {
                return Err(Error::msg("Variable store is full"));
            }
            plugin.vars_mut().insert(name, value);
            Ok(0)
        }),
    ];
    for (name, level) in [
        ("log_trace", Level::TRACE),
        ("log_debug", Level::DEBUG),
        ("log_info", Level::INFO),
        ("log_warn", Level::WARN),
        ("log_error", Level::ERROR),
    ] {
        functions.push(function(call, name, 1, false, move |plugin, args| log(plugin, level, first(args))));
    }
    functions
}

/// A function of offsets. For an initialiser, a log does nothing, and all else fails.
fn function(
    call: &Call,
    name: &str,
    params: usize,
    gives: bool,
    run: impl Fn(&mut CurrentPlugin, &[Val]) -> Result<u64, Error> + Send + Sync + 'static,
) -> Function {
    let (call, params, logs) = (call.clone(), vec![ValType::I64; params], name.starts_with("log_"));
    let results = gives.then_some(ValType::I64);
    Function::new(name, params, results, UserData::new(()), move |plugin, args, results, _| {
        if logs && call.is_initialising() {
            return Ok(());
        }
        call.reaches_memory()?;
        let offset = run(plugin, args)?;
        give(results, Val::I64(offset.cast_signed()));
        Ok(())
    })
    .with_namespace(EXTISM_ENV_MODULE)
}

fn first(args: &[Val]) -> u64 {
    match args {
        [Val::I64(offset), ..] => offset.cast_unsigned(),
        _ => 0,
    }
}

fn take_text(plugin: &mut CurrentPlugin, offset: u64, what: &str) -> Result<String, Error> {
    String::from_utf8(take(plugin, offset, what)?).map_err(|error| Error::msg(error.utf8_error().to_string()))
}

fn put(plugin: &mut CurrentPlugin, value: Option<&[u8]>) -> Result<u64, Error> {
    let Some(value) = value else { return Ok(0) };
    Ok(plugin.memory_new(value)?.offset())
}

fn log(plugin: &mut CurrentPlugin, level: Level, message: u64) -> Result<u64, Error> {
    if level > LevelFilter::current() {
        if let Some(handle) = plugin.memory_handle(message) {
            plugin.memory_free(handle)?;
        }
        return Ok(0);
    }
    let message = take(plugin, message, "log message")?;
    let (text, plugin) = (String::from_utf8_lossy(&message), plugin.id().to_string());
    macro_rules! write {
        ($($level:ident),*) => { match level {
            $(Level::$level => tracing::event!(target: "evalpool::plugin", Level::$level, plugin, "{text}"),)*
        } };
    }
    write!(TRACE, DEBUG, INFO, WARN, ERROR);
    Ok(0)
}
