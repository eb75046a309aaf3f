//! What may be reached: allowed hosts, and the addresses that their names resolve to.

use std::{
    net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket},
    sync::Arc,
    time::Duration,
};

use reqwest::{
    Url,
    dns::{Addrs, Name, Resolve, Resolving},
};

use super::Bound;
use crate::{
    clock,
    config::HostPattern,
    host_limits::{is_shortage, or_no_files},
};

/// The longest name in DNS, in bytes.
const MAX_HOST: usize = 253;

/// The hosts that a client may reach.
pub(crate) struct AllowedHosts {
    patterns: Vec<HostPattern>,
    /// What holds the entries, for errors.
    list: &'static str,
}

impl AllowedHosts {
    /// Those of a plugin.
    ///
    /// # Errors
    ///
    /// Shows the first entry that no request could match.
    pub(crate) fn new(entries: &[String]) -> Result<Self, String> {
        Ok(Self { patterns: HostPattern::parse_all(entries)?, list: "allowed_hosts" })
    }

    /// Those of a source: every host at public addresses, and the entries.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub(crate) fn of_source(entries: &[String]) -> Result<Self, String> {
        let patterns = HostPattern::parse_all(&[&["*".to_owned()], entries].concat())?;
        Ok(Self { patterns, list: "HttpSource::allow_host" })
    }

    /// Whether an entry names this host without wildcards, with any port or one.
    pub(crate) fn names(&self, host: &str) -> bool {
        self.patterns.iter().any(|pattern| pattern.names(host))
    }

    /// Whether a request may go to this URL; if not, why.
    ///
    /// Entries that name a host decide alone for it. The resolver, which knows no ports, gives private addresses to hosts
    /// that are named: a wildcard must not lead to other ports there.
    pub(crate) fn check(&self, url: &Url) -> Result<(), String> {
        let list = self.list;
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return Err("it has no host and port".to_owned());
        };
        if host.len() > MAX_HOST {
            return Err("its host is longer than any name".to_owned());
        }
        if self.names(host) {
            let is_named = |pattern: &HostPattern| pattern.names(host) && pattern.matches(host, port);
            let named = self.patterns.iter().any(is_named);
            return if named { Ok(()) } else { Err(format!("{list} names its host with another port")) };
        }
        let literal: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
        let matches = self.patterns.iter().any(|pattern| pattern.matches(host, port));
        match (matches, literal.is_none_or(is_public)) {
            (true, true) => Ok(()),
            (true, false) => Err(format!("it is a private address, which {list} must name without wildcards")),
            (false, _) => Err(format!("{list} has no entry for it")),
        }
    }
}

