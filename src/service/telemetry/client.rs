//! The HTTP client of the exporter: ours, on this crate's own threads. The exporter's thread only waits for it.

use std::{
    fmt,
    pin::Pin,
    sync::Mutex,
    time::{Duration, Instant},
};

use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};

use crate::{background, http_client};

/// How long one batch may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many bytes of an answer are read: a collector says in it what it did not take.
const MOST: usize = 64 * 1024;

/// How often it is logged that spans cannot be sent.
const PAUSE: Duration = Duration::from_mins(1);

pub(super) struct Client {
    client: reqwest::Client,
    /// When a failure was last logged.
    warned: Mutex<Option<Instant>>,
}

impl Client {
    /// # Errors
    ///
    /// TLS cannot be set up.
    pub(super) fn new() -> Result<Self, HttpError> {
        let client = http_client::of_operator()?.timeout(PATIENCE).build()?;
        Ok(Self { client, warned: Mutex::default() })
    }

    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (client, request) = (self.client.clone(), reqwest::Request::try_from(request)?);
        // The exporter's thread drives no timers and no sockets.
        let sent = background::own()?.spawn(async move {
            let mut response = client.execute(request).await?;
            let mut body = Vec::new();
            while body.len() < MOST
                && let Some(chunk) = response.chunk().await?
            {
                body.extend_from_slice(&chunk);
            }
            Ok::<_, HttpError>((response.status(), std::mem::take(response.headers_mut()), body))
        });
        let (status, headers, body) = sent.await??;
        let mut answer = Response::new(Bytes::from(body));
        (*answer.status_mut(), *answer.headers_mut()) = (status, headers);
        Ok(answer)
    }

    /// The SDK says nothing of what it could not send.
    fn warn(&self, error: &dyn fmt::Display) {
        let mut warned = self.warned.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if warned.is_none_or(|last| last.elapsed() >= PAUSE) {
            *warned = Some(Instant::now());
            tracing::warn!(%error, "spans cannot be sent to telemetry.otlp_endpoint, and are dropped");
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

type Sent<'a> = Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'a>>;

impl HttpClient for Client {
    fn send_bytes<'this, 'sent>(&'this self, request: Request<Bytes>) -> Sent<'sent>
    where
        'this: 'sent,
        Self: 'sent,
    {
        Box::pin(async move {
            let sent = self.send(request).await;
            match &sent {
                Ok(answer) if answer.status().is_success() => {}
                Ok(answer) => self.warn(&format_args!("the collector answers {}", answer.status())),
                // The address is the operator's own, and may hold credentials.
                Err(error) => match error.downcast_ref::<reqwest::Error>() {
                    Some(error) => self.warn(&http_client::innermost(error)),
                    None => self.warn(error),
                },
            }
            sent
        })
    }
}
