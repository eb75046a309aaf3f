//! Reads settings: first the file, then the environment over it. Then checks every range.

use std::{collections::HashMap, fmt, path::Path};

use super::{EngineKind, HostPattern, LEAST_MEMORY, Settings, TenantSettings, headers, kubernetes};
use crate::units::Quoted;

/// A setting that cannot be used. Its text is one line that names the key and says what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SettingsError(String);

impl SettingsError {
    /// The engine is not part of this build, or cannot be made with these settings.
    pub(crate) fn engine(kind: EngineKind, why: &str) -> Self {
        let kind = kind.as_str();
        Self(format!("engine.kind is {kind}: {why}"))
    }
}

impl Settings {
    /// Starts from the defaults, reads a TOML file if you give one, then the process's environment, and checks every
    /// range.
    ///
    /// Blocks while it reads the file: call it at start.
    ///
    /// # Errors
    ///
    /// One line that names the file or the variable and the key, and says what would be right.
    ///
    /// ```
    /// let settings = evalpool::config::Settings::load(None)?;
    /// assert_eq!(settings.pool.capacity, 256);
    /// # Ok::<(), evalpool::config::SettingsError>(())
    /// ```
    pub fn load(file: Option<&Path>) -> Result<Self, SettingsError> {
        let text = match file {
            None => String::new(),
            Some(path) => std::fs::read_to_string(path)
                .map_err(|error| SettingsError(format!("cannot read settings from {}: {error}", path.display())))?,
        };
        // Lossily: every name and value of ours is Unicode, and an error must be able to show one that is not.
        let environment = std::env::vars_os()
            .map(|(key, value)| (key.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()));
        let name = file.map_or_else(|| "settings".to_owned(), |path| path.display().to_string());
        Self::parse(&name, &text, environment)
    }

    /// The same from a text and from variables that you give. Errors call the text `name`.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn parse(
        name: &str,
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, SettingsError> {
        let known = known_keys();
        let overrides = environment_overrides(environment, &known)?;
        let said = |error: &dyn fmt::Display| SettingsError(format!("{name}: {}", one_line(&error.to_string())));
        let file = config::Config::builder()
            .add_source(config::File::from_str(text, config::FileFormat::Toml))
            .build()
            .map_err(|error| said(&error))?;
        let table: HashMap<String, config::Value> = file.clone().try_deserialize().map_err(|error| said(&error))?;
        check_keys(name, &table, &known)?;
        let settings: Settings = config::Config::builder()
            .add_source(file)
            .add_source(config::Environment::default().separator(".").try_parsing(true).source(Some(overrides)))
            .build()
            .and_then(config::Config::try_deserialize)
            .map_err(|error| said(&error))?;
        settings.validate()?;
        Ok(settings)
    }

