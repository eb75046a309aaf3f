//! The spec document: what a client says of how its plugin runs, in JSON, and what the operator's settings allow of it.
//!
//! Config values are secrets. So nothing here derives `Debug`, and no error shows a value of `config`.

use std::{collections::BTreeMap, num::NonZeroUsize, time::Duration};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::{
    Data, Digest, Error, Init, Input, Isolation, Settings, Source, Spec, Vars, Wasi,
    config::{self, LimitSettings, Refresh, hosts_within, nearest, size},
    data::PerCall,
    units::{Quoted, Size, Time},
};

/// The most bytes of a document.
pub(super) const MAX_DOCUMENT: u64 = 256 * 1024;

/// How deep static data may be nested. What is stored has it two levels down, and is read up to 127 levels.
const MOST_NESTED: usize = 125;

/// The smallest memory: one page.
const PAGE: u64 = 64 * 1024;

const FIELDS: [&str; 14] = [
    "entry_point",
    "isolation",
    "wasi",
    "input",
    "vars",
    "init",
    "init_refresh",
    "debug",
    "config",
    "allowed_hosts",
    "limits",
    "static_data",
    "labels",
    "digest",
];

const LIMITS: [&str; 6] = ["memory", "output_size", "build_timeout", "exec_timeout", "fuel", "instances"];

/// How to run an evaluator, in a client's words. Where a field is `None` the settings decide, also after they have
/// changed.
#[derive(Clone, Default, PartialEq, Serialize)]
pub(super) struct Document {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) entry_point: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) isolation: Option<Isolation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) wasi: Option<Wasi>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) input: Option<Input>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) vars: Option<Vars>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) init: Option<Init>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) init_refresh: Option<Refresh>,
    /// Whether those who call it see the last words of its guests.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) debug: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) config: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) allowed_hosts: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Limits::is_empty")]
    pub(super) limits: Limits,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) static_data: Option<Value>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) labels: BTreeMap<String, String>,
    /// A check of one upload, which is not kept.
    #[serde(skip)]
    pub(super) digest: Option<Digest>,
}

#[derive(Clone, Default, PartialEq, Serialize)]
pub(super) struct Limits {
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", with = "humantime_serde")]
    build_timeout: Option<Duration>,
    #[serde(skip_serializing_if = "Option::is_none", with = "humantime_serde")]
    exec_timeout: Option<Duration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fuel: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instances: Option<NonZeroUsize>,
}

impl Limits {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Document {
    /// Reads a document from its JSON.
    ///
    /// # Errors
    ///
    /// `invalid_request`, which names the field and never shows a config value.
    pub(super) fn parse(json: &[u8]) -> Result<Self, Error> {
        Self::read(parse_json(json, "the spec")?)
    }

    /// The same of JSON that is parsed already.
    pub(super) fn read(json: Value) -> Result<Self, Error> {
        let mut fields = object(json, "the spec", &FIELDS)?;
        let limits = take(&mut fields, "limits", "")?.unwrap_or_default();
        let document = Self {
            entry_point: take(&mut fields, "entry_point", "")?,
            isolation: take(&mut fields, "isolation", "")?,
            wasi: take(&mut fields, "wasi", "")?,
            input: take(&mut fields, "input", "")?,
            vars: take(&mut fields, "vars", "")?,
            init: take(&mut fields, "init", "")?,
            init_refresh: take(&mut fields, "init_refresh", "")?,
            debug: take(&mut fields, "debug", "")?.unwrap_or_default(),
            config: texts(&mut fields, "config")?,
            allowed_hosts: take(&mut fields, "allowed_hosts", "")?,
            limits: Limits::read(limits)?,
            static_data: fields.remove("static_data").filter(|data| !data.is_null()),
            labels: texts(&mut fields, "labels")?,
            digest: take::<String>(&mut fields, "digest", "")?
                .map(|text| text.parse().map_err(|error| refused(format!("digest: {error}"))))
                .transpose()?,
        };
        if document.entry_point.as_deref() == Some("") {
            return Err(refused("entry_point is empty; leave it out to have one chosen"));
        }
        if document.static_data.as_ref().is_some_and(|data| is_deeper(data, MOST_NESTED)) {
            return Err(refused(format!("static_data is nested deeper than {MOST_NESTED} levels")));
        }
        if document.input == Some(Input::Request) && document.static_data.is_some() {
            let why = "static_data is merged into inputs, and with input = request a plugin gets requests as they came";
            return Err(refused(format!("{why}; leave one of the two out")));
        }
        Ok(document)
    }

    /// The document after a JSON merge patch (RFC 7396): what the patch does not name stays, `null` removes.
    ///
    /// # Errors
    ///
    /// As [`parse`](Self::parse); also if the outcome is too large to be kept.
    pub(super) fn patched(&self, patch: &[u8]) -> Result<Self, Error> {
        let patch = parse_json(patch, "the patch")?;
        // A patch that is no object would replace the whole spec, its config included.
        if !patch.is_object() {
            return Err(Error::invalid_request("the patch must be a JSON object of the fields to change"));
        }
        let mut json = self.json()?;
        merge_patch(&mut json, patch);
        let patched = Self::read(json)?;
        let length = serde_json::to_vec(&patched).map_err(|error| Error::internal("a spec is no JSON", error))?.len();
        if length as u64 > MAX_DOCUMENT {
            let limit = Size(MAX_DOCUMENT);
            return Err(refused(format!(
                "it would be {} with this patch; at most {limit} are kept",
                Size(length as u64)
            )));
        }
        Ok(patched)
    }

