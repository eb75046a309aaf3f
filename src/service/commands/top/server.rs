//! What is asked of the server, over HTTP.

use std::{
    fmt,
    io::Read,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use reqwest::{
    Client, Response, StatusCode, Url,
    header::{AUTHORIZATION, HeaderValue},
};
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    state::{Search, Wanted},
    told::{Evaluator, Found, Sample},
};
use crate::{
    http_client,
    service::{Exit, exit::one_line},
};

/// How long a connection may take to be there.
const CONNECTING: Duration = Duration::from_secs(5);

/// How long the server may be silent. It has something to say each second.
const SILENCE: Duration = Duration::from_secs(10);

/// The most bytes of an event or an answer.
const MOST: usize = 4 << 20;

/// The most bytes of a token's file.
const MOST_TOKENS: u64 = 64 << 10;

pub(super) struct Server {
    client: Client,
    base: Url,
    token: Token,
}

/// What the requests show.
struct Token {
    file: Option<PathBuf>,
    header: Mutex<Option<HeaderValue>>,
}

/// Why there is no answer, in one harmless line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Bytes that are kept of why there is no answer: it is drawn each time, and a stranger's server may say much.
const MOST_OF_A_REFUSAL: usize = 1024;

impl Refusal {
    pub(super) fn new(why: impl AsRef<str>) -> Self {
        let why = why.as_ref();
        Self(one_line(&why[..why.floor_char_boundary(MOST_OF_A_REFUSAL)]))
    }

    fn no_answer(error: &reqwest::Error) -> Self {
        let why = if error.is_timeout() { "it takes too long".to_owned() } else { http_client::innermost(error) };
        // The number says no more than the words before it.
        let why = why.split(" (os error").next().unwrap_or_default();
        Self::new(format!("no answer: {why}"))
    }
}

/// What the server answers to what is [`Wanted`].
#[derive(Debug)]
pub(super) enum Told {
    List(Found),
    One(Box<Evaluator>),
}

/// Something of the stream.
#[derive(Debug)]
pub(super) enum Event {
    Version(String),
    Samples(Vec<Sample>),
}

impl Server {
    /// # Errors
    ///
    /// The URL is no server's, or there is no token in the file.
    pub(super) fn new(url: &str, token_file: Option<PathBuf>) -> Result<Self, Exit> {
        let refused = |why: &str| Exit::unusable(format!("--url {}: {why}", one_line(url)));
        let base = Url::parse(url).map_err(|error| refused(&error.to_string()))?;
        if !["http", "https"].contains(&base.scheme()) || base.host().is_none() {
            return Err(refused("it must begin with http:// or https://"));
        }
        if !base.username().is_empty() || base.password().is_some() {
            return Err(Exit::unusable("--url: it has a name or a password; a server takes a token, by --token-file"));
        }
        if base.query().is_some() || base.fragment().is_some() {
            return Err(refused("it must end with its host, port or path"));
        }
        let unusable = |error: &dyn fmt::Display| Exit::failed(format!("no HTTP client: {error}"));
        let client = http_client::of_operator().map_err(|error| unusable(&error))?;
        let client = client.connect_timeout(CONNECTING).read_timeout(SILENCE);
        let client = client.build().map_err(|error| unusable(&error))?;
        let header = token_file.as_deref().map(read_token).transpose().map_err(Exit::unusable)?;
        Ok(Self { client, base, token: Token { file: token_file, header: Mutex::new(header) } })
    }

    /// Its URL, for people.
    pub(super) fn shown(&self) -> String {
        one_line(http_client::shown(&self.base).trim_end_matches('/'))
    }

    /// The stream of samples from this number on.
    pub(super) async fn events(&self, from: u64) -> Result<Events, Refusal> {
        let response = self.get(&["ui", "events"], &[("from", &from.to_string())]).await?;
        Ok(Events { response, rest: Vec::new() })
    }

    pub(super) async fn ask(&self, wanted: &Wanted) -> Result<Told, Refusal> {
        match wanted {
            Wanted::List(search) => self.list(search).await.map(Told::List),
            Wanted::One(name) => {
                // No URL can hold them as a part of its path.
                if [".", ".."].contains(&name.as_sent()) {
                    return Err(Refusal::new("no URL can name this evaluator"));
                }
                let found: Evaluator = self.json(&["ui", "evaluators", name.as_sent()], &[]).await?;
                Ok(Told::One(Box::new(found.bounded())))
            }
        }
    }

