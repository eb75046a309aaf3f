//! Plugins fetched over HTTP.
//!
//! The rules are those for plugins that send requests (`http_client`): only addresses of the open internet are reached,
//! checked after names are resolved and at each redirect, unless [`HttpSource::allow_host`] names the host. A URL may
//! come from a settings file or a database that others write to, so a setter named by host is safer than one switch for
//! all private addresses, and than none at all for the URL's own host. Redirects are followed here rather than by the
//! client, which drops only the headers that it knows from requests to another origin.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use reqwest::{
    Response, StatusCode, Url,
    header::{CONTENT_ENCODING, HeaderMap, HeaderName, HeaderValue, LOCATION},
    redirect,
};

use super::{Digest, Secret, Source, blocking};
use crate::{
    error::Error,
    http_client::{self, AllowedHosts, innermost, shortage, shown},
    units::Quoted,
};

const MAX_REDIRECTS: usize = 5;

/// What a fetch is charged at least, however small plugins are, so that there are at most 64 connections.
pub(super) const LEAST_COST: u64 = 2 << 20;

/// A plugin on an HTTP server: see [`Source::http`].
#[derive(Clone)]
#[must_use]
pub struct HttpSource {
    url: String,
    headers: Vec<(String, Secret)>,
    allowed: Vec<String>,
    digest: Option<Digest>,
}

impl HttpSource {
    pub(super) fn new(url: String) -> Self {
        Self { url, headers: Vec::new(), allowed: Vec::new(), digest: None }
    }

    /// A URL from somebody who owns the process, typed or in a manifest: the host is named by that. By `http://` only this
    /// machine is reached.
    ///
    /// # Errors
    ///
    /// Why no fetch could use the URL.
    #[cfg(feature = "manifest")]
    pub(crate) fn named(text: &str) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|error| format!("its URL cannot be read: {error}"))?;
        let (host, port) = url.host_str().zip(url.port_or_known_default()).ok_or("its URL has no host")?;
        let address: Option<std::net::IpAddr> = host.trim_matches(['[', ']']).parse().ok();
        let is_here = host == "localhost" || address.is_some_and(|address| address.to_canonical().is_loopback());
        if url.scheme() == "http" && !is_here {
            return Err(format!("{}: http:// is for this machine only; use https://", shown(&url)));
        }
        Ok(Self::new(text.to_owned()).allow_host(format!("{host}:{port}")))
    }

    /// Adds a header, whose value is read anew at each fetch. A redirect to another origin does not take it along.
    pub fn header(mut self, name: impl Into<String>, value: Secret) -> Self {
        self.headers.push((name.into(), value));
        self
    }

    /// Names a host that may be reached at private addresses and by `http://`: a name or an address without wildcards,
    /// with a port if only that one is meant, such as `plugins.internal` or `127.0.0.1:8080`.
    pub fn allow_host(mut self, host: impl Into<String>) -> Self {
        self.allowed.push(host.into());
        self
    }

    /// The digest that the bytes must have. For a [linked](crate::Spec::link) module; that of a spec's own plugin is
    /// [`Spec::digest`](crate::Spec::digest), which wins over this.
    pub fn digest(mut self, digest: Digest) -> Self {
        self.digest = Some(digest);
        self
    }

    pub(super) fn expected(&self) -> Option<Digest> {
        self.digest
    }

    /// The URL without what may be secret.
    pub(crate) fn shown(&self) -> String {
        Url::parse(&self.url).map_or_else(|_| "a URL that cannot be read".to_owned(), |url| shown(&url))
    }

    /// Refuses what no fetch could use.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.parse().map(drop)
    }

    fn parse(&self) -> Result<(Url, Arc<AllowedHosts>, Vec<HeaderName>), Error> {
        let invalid = |why: &dyn fmt::Display| Error::invalid_request(format!("a source over HTTP has {why}"));
        let url =
            Url::parse(&self.url).map_err(|error| invalid(&format_args!("a URL that cannot be read: {error}")))?;
        let hosts = AllowedHosts::of_source(&self.allowed).map_err(|why| invalid(&why))?;
        may_fetch(&hosts, &url).map_err(|why| invalid(&format_args!("the URL {}: {why}", shown(&url))))?;
        let name = |name: &String| {
            HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| invalid(&format_args!("no header's name: {}", Quoted(name))))
        };
        let names = self.headers.iter().map(|(header, _)| name(header)).collect::<Result<_, _>>()?;
        Ok((url, Arc::new(hosts), names))
    }

    /// Fetches at most `limit` bytes. Dropping the future closes the connection.
    pub(crate) async fn fetch(&self, limit: u64) -> Result<Bytes, Error> {
        let (start, hosts, names) = self.parse()?;
        let values: Vec<Secret> = self.headers.iter().map(|(_, value)| value.clone()).collect();
        let headers = blocking(move || read(names.into_iter().zip(values))).await?;
        // One for each fetch: none is worth a connection that waits for the next.
        let client = http_client::builder(hosts.clone(), None)
            .map_err(Error::unavailable)?
            .user_agent(concat!("evalpool/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .build()
            .map_err(|error| Error::unavailable(innermost(&error.without_url())))?;
        let mut url = start.clone();
        for _ in 0..=MAX_REDIRECTS {
            let failed = |why: &dyn fmt::Display| Error::unavailable(format!("{}: {why}", shown(&url)));
            let mut request = client.get(url.clone());
            if url.origin() == start.origin() {
                request = request.headers(headers.clone());
            }
            let response = request.send().await.map_err(|error| match shortage(&error) {
                Some(lack) => Error::overloaded("the plugin cannot be fetched", lack, lack),
                None => failed(&innermost(&error.without_url())),
            })?;
            match response.status() {
                StatusCode::OK => return body(response, limit, &failed).await,
                status if !status.is_redirection() => {
                    return Err(failed(&format_args!("the server answered {status}")));
                }
                status => {
                    let to = response.headers().get(LOCATION).and_then(|to| url.join(to.to_str().ok()?).ok());
                    let to = to.ok_or_else(|| failed(&format_args!("the server answered {status}")))?;
                    may_follow(&hosts, &url, &to)
                        .map_err(|why| failed(&format_args!("it redirects to {}: {why}", shown(&to))))?;
                    url = to;
                }
            }
        }
        Err(Error::unavailable(format!("{}: more than {MAX_REDIRECTS} redirects", shown(&start))))
    }
}

impl From<HttpSource> for Source {
    fn from(http: HttpSource) -> Self {
        Source::Http(http)
    }
}

impl fmt::Debug for HttpSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpSource")
            .field("url", &self.shown())
            .field("headers", &self.headers)
            .field("allowed", &self.allowed)
            .field("digest", &self.digest)
            .finish()
    }
}

