//! Without tokens, whoever reaches the server may use it: programs on this machine. A page in one of its browsers reaches it
//! too, whoever wrote that page, and must not.
//!
//! | a page of elsewhere | is told by |
//! |---|---|
//! | sends a form, or what a form could send | `sec-fetch-site`, or `origin` in browsers without it |
//! | gave its own name this machine's address after it was loaded (DNS rebinding) | the host that the request names |
//!
//! That page has a name that a stranger could register, which has a dot. An address is nobody's to give away, `localhost` and
//! what is below it are this machine's by definition, and a name of one label is one of the network here, such as a container's.
//!
//! Programs that are no browser name the host that they connect to, or none, and send neither of the two headers. With tokens
//! nothing is looked at: a page of elsewhere has none, and no browser adds one.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, Method, StatusCode, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{App, problem::Problem};
use crate::{ErrorKind, units::Quoted};

/// The hosts of `service.host_names`, in small letters. Those that no stranger can have need not be among them.
pub(super) struct Hosts(Vec<String>);

impl Hosts {
    pub(super) fn new(named: &[String]) -> Self {
        Self(named.iter().map(|name| name.to_ascii_lowercase()).collect())
    }

    /// Whether `service.host_names` has it.
    fn has(&self, host: &Authority) -> bool {
        let bare = bare(host);
        let address = bare.parse::<IpAddr>().ok();
        self.0.iter().any(|name| bare.eq_ignore_ascii_case(name) || address.is_some() && name.parse().ok() == address)
    }

    /// Whether no stranger's page can be loaded by this host, as a request names it.
    fn is_ours(&self, host: &str) -> bool {
        if host.is_empty() {
            return true;
        }
        // With a user it is not what a client sends.
        let Some(host) = host.parse::<Authority>().ok().filter(|host| !host.as_str().contains('@')) else {
            return false;
        };
        let bare = bare(&host);
        is_label(bare) || is_below_localhost(bare) || bare.parse::<IpAddr>().is_ok() || self.has(&host)
    }

    fn check(&self, request: &Request) -> Result<(), Problem> {
        let headers = request.headers();
        // A target may name a host as well, and HTTP/1.0 need not name any.
        let named = headers.get_all(header::HOST).iter().map(|host| String::from_utf8_lossy(host.as_bytes()));
        let hosts: Vec<_> = named.chain(request.uri().authority().map(|host| host.as_str().into())).collect();
        if let Some(other) = hosts.iter().find(|host| !self.is_ours(host)) {
            let detail = format!(
                "the request is for the host {}, which is not known to be this server: without service.token_file only \
                 requests for addresses, localhost and names without a dot are answered, so that no web page reaches it \
                 by a name of its own. Add the host to service.host_names, or set service.token_file",
                Quoted(other)
            );
            return Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, ErrorKind::InvalidRequest, detail));
        }
        let own = hosts.first().and_then(|host| host.parse().ok());
        if self.is_of_own_page(request, own.as_ref()) {
            return Ok(());
        }
        let origin = headers.get(header::ORIGIN).map(|origin| String::from_utf8_lossy(origin.as_bytes()));
        let page = origin.map_or_else(|| "another site".to_owned(), |origin| Quoted(&origin).to_string());
        let detail = format!(
            "the request was sent by a web page of {page}: without service.token_file only this server's own page may use \
             it. If that page comes from a proxy of this server, add its host to service.host_names; or set service.token_file"
        );
        Err(Problem::new(StatusCode::FORBIDDEN, ErrorKind::InvalidRequest, detail))
    }

    /// Whether no page sent it, or one of this server's, or it is somebody's who follows a link to here.
    fn is_of_own_page(&self, request: &Request, host: Option<&Authority>) -> bool {
        let headers = request.headers();
        let site = text(headers, "sec-fetch-site");
        if site == Some("same-origin") {
            return true;
        }
        let mut origins = headers.get_all(header::ORIGIN).iter().peekable();
        if origins.peek().is_some() {
            return origins.all(|origin| origin.to_str().is_ok_and(|origin| self.is_own(origin, host)));
        }
        match site {
            None | Some("none") => true,
            Some(_) => {
                let is_visit = text(headers, "sec-fetch-mode") == Some("navigate");
                *request.method() == Method::GET && is_visit && text(headers, "sec-fetch-dest") == Some("document")
            }
        }
    }

    /// Whether this is the origin of what is asked for, or one that `service.host_names` has.
    fn is_own(&self, origin: &str, host: Option<&Authority>) -> bool {
        let Some((scheme, rest)) = origin.split_once("://") else { return false };
        let standard = match scheme {
            "http" => 80,
            "https" => 443,
            _ => return false,
        };
        let Ok(origin) = rest.parse::<Authority>() else { return false };
        let port = |of: &Authority| of.port_u16().unwrap_or(standard);
        let is_host = |host: &Authority| bare(host).eq_ignore_ascii_case(bare(&origin)) && port(host) == port(&origin);
        host.is_some_and(is_host) || self.has(&origin)
    }
}