    /// Checks that every setting is in its range.
    ///
    /// # Errors
    ///
    /// Names the first setting that is not, and its range.
    pub fn validate(&self) -> Result<(), SettingsError> {
        // More than any machine has, and few enough to keep lists of.
        let most = 1_000_000;
        for (key, value, most) in [
            ("pool.capacity", self.pool.capacity as u64, most),
            ("pool.max_instances", self.pool.max_instances as u64, most),
            ("pool.max_instances_per_evaluator", self.pool.max_instances_per_evaluator as u64, most),
            ("pool.max_uses", self.pool.max_uses, u64::MAX),
            ("pool.build_concurrency", self.pool.build_concurrency as u64, most),
            ("engine.max_http_connections", self.engine.max_http_connections as u64, most),
            ("engine.max_http_connections_per_evaluator", self.engine.max_http_connections_per_evaluator as u64, most),
            ("service.max_connections", self.service.max_connections as u64, most),
            ("service.transfer_rate", self.service.transfer_rate, u64::MAX),
            ("limits.plugin_size", self.limits.plugin_size, u64::MAX),
        ] {
            if value == 0 {
                return Err(SettingsError(format!("{key} is 0; it must be at least 1")));
            }
            if value > most {
                return Err(SettingsError(format!("{key} is {value}; it must be at most {most}")));
            }
        }
        if self.pool.max_instances < self.pool.capacity {
            return Err(SettingsError(format!(
                "pool.max_instances is {} and pool.capacity {}; every runtime begins with an instance, so max_instances must be at least capacity",
                self.pool.max_instances, self.pool.capacity
            )));
        }
        if self.limits.memory < 65_536 || self.limits.memory > 4 * 1024 * 1024 * 1024 {
            return Err(SettingsError(format!(
                "limits.memory is {} bytes; it must be between 64KiB and 4GiB",
                self.limits.memory
            )));
        }
        if self.pool.memory < LEAST_MEMORY {
            return Err(SettingsError(format!("pool.memory is {} bytes; it must be at least 16MiB", self.pool.memory)));
        }
        if self.limits.compile_memory < 64 * 1024 * 1024 {
            return Err(SettingsError(format!(
                "limits.compile_memory is {} bytes; it must be at least 64MiB",
                self.limits.compile_memory
            )));
        }
        for (key, value) in [
            ("limits.build_timeout", self.limits.build_timeout),
            ("limits.exec_timeout", self.limits.exec_timeout),
            ("service.transfer_timeout", self.service.transfer_timeout),
        ] {
            if value.is_zero() {
                return Err(SettingsError(format!("{key} is 0s; it must be longer")));
            }
        }
        HostPattern::parse_all(&self.engine.allowed_hosts)
            .map_err(|why| SettingsError(format!("engine.allowed_hosts has {why}")))?;
        headers::check(&self.service).map_err(SettingsError)?;
        headers::check_hosts(&self.service).map_err(SettingsError)?;
        self.tenants.validate()?;
        self.usage.check().map_err(SettingsError)?;
        self.telemetry.check().map_err(SettingsError)?;
        let user_agent = self.engine.http_user_agent.as_bytes();
        if !(1..=256).contains(&user_agent.len()) || user_agent.iter().any(|byte| !(b' '..=b'~').contains(byte)) {
            return Err(SettingsError(format!(
                "engine.http_user_agent is {}; it must be 1 to 256 printable ASCII characters",
                Quoted(&self.engine.http_user_agent)
            )));
        }
        Ok(())
    }
}

impl TenantSettings {
    /// Checks that every bound is in its range.
    ///
    /// # Errors
    ///
    /// Names the first bound that is not, and its range.
    pub fn validate(&self) -> Result<(), SettingsError> {
        self.check().map_err(SettingsError)
    }
}

/// `section.key` of every setting, taken from the defaults so that no second list can disagree.
fn known_keys() -> Vec<String> {
    fn collect(within: &str, value: &serde_json::Value, known: &mut Vec<String>) {
        match value.as_object() {
            Some(keys) if within.is_empty() => keys.iter().for_each(|(key, value)| collect(key, value, known)),
            Some(keys) => keys.iter().for_each(|(key, value)| collect(&format!("{within}.{key}"), value, known)),
            None => known.push(within.to_owned()),
        }
    }
    let mut known = Vec::new();
    collect("", &serde_json::to_value(Settings::default()).unwrap_or_default(), &mut known);
    known
}

/// The keys that a table has, as [`known_keys`] has them. Tenants are named as they like: what is set for one is known as
/// what is set for all.
fn written_keys(section: &str, keys: HashMap<String, config::Value>) -> Vec<(String, String)> {
    let mut written = Vec::new();
    for (key, value) in keys {
        let full = format!("{section}.{key}");
        match value.into_table() {
            Ok(bounds) if full == "tenants.default" => written.extend(written_keys(&full, bounds)),
            Ok(tenants) if full == "tenants.named" => {
                for (tenant, bounds) in tenants {
                    let bounds = bounds.into_table().unwrap_or_default();
                    let own =
                        |key: String| (format!("tenants.default.{key}"), format!("{full}.{}.{key}", Quoted(&tenant)));
                    written.extend(bounds.into_keys().map(own));
                }
            }
            _ => written.push((full.clone(), full)),
        }
    }
    written
}

