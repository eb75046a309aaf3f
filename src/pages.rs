//! Large buffers in pages of their own.
//!
//! An allocator keeps what it gets back, and buffers of megabytes that come and go leave it with several times what is in
//! use. Pages that are mapped for one buffer go back to the system with it, so what is charged is what is resident.

use std::io::{self, Read};

use bytes::Bytes;
use memmap2::MmapMut;

/// Buffers from this size on are mapped. In bytes.
const LARGE: usize = 128 << 10;

/// Reads exactly `size` bytes.
///
/// # Errors
///
/// Those of the source, `UnexpectedEof` among them, and of the system that has no memory for so many.
pub(crate) fn read(mut from: impl Read, size: u64) -> io::Result<Bytes> {
    let size = usize::try_from(size).map_err(io::Error::other)?;
    if size < LARGE {
        let mut bytes = vec![0; size];
        from.read_exact(&mut bytes)?;
        return Ok(bytes.into());
    }
    let mut pages = MmapMut::map_anon(size)?;
    from.read_exact(&mut pages)?;
    Ok(Bytes::from_owner(pages.make_read_only()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_large_ones_are_read_whole_or_not_at_all() {
        for size in [0, 1, LARGE - 1, LARGE, LARGE + 1] {
            let bytes: Vec<u8> = (0..=250).cycle().take(size).collect();
            assert_eq!(read(&bytes[..], size as u64).unwrap(), bytes);
            let error = read(&bytes[..], size as u64 + 1).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }
}