/// Whether this URL may be asked for; if not, why.
fn may_fetch(hosts: &AllowedHosts, url: &Url) -> Result<(), String> {
    match url.scheme() {
        "https" => {}
        "http" if url.host_str().is_some_and(|host| hosts.names(host)) => {}
        "http" => return Err("http:// is for hosts that HttpSource::allow_host names; use https://".to_owned()),
        _ => return Err("plugins are fetched by https:// only".to_owned()),
    }
    hosts.check(url)
}

fn may_follow(hosts: &AllowedHosts, from: &Url, to: &Url) -> Result<(), String> {
    if from.scheme() == "https" && to.scheme() != "https" {
        return Err("https:// does not lead to another scheme".to_owned());
    }
    may_fetch(hosts, to)
}

/// Reads the secrets. May block.
fn read(headers: impl Iterator<Item = (HeaderName, Secret)>) -> Result<HeaderMap, Error> {
    let mut map = HeaderMap::new();
    for (name, secret) in headers {
        let value = HeaderValue::from_bytes(&secret.read()?);
        let mut value = value.map_err(|_| Error::unavailable(format!("{secret:?} cannot be sent in a header")))?;
        value.set_sensitive(true);
        map.append(name, value);
    }
    Ok(map)
}

/// Reads a body of at most `limit` bytes, whatever length it claims to have, and never holds room for more.
async fn body(
    mut response: Response,
    limit: u64,
    failed: &(dyn Fn(&dyn fmt::Display) -> Error + Sync),
) -> Result<Bytes, Error> {
    let too_large = || Error::PayloadTooLarge { what: "plugin", limit };
    if let Some(coding) = response.headers().get(CONTENT_ENCODING) {
        let coding = String::from_utf8_lossy(coding.as_bytes());
        return Err(failed(&format_args!("its body is encoded ({}), which was not asked for", Quoted(&coding))));
    }
    let announced = response.content_length().unwrap_or(0);
    if announced > limit {
        return Err(too_large());
    }
    let most = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut body = Vec::with_capacity(usize::try_from(announced).unwrap_or(0));
    while let Some(chunk) = response.chunk().await.map_err(|error| failed(&innermost(&error.without_url())))? {
        let needed = body.len().saturating_add(chunk.len());
        if needed > most {
            return Err(too_large());
        }
        if needed > body.capacity() {
            let room = body.capacity().saturating_mul(2).clamp(needed, most);
            body.reserve_exact(room - body.len());
        }
        body.extend_from_slice(&chunk);
    }
    body.shrink_to_fit();
    Ok(body.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_leads_from_https_to_nothing_else_and_to_no_host_that_is_not_allowed() {
        let hosts = AllowedHosts::of_source(&["127.0.0.1:80".to_owned(), "10.0.0.1".to_owned()]).unwrap();
        let follows = |from: &str, to: &str| {
            let [from, to] = [from, to].map(|url| Url::parse(url).unwrap());
            may_follow(&hosts, &from, &to).is_ok()
        };
        assert!(follows("https://example.com/", "https://example.org/x"));
        assert!(follows("http://127.0.0.1/", "http://127.0.0.1/x"));
        assert!(follows("http://127.0.0.1/", "https://example.org/"));
        assert!(follows("https://example.com/", "https://10.0.0.1:8443/"));
        for to in [
            "http://127.0.0.1/",
            "http://10.0.0.1/",
            "http://example.com/",
            "https://127.0.0.1/",
            "https://10.0.0.2/",
            "https://[::1]/",
            "https://169.254.169.254/latest/meta-data/",
            "file:///etc/passwd",
            "data:application/wasm,x",
            "ftp://example.com/",
        ] {
            assert!(!follows("https://example.com/", to), "{to}");
        }
        assert!(!follows("http://127.0.0.1/", "http://example.com/"));
        assert!(!follows("http://127.0.0.1/", "http://127.0.0.1:81/"));
    }
}