    /// All of it, config values included: for the store alone.
    pub(super) fn json(&self) -> Result<Value, Error> {
        serde_json::to_value(self).map_err(|error| Error::internal("a spec is no JSON", error))
    }

    /// What a client may see of it: of config the names alone.
    pub(super) fn shown(&self) -> Result<Value, Error> {
        let mut json = self.json()?;
        if let Some(config) = json.get_mut("config").and_then(Value::as_object_mut) {
            config.values_mut().for_each(|value| *value = Value::Null);
        }
        Ok(json)
    }

    /// The spec that runs a plugin from `source` so, within the ceilings: they may have been lowered since the document
    /// was checked.
    pub(super) fn spec(&self, source: Source, ceilings: &Ceilings) -> Spec {
        let Limits { memory, output_size, build_timeout, exec_timeout, fuel, instances } = &self.limits;
        let most = &ceilings.limits;
        let spec = Spec {
            entry_point: self.entry_point.clone(),
            isolation: self.isolation,
            wasi: self.wasi.filter(|_| ceilings.wasi != Wasi::Off),
            // What static data is merged into is bytes, also where the settings make requests the default.
            input: self.input.or(self.static_data.as_ref().map(|_| Input::Bytes)),
            vars: self.vars,
            init: self.init,
            init_refresh: self.init_refresh.map(|Refresh(every)| every),
            debug: self.debug,
            config: self.config.clone().into(),
            labels: self.labels.clone().into(),
            memory: memory.map(|memory| memory.min(most.memory)),
            output_size: output_size.map(|size| size.min(most.output_size)),
            build_timeout: build_timeout.map(|time| time.min(most.build_timeout)),
            exec_timeout: exec_timeout.map(|time| time.min(most.exec_timeout)),
            fuel: fuel.map(|fuel| Some(most.fuel.map_or(fuel, |most| fuel.min(most)))),
            // The pool has its own bound, which this cannot raise.
            instances: *instances,
            allowed_hosts: self.allowed_hosts.as_deref().map(|hosts| {
                let allowed = |host: &String| hosts_within(std::slice::from_ref(host), &ceilings.hosts).ok();
                hosts.iter().filter_map(allowed).flatten().collect()
            }),
            ..Spec::new(source)
        };
        match &self.static_data {
            // Kept as text: as values, a few bytes of JSON take many times as much, for as long as it is registered.
            Some(data) => {
                let text = data.to_string();
                let parse = move || serde_json::from_str(&text).map(Data::Json);
                let broken = |error| Error::internal("static data cannot be read again", error);
                spec.data(PerCall(move || parse().map_err(broken)))
            }
            None => spec,
        }
    }
}

impl Limits {
    fn read(mut fields: Map<String, Value>) -> Result<Self, Error> {
        known(&fields, "limits of the spec have", &LIMITS)?;
        let mut size = |name| Ok::<_, Error>(take::<Bytes>(&mut fields, name, "limits.")?.map(|Bytes(size)| size));
        let (memory, output_size) = (size("memory")?, size("output_size")?);
        let mut time = |name| Ok::<_, Error>(take::<Span>(&mut fields, name, "limits.")?.map(|Span(time)| time));
        let (build_timeout, exec_timeout) = (time("build_timeout")?, time("exec_timeout")?);
        let fuel: Option<u64> = take(&mut fields, "fuel", "limits.")?;
        let instances = take(&mut fields, "instances", "limits.")?;
        if let Some(memory) = memory.filter(|memory| *memory < PAGE) {
            return Err(refused(format!("limits.memory = {} is under 64 KiB, one page", Size(memory))));
        }
        for (name, time) in [("build_timeout", build_timeout), ("exec_timeout", exec_timeout)] {
            if time.is_some_and(|time| time.is_zero()) {
                return Err(refused(format!("limits.{name} = 0s; it must be longer")));
            }
        }
        if fuel == Some(0) {
            return Err(refused("limits.fuel = 0; it must be at least 1"));
        }
        Ok(Self { memory, output_size, build_timeout, exec_timeout, fuel, instances })
    }
}

/// The most that a document may say: what the operator's settings do.
pub(super) struct Ceilings {
    limits: LimitSettings,
    instances: usize,
    wasi: Wasi,
    hosts: Vec<String>,
}

impl Ceilings {
    pub(super) fn new(settings: &Settings) -> Self {
        let pool = &settings.pool;
        Self {
            limits: settings.limits.clone(),
            instances: pool.max_instances_per_evaluator.min(pool.max_instances),
            wasi: settings.engine.wasi,
            hosts: settings.engine.allowed_hosts.clone(),
        }
    }

