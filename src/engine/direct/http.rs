//! The client behind `http_request`, and what it may reach.
//!
//! Each compiled plugin has a client of its own, so that customers share no connection and all connections go with the
//! runtime. A plugin reaches an address of this machine or of a private network only if a pattern names its host
//! literally: a wildcard, a redirect or a name that resolves to such an address does not lead there.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
};

use reqwest::{
    Client, Method, RequestBuilder, Url,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect,
};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;

use super::classify::HostTrap;

/// As many as extism's client follows.
const MAX_REDIRECTS: usize = 10;

/// Bytes of JSON with a request's address, method and headers, which are read before the address can be checked.
pub(super) const MAX_REQUEST: u64 = 64 << 10;
const MAX_HEADERS: usize = 100;

/// One plugin's client, and the hosts that it may reach.
pub(super) struct Http {
    hosts: Arc<AllowedHosts>,
    client: OnceLock<Client>,
    /// Bytes of a response's body, at most.
    largest: u64,
}

struct AllowedHosts {
    patterns: Vec<glob::Pattern>,
}

impl AllowedHosts {
    fn allows(&self, host: &str) -> bool {
        self.patterns.iter().any(|pattern| pattern.as_str() == host || pattern.matches(host))
    }

    fn names(&self, host: &str) -> bool {
        self.patterns.iter().any(|pattern| pattern.as_str() == host)
    }

    fn allows_url(&self, url: &Url) -> bool {
        let Some(host) = url.host_str() else { return false };
        let literal: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
        self.allows(host) && literal.is_none_or(|address| is_public(address) || self.names(host))
    }
}

impl Http {
    /// A client that may reach hosts matching `patterns` and reads bodies of at most `largest` bytes.
    pub(super) fn new(patterns: &[String], largest: u64) -> Self {
        let patterns = patterns.iter().filter_map(|text| glob::Pattern::new(text).ok()).collect();
        Self { hosts: Arc::new(AllowedHosts { patterns }), client: OnceLock::new(), largest }
    }

    /// Reads a request without its body, as PDKs pass it, and refuses it unless it is allowed.
    pub(super) fn read(&self, request: &[u8]) -> Result<RequestBuilder, HostTrap> {
        let text: RequestText = serde_json::from_slice(request).map_err(failed)?;
        if text.headers.len() > MAX_HEADERS {
            return Err(HostTrap::Failed(format!("the HTTP request has more than {MAX_HEADERS} headers")));
        }
        let url = Url::parse(&text.url).map_err(|error| HostTrap::Failed(format!("Invalid URL: {error:?}")))?;
        if !self.hosts.allows_url(&url) {
            return Err(HostTrap::Failed(format!("HTTP request to {} is not allowed", text.url)));
        }
        let method = text.method.as_deref().unwrap_or("GET").to_uppercase();
        let method = Method::from_bytes(method.as_bytes()).map_err(failed)?;
        let request = self.client()?.request(method, url);
        Ok(text.headers.into_iter().fold(request, |request, (name, value)| request.header(name, value)))
    }

    /// Sends a request and returns the response and its body. Dropping the future closes the connection.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<(Response, Vec<u8>), HostTrap> {
        let most = self.largest;
        let mut incoming = request.send().await.map_err(|error| failed(chain(&error)))?;
        let mut received = Vec::new();
        while let Some(chunk) = incoming.chunk().await.map_err(|error| failed(chain(&error)))? {
            if (received.len() + chunk.len()) as u64 > most {
                let text = format!("HTTP response exceeds the configured maximum number of bytes: {most}");
                return Err(HostTrap::Failed(text));
            }
            received.extend_from_slice(&chunk);
        }
        let text = |value: &reqwest::header::HeaderValue| value.to_str().ok().map(str::to_owned);
        let headers = incoming.headers().iter();
        let headers = headers.filter_map(|(name, value)| Some((name.as_str().to_owned(), text(value)?))).collect();
        Ok((Response { status: incoming.status().as_u16(), headers }, received))
    }

    fn client(&self) -> Result<&Client, HostTrap> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let hosts = self.hosts.clone();
        let redirects = redirect::Policy::custom(move |attempt| {
            if attempt.previous().len() > MAX_REDIRECTS {
                attempt.error("too many redirects")
            } else if hosts.allows_url(attempt.url()) {
                attempt.follow()
            } else {
                attempt.error("it redirects to a host that is not allowed")
            }
        });
        let made = Client::builder()
            .tls_backend_preconfigured(tls()?)
            .no_proxy()
            .redirect(redirects)
            .dns_resolver(self.hosts.clone())
            .build()
            .map_err(|error| HostTrap::Broken(error.to_string()))?;
        Ok(self.client.get_or_init(|| made))
    }
}

