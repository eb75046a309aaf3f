//! The functions of `extism:host/env` that are not HTTP: the log, for all plugins, and settings and variables as extism
//! has them, for plugins with initialisers.

use extism::{CurrentPlugin, EXTISM_ENV_MODULE, Error, Function, UserData, Val, ValType};
use tracing::Level;

use super::{Call, give, take};
use crate::{engine::log, source::Digest};

/// Settings and variables.
pub(crate) fn environment(call: &Call) -> Vec<Function> {
    vec![
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
    ]
}

/// The log. An initialiser's messages are dropped.
pub(crate) fn logs(call: &Call, digest: Digest) -> impl Iterator<Item = Function> {
    log::FUNCTIONS.into_iter().map(move |(name, level)| {
        let call = call.clone();
        let run = move |plugin: &mut CurrentPlugin, args: &[Val], _: &mut [Val], _: UserData<()>| {
            if call.is_initialising() {
                return Ok(());
            }
            write(plugin, &call, level, first(args), digest)
        };
        Function::new(name, [ValType::I64], [], UserData::new(()), run).with_namespace(EXTISM_ENV_MODULE)
    })
}

/// A function of offsets, which fails for an initialiser.
fn function(
    call: &Call,
    name: &str,
    params: usize,
    gives: bool,
    run: impl Fn(&mut CurrentPlugin, &[Val]) -> Result<u64, Error> + Send + Sync + 'static,
) -> Function {
    let (call, params) = (call.clone(), vec![ValType::I64; params]);
    let results = gives.then_some(ValType::I64);
    Function::new(name, params, results, UserData::new(()), move |plugin, args, results, _| {
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

fn write(plugin: &mut CurrentPlugin, call: &Call, level: Level, message: u64, digest: Digest) -> Result<(), Error> {
    if !log::is_read(level) {
        if let Some(handle) = plugin.memory_handle(message) {
            plugin.memory_free(handle)?;
        }
        return Ok(());
    }
    let logging = call.take_line();
    if let Some(text) = logging.text(&take(plugin, message, "log message")?) {
        log::write(level, digest, &text);
    }
    Ok(())
}
