//! For plugins with `input = "request"`: a request as one JSON document, and the response that a plugin answers with.
//!
//! Names are allow-listed both ways. A request's head is bounded by the listener; a response's headers are bounded here.

use std::{
    collections::BTreeMap,
    fmt, io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use base64::{display::Base64Display, engine::general_purpose::STANDARD, prelude::*};
use bytes::Bytes;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error as _, MapAccess, Visitor},
};

use super::{
    App,
    body::{Bodies, full},
    request::Call,
};
use crate::{
    Data, Error, Input,
    config::ServiceSettings,
    data::InputSource,
    units::{Quoted, cut},
};

/// Bytes of names and values that a response's headers may have; many clients take no more.
const MOST_OF_HEADERS: usize = 16 * 1024;

/// The most that is shown of what is wrong with an answer, in bytes: a plugin chooses some of it.
const MAX_REASON: usize = 500;

/// Which headers pass. In the order of the settings.
pub(super) struct Allowed {
    request: Vec<HeaderName>,
    response: Vec<HeaderName>,
}

impl Allowed {
    pub(super) fn new(service: &ServiceSettings) -> Self {
        // The settings were checked: each is a name.
        let names = |names: &[String]| names.iter().filter_map(|name| name.parse().ok()).collect();
        Self { request: names(&service.request_headers), response: names(&service.response_headers) }
    }
}

/// A request to evaluate, as either kind of plugin wants it. It is asked for again when the evaluator is replaced while it
/// waits, so it remembers which kind it was last asked for: that one runs, and its answer is of that kind.
pub(super) struct Asked {
    app: Arc<App>,
    inputs: Bodies,
    uri: Uri,
    headers: HeaderMap,
    call: Call,
    body: Bytes,
    /// What a plugin gets that takes bytes.
    data: Data,
    /// What one gets that takes requests, once it was asked for.
    document: OnceLock<Result<Data, Error>>,
    is_request: AtomicBool,
}

impl InputSource for Asked {
    fn data(&self, wanted: Input) -> Result<&Data, Error> {
        let is_request = wanted == Input::Request;
        self.is_request.store(is_request, Ordering::Relaxed);
        if is_request {
            return self.document.get_or_init(|| self.compose()).as_ref().map_err(Clone::clone);
        }
        self.call.check_no_query()?;
        Ok(&self.data)
    }
}

impl Asked {
    pub(super) fn new(
        app: Arc<App>,
        inputs: Bodies,
        uri: Uri,
        headers: HeaderMap,
        call: Call,
        body: Bytes,
        data: Data,
    ) -> Self {
        let (document, is_request) = (OnceLock::new(), AtomicBool::new(false));
        Self { app, inputs, uri, headers, call, body, data, document, is_request }
    }

    pub(super) fn entry_point(&self) -> Option<&str> {
        self.call.entry_point.as_deref()
    }

    /// Whether the plugin that ran, or could not, was given the document.
    pub(super) fn was_request(&self) -> bool {
        self.is_request.load(Ordering::Relaxed)
    }

    /// The document: measured first, since escapes and base64 make it longer than what came, and charged for before it is
    /// there.
    fn compose(&self) -> Result<Data, Error> {
        let mut query = BTreeMap::<&str, Vec<&str>>::new();
        for (name, value) in &self.call.query {
            query.entry(name).or_default().push(value);
        }
        let text = |name: &HeaderName| {
            let lines = self.headers.get_all(name).iter().map(|line| String::from_utf8_lossy(line.as_bytes()));
            self.headers.contains_key(name).then(|| lines.collect::<Vec<_>>().join(", "))
        };
        let passed = self.app.allowed.request.iter().filter_map(|name| Some((name.as_str(), text(name)?)));
        let body = str::from_utf8(&self.body);
        let document = RequestDocument {
            // The only one that evaluates.
            method: "POST",
            path: self.uri.path(),
            query,
            headers: passed.collect(),
            body: body.ok(),
            body_base64: body.is_err().then_some(Encoded(&self.body)),
        };
        let limit = self.app.input_size;
        let mut length = Length { so_far: 0, most: limit };
        let too_large = |_| Error::PayloadTooLarge { what: "input", limit };
        serde_json::to_writer(&mut length, &document).map_err(too_large)?;
        let length = usize::try_from(length.so_far).unwrap_or(usize::MAX);
        let charge = self.inputs.charge_more(length).map_err(|_| full())?;
        let mut json = Vec::with_capacity(length);
        let broken = |error| Error::internal("a request cannot be written as JSON", error);
        serde_json::to_writer(&mut json, &document).map_err(broken)?;
        Ok(Data::Bytes(Arc::new(charge).hold(json.into())))
    }
}

#[derive(Serialize)]
struct RequestDocument<'a> {
    method: &'a str,
    path: &'a str,
    query: BTreeMap<&'a str, Vec<&'a str>>,
    headers: BTreeMap<&'a str, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<Encoded<'a>>,
}

/// Bytes that are written in base64.
struct Encoded<'a>(&'a [u8]);

impl Serialize for Encoded<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Base64Display::new(self.0, &STANDARD))
    }
}

