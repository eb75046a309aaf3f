//! What a guest writes to WASI's standard output and error: the first and the last bytes of each stream.
//!
//! The beginning of a long output often has the cause (Go's deadlock, whose stacks follow it), and its end always has
//! what came last (a panic after much logging). What is between them is only counted.

use std::{
    collections::VecDeque,
    fmt::Write,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use wasmtime_wasi::{
    async_trait,
    cli::{IsTerminal, StdinStream, StdoutStream},
    p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult, pipe::SinkOutputStream},
};

/// Bytes of one stream that are kept from its beginning, and from its end.
const FIRST: usize = 4 << 10;
const LAST: usize = 12 << 10;

/// Both streams of one instance. Takes no memory for what is not written.
#[derive(Debug, Default)]
pub(super) struct Streams {
    pub(super) stdout: Stream,
    pub(super) stderr: Stream,
}

/// One of them; clones write to the same one. Shared, because WASI's context holds it, and is dropped with a guest that is
/// stopped.
#[derive(Debug, Clone, Default)]
pub(super) struct Stream(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    first: Vec<u8>,
    last: VecDeque<u8>,
    left_out: usize,
    closed: bool,
}

impl Streams {
    /// The standard input, which is empty.
    pub(super) fn stdin(&self) -> Stdin {
        Stdin(self.stdout.clone())
    }

    /// Whether the guest, which still exists, has closed any of its three streams.
    pub(super) fn is_any_closed(&self) -> bool {
        [&self.stdout, &self.stderr].iter().any(|stream| stream.kept().closed)
    }
}

impl Stream {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was written since the last time, as text. Bytes that are not UTF-8 are replaced.
    pub(super) fn take(&self) -> String {
        std::mem::take(&mut *self.kept()).text()
    }
}

impl Kept {
    fn write(&mut self, bytes: &[u8]) {
        let room = FIRST.saturating_sub(self.first.len());
        let (first, rest) = bytes.split_at(room.min(bytes.len()));
        self.first.extend_from_slice(first);
        let (skipped, rest) = rest.split_at(rest.len().saturating_sub(LAST));
        let pushed_out = (self.last.len() + rest.len()).saturating_sub(LAST);
        self.last.drain(..pushed_out);
        self.last.extend(rest);
        self.left_out = self.left_out.saturating_add(skipped.len() + pushed_out);
    }

    fn text(self) -> String {
        let Self { mut first, last, left_out, .. } = self;
        let last = Vec::from(last);
        if left_out == 0 {
            first.extend_from_slice(&last);
            return String::from_utf8_lossy(&first).into_owned();
        }
        // Cut between characters.
        let whole = match str::from_utf8(&first) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => first.len(),
        };
        let begin = last.iter().take(3).take_while(|byte| **byte & 0xC0 == 0x80).count();
        let left_out = left_out + (first.len() - whole) + begin;
        first.truncate(whole);
        let mut text = String::from_utf8_lossy(&first).into_owned();
        // A `String` takes everything.
        let _ = write!(text, "\n… {left_out} bytes are left out …\n");
        text.push_str(&String::from_utf8_lossy(last.get(begin..).unwrap_or_default()));
        text
    }
}

impl IsTerminal for Stream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Stream {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(Open(self.clone()))
    }

    /// Of a later WASI, which is not linked.
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        SinkOutputStream.async_stream()
    }
}

/// A stream that the guest has, until it closes it or is gone.
struct Open(Stream);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.kept().closed = true;
    }
}

impl OutputStream for Open {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.0.kept().write(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(64 << 10)
    }
}

#[async_trait]
impl Pollable for Open {
    async fn ready(&mut self) {}
}

/// An empty input. Notes with an output that it was closed.
pub(super) struct Stdin(Stream);

impl IsTerminal for Stdin {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdinStream for Stdin {
    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(Open(self.0.clone()))
    }

    /// Of a later WASI, which is not linked.
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(tokio::io::empty())
    }
}

impl InputStream for Open {
    fn read(&mut self, _size: usize) -> StreamResult<Bytes> {
        Err(StreamError::Closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(parts: &[&[u8]]) -> String {
        let mut kept = Kept::default();
        for part in parts {
            kept.write(part);
        }
        assert!(kept.first.len() <= FIRST && kept.last.len() <= LAST);
        kept.text()
    }

    #[test]
    fn an_output_is_whole_until_it_is_too_long() {
        assert_eq!(written(&[]), "");
        assert_eq!(written(&[b"pan", b"ic\n"]), "panic\n");
        assert_eq!(written(&[b"\xffx"]), "\u{fffd}x");
        let all = "é".repeat(8 << 10);
        assert_eq!(written(&[all.as_bytes()]), all);
        assert_eq!(written(&all.as_bytes().chunks(1000).collect::<Vec<_>>()), all);
    }

    #[test]
    fn of_a_longer_one_the_beginning_and_the_end_are_kept() {
        let all = format!("cause{}panic", "x".repeat(1 << 20));
        let expected = format!(
            "cause{}\n… {} bytes are left out …\n{}panic",
            "x".repeat(FIRST - 5),
            all.len() - FIRST - LAST,
            "x".repeat(LAST - 5)
        );
        for size in [1, 4096, 100_000, 2 << 20] {
            assert_eq!(written(&all.as_bytes().chunks(size).collect::<Vec<_>>()), expected, "{size}");
        }
    }

    #[test]
    fn it_is_cut_between_characters() {
        let text = written(&[format!("x{}x", "é".repeat(1 << 14)).as_bytes()]);
        let (first, rest) = text.split_once('\n').unwrap();
        let (mark, last) = rest.split_once('\n').unwrap();
        assert_eq!((first.len(), last.len()), (FIRST - 1, LAST - 1));
        assert_eq!(mark, format!("… {} bytes are left out …", (2 << 14) + 2 - first.len() - last.len()));
        assert!(!text.contains('\u{fffd}'));
    }

    #[test]
    fn what_is_no_text_is_kept_as_far_as_any() {
        let text = written(&[b"\xff", &vec![b'x'; 1 << 20]]);
        assert!(text.starts_with(&format!("\u{fffd}{}\n", "x".repeat(FIRST - 1))));
    }

    #[test]
    fn no_stream_is_a_terminal() {
        let streams = Streams::default();
        assert!(!streams.stdin().is_terminal() && !streams.stdout.is_terminal());
    }
}
