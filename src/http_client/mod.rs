//! What every HTTP client of this crate has in common: which addresses it may reach, TLS, and what its errors show. And how
//! many connections plugins may have.
//!
//! Plugins get theirs from the `direct` engine, and `source` has one for each fetch.

mod connections;
mod reach;

use std::{
    io,
    sync::{Arc, OnceLock},
};

use reqwest::{Client, ClientBuilder, Url};
use rustls::{ClientConfig, RootCertStore};

use crate::host_limits::is_shortage;

use self::reach::Resolver;
pub(crate) use self::{
    connections::{Bound, Connections, Full, Share},
    reach::AllowedHosts,
};

/// Characters of a URL that errors show.
const MAX_SHOWN: usize = 200;

/// A client that reaches these hosts alone, if each URL is checked against them as well. It keeps no connection for a later
/// request. `lookups` bounds how many names it looks up at once.
///
/// # Errors
///
/// TLS cannot be set up.
pub(crate) fn builder(hosts: Arc<AllowedHosts>, lookups: Option<Bound>) -> Result<ClientBuilder, rustls::Error> {
    Ok(Client::builder()
        .tls_backend_preconfigured(tls()?)
        .no_proxy()
        // It would tell a host where a request comes from.
        .referer(false)
        .pool_max_idle_per_host(0)
        .dns_resolver(Arc::new(Resolver { hosts, lookups })))
}

/// A client for what the operator names: it reaches any host, and follows no redirect.
///
/// # Errors
///
/// TLS cannot be set up.
#[cfg(feature = "service")]
pub(crate) fn of_operator() -> Result<ClientBuilder, rustls::Error> {
    let builder = Client::builder().tls_backend_preconfigured(tls()?).no_proxy().referer(false);
    Ok(builder.redirect(reqwest::redirect::Policy::none()))
}

/// TLS with the web's trust roots, made once for the process.
fn tls() -> Result<ClientConfig, rustls::Error> {
    static CONFIG: OnceLock<Result<ClientConfig, rustls::Error>> = OnceLock::new();
    let made = CONFIG.get_or_init(|| {
        let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        Ok(config.with_root_certificates(roots).with_no_client_auth())
    });
    made.clone()
}

/// A URL for errors: without what may be secret.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // They fail for URLs that have neither.
    let _ = (url.set_username(""), url.set_password(None));
    url.as_str().chars().take(MAX_SHOWN).collect()
}

/// What the system lacks, if that is why a request failed.
pub(crate) fn shortage(error: &reqwest::Error) -> Option<&io::Error> {
    let mut sources = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    sources.find_map(|error| error.downcast_ref().filter(|error| is_shortage(error)))
}

/// reqwest itself says only "error sending request"; its innermost source says why.
pub(crate) fn innermost(error: &reqwest::Error) -> String {
    let sources = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    sources.last().map_or_else(String::new, ToString::to_string)
}