/// TLS with the web's trust roots, made once for the process.
fn tls() -> Result<ClientConfig, HostTrap> {
    static CONFIG: OnceLock<Result<ClientConfig, rustls::Error>> = OnceLock::new();
    let made = CONFIG.get_or_init(|| {
        let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        Ok(config.with_root_certificates(roots).with_no_client_auth())
    });
    made.clone().map_err(|error| HostTrap::Broken(error.to_string()))
}

/// The system's resolver, without the addresses that a plugin may not reach.
impl Resolve for AllowedHosts {
    fn resolve(&self, name: Name) -> Resolving {
        let named = self.names(name.as_str());
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> = found.filter(|address| named || is_public(address.ip())).collect();
            if allowed.is_empty() {
                return Err("it has no address that may be reached".into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// Whether an address is on the open internet.
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            // This network, reserved, shared, for benchmarks, and for protocols.
            let special =
                matches!(v4.octets(), [0 | 240.., ..] | [100, 64..=127, ..] | [198, 18 | 19, ..] | [192, 0, 0, _]);
            let is_local = v4.is_loopback() || v4.is_private() || v4.is_link_local();
            !(is_local || v4.is_multicast() || v4.is_documentation() || special)
        }
        IpAddr::V6(v6) => {
            // Of what is assigned to the internet at all: protocols, Teredo among them, documentation, and 6to4.
            let special =
                matches!(v6.segments(), [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x2002, ..] | [0x3fff, 0..=0xfff, ..]);
            matches!(v6.segments(), [0x2000..=0x3fff, ..]) && !special
        }
    }
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

fn failed(error: impl std::fmt::Display) -> HostTrap {
    HostTrap::Failed(error.to_string())
}

/// reqwest itself says only "error sending request"; its innermost source says why.
fn chain(error: &reqwest::Error) -> String {
    let sources = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    sources.last().map_or_else(String::new, ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(patterns: &[&str], url: &str) -> bool {
        let patterns: Vec<String> = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        Http::new(&patterns, 0).hosts.allows_url(&Url::parse(url).unwrap())
    }

    #[test]
    fn hosts_are_allowed_by_pattern() {
        assert!(allows(&["*.example.com"], "https://api.example.com/x"));
        assert!(!allows(&["*.example.com"], "https://example.org/"));
        assert!(!allows(&[], "https://example.org/"));
    }

    #[test]
    fn this_machine_and_private_networks_must_be_named() {
        // The first and the last of each range, then their neighbours outside of it.
        let inside = "0.0.0.0 0.255.255.255 10.0.0.0 10.255.255.255 100.64.0.0 100.127.255.255 127.0.0.1 169.254.169.254 \
            172.16.0.0 172.31.255.255 192.0.0.1 192.0.2.1 192.168.0.0 192.168.255.255 198.18.0.1 198.19.255.255 \
            198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 [::] [::1] [::7f00:1] \
            [::ffff:127.0.0.1] [64:ff9b::7f00:1] [64:ff9b:1::1] [2001::1] [2001:0:ffff::1] [2002:7f00:1::] [fc00::1] \
            [fdff::1] [fe00::1] [fe80::1] [febf::1] [fec0::1] [feff::1] [ff02::1] [1fff::1] [2001:1ff::1] [2001:db8::1] \
            [3fff::1] [3fff:fff::1] [4000::1]";
        let outside = "1.0.0.0 9.255.255.255 11.0.0.0 93.184.215.14 100.63.255.255 100.128.0.0 126.0.0.1 128.0.0.1 169.253.0.1 \
            172.15.255.255 172.32.0.0 191.255.255.255 192.0.1.1 192.167.0.1 192.169.0.1 198.17.255.255 198.20.0.0 \
            223.255.255.255 [::ffff:8.8.8.8] [2000::1] [2001:200::1] [2001:db7::1] [2001:db9::1] \
            [2001:4860:4860::8888] [2003::1] [2606:4700::1111] [3ffe::1] [3fff:1000::1]";
        for host in inside.split_whitespace() {
            assert!(!allows(&["*"], &format!("http://{host}/")), "{host}");
            let spelled = Url::parse(&format!("http://{host}/")).unwrap().host_str().unwrap().to_owned();
            assert!(allows(&[&spelled], &format!("http://{host}/")), "{host}");
        }
        for host in outside.split_whitespace() {
            assert!(allows(&["*"], &format!("http://{host}/")), "{host}");
        }
        // Other ways to write 127.0.0.1.
        for host in ["2130706433", "0x7f.1"] {
            assert!(!allows(&["*"], &format!("http://{host}/")), "{host}");
        }
    }
}
