//! The entries of `allowed_hosts`: which hosts a plugin may call over HTTP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What an entry may look like, for errors.
const FORM: &str = "an entry is a host, an address or a glob pattern, with :port to allow that port only, such as \
                    api.example.com, *.example.com:443, 127.0.0.1:8080 or [::1]";

/// The longest entry, in bytes: a name in DNS has at most 253. A pattern is matched by recursion, once for each wildcard.
const MOST_OF_ONE: usize = 255;

/// How many entries there may be. All of them are looked through at each request.
const MOST: usize = 1000;

/// Among the operator's entries: clients may name any host.
const ANY: &str = "any";

/// What a plugin gets whose spec names no hosts.
pub(crate) fn default_hosts(settings: &[String]) -> impl Iterator<Item = String> {
    settings.iter().filter(|entry| *entry != ANY).cloned()
}

/// The entries of a client's spec as the engine may have them, each within the operator's.
///
/// Whoever names a host without wildcards reaches it at private addresses too. A client may not, where the operator's
/// entry is a pattern: what the client names becomes a pattern of that one host. And where the operator's entry names a
/// host, it decides alone for it: beside a client's pattern that matches it, it stays in force.
///
/// # Errors
///
/// Shows the first entry that the operator's do not cover.
#[cfg(feature = "service")]
pub(crate) fn hosts_within(entries: &[String], operators: &[String]) -> Result<Vec<String>, String> {
    let parsed = HostPattern::parse_all(entries)?;
    if let Some(word) = entries.iter().find(|entry| *entry == ANY) {
        return Err(format!("{word:?}, which is for the operator's engine.allowed_hosts; \"*\" matches every host"));
    }
    // Any host at public addresses: private ones are reached only where the operator names the host itself.
    let operators: Vec<_> = operators.iter().map(|entry| if entry == ANY { "*" } else { entry }.to_owned()).collect();
    let most: Vec<_> = operators.iter().filter_map(|entry| Some((entry, HostPattern::parse(entry)?))).collect();
    let mut within = Vec::new();
    for (entry, own) in entries.iter().zip(&parsed) {
        let narrowed = own.within(entry, &most).ok_or_else(|| {
            format!(
                "{:?}, which no entry of the operator's engine.allowed_hosts covers",
                entry.chars().take(100).collect::<String>()
            )
        })?;
        within.push(narrowed);
        if let Host::Wildcard(pattern) = &own.host {
            let stays = |host: &Host| host.text().is_some_and(|host| pattern.matches(&host));
            within.extend(most.iter().filter(|(_, most)| stays(&most.host)).map(|(entry, _)| (*entry).clone()));
        }
    }
    Ok(within)
}

/// One entry: a host or a pattern of hosts, and a port if it is for that one only.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HostPattern {
    host: Host,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq)]
enum Host {
    Address(IpAddr),
    Name(String),
    Wildcard(glob::Pattern),
}

impl HostPattern {
    /// Reads all entries.
    ///
    /// # Errors
    ///
    /// Shows the first entry that no request could match, and the right form.
    pub(crate) fn parse_all(entries: &[String]) -> Result<Vec<Self>, String> {
        if entries.len() > MOST {
            return Err(format!("{} entries; it may have {MOST}", entries.len()));
        }
        entries.iter().map(|entry| Self::parse(entry).ok_or_else(|| refusal(entry))).collect()
    }

