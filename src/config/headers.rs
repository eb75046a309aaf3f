//! What of a request's head the server goes by: the hosts that it may name, and which headers plugins with
//! `input = "request"` see and set.

use std::net::IpAddr;

use super::ServiceSettings;
use crate::units::Quoted;

/// Those of a request that tell a plugin nothing of who sent it: no credentials, no addresses.
pub(super) const REQUEST: [&str; 7] =
    ["accept", "accept-language", "content-type", "traceparent", "tracestate", "user-agent", "x-request-id"];

/// Those of a response that are about its body, or where and when to ask next.
pub(super) const RESPONSE: [&str; 10] = [
    "cache-control",
    "content-disposition",
    "content-language",
    "content-type",
    "etag",
    "expires",
    "last-modified",
    "location",
    "retry-after",
    "vary",
];

/// The server's own: they frame messages and connections, or say what it vouches for.
const OWN: [&str; 12] = [
    "connection",
    "content-length",
    "date",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "server-timing",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-content-type-options",
];

const MOST: usize = 100;

/// Says why `service.host_names` cannot be used.
pub(super) fn check_hosts(service: &ServiceSettings) -> Result<(), String> {
    let hosts = &service.host_names;
    if hosts.len() > MOST {
        return Err(format!("service.host_names has {} names; it can have at most {MOST}", hosts.len()));
    }
    let is_name = |host: &String| {
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        (1..=253).contains(&host.len()) && host.bytes().all(is_part) || host.parse::<IpAddr>().is_ok()
    };
    match hosts.iter().find(|host| !is_name(host)) {
        Some(host) => Err(format!(
            "service.host_names has {}; it takes names and addresses of hosts, without scheme, port, brackets or wildcard",
            Quoted(host)
        )),
        None => Ok(()),
    }
}

/// Says which of the two settings cannot be used, and why.
pub(super) fn check(service: &ServiceSettings) -> Result<(), String> {
    let ServiceSettings { request_headers: request, response_headers: response, token_file, .. } = service;
    for (key, names) in [("request", request), ("response", response)] {
        let refused = |why: String| Err(format!("service.{key}_headers {why}"));
        if names.len() > MOST {
            return refused(format!("has {} names; it can have at most {MOST}", names.len()));
        }
        for name in names {
            let is_same = |other: &&str| name.eq_ignore_ascii_case(other);
            let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            if !(1..=100).contains(&name.len()) || !name.bytes().all(is_token) {
                return refused(format!("has {}, which is no name of a header", Quoted(name)));
            }
            if key == "response" && OWN.iter().any(is_same) {
                return refused(format!("has {name:?}, which the server alone sets"));
            }
            if key == "request" && token_file.is_some() && is_same(&"authorization") {
                return refused(format!("has {name:?}, in which plugins would see the tokens of service.token_file"));
            }
        }
    }
    Ok(())
}
