//! An answer of the server's, and what holds of each.

use std::{io::Read, net::TcpStream, path::Path};

use evalpool::ErrorKind;
use serde_json::Value;

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// Reads what is left on a connection: the answer to its last request, until the server closes or the body is whole.
    pub(super) fn of(mut stream: TcpStream) -> Self {
        let mut bytes = Vec::new();
        let whole = |bytes: &[u8]| {
            let (head, body) = split(bytes)?;
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?;
            (body.len() >= length.parse().unwrap()).then_some(())
        };
        while whole(&bytes).is_none() {
            let mut some = [0; 4096];
            match stream.read(&mut some).unwrap() {
                0 => break,
                more => bytes.extend_from_slice(&some[..more]),
            }
        }
        let (head, body) = split(&bytes).unwrap_or_else(|| panic!("{:?}", String::from_utf8_lossy(&bytes)));
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self { status, headers, body }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(held, _)| held == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn lossy(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn kind(&self) -> String {
        self.json()["kind"].as_str().unwrap_or_else(|| panic!("{self:?}")).to_owned()
    }

    /// Whatever is refused is refused in the same words, and never tells where the server keeps its files.
    pub(super) fn assert_is_problem(&self, data: &Path) {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], self.status, "{problem}");
        for text in ["type", "title", "detail", "kind"] {
            assert!(problem[text].as_str().is_some_and(|text| !text.is_empty()), "{text} in {problem}");
        }
        let kind = problem["kind"].as_str().unwrap();
        assert!(ErrorKind::ALL.iter().any(|known| known.as_str() == kind), "{problem}");
        assert!(problem["type"].as_str().unwrap().ends_with(&format!("#{kind}")), "{problem}");
        assert!(!self.text().contains(data.to_str().unwrap()), "{problem}");
        let later = self.status == 429 || kind == "overloaded";
        assert_eq!(later, self.header("retry-after").is_some(), "{self:?}");
    }

    #[track_caller]
    pub(crate) fn is(&self, status: u16, kind: &str) {
        assert_eq!((self.status, self.kind().as_str()), (status, kind), "{}", String::from_utf8_lossy(&self.body));
    }
}

pub(super) fn split(bytes: &[u8]) -> Option<(String, Vec<u8>)> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some((String::from_utf8(bytes[..end].to_vec()).unwrap(), bytes[end + 4..].to_vec()))
}