/// Counts what is written, and fails when it is too much.
struct Length {
    so_far: u64,
    most: u64,
}

impl io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.so_far = self.so_far.saturating_add(bytes.len() as u64);
        if self.so_far > self.most { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a plugin answers.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    /// Reads a plugin's output.
    ///
    /// # Errors
    ///
    /// `guest_error`, which says what is wrong with it.
    pub(super) fn read(output: &[u8], allowed: &Allowed) -> Result<Self, Error> {
        read(output, allowed).map_err(|mut why| {
            cut(&mut why, MAX_REASON);
            Error::guest_error(format!("its output is no response, which input = request wants: {why}"))
        })
    }
}

fn read(output: &[u8], allowed: &Allowed) -> Result<Answer, String> {
    // What is read would take a list of its fields as well.
    if output.trim_ascii_start().first() != Some(&b'{') {
        return Err("it is no JSON object".to_owned());
    }
    let document: ResponseDocument = serde_json::from_slice(output).map_err(|error| error.to_string())?;
    let status = u16::try_from(document.status).ok().filter(|status| (200..600).contains(status));
    let status = status.and_then(|status| StatusCode::from_u16(status).ok());
    let status = status.ok_or_else(|| format!("status is {}; it must be from 200 to 599", document.status))?;
    let mut headers = HeaderMap::new();
    for (name, value) in document.headers.0 {
        let known = name.parse::<HeaderName>().ok().filter(|name| allowed.response.contains(name));
        let Some(known) = known else {
            return Err(format!("the header {} is not among service.response_headers", Quoted(&name)));
        };
        let value = HeaderValue::from_str(&value)
            .map_err(|_| format!("the header {known} has a character that a header cannot hold"))?;
        if headers.insert(&known, value).is_some() {
            return Err(format!("the header {known} is there twice"));
        }
    }
    let body = match (document.body, document.body_base64) {
        (Some(_), Some(_)) => return Err("it has both body and body_base64".to_owned()),
        (Some(text), None) => text.into(),
        (None, Some(encoded)) => {
            BASE64_STANDARD.decode(encoded).map_err(|error| format!("body_base64: {error}"))?.into()
        }
        (None, None) => Bytes::new(),
    };
    let takes_none = [StatusCode::NO_CONTENT, StatusCode::RESET_CONTENT, StatusCode::NOT_MODIFIED];
    if takes_none.contains(&status) && !body.is_empty() {
        return Err(format!("status {} takes no body", status.as_u16()));
    }
    Ok(Answer { status, headers, body })
}

/// Typed, and so read without a tree of values in between, which would take many times as much memory.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResponseDocument {
    #[serde(default = "ok", deserialize_with = "status")]
    status: u64,
    #[serde(default)]
    headers: Headers,
    #[serde(default, deserialize_with = "body")]
    body: Option<String>,
    #[serde(default, deserialize_with = "body_base64")]
    body_base64: Option<String>,
}

fn ok() -> u64 {
    200
}

/// Declares how fields are read, so that an error names its field.
macro_rules! fields {
    ($($name:ident: $type:ty),*) => {$(
        fn $name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<$type, D::Error> {
            let named = |error| D::Error::custom(format_args!("{}: {error}", stringify!($name)));
            <$type>::deserialize(deserializer).map_err(named)
        }
    )*};
}

fields!(status: u64, body: Option<String>, body_base64: Option<String>);

/// Names and values, in the order in which they came.
#[derive(Default)]
struct Headers(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;

        impl<'de> Visitor<'de> for Pairs {
            type Value = Headers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("headers, an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Headers, A::Error> {
                let (mut pairs, mut size) = (Vec::new(), 0);
                let named = |error| A::Error::custom(format_args!("headers: {error}"));
                while let Some((name, value)) = map.next_entry::<String, String>().map_err(named)? {
                    // Each takes some room, however short it is.
                    size += name.len() + value.len() + 32;
                    if size > MOST_OF_HEADERS {
                        return Err(A::Error::custom(format_args!("headers take more than {MOST_OF_HEADERS} bytes")));
                    }
                    pairs.push((name, value));
                }
                Ok(Headers(pairs))
            }
        }

        deserializer.deserialize_map(Pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_take_so_many_bytes_at_most_with_some_for_each() {
        let response_headers = ["x-long", "x-other"].map(str::to_owned).into();
        let service = ServiceSettings { response_headers, ..ServiceSettings::default() };
        let allowed = Allowed::new(&service);
        let answer = |length: usize| {
            let (long, other) = ("v".repeat(length), "v".repeat(10));
            let document = serde_json::json!({ "headers": { "x-long": long, "x-other": other }, "body": "b" });
            Answer::read(document.to_string().as_bytes(), &allowed)
        };
        // Each takes 32 beside its name and value.
        let most = MOST_OF_HEADERS - (6 + 32) - (7 + 10 + 32);
        assert_eq!(answer(most).unwrap().headers.len(), 2);
        let refused = answer(most + 1).unwrap_err().to_string();
        assert!(refused.contains("headers take more than 16384 bytes"), "{refused}");
    }
}
