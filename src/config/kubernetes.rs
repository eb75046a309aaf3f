//! Variables that Kubernetes sets in every container for each Service, after the Service's name. For one that is named
//! `evalpool`, they look like settings of ours.

/// Whether Kubernetes sets a variable of this name. No setting has such a name: a test keeps that true.
pub(super) fn sets(variable: &str) -> bool {
    let ends = |ends: &[&str]| ends.iter().any(|end| variable.ends_with(end));
    // `_PORT_8080_TCP`, and that with `_PROTO`, `_PORT` or `_ADDR` after it.
    let of_a_port = |rest: &str| {
        let mut parts = rest.split('_');
        let number = parts.next().is_some_and(|number| number.parse::<u16>().is_ok());
        number && parts.next().is_some_and(|protocol| ["TCP", "UDP", "SCTP"].contains(&protocol))
    };
    ends(&["_SERVICE_HOST", "_PORT"])
        || variable.contains("_SERVICE_PORT_")
        || variable.split("_PORT_").skip(1).any(of_a_port)
}

/// Those of this process that begin like settings, in one text; `None` if there are none.
#[cfg(feature = "service")]
pub(crate) fn ignored() -> Option<String> {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let mut names: Vec<_> = names.filter(|name| name.starts_with("EVALPOOL_") && sets(name)).collect();
    names.sort_unstable();
    (!names.is_empty()).then(|| names.join(", "))
}
