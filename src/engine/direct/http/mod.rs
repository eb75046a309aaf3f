//! The client behind `http_request`, and what it may reach.
//!
//! Each compiled plugin has a client of its own, so that customers share no connection. A connection goes with its request;
//! how many there may be at once is bounded, and a guest waits for its turn until its deadline.
//!
//! A plugin reaches an address of this machine or of a private network only if an entry names its host without wildcards: a
//! wildcard, a redirect or a name that resolves to such an address does not lead there.

mod decode;

use std::{
    collections::BTreeMap,
    fmt::Display,
    sync::{Arc, OnceLock},
};

use reqwest::{
    Client, Method, RequestBuilder, Url,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, RANGE},
    redirect,
};
use rustix::io::Errno;
use serde::Deserialize;
use tokio::time::Instant;
use tracing::{Instrument, Span};

use self::decode::{Coding, Undecoded};
use super::classify::HostTrap;
use crate::{
    config::EngineSettings,
    engine::Charge,
    http_client::{self, AllowedHosts, Connections, Full, Share, innermost, shortage, shown},
    spans::{self, TraceParent},
    units::Quoted,
    usage::HttpUsage,
};

/// As many as extism's client follows.
const MAX_REDIRECTS: usize = 10;

/// Bytes of JSON with a request's address, method and headers, which are read before the address can be checked.
pub(super) const MAX_REQUEST: u64 = 64 << 10;
const MAX_HEADERS: usize = 100;

/// Names the trace that a request belongs to.
const TRACEPARENT: &str = "traceparent";

