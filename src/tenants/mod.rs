//! Tenants: whom an evaluator belongs to. What bounds, shares and metering go by; their names are known here and nowhere
//! below.
//!
//! A tenant is not registered: it is there for as long as something belongs to it. Its name comes from the spec
//! ([`Spec::tenant`](crate::Spec::tenant)) or else from the evaluator's name, by [`of_name`].

/// The tenant of an evaluator whose spec names none: the part of its name before the first `/`. A name without such a part
/// is its own tenant.
pub(crate) fn of_name(evaluator: &str) -> &str {
    match evaluator.split_once('/') {
        Some((tenant, _)) if !tenant.is_empty() => tenant,
        _ => evaluator,
    }
}

/// Why this is no name of an evaluator or a tenant; `None` if it is one: 1 to 128 of `A-Z a-z 0-9 . _ - /`, no `..`.
pub(crate) fn unfit(name: &str) -> Option<&'static str> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
    if name.is_empty() {
        Some("it is empty")
    } else if name.len() > 128 {
        Some("it is longer than 128 characters")
    } else if !name.bytes().all(allowed) {
        Some("only A-Z a-z 0-9 . _ - / are allowed")
    } else if name.contains("..") {
        Some("it must not hold ..")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_evaluator_belongs_to_the_first_part_of_its_name_or_to_itself() {
        for (evaluator, tenant) in [
            ("acme/price", "acme"),
            ("acme/eu/price", "acme"),
            ("acme", "acme"),
            ("acme/", "acme"),
            ("/x", "/x"),
            ("/", "/"),
        ] {
            assert_eq!(of_name(evaluator), tenant);
            assert_eq!(unfit(tenant), None, "a tenant can be named wherever an evaluator can");
        }
    }
}