    fn parse(entry: &str) -> Option<Self> {
        if entry.len() > MOST_OF_ONE {
            return None;
        }
        // As in a URL, an address of version 6 is in brackets. Others are part of a pattern.
        let bracketed = entry.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        let address = bracketed.and_then(|(address, rest)| Some((address.parse::<Ipv6Addr>().ok()?, rest)));
        let (host, port) = match address {
            Some((address, "")) => (Host::Address(address.into()), None),
            Some((address, rest)) => (Host::Address(address.into()), Some(rest.strip_prefix(':')?)),
            None => match entry.split_once(':') {
                Some((host, port)) => (Host::parse(host)?, Some(port)),
                None => (Host::parse(entry)?, None),
            },
        };
        let is_number = |port: &&str| port.bytes().all(|byte| byte.is_ascii_digit());
        let port = port.map(|port| Some(port).filter(is_number)?.parse().ok().filter(|port| *port != 0));
        // `None` for no port; an unreadable one is no entry.
        Some(Self { host, port: port.map_or(Some(None), |port| port.map(Some))? })
    }

    /// Whether a request to this host, as a URL spells it, may match: its port is another question.
    fn matches_host(&self, host: &str) -> bool {
        match &self.host {
            Host::Wildcard(pattern) => pattern.matches(host),
            _ => self.names(host),
        }
    }

    /// Whether this is an entry for the host, with any port or one, and not a pattern that it matches.
    pub(crate) fn names(&self, host: &str) -> bool {
        match &self.host {
            Host::Address(address) => host.trim_matches(['[', ']']).parse() == Ok(*address),
            Host::Name(name) => name == host,
            Host::Wildcard(_) => false,
        }
    }

    /// Whether a request to this host, as a URL spells it, and port is what this entry allows.
    pub(crate) fn matches(&self, host: &str, port: u16) -> bool {
        self.port.is_none_or(|own| own == port) && self.matches_host(host)
    }

    /// This entry, which is spelled `entry`, if the operator's cover it.
    #[cfg(feature = "service")]
    fn within(&self, entry: &str, most: &[(&String, Self)]) -> Option<String> {
        let has_port = |allowed: &&(&String, Self)| allowed.1.port.is_none() || allowed.1.port == self.port;
        let text = self.host.text();
        // Entries that name this host decide alone for it.
        if text.is_some() && most.iter().any(|(_, allowed)| allowed.host == self.host) {
            let named = most.iter().filter(has_port).any(|(_, allowed)| allowed.host == self.host);
            return named.then(|| entry.to_owned());
        }
        let covers = |allowed: &Host| match (allowed, &self.host) {
            (Host::Wildcard(allowed), Host::Wildcard(own)) => {
                let suffix = allowed.as_str().strip_prefix('*').filter(|suffix| !suffix.contains(['*', '?', '[']));
                allowed == own || suffix.is_some_and(|suffix| own.as_str().ends_with(suffix))
            }
            (Host::Wildcard(allowed), _) => text.as_ref().is_some_and(|host| allowed.matches(host)),
            _ => false,
        };
        if !most.iter().filter(has_port).any(|(_, allowed)| covers(&allowed.host)) {
            return None;
        }
        match text {
            None => Some(entry.to_owned()),
            // In a pattern, `[a]` is the letter a. An address of version 6 cannot be written so.
            Some(text) => {
                let (first, rest) = text.split_at_checked(1).filter(|(first, _)| *first != "[")?;
                let port = self.port.map_or_else(String::new, |port| format!(":{port}"));
                Some(format!("[{first}]{rest}{port}"))
            }
        }
    }

    /// Whether it is for one port only.
    pub(crate) fn has_port(&self) -> bool {
        self.port.is_some()
    }
}