/// What frames a message or is for the next hop alone: it is the client's. Beside these, all of `proxy-…`.
const CLIENTS_OWN: [&str; 9] = [
    "connection",
    "content-length",
    "host",
    "http2-settings",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What the clients of all plugins have in common.
pub(super) struct Clients {
    connections: Connections,
    user_agent: HeaderValue,
}

/// One plugin's client, and the hosts that it may reach.
pub(super) struct Http {
    hosts: Arc<AllowedHosts>,
    client: OnceLock<Client>,
    connections: Share,
    user_agent: HeaderValue,
    /// Bytes of a response's body, at most.
    largest: u64,
}

/// A request that is allowed.
pub(super) struct Request {
    built: RequestBuilder,
    /// Empty for none.
    pub(super) body: Vec<u8>,
    /// Whether servers expect a length, though it be 0.
    has_length: bool,
    /// Whether the response's body is decoded: not for plugins that chose the encoding, nor for parts of a body.
    decodes: bool,
    /// Its URL, for errors.
    shown: String,
    /// Whether the plugin itself says to which trace it belongs.
    is_traced: bool,
    span: Span,
}

impl Clients {
    /// # Errors
    ///
    /// Names the setting that cannot be used.
    pub(super) fn new(settings: &EngineSettings) -> Result<Self, String> {
        let user_agent = HeaderValue::from_str(&settings.http_user_agent)
            .map_err(|error| format!("engine.http_user_agent: {error}"))?;
        let (all, each) = (settings.max_http_connections, settings.max_http_connections_per_evaluator);
        Ok(Self { connections: Connections::new(all, each), user_agent })
    }

    /// One that may reach these hosts and reads bodies of at most `largest` bytes.
    ///
    /// # Errors
    ///
    /// Shows the first entry of the allowed hosts that no request could match.
    pub(super) fn of_plugin(&self, allowed_hosts: &[String], largest: u64) -> Result<Http, String> {
        let hosts = Arc::new(AllowedHosts::new(allowed_hosts)?);
        let (connections, user_agent) = (self.connections.share(), self.user_agent.clone());
        Ok(Http { hosts, client: OnceLock::new(), connections, user_agent, largest })
    }
}

impl Http {
    /// Reads a request without its body, as PDKs pass it, and refuses it unless it is allowed.
    pub(super) fn read(&self, request: &[u8]) -> Result<Request, HostTrap> {
        let unreadable = |why: &dyn Display| HostTrap::Request(format!("http_request failed: {why}"));
        let text: RequestText = serde_json::from_slice(request).map_err(|error| unreadable(&error))?;
        let url = Url::parse(&text.url).map_err(|error| unreadable(&format_args!("Invalid URL: {error:?}")))?;
        if !url.has_host() {
            return Err(unreadable(&"Invalid URL: it has no host"));
        }
        let shown = shown(&url);
        let failed = |why: &dyn Display| failed(&shown, why);
        self.hosts.check(&url).map_err(|why| failed(&format_args!("HTTP request to {shown} is not allowed: {why}")))?;
        let method = text.method.as_deref().unwrap_or("GET").to_uppercase();
        let method = Method::from_bytes(method.as_bytes()).map_err(|error| failed(&error))?;
        if method == Method::CONNECT {
            return Err(failed(&"a plugin may not use the method CONNECT"));
        }
        let mut headers = headers(&text.headers).map_err(|why| failed(&why))?;
        let decodes = !headers.contains_key(ACCEPT_ENCODING) && !headers.contains_key(RANGE);
        if decodes {
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(decode::ACCEPTED));
        }
        let has_length = [Method::POST, Method::PUT, Method::PATCH].contains(&method);
        let is_traced = headers.contains_key(TRACEPARENT);
        let span = spans::if_wanted(|| {
            spans::http_request(
                method.as_str(),
                &shown,
                url.host_str().unwrap_or_default(),
                url.port_or_known_default(),
            )
        });
        let built = self.client()?.request(method, url).headers(headers);
        Ok(Request { built, body: Vec::new(), has_length, decodes, shown, is_traced, span })
    }

    /// Sends a request and returns the response and its body. Dropping the future closes the connection. Waits for its turn
    /// until the guest's deadline. It goes out as a part of the current trace, or else of its caller's, `parent`.
    ///
    /// `held` is charged with the response, and `counted` counts the request and both bodies.
    pub(super) async fn send(
        &self,
        request: Request,
        parent: Option<&TraceParent>,
        deadline: Instant,
        held: &mut Charge,
        counted: &mut HttpUsage,
    ) -> Result<(Response, Vec<u8>), HostTrap> {
        let span = request.span.clone();
        let sent = self.send_within(request, parent, deadline, held, counted).instrument(span.clone()).await;
        match &sent {
            Ok((Response { status, .. }, _)) => {
                span.record("http.response.status_code", status);
                if *status >= 400 {
                    spans::record_failure(&span, &status.to_string());
                }
            }
            Err(_) => spans::record_failure(&span, "http_request"),
        }
        sent
    }

    async fn send_within(
        &self,
        request: Request,
        parent: Option<&TraceParent>,
        deadline: Instant,
        held: &mut Charge,
        counted: &mut HttpUsage,
    ) -> Result<(Response, Vec<u8>), HostTrap> {
        let Request { built, body, has_length, decodes, shown, is_traced, .. } = request;
        let connection = self.connections.requests.acquire(deadline).await.map_err(|full| {
            HostTrap::Saturated(match full {
                Full::Own => "the plugin has as many HTTP requests as engine.max_http_connections_per_evaluator allows",
                Full::All => "all plugins together have as many HTTP requests as engine.max_http_connections allows",
            })
        })?;
        let too_large = || {
            let text = "HTTP response exceeds the configured maximum number of bytes";
            failed(&shown, &format_args!("{text}: {} (limits.output_size)", self.largest))
        };
        let trace = (!is_traced).then(|| TraceParent::current().or_else(|| parent.cloned())).flatten();
        let built = match &trace {
            Some(trace) => built.header(TRACEPARENT, trace.as_str()),
            None => built,
        };
        counted.requests += 1;
        counted.bytes_out += body.len() as u64;
        let built = match body.is_empty() {
            false => built.body(body),
            // The client itself says nothing of a body that is empty.
            true if has_length => built.header(CONTENT_LENGTH, 0),
            true => built,
        };
        let not_done = |error: reqwest::Error| match shortage(&error).and_then(Errno::from_io_error) {
            Some(lack) => HostTrap::Lacks(lack),
            None => failed(&shown, &innermost(&error)),
        };
        let mut incoming = built.send().await.map_err(not_done)?;
        let mut body = Vec::new();
        while let Some(chunk) = incoming.chunk().await.map_err(not_done)? {
            counted.bytes_in += chunk.len() as u64;
            if (body.len() + chunk.len()) as u64 > self.largest {
                return Err(too_large());
            }
            held.grow(chunk.len() as u64);
            body.extend_from_slice(&chunk);
        }
        let (status, given) = (incoming.status().as_u16(), std::mem::take(incoming.headers_mut()));
        // With it, the connection is closed.
        drop(incoming);
        let coding = coding(&given).filter(|_| decodes && !body.is_empty());
        if let Some(coding) = coding {
            body = coding.decode(&body, self.largest).await.map_err(|error| match error {
                Undecoded::TooLarge => too_large(),
                Undecoded::Corrupt(error) => {
                    let coding = coding.as_str();
                    failed(&shown, &format_args!("the response's {coding} body is cut off or corrupt ({error})"))
                }
            })?;
        }
        if coding.is_some() {
            held.grow(body.len() as u64);
        }
        drop(connection);
        let is_shown = |name: &HeaderName| coding.is_none() || (name != CONTENT_ENCODING && name != CONTENT_LENGTH);
        let text = |value: &HeaderValue| value.to_str().ok().map(str::to_owned);
        let headers = given.iter().filter(|(name, _)| is_shown(name));
        let headers = headers.filter_map(|(name, value)| Some((name.as_str().to_owned(), text(value)?))).collect();
        Ok((Response { status, headers }, body))
    }

    fn client(&self) -> Result<&Client, HostTrap> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let hosts = self.hosts.clone();
        let redirects = redirect::Policy::custom(move |attempt| {
            if attempt.previous().len() > MAX_REDIRECTS {
                return attempt.error("too many redirects");
            }
            match hosts.check(attempt.url()) {
                Ok(()) => attempt.follow(),
                Err(why) => {
                    let text = format!("it redirects to {}, which is not allowed: {why}", shown(attempt.url()));
                    attempt.error(text)
                }
            }
        });
        let made = http_client::builder(self.hosts.clone(), Some(self.connections.lookups.clone()))
            .map_err(|error| HostTrap::Broken(error.to_string()))?
            .user_agent(self.user_agent.clone())
            .redirect(redirects)
            .build()
            .map_err(|error| HostTrap::Broken(error.to_string()))?;
        Ok(self.client.get_or_init(|| made))
    }
}

