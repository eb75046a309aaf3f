//! Access to the service: clients show one of the tokens in `service.token_file`, which has one a line.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// The tokens' hashes. Every hash is compared, to its end, so that the time it takes tells a client nothing.
pub(in crate::service) struct Tokens {
    file: PathBuf,
    hashes: ArcSwap<Vec<[u8; 32]>>,
    version: AtomicU64,
}

impl Tokens {
    /// Reads the file. Space around a token, empty lines and lines that begin with `#` are ignored.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or holds no token.
    pub(in crate::service) fn read(file: &Path) -> io::Result<Self> {
        Ok(Self { file: file.to_owned(), hashes: ArcSwap::from_pointee(read(file)?), version: AtomicU64::new(0) })
    }

    /// Reads the file again. If that fails, the tokens stay as they are.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub(in crate::service) fn read_again(&self) -> io::Result<()> {
        self.hashes.store(Arc::new(read(&self.file)?));
        self.version.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Another number each time that they were read.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Whether a request shows one of the tokens, as `authorization: Bearer TOKEN`.
    pub(super) fn admit(&self, headers: &HeaderMap) -> bool {
        let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some((scheme, token)) = shown.and_then(|value| value.split_once(' ')) else { return false };
        let shown = hash(token.trim());
        let equal = |token: &&[u8; 32]| token.ct_eq(&shown).into();
        // Counts instead of stopping at the first match, for the same reason.
        self.hashes.load().iter().filter(equal).count() > 0 && scheme.eq_ignore_ascii_case("bearer")
    }
}

fn read(file: &Path) -> io::Result<Vec<[u8; 32]>> {
    let text = fs::read_to_string(file)?;
    let tokens = text.lines().map(str::trim).filter(|token| !token.is_empty() && !token.starts_with('#'));
    let hashes: Vec<_> = tokens.map(hash).collect();
    if hashes.is_empty() { Err(io::Error::other("it holds no token")) } else { Ok(hashes) }
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}