fn environment_overrides(
    environment: impl IntoIterator<Item = (String, String)>,
    known: &[String],
) -> Result<HashMap<String, String>, SettingsError> {
    let variable = |key: &str| format!("EVALPOOL_{}", key.replace('.', "_").to_uppercase());
    let by_variable: HashMap<String, &String> = known.iter().map(|key| (variable(key), key)).collect();
    let mut overrides = HashMap::new();
    for (name, value) in environment {
        if !name.starts_with("EVALPOOL_") || kubernetes::sets(&name) {
            continue;
        }
        let Some(key) = by_variable.get(&name) else {
            let hint = nearest(&name, by_variable.keys().map(String::as_str));
            return Err(SettingsError(format!("the environment variable {name} is no setting{hint}")));
        };
        overrides.insert((*key).clone(), value);
    }
    Ok(overrides)
}

fn check_keys(name: &str, table: &HashMap<String, config::Value>, known: &[String]) -> Result<(), SettingsError> {
    let sections: Vec<&str> = known.iter().filter_map(|key| Some(key.split_once('.')?.0)).collect();
    for (section, value) in table {
        if !sections.contains(&section.as_str()) {
            let hint = nearest(section, sections.iter().copied());
            return Err(SettingsError(format!("{name}: there is no section [{section}]{hint}")));
        }
        let Ok(keys) = value.clone().into_table() else {
            return Err(SettingsError(format!("{name}: {section} is a section; write [{section}] and its keys below")));
        };
        for (key, written) in written_keys(section, keys) {
            if !known.contains(&key) {
                let hint = nearest(&key, known.iter().map(String::as_str));
                return Err(SettingsError(format!("{name}: there is no setting {written}{hint}")));
            }
        }
    }
    Ok(())
}