/// A plugin's headers, none of which is the client's.
fn headers(given: &BTreeMap<String, String>) -> Result<HeaderMap, String> {
    if given.len() > MAX_HEADERS {
        return Err(format!("the HTTP request has more than {MAX_HEADERS} headers"));
    }
    let mut headers = HeaderMap::new();
    for (name, value) in given {
        let read = |error: &dyn Display| format!("the header {} cannot be sent: {error}", Quoted(name));
        let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|error| read(&error))?;
        if CLIENTS_OWN.contains(&parsed.as_str()) || parsed.as_str().starts_with("proxy-") {
            return Err(format!("a plugin may not set the header {}", Quoted(name)));
        }
        headers.append(parsed, HeaderValue::from_str(value).map_err(|error| read(&error))?);
    }
    Ok(headers)
}

/// How a response's body is encoded, if it is so once.
fn coding(headers: &HeaderMap) -> Option<Coding> {
    let mut codings = headers.get_all(CONTENT_ENCODING).iter();
    let (first, None) = (codings.next()?, codings.next()) else { return None };
    Coding::named(first.to_str().ok()?)
}

fn failed(shown: &str, why: &dyn Display) -> HostTrap {
    HostTrap::Request(format!("http_request to {shown} failed: {why}"))
}

/// The JSON that PDKs pass.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestText {
    url: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    method: Option<String>,
}

/// The response to a guest's last request, without its body.
#[derive(Debug, Default)]
pub(super) struct Response {
    /// 0 before the first response.
    pub(super) status: u16,
    headers: BTreeMap<String, String>,
}

impl Response {
    /// The headers as JSON.
    pub(super) fn headers(&self) -> String {
        serde_json::to_string(&self.headers).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_a_hundred_headers_at_most_and_none_that_is_the_clients() {
        let many = |count| (0..count).map(|n| (format!("x-{n}"), "v".to_owned())).collect();
        assert_eq!(headers(&many(MAX_HEADERS)).unwrap().len(), MAX_HEADERS);
        assert!(headers(&many(MAX_HEADERS + 1)).unwrap_err().contains("more than 100 headers"));
        for (name, value, why) in [
            ("Host", "x", "a plugin may not set the header \"Host\""),
            ("Proxy-Authorization", "x", "a plugin may not set the header \"Proxy-Authorization\""),
            ("no name", "x", "the header \"no name\" cannot be sent"),
            ("x-name", "two\nlines", "the header \"x-name\" cannot be sent"),
        ] {
            let said = headers(&[(name.to_owned(), value.to_owned())].into()).unwrap_err();
            assert!(said.starts_with(why), "{said}");
        }
    }
}