    async fn list(&self, search: &Search) -> Result<Found, Refusal> {
        let (page, limit) = (search.page.to_string(), search.limit.to_string());
        let mut query = vec![
            ("q", search.text.as_str()),
            ("sort", search.sort_word()),
            ("descending", if search.descending { "true" } else { "false" }),
            ("page", &page),
            ("limit", &limit),
        ];
        query.extend(search.tenant.as_ref().map(|tenant| ("tenant", tenant.as_sent())));
        query.extend(search.state.map(|state| ("state", state)));
        self.json(&["ui", "evaluators"], &query).await
    }

    async fn json<T: DeserializeOwned>(&self, path: &[&str], query: &[(&str, &str)]) -> Result<T, Refusal> {
        let response = self.get(path, query).await?;
        let body = body(response, MOST).await?;
        serde_json::from_slice(&body).map_err(|error| Refusal::new(format!("the answer is no evalpool's: {error}")))
    }

    /// An answer that is a success.
    async fn get(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Response, Refusal> {
        let mut url = self.base.clone();
        // It fails for URLs that can have no path, which `new` refuses.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.client.get(url);
        let token = self.token.get();
        let has_token = token.is_some();
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, token);
        }
        let response = request.send().await.map_err(|error| Refusal::no_answer(&error))?;
        match response.status() {
            StatusCode::OK => Ok(response),
            StatusCode::UNAUTHORIZED if has_token => {
                self.token.read_again();
                Err(Refusal::new("401: the server does not take the token of --token-file"))
            }
            StatusCode::UNAUTHORIZED => {
                Err(Refusal::new("401: the server wants a token; name a file that has one by --token-file"))
            }
            StatusCode::NOT_FOUND if path == ["ui", "events"] => {
                Err(Refusal::new("404: the server has no status page, which this reads; set service.ui = true there"))
            }
            status => {
                let detail = detail(response).await.unwrap_or_default();
                Err(Refusal::new(format!("the server answers {status}{detail}")))
            }
        }
    }
}

impl Token {
    fn get(&self) -> Option<HeaderValue> {
        self.header.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The server's tokens may have changed, and the file with them. If it cannot be read, the token stays as it is.
    fn read_again(&self) {
        if let Some(Ok(token)) = self.file.as_deref().map(read_token) {
            *self.header.lock().unwrap_or_else(PoisonError::into_inner) = Some(token);
        }
    }
}

/// The first token of a file, which may be the server's own `service.token_file`.
fn read_token(file: &Path) -> Result<HeaderValue, String> {
    let (mut text, shown) = (String::new(), file.display());
    std::fs::File::open(file)
        .and_then(|file| file.take(MOST_TOKENS).read_to_string(&mut text))
        .map_err(|error| format!("cannot read the token of {shown}: {error}"))?;
    let token = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
    let token = token.ok_or_else(|| format!("{shown} holds no token"))?;
    let header = HeaderValue::try_from(format!("Bearer {token}"));
    let mut header = header.map_err(|_| format!("the token of {shown} is none: no header can hold it"))?;
    header.set_sensitive(true);
    Ok(header)
}

async fn body(mut response: Response, most: usize) -> Result<Vec<u8>, Refusal> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| Refusal::no_answer(&error))? {
        body.extend_from_slice(&chunk);
        if body.len() > most {
            return Err(Refusal::new("the server's answer is too long"));
        }
    }
    Ok(body)
}

/// What a problem says, after a colon.
async fn detail(response: Response) -> Option<String> {
    #[derive(Deserialize)]
    struct Problem {
        detail: String,
    }

    let body = body(response, MOST).await.ok()?;
    let problem: Problem = serde_json::from_slice(&body).ok()?;
    Some(format!(": {}", problem.detail))
}

/// The stream of events.
pub(super) struct Events {
    response: Response,
    /// What came and is no whole event yet.
    rest: Vec<u8>,
}

