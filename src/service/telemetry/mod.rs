//! Traces: the library's spans, and one for each request to the server, go to a collector by OTLP.
//!
//! | file | what it holds |
//! |---|---|
//! | here | [`Telemetry`]: the sampler, the queue, the layer that makes spans of `tracing` into OpenTelemetry's |
//! | `client` | how a batch of them is sent |
//! | `requests` | the span of a request, and which trace its client says it belongs to |
//!
//! Without `telemetry.otlp_endpoint` there is no layer, so nobody wants the spans, and none is made: see
//! `src/spans.rs`.
//!
//! Spans wait in a queue of 2,048 and are sent each five seconds, or when 512 are there, by a thread of the SDK's. What does
//! not fit is dropped: a collector that is slow or gone holds nothing up.
//!
//! Considered and not taken: gRPC (tonic brings a second HTTP stack, some forty crates), and the clients that the
//! exporter brings (another `reqwest` than ours, with TLS of its own): the exporter takes one of ours, in
//! `client`. Protobuf written by hand would save eight crates and 20 s of one core in the first build; but batches, retries and limits are
//! then ours to get right.

mod client;
pub(super) mod requests;

use std::time::Duration;

use opentelemetry::{
    InstrumentationScope,
    trace::{TraceContextExt, TracerProvider},
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SdkTracerProvider},
};
use tracing::{Span, Subscriber, level_filters::LevelFilter};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{Layer, filter::Targets, registry::LookupSpan};

use self::client::Client;
use super::Exit;
use crate::{TraceParent, config::TelemetrySettings, set_trace_source, spans::TARGET};

/// How long the program waits at its end for the last spans to be sent.
const LAST: Duration = Duration::from_secs(3);

/// Sends spans until it is dropped; then what is left of them.
pub struct Telemetry {
    provider: SdkTracerProvider,
}

impl Telemetry {
    /// `None` if no spans are wanted.
    ///
    /// # Errors
    ///
    /// The endpoint is no URL, or TLS cannot be set up.
    pub(super) fn start(settings: &TelemetrySettings) -> Result<Option<Self>, Exit> {
        let Some(endpoint) = &settings.otlp_endpoint else { return Ok(None) };
        let unusable =
            |error: &dyn std::fmt::Display| Exit::unusable(format!("telemetry.otlp_endpoint cannot be used: {error}"));
        let client = Client::new().map_err(|error| unusable(&error))?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .build()
            .map_err(|error| unusable(&error))?;
        let resource = Resource::builder()
            .with_service_name(service_name())
            .with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(settings.sample)));
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(sampler)
            .with_resource(resource.build())
            .build();
        set_trace_source(current);
        Ok(Some(Self { provider }))
    }

    /// What takes spans from `tracing`. It takes nothing else.
    pub(super) fn layer<S>(&self) -> Box<dyn Layer<S> + Send + Sync>
    where
        S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        let scope = InstrumentationScope::builder("evalpool").with_version(env!("CARGO_PKG_VERSION"));
        let layer = tracing_opentelemetry::layer()
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_level(false)
            .with_target(false)
            .with_tracer(self.provider.tracer_with_scope(scope.build()));
        Box::new(layer.with_filter(Targets::new().with_target(TARGET, LevelFilter::INFO)))
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown_with_timeout(LAST) {
            tracing::warn!(%error, "the last spans may not have been sent");
        }
    }
}

/// As the SDK reads it, or this program's name.
fn service_name() -> String {
    std::env::var("OTEL_SERVICE_NAME").unwrap_or_else(|_| "evalpool".to_owned())
}

/// The trace and the span of the current span.
fn current() -> Option<TraceParent> {
    let context = Span::current().context();
    let span = context.span();
    let ids = span.span_context();
    let (trace, span, flags) = (ids.trace_id(), ids.span_id(), ids.trace_flags().to_u8());
    ids.is_valid().then(|| format!("00-{trace}-{span}-{flags:02x}").parse().ok()).flatten()
}