/// A host without its port, and an address without brackets.
fn bare(host: &Authority) -> &str {
    host.host().trim_start_matches('[').trim_end_matches(']')
}

/// Whether it is a name without a dot.
fn is_label(host: &str) -> bool {
    !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

fn is_below_localhost(host: &str) -> bool {
    host.rsplit_once('.').is_some_and(|(_, last)| last.eq_ignore_ascii_case("localhost"))
}

fn text<'a>(headers: &'a HeaderMap, name: &'static str) -> Option<&'a str> {
    headers.get(HeaderName::from_static(name)).map(|value| value.to_str().unwrap_or("?"))
}

/// Refuses what a web page of elsewhere sends, where nobody has to show a token.
pub(super) async fn check(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let checked = if app.tokens.is_some() { Ok(()) } else { app.hosts.check(&request) };
    match checked {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    /// The status of a request for `host` with these headers.
    fn status(method: Method, target: &str, headers: &[(&str, &str)]) -> u16 {
        let hosts = Hosts::new(&["Proxy.example".to_owned(), "fd00::7".to_owned()]);
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let checked = hosts.check(&request.body(Body::empty()).unwrap());
        checked.map_or_else(|problem| problem.into_response().status().as_u16(), |()| 200)
    }

    #[test]
    fn a_host_is_ours_if_it_is_none_that_a_stranger_could_register_or_is_set() {
        for host in [
            "localhost",
            "LOCALHOST:8080",
            "evalpool.localhost",
            "127.0.0.1:8080",
            "127.8.9.1",
            "0.0.0.0:8080",
            "192.168.0.1",
            "203.0.113.9:80",
            "[::1]:80",
            "[::1]",
            "[::]:80",
            "[2001:db8::1]:443",
            "[::ffff:127.0.0.1]:1",
            "x",
            "evalpool:8080",
            "3f2a_evalpool-1",
            "proxy.example",
            "PROXY.example:8443",
            "[fd00:0::0007]",
        ] {
            assert_eq!(status(Method::POST, "/", &[("host", host)]), 200, "{host}");
            assert_eq!(status(Method::POST, &format!("http://{host}/"), &[]), 200, "{host}");
        }
        assert_eq!(status(Method::GET, "/", &[("host", "")]), 200, "a client need not know its name");
        for host in [
            "evil.example",
            "evil.example:8080",
            "evil.",
            "localhost.evil.example",
            "evillocalhost.example",
            "127.0.0.1.evil.example",
            "evil@localhost",
            "evil@",
            "localhost, evil.example",
            "localhost,evil",
            "127.1",
            "127.0.0.256",
            "sub.proxy.example",
            "evil%2eexample",
            "[::1",
            "[::g]",
            ":",
            "ü",
            " ",
        ] {
            assert_eq!(status(Method::GET, "/", &[("host", host)]), 421, "{host}");
        }
        assert_eq!(status(Method::GET, "/", &[]), 200, "HTTP/1.0 need not name it");
        assert_eq!(status(Method::GET, "/", &[("host", "localhost"), ("host", "evil.example")]), 421);
        assert_eq!(status(Method::GET, "http://evil.example/", &[("host", "localhost")]), 421);
    }

    #[test]
    fn a_page_of_elsewhere_is_refused_and_who_follows_its_link_is_not() {
        let host = ("host", "127.0.0.1:8080");
        let own =
            ["http://127.0.0.1:8080", "https://127.0.0.1:8080", "https://proxy.example", "http://proxy.example:81"];
        for origin in own {
            assert_eq!(status(Method::POST, "/", &[host, ("origin", origin)]), 200, "{origin}");
        }
        for origin in [
            "null",
            "http://evil.example",
            "http://localhost:8080",
            "http://127.0.0.1:3000",
            "http://127.0.0.1",
            "",
            "chrome-extension://127.0.0.1:8080",
            "file://",
            "http://evil.proxy.example",
        ] {
            assert_eq!(status(Method::POST, "/", &[host, ("origin", origin)]), 403, "{origin}");
        }
        assert_eq!(status(Method::POST, "/", &[("host", "localhost"), ("origin", "http://localhost:80")]), 200);
        for site in ["cross-site", "same-site"] {
            let site = ("sec-fetch-site", site);
            assert_eq!(status(Method::GET, "/", &[host, site]), 403);
            let visit = [host, site, ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
            assert_eq!(status(Method::GET, "/", &visit), 200);
            assert_eq!(status(Method::POST, "/", &visit), 403, "a form");
            let frame = [host, site, ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")];
            assert_eq!(status(Method::GET, "/", &frame), 403);
        }
        for site in ["same-origin", "none"] {
            assert_eq!(status(Method::GET, "/", &[host, ("sec-fetch-site", site)]), 200);
        }
        // Behind a proxy that names itself neither as the host nor in the settings.
        let proxied = [host, ("sec-fetch-site", "same-origin"), ("origin", "https://elsewhere.example")];
        assert_eq!(status(Method::POST, "/", &proxied), 200);
    }
}