impl Host {
    /// As a URL spells it; none for a pattern.
    #[cfg(feature = "service")]
    fn text(&self) -> Option<String> {
        match self {
            Host::Address(IpAddr::V4(address)) => Some(address.to_string()),
            Host::Address(IpAddr::V6(address)) => Some(format!("[{address}]")),
            Host::Name(name) => Some(name.clone()),
            Host::Wildcard(_) => None,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        // URLs have hosts in small letters.
        let text = text.to_ascii_lowercase();
        let is_pattern = text.contains(['*', '?', '[', ']']);
        let is_allowed = |byte: u8| {
            byte.is_ascii_alphanumeric() || b"-._".contains(&byte) || (is_pattern && b"*?[]!".contains(&byte))
        };
        if text.is_empty() || !text.bytes().all(is_allowed) {
            return None;
        }
        if is_pattern {
            return glob::Pattern::new(&text).ok().map(Host::Wildcard);
        }
        // A URL whose host ends in a number has an address, which it spells in four parts.
        let last = text.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
        let is_number = last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x");
        if is_number {
            return text.parse::<Ipv4Addr>().ok().map(|address| Host::Address(address.into()));
        }
        Some(Host::Name(text))
    }
}

/// Why an entry is refused, and what to write instead if that can be guessed.
fn refusal(entry: &str) -> String {
    let bare = entry.split_once("://").map_or(entry, |(_, rest)| rest).trim();
    let bare = bare.split(['/', '?', '#', '\\']).next().unwrap_or_default();
    let bare = bare.rsplit('@').next().unwrap_or_default();
    let guess = match bare.parse::<Ipv6Addr>() {
        Ok(address) => Some(format!("[{address}]")),
        Err(_) => Some(bare.to_owned()).filter(|bare| HostPattern::parse(bare).is_some()),
    };
    let advice = guess.map_or_else(String::new, |guess| format!("; write {guess:?}"));
    let shown: String = entry.chars().take(100).collect();
    format!("{shown:?}, which no request could match{advice} ({FORM})")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(entry: &str) -> HostPattern {
        HostPattern::parse(entry).unwrap_or_else(|| panic!("{entry} is an entry"))
    }

    #[test]
    fn an_entry_matches_its_host_and_its_port_or_any() {
        for (entry, host, port, matches) in [
            ("127.0.0.1:18090", "127.0.0.1", 18090, true),
            ("127.0.0.1:18090", "127.0.0.1", 80, false),
            ("127.0.0.1:18090", "127.0.0.2", 18090, false),
            ("127.0.0.1", "127.0.0.1", 18090, true),
            ("API.Example.com", "api.example.com", 443, true),
            ("*.example.com:443", "api.example.com", 443, true),
            ("*.example.com:443", "api.example.com", 80, false),
            ("*.example.com", "example.com", 443, false),
            ("*", "[2606:4700::1111]", 443, true),
            ("[::1]", "[::1]", 8080, true),
            ("[::1]:8080", "[::1]", 8080, true),
            ("[::1]:8080", "[::1]", 8081, false),
            ("[0:0::1]", "[::1]", 80, true),
            ("[::ffff:127.0.0.1]", "[::ffff:7f00:1]", 80, true),
            ("[ab].example.com", "a.example.com", 80, true),
            ("host_1.internal", "host_1.internal", 80, true),
        ] {
            assert_eq!(parse(entry).matches(host, port), matches, "{entry} {host} {port}");
        }
    }

    #[test]
    #[cfg(feature = "service")]
    fn a_client_stays_within_the_operators_entries() {
        let within = |client: &[&str], operator: &[&str]| {
            let [client, operator] =
                [client, operator].map(|list| list.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>());
            hosts_within(&client, &operator).ok().map(|hosts| hosts.join(" "))
        };
        for (client, operator, gets) in [
            (&["api.example.com"][..], &["api.example.com"][..], Some("api.example.com")),
            (&["API.example.com:443"], &["api.example.com"], Some("API.example.com:443")),
            (&["api.example.com"], &["api.example.com:443"], None),
            (&["api.example.com"], &["*", "api.example.com:443"], None),
            // A pattern leads to no private address, whatever host the client names.
            (&["api.example.com"], &["*.example.com"], Some("[a]pi.example.com")),
            (&["api.example.com:443"], &["*.example.com"], Some("[a]pi.example.com:443")),
            (&["localhost"], &["*"], Some("[l]ocalhost")),
            (&["127.0.0.1:80"], &["*"], Some("[1]27.0.0.1:80")),
            (&["[::1]"], &["*"], None),
            (&["[::1]:80"], &["[::1]"], Some("[::1]:80")),
            (&["*"], &["*"], Some("*")),
            (&["*.a.example.com:443"], &["*.example.com"], Some("*.a.example.com:443")),
            (&["*.example.com"], &["*.a.example.com"], None),
            (&["*"], &["*:443"], None),
            (&["*"], &["*", "db.internal:5432"], Some("* db.internal:5432")),
            (&["*"], &["a.example.com"], None),
            (&["10.0.0.1"], &["any"], Some("[1]0.0.0.1")),
            (&["10.0.0.1"], &["any", "10.0.0.1"], Some("10.0.0.1")),
            (&["*.example.com"], &["a.example.com", "any"], Some("*.example.com a.example.com")),
            (&["any"], &["any"], None),
            (&["any"], &["*"], None),
            (&["x.example"], &[], None),
            (&[], &[], Some("")),
        ] {
            assert_eq!(within(client, operator).as_deref(), gets, "{client:?} within {operator:?}");
        }
        assert_eq!(default_hosts(&["any".to_owned(), "x.example".to_owned()]).collect::<Vec<_>>(), ["x.example"]);
        let [narrow, _] = [parse("[a]pi.example.com"), parse("*")];
        assert!(narrow.matches("api.example.com", 443) && !narrow.matches("bpi.example.com", 443));
        assert!(!narrow.names("api.example.com"));
    }

    /// A pattern is matched by recursion: a long one against a long host would take the whole stack.
    #[test]
    fn entries_are_bounded_in_length_and_number() {
        let pattern = |length: usize| format!("{}{}", "*a".repeat(length / 2), "b".repeat(length % 2));
        assert!(parse(&pattern(MOST_OF_ONE)).matches(&format!("{}b", "a".repeat(253)), 80));
        assert_eq!(HostPattern::parse(&pattern(MOST_OF_ONE + 1)), None);
        assert!(HostPattern::parse_all(&vec!["*".to_owned(); MOST]).is_ok());
        let error = HostPattern::parse_all(&vec!["*".to_owned(); MOST + 1]).unwrap_err();
        assert_eq!(error, "1001 entries; it may have 1000");
    }

    #[test]
    fn only_an_entry_without_wildcards_names_a_host() {
        assert!(parse("localhost:8080").names("localhost"));
        assert!(parse("[::1]").names("[::1]"));
        assert!(!parse("local*").names("localhost"));
        assert!(!parse("127.0.0.[1]").names("127.0.0.1"));
    }

    #[test]
    fn what_no_request_could_match_is_refused_with_the_right_form() {
        for (entry, advice) in [
            ("http://127.0.0.1:18090", r#"write "127.0.0.1:18090""#),
            ("https://*.example.com/v1?x=1", r#"write "*.example.com""#),
            ("user:secret@example.com", r#"write "example.com""#),
            ("example.com/", r#"write "example.com""#),
            (" example.com", r#"write "example.com""#),
            ("::1", r#"write "[::1]""#),
            ("http://::1/", r#"write "[::1]""#),
            ("http://[::1]:80/", r#"write "[::1]:80""#),
            ("", ""),
            ("example.com:", ""),
            ("example.com:*", ""),
            ("example.com:0", ""),
            ("example.com:+80", ""),
            ("example.com:65536", ""),
            ("[::1]8080", ""),
            ("[::1", ""),
            ("[a", ""),
            ("127.1", ""),
            ("2130706433", ""),
            ("0x7f.0.0.0x1", ""),
            ("münchen.example", ""),
            ("two words", ""),
        ] {
            let error = HostPattern::parse_all(&[entry.to_owned()]).unwrap_err();
            assert!(error.starts_with(&format!("{entry:?}, ")) && error.contains(FORM), "{error}");
            assert!(error.contains(advice) && (error.contains("; write ") != advice.is_empty()), "{error}");
        }
    }
}