/// The system's resolver, without the addresses that may not be reached.
pub(super) struct Resolver {
    pub(super) hosts: Arc<AllowedHosts>,
    /// How many names may be looked up at once, if that is bounded.
    pub(super) lookups: Option<Bound>,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (named, list) = (self.hosts.names(name.as_str()), self.hosts.list);
        let lookups = self.lookups.clone();
        Box::pin(async move {
            let permit = match lookups {
                // The request that it is for ends at its own deadline.
                Some(lookups) => lookups.acquire(clock::deadline(Duration::MAX)).await.ok(),
                None => None,
            };
            let look_up = move || {
                let found = (name.as_str(), 0).to_socket_addrs();
                drop(permit);
                found
            };
            // The resolver does not say that it could open no socket.
            let found = tokio::task::spawn_blocking(look_up).await?.map_err(or_no_files)?;
            let allowed: Vec<SocketAddr> = found.filter(|address| named || is_public(address.ip())).collect();
            if allowed.is_empty() {
                return Err(format!("its host has private addresses only, and {list} does not name it").into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// Whether an address is on the open internet, and not one of this machine's own.
fn is_public(address: IpAddr) -> bool {
    is_global(address) && !is_here(address)
}

/// Whether an interface of this machine has this address: only to one of those can a socket be bound. An address of which
/// that cannot be said, because no file is left for a socket, counts as one.
fn is_here(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).map_or_else(|error| is_shortage(&error), |_| true)
}

fn is_global(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            // This network, reserved, shared, for benchmarks, for protocols, once for 6to4, and that of a cloud's own services.
            let special = matches!(
                v4.octets(),
                [0 | 240.., ..]
                    | [100, 64..=127, ..]
                    | [198, 18 | 19, ..]
                    | [192, 0, 0, _]
                    | [192, 88, 99, _]
                    | [168, 63, 129, 16]
            );
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

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(patterns: &[&str], url: &str) -> bool {
        let patterns: Vec<String> = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        AllowedHosts::new(&patterns).unwrap().check(&Url::parse(url).unwrap()).is_ok()
    }

    #[test]
    fn a_host_that_is_longer_than_any_name_is_not_looked_for() {
        let url = |length: usize| format!("http://{}/", "a".repeat(length));
        assert!(allows(&["*"], &url(MAX_HOST)));
        assert!(!allows(&["*"], &url(MAX_HOST + 1)));
    }

    #[test]
    fn hosts_are_allowed_by_pattern() {
        assert!(allows(&["*.example.com"], "https://api.example.com/x"));
        assert!(!allows(&["*.example.com"], "https://example.org/"));
        assert!(!allows(&[], "https://example.org/"));
    }

    #[test]
    fn a_port_that_a_url_leaves_out_is_its_schemes() {
        assert!(allows(&["example.com:443"], "https://example.com/"));
        assert!(allows(&["example.com:443"], "http://example.com:443/"));
        assert!(!allows(&["example.com:443"], "http://example.com/"));
        assert!(!allows(&["*"], "data:text/plain,x"));
    }

    #[test]
    fn entries_that_name_a_host_decide_alone_for_it() {
        let patterns = ["*", "localhost:8080", "127.0.0.1:8080"];
        for host in ["localhost", "127.0.0.1"] {
            assert!(allows(&patterns, &format!("http://{host}:8080/")));
            assert!(!allows(&patterns, &format!("http://{host}:8081/")));
        }
        assert!(allows(&["localhost:8080", "localhost"], "http://localhost:8081/"));
    }

    #[test]
    fn an_address_of_an_interface_is_of_this_machine_wherever_it_lies() {
        assert!(is_here(IpAddr::from([127, 0, 0, 1])));
        assert!(!is_here(IpAddr::from([93, 184, 215, 14])));
    }

    #[test]
    fn this_machine_and_private_networks_must_be_named() {
        // The first and the last of each range, then their neighbours outside of it.
        let inside = "0.0.0.0 0.255.255.255 10.0.0.0 10.255.255.255 100.64.0.0 100.127.255.255 127.0.0.1 169.254.169.254 \
            168.63.129.16 172.16.0.0 172.31.255.255 192.0.0.1 192.88.99.1 192.0.2.1 192.168.0.0 192.168.255.255 198.18.0.1 198.19.255.255 \
            198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 [::] [::1] [::7f00:1] \
            [::ffff:127.0.0.1] [64:ff9b::7f00:1] [64:ff9b:1::1] [2001::1] [2001:0:ffff::1] [2002:7f00:1::] [fc00::1] \
            [fdff::1] [fe00::1] [fe80::1] [febf::1] [fec0::1] [feff::1] [ff02::1] [1fff::1] [2001:1ff::1] [2001:db8::1] \
            [3fff::1] [3fff:fff::1] [4000::1]";
        let outside = "1.0.0.0 9.255.255.255 11.0.0.0 93.184.215.14 100.63.255.255 100.128.0.0 126.0.0.1 128.0.0.1 168.63.129.15 \
            168.63.129.17 169.253.0.1 172.15.255.255 172.32.0.0 191.255.255.255 192.0.1.1 192.167.0.1 192.169.0.1 198.17.255.255 198.20.0.0 \
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