impl Events {
    /// The next event.
    ///
    /// # Errors
    ///
    /// The stream has ended, was silent for too long, or is none of ours.
    pub(super) async fn next(&mut self) -> Result<Event, Refusal> {
        loop {
            while let Some(end) = self.rest.windows(2).position(|bytes| bytes == b"\n\n") {
                let event: Vec<u8> = self.rest.drain(..end + 2).collect();
                if let Some(event) = parse(&event)? {
                    return Ok(event);
                }
            }
            if self.rest.len() > MOST {
                return Err(Refusal::new("an event of the server's is too long"));
            }
            match self.response.chunk().await {
                Ok(Some(bytes)) => self.rest.extend_from_slice(&bytes),
                Ok(None) => return Err(Refusal::new("the server has ended the stream")),
                Err(error) => return Err(Refusal::no_answer(&error)),
            }
        }
    }
}

/// An event; `None` if it is of a kind that is not known here.
fn parse(event: &[u8]) -> Result<Option<Event>, Refusal> {
    #[derive(Deserialize)]
    struct Hello {
        version: String,
    }

    let none_of_ours = |why: &dyn fmt::Display| Refusal::new(format!("the stream is no evalpool's: {why}"));
    let text = std::str::from_utf8(event).map_err(|error| none_of_ours(&error))?;
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let (kind, data) = (field("event: "), field("data: "));
    match kind {
        "hello" => {
            let hello: Hello = serde_json::from_str(data).map_err(|error| none_of_ours(&error))?;
            Ok(Some(Event::Version(one_line(&hello.version))))
        }
        "samples" => {
            let samples: Vec<Sample> = serde_json::from_str(data).map_err(|error| none_of_ours(&error))?;
            Ok(Some(Event::Samples(samples.into_iter().map(Sample::bounded).collect())))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(url: &str) -> String {
        match Server::new(url, None) {
            Err(Exit::Unusable(line)) => line,
            _ => panic!("{url} is taken"),
        }
    }

    #[test]
    fn a_url_that_is_no_servers_is_refused_and_its_password_is_not_shown() {
        for url in
            ["", "here", "127.0.0.1:8080", "ftp://a", "http://", "file:///etc/passwd", "http://a?b=c", "http://a#b"]
        {
            assert!(refused(url).starts_with("--url "), "{url}");
        }
        assert!(!refused("http://ada:secret@a").contains("secret"));
        assert_eq!(Server::new("http://127.0.0.1:1/below/", None).ok().unwrap().shown(), "http://127.0.0.1:1/below");
    }

    #[test]
    fn the_first_token_of_a_file_is_shown_to_the_server_and_to_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tokens");
        let read = |text: &str| {
            std::fs::write(&file, text).unwrap();
            read_token(&file)
        };
        let header = read("# ours\n\n sesame \nother\n").unwrap();
        assert_eq!((header.to_str().unwrap(), format!("{header:?}")), ("Bearer sesame", "Sensitive".to_owned()));
        assert!(read("# none\n").unwrap_err().ends_with("holds no token"));
        let error = read("se\u{7}same").unwrap_err();
        assert!(error.contains("no header") && !error.contains("same\n"), "{error}");
        assert!(read_token(&folder.path().join("missing")).unwrap_err().starts_with("cannot read"));
    }

    #[test]
    fn an_event_of_another_kind_is_passed_over_and_one_that_cannot_be_read_is_an_error() {
        let parse = |text: &str| parse(text.as_bytes());
        assert!(parse("event: colours\ndata: red\n\n").unwrap().is_none());
        assert!(parse(": ping\n\n").unwrap().is_none());
        assert!(parse("event: samples\ndata: [{\"number\":-1}]\n\n").is_err());
        let Some(Event::Version(version)) = parse("event: hello\ndata: {\"version\":\"1\\u001b[2J\"}\n\n").unwrap()
        else {
            panic!("no version");
        };
        assert_eq!(version, r"1\u{1b}[2J");
        let Some(Event::Samples(samples)) = parse("event: samples\ndata: [{\"number\":7}]\n\n").unwrap() else {
            panic!("no samples");
        };
        assert_eq!(samples[0].number, 7);
    }
}