    /// # Errors
    ///
    /// `invalid_request`, which names the field, its value and the ceiling that it is over.
    pub(super) fn check(&self, document: &Document) -> Result<(), Error> {
        let Limits { memory, output_size, build_timeout, exec_timeout, fuel, instances } = &document.limits;
        let over = |field: &str, value: String, ceiling: &str, most: String| {
            Err(Error::invalid_request(format!("limits.{field} = {value} is over the operator's {ceiling}, {most}")))
        };
        for (field, said, most) in
            [("memory", memory, self.limits.memory), ("output_size", output_size, self.limits.output_size)]
        {
            if let Some(said) = said.filter(|said| *said > most) {
                return over(field, Size(said).to_string(), &format!("limits.{field}"), Size(most).to_string());
            }
        }
        for (field, said, most) in [
            ("build_timeout", build_timeout, self.limits.build_timeout),
            ("exec_timeout", exec_timeout, self.limits.exec_timeout),
        ] {
            if let Some(said) = said.filter(|said| *said > most) {
                return over(field, Time(said).to_string(), &format!("limits.{field}"), Time(most).to_string());
            }
        }
        if let (Some(said), Some(most)) = (fuel, self.limits.fuel)
            && *said > most
        {
            return over("fuel", said.to_string(), "limits.fuel", most.to_string());
        }
        if let Some(said) = instances.filter(|said| said.get() > self.instances) {
            let ceiling = "pool.max_instances_per_evaluator";
            return over("instances", said.to_string(), ceiling, self.instances.to_string());
        }
        if self.wasi == Wasi::Off && document.wasi.is_some_and(|said| said != Wasi::Off) {
            return Err(Error::invalid_request("wasi = auto is over the operator's engine.wasi, off"));
        }
        let hosts = document.allowed_hosts.as_deref().unwrap_or_default();
        hosts_within(hosts, &self.hosts).map(drop).map_err(|why| refused(format!("allowed_hosts has {why}")))
    }
}

/// A duration as people write it.
#[derive(Deserialize)]
struct Span(#[serde(with = "humantime_serde")] Duration);

/// A size as people write it.
#[derive(Deserialize)]
struct Bytes(#[serde(deserialize_with = "size")] u64);

fn refused(why: impl std::fmt::Display) -> Error {
    Error::invalid_request(format!("the spec cannot be used: {why}"))
}

fn parse_json(json: &[u8], what: &str) -> Result<Value, Error> {
    // The error tells the line and the column, and nothing of what is there.
    serde_json::from_slice(json).map_err(|error| Error::invalid_request(format!("{what} is not JSON: {error}")))
}

fn object(json: Value, what: &str, fields: &[&str]) -> Result<Map<String, Value>, Error> {
    match json {
        Value::Object(object) => known(&object, &format!("{what} has"), fields).map(|()| object),
        _ => Err(Error::invalid_request(format!("{what} must be a JSON object"))),
    }
}

fn known(object: &Map<String, Value>, whose: &str, fields: &[&str]) -> Result<(), Error> {
    match object.keys().find(|key| !fields.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => {
            let hint = nearest(key, fields.iter().copied());
            Err(Error::invalid_request(format!("{whose} no field {}{hint}", Quoted(key))))
        }
    }
}

/// A field, if it is there and not `null`.
fn take<T: DeserializeOwned>(fields: &mut Map<String, Value>, name: &str, within: &str) -> Result<Option<T>, Error> {
    config::take(fields, within, name).map_err(refused)
}

/// An object of strings. Its values may be secrets, which no error shows.
fn texts(fields: &mut Map<String, Value>, name: &str) -> Result<BTreeMap<String, String>, Error> {
    let pairs = match fields.remove(name) {
        None | Some(Value::Null) => return Ok(BTreeMap::new()),
        Some(Value::Object(pairs)) => pairs,
        Some(_) => return Err(refused(format!("{name} must be an object of strings"))),
    };
    let text = |(key, value): (String, Value)| match value {
        Value::String(text) => Ok((key, text)),
        Value::Null => Err(refused(format!(
            "{name} has null for {}: values are never shown, so this spec has lost them; give the value, leave the key \
             out, or change the rest by PATCH",
            Quoted(&key)
        ))),
        _ => Err(refused(format!("{name}: the value of {} must be a string", Quoted(&key)))),
    };
    pairs.into_iter().map(text).collect()
}

/// Recursive: `serde_json` parses nothing that is nested deeper than 128.
fn is_deeper(value: &Value, levels: usize) -> bool {
    let mut within: Box<dyn Iterator<Item = &Value>> = match value {
        Value::Array(values) => Box::new(values.iter()),
        Value::Object(fields) => Box::new(fields.values()),
        _ => return false,
    };
    levels == 0 || within.any(|value| is_deeper(value, levels - 1))
}

/// RFC 7396. Recursive: `serde_json` parses nothing that is nested deeper than 128.
fn merge_patch(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(target) = target.as_object_mut() else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(&key);
        } else {
            merge_patch(target.entry(key).or_insert(Value::Null), value);
        }
    }
}