/// `; did you mean X?`, or nothing when no known name is near.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    known
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map_or_else(String::new, |(_, candidate)| format!("; did you mean {candidate}?"))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{Isolation, LogFormat};

    fn parse(text: &str) -> Result<Settings, SettingsError> {
        Settings::parse("test.toml", text, [])
    }

    fn with_environment(pairs: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        Settings::parse("test.toml", "", pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())))
    }

    #[test]
    fn durations_sizes_and_words_read_as_people_write_them() {
        let settings = parse(
            "[pool]\nidle_ttl = '2m'\n[limits]\nmemory = '1MiB'\nfuel = 12\nexec_timeout='250ms'\n[engine]\nisolation='reuse'",
        )
        .unwrap();
        assert_eq!(settings.pool.idle_ttl, Duration::from_mins(2));
        assert_eq!(settings.limits.memory, 1 << 20);
        assert_eq!(settings.limits.fuel, Some(12));
        assert_eq!(settings.limits.exec_timeout, Duration::from_millis(250));
        assert_eq!(settings.engine.isolation, Isolation::Reuse);
    }

    #[test]
    fn every_key_can_be_set_from_the_environment() {
        let settings = with_environment(&[
            ("EVALPOOL_LIMITS_FUEL", "off"),
            ("EVALPOOL_LIMITS_WAIT_TIMEOUT", "3s"),
            ("EVALPOOL_LIMITS_OUTPUT_SIZE", "2KiB"),
            ("EVALPOOL_ENGINE_ALLOWED_HOSTS", "a.example, b.example"),
            ("EVALPOOL_SERVICE_LISTEN", "127.0.0.1:0"),
            ("EVALPOOL_LOG_FORMAT", "json"),
            ("HOME", "/root"),
        ])
        .unwrap();
        assert_eq!(settings.limits.wait_timeout, Duration::from_secs(3));
        assert_eq!(settings.limits.output_size, 2048);
        assert_eq!(settings.engine.allowed_hosts, ["a.example", "b.example"]);
        assert_eq!(settings.log.format, LogFormat::Json);
    }

    #[test]
    fn settings_can_be_written_and_read_again() {
        let written = serde_json::to_value(Settings::default()).unwrap();
        let read: Settings = serde_json::from_value(written).unwrap();
        assert_eq!(read.tenants, Settings::default().tenants);
    }

    #[test]
    fn a_tenant_has_bounds_of_its_own_and_the_default_ones_for_the_rest() {
        let text = "[tenants.default]\nruntimes = 2\nmemory = '1MiB'\n[tenants.named.\"Acme.eu\"]\nruntimes = 3\ncpu_per_second = '500ms'\n";
        let variable = ("EVALPOOL_TENANTS_DEFAULT_MAX_WAITING".to_owned(), "7".to_owned());
        let tenants = Settings::parse("test.toml", text, [variable]).unwrap().tenants;
        let others = tenants.of("acme.eu");
        assert_eq!((others.runtimes, others.memory, others.max_waiting), (Some(2), Some(1 << 20), Some(7)));
        let own = tenants.of("Acme.eu");
        assert_eq!((own.runtimes, own.memory, own.max_waiting), (Some(3), Some(1 << 20), Some(7)));
        assert_eq!((own.cpu_per_second, own.instances), (Some(Duration::from_millis(500)), None));
    }

    #[test]
    fn what_kubernetes_sets_for_a_service_of_our_name_is_no_setting() {
        for name in [
            "EVALPOOL_SERVICE_HOST",
            "EVALPOOL_SERVICE_PORT",
            "EVALPOOL_SERVICE_PORT_HTTP",
            "EVALPOOL_PORT",
            "EVALPOOL_PORT_8080_TCP",
            "EVALPOOL_PORT_8080_TCP_PROTO",
            "EVALPOOL_PORT_8080_TCP_PORT",
            "EVALPOOL_PORT_53_UDP_ADDR",
            "EVALPOOL_CANARY_SERVICE_HOST",
            "EVALPOOL_CANARY_PORT_9090_TCP_ADDR",
        ] {
            assert_eq!(with_environment(&[(name, "tcp://10.0.0.1:8080")]), Ok(Settings::default()), "{name}");
        }
        for name in ["EVALPOOL_PORT_8080", "EVALPOOL_PORT_X_TCP", "EVALPOOL_PORTS", "EVALPOOL_SERVICE_HOSTS"] {
            assert!(with_environment(&[(name, "x")]).unwrap_err().to_string().contains(name), "{name}");
        }
        for key in known_keys() {
            assert!(!kubernetes::sets(&format!("EVALPOOL_{}", key.replace('.', "_").to_uppercase())), "{key}");
        }
    }

    #[test]
    fn headers_are_listed_up_to_a_hundred_and_credentials_only_where_they_are_not_the_servers() {
        let many = |count: usize| parse(&format!("[service]\nrequest_headers = {:?}", vec!["x"; count]));
        assert_eq!(many(100).unwrap().service.request_headers.len(), 100);
        let error = many(101).unwrap_err().to_string();
        assert_eq!(error, "service.request_headers has 101 names; it can have at most 100");
        let named = parse("[service]\ntoken_file = 't'\nrequest_headers = ['cookie', 'connection']").unwrap();
        assert_eq!(named.service.request_headers, ["cookie", "connection"]);
        parse("[service]\nrequest_headers = ['authorization']\nresponse_headers = ['authorization']").unwrap();
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_the_nearest() {
        let error = parse("[pool]\ncapasity = 3").unwrap_err().to_string();
        assert_eq!(error, "test.toml: there is no setting pool.capasity; did you mean pool.capacity?");
        let error = parse("[limit]\nmemory = 3").unwrap_err().to_string();
        assert_eq!(error, "test.toml: there is no section [limit]; did you mean limits?");
        let error = with_environment(&[("EVALPOOL_POOL_CAPASITY", "3")]).unwrap_err().to_string();
        assert!(error.ends_with("did you mean EVALPOOL_POOL_CAPACITY?"), "{error}");
    }

    #[test]
    fn a_bad_value_is_one_line_that_names_its_key() {
        for (text, part) in [
            ("[pool]\ncapacity = 'many'", "pool.capacity"),
            ("[pool]\ncapacity = -1", "pool.capacity"),
            ("[pool]\ngrace = 'soon'", "pool.grace"),
            ("[limits]\nmemory = '3 apples'", "limits.memory"),
            ("[limits]\nfuel = 'none'", "limits.fuel"),
            ("[engine]\nkind = 'v8'", "engine.kind"),
            ("[engine]\nisolation = 'some'", "expected `fresh` or `reuse`"),
            ("[usage]\ninterval = 'often'", "usage.interval"),
            ("[engine]\ninit_refresh = '1ms'", "init_refresh is 1ms; it must be at least 10s, or \"off\""),
            ("[usage]\ninterval = '10ms'", "usage.interval is 10ms; it must be at least 1s, or \"off\""),
            ("[telemetry]\nsample = 1.5", "telemetry.sample is 1.5; it must be from 0 to 1"),
            ("[telemetry]\nsample = nan", "telemetry.sample is NaN; it must be from 0 to 1"),
            ("[telemetry]\notlp_endpoint = 'collector:4317'", "telemetry.otlp_endpoint must begin with http://"),
            (
                "[telemetry]\ntrace_url = 'javascript:alert({trace_id})'",
                r#"telemetry.trace_url is "javascript:alert({trace_id})"; it must begin with http://"#,
            ),
            ("[telemetry]\ntrace_url = 'https://jaeger/trace/'", "and have {trace_id} where the trace's id comes"),
            ("[pool]\ncapacity = 0", "pool.capacity is 0; it must be at least 1"),
            ("[pool]\nmax_instances = 1", "pool.max_instances is 1"),
            (
                "[engine]\nallowed_hosts = ['http://127.0.0.1:80/']",
                r#"engine.allowed_hosts has "http://127.0.0.1:80/", which no request could match; write "127.0.0.1:80""#,
            ),
            (
                "[service]\nresponse_headers = ['Connection']",
                r#"service.response_headers has "Connection", which the server alone sets"#,
            ),
            ("[service]\nrequest_headers = ['']", r#"service.request_headers has "", which is no name of a header"#),
            ("[service]\nresponse_headers = ['x y']", r#"service.response_headers has "x y", which is no name"#),
            (
                "[service]\ntoken_file = 't'\nrequest_headers = ['Authorization']",
                "in which plugins would see the tokens of service.token_file",
            ),
            (
                "[service]\nhost_names = ['a', 'https://b']",
                r#"service.host_names has "https://b"; it takes names and addresses"#,
            ),
            ("[service]\nhost_names = ['']", "service.host_names has \"\""),
            ("[engine]\ninput = 'http'", "expected `bytes` or `request`"),
            ("[engine]\nhttp_user_agent = ''", "engine.http_user_agent is \"\"; it must be 1 to 256"),
            ("[engine]\nhttp_user_agent = \"a\\nb\"", "engine.http_user_agent is \"a\\nb\""),
            ("pool = 3", "pool is a section"),
            (
                "[tenants.default]\nruntime = 1",
                "no setting tenants.default.runtime; did you mean tenants.default.runtimes?",
            ),
            ("[tenants.named.'a/b']\ncpu = 1", "no setting tenants.named.\"a/b\".cpu"),
            ("[tenants.named.'a b']\nruntimes = 1", "tenants.named.\"a b\" names no tenant: only A-Z"),
            (
                "[tenants.named.a]\ncpu_per_second = '1us'",
                "tenants.named.\"a\".cpu_per_second is 1µs; it must be at least",
            ),
            ("[tenants.default]\ninstances = 0", "tenants.default.instances is 0; it must be at least 1"),
            ("[tenants.named.a]\nweight = 0", "tenants.named.\"a\".weight is 0; it must be from 1 to 1000"),
            ("[tenants.default]\nmemory = 'much'", "tenants.default.memory"),
            ("[tenants]\nruntimes = 1", "there is no setting tenants.runtimes"),
            ("[tenants]\nnamed = 1", "tenants.named"),
            ("[pool", "test.toml"),
            ("{\"pool\": 3}", "test.toml"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text:?} gave {error:?}, which lacks {part:?}");
            assert_eq!(error.lines().count(), 1, "{error:?}");
        }
    }
}
