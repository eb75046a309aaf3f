//! Decodes the bodies of responses, in steps that are short, and never beyond a limit.

use std::io::{self, BufRead, ErrorKind, Read};

use brotli_decompressor::{BrotliDecoderParameter, Decompressor};
use flate2::bufread::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use ruzstd::decoding::{
    BlockDecodingStrategy, FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};

/// What a request's `accept-encoding` asks for.
pub(super) const ACCEPTED: &str = "gzip, deflate, br, zstd";

/// Bytes that a step gives and takes, at most: few enough that others on the same thread do not notice it.
const STEP_OUT: usize = 32 << 10;
const STEP_IN: usize = 8 << 10;

/// How far back a body of zstd may refer: what RFC 9659 lets servers use. The decoder allocates it at once.
const MAX_ZSTD_WINDOW: u64 = 8 << 20;

/// How a body is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Gzip,
    Deflate,
    Brotli,
    Zstd,
}

/// Why a body could not be decoded.
#[derive(Debug)]
pub(super) enum Undecoded {
    /// It grows beyond the limit.
    TooLarge,
    /// It is cut off or broken.
    Corrupt(io::Error),
}

impl Coding {
    /// The coding of this name in a `content-encoding`.
    pub(super) fn named(name: &str) -> Option<Self> {
        match name.trim().to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => Some(Self::Gzip),
            "deflate" => Some(Self::Deflate),
            "br" => Some(Self::Brotli),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// Its name, for people.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
            Self::Brotli => "brotli",
            Self::Zstd => "zstd",
        }
    }

    /// The body as it was before it was encoded, of at most `most` bytes. Yields after each step.
    pub(super) async fn decode(self, encoded: &[u8], most: u64) -> Result<Vec<u8>, Undecoded> {
        let mut decoder = self.decoder(encoded);
        let (mut plain, mut step) = (Vec::new(), vec![0; STEP_OUT]);
        loop {
            match decoder.read(&mut step) {
                Ok(0) => return Ok(plain),
                Ok(read) if (plain.len() + read) as u64 > most => return Err(Undecoded::TooLarge),
                Ok(read) => plain.extend_from_slice(step.get(..read).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(Undecoded::Corrupt(error)),
            }
            tokio::task::yield_now().await;
        }
    }

    /// A reader that says [`ErrorKind::WouldBlock`] when it has done as much as a step may.
    fn decoder(self, encoded: &[u8]) -> Box<dyn Read + Send + '_> {
        let steps = Steps { rest: encoded, left: STEP_IN };
        match self {
            Self::Gzip => Box::new(MultiGzDecoder::new(steps)),
            // By the standard it is zlib's format; some servers send what zlib wraps. Only zlib's begins with an 8.
            Self::Deflate if encoded.first().is_some_and(|first| first & 15 == 8) => Box::new(ZlibDecoder::new(steps)),
            Self::Deflate => Box::new(DeflateDecoder::new(steps)),
            Self::Brotli => {
                let mut decoder = Decompressor::new(steps, STEP_IN);
                // Windows of up to 1 GiB, which no content coding has.
                decoder.set_parameter(BrotliDecoderParameter::BROTLI_DECODER_PARAM_LARGE_WINDOW, 0);
                Box::new(decoder)
            }
            Self::Zstd => Box::new(ZstdFrames::new(encoded)),
        }
    }
}

/// A body that pauses after each [`STEP_IN`] bytes.
struct Steps<'a> {
    rest: &'a [u8],
    /// Bytes until the next pause.
    left: usize,
}

impl BufRead for Steps<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.left == 0 && !self.rest.is_empty() {
            self.left = STEP_IN;
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(self.rest.get(..self.left).unwrap_or(self.rest))
    }

    fn consume(&mut self, read: usize) {
        self.rest = self.rest.get(read..).unwrap_or_default();
        self.left = self.left.saturating_sub(read);
    }
}

impl Read for Steps<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

/// A body of zstd: frames one after another, some of which are to be skipped. Pauses after each block.
struct ZstdFrames<'a> {
    rest: &'a [u8],
    decoder: FrameDecoder,
}

impl<'a> ZstdFrames<'a> {
    fn new(encoded: &'a [u8]) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MAX_ZSTD_WINDOW);
        Self { rest: encoded, decoder }
    }

    fn begin(&mut self) -> io::Result<()> {
        match self.decoder.reset(&mut self.rest) {
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                let after = usize::try_from(length).ok().and_then(|length| self.rest.get(length..));
                self.rest = after.ok_or(ErrorKind::UnexpectedEof)?;
                Ok(())
            }
            begun => begun.map_err(io::Error::other),
        }
    }
}

impl Read for ZstdFrames<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.decoder.read(buffer)?;
        if read > 0 {
            return Ok(read);
        }
        if !self.decoder.is_finished() {
            self.decoder
                .decode_blocks(&mut self.rest, BlockDecodingStrategy::UptoBlocks(1))
                .map_err(io::Error::other)?;
        } else if self.rest.is_empty() {
            return Ok(0);
        } else {
            self.begin()?;
        }
        Err(ErrorKind::WouldBlock.into())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use flate2::{
        Compression,
        write::{DeflateEncoder, GzEncoder, ZlibEncoder},
    };
    use proptest::prelude::*;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    /// 1 GiB of zeros.
    const BOMB: &[u8] = include_bytes!("../../../../tests/integration/http/bodies/bomb.br");
    const BROTLI: &[u8] = include_bytes!("../../../../tests/integration/http/bodies/colours.br");

    /// Decodes, and counts the pauses.
    fn decode(coding: Coding, encoded: &[u8], most: u64) -> (Result<Vec<u8>, Undecoded>, usize) {
        let mut decoding = pin!(coding.decode(encoded, most));
        let mut pauses = 0;
        loop {
            match decoding.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(decoded) => return (decoded, pauses),
                Poll::Pending => pauses += 1,
            }
        }
    }

    /// A body in every encoding that there is an encoder for: plain text, so to speak, or noise.
    fn encoded(plain: &[u8]) -> [(Coding, Vec<u8>); 4] {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
        let mut raw = DeflateEncoder::new(Vec::new(), Compression::default());
        gzip.write_all(plain).unwrap();
        zlib.write_all(plain).unwrap();
        raw.write_all(plain).unwrap();
        [
            (Coding::Gzip, gzip.finish().unwrap()),
            (Coding::Deflate, zlib.finish().unwrap()),
            (Coding::Deflate, raw.finish().unwrap()),
            (Coding::Zstd, compress_to_vec(plain, CompressionLevel::Fastest)),
        ]
    }

    #[test]
    fn large_bodies_come_out_as_they_went_in() {
        // Noise, which no encoding makes smaller, and numbers, which all do.
        let noise: Vec<u8> =
            (0_u64..400_000).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56).to_le_bytes()[0]).collect();
        let numbers: Vec<u8> = (0_u32..200_000).flat_map(u32::to_be_bytes).collect();
        for plain in [noise, numbers] {
            for (coding, body) in encoded(&plain) {
                assert!(decode(coding, &body, plain.len() as u64).0.unwrap() == plain, "{coding:?}");
                let short = decode(coding, &body, plain.len() as u64 - 1).0;
                assert!(matches!(short, Err(Undecoded::TooLarge)), "{coding:?}");
            }
        }
    }

    #[test]
    fn a_body_that_is_cut_off_anywhere_is_corrupt() {
        let plain = "colour ".repeat(20);
        for (coding, body) in encoded(plain.as_bytes()).into_iter().chain([(Coding::Brotli, BROTLI.to_vec())]) {
            assert!(decode(coding, &body, 10_000).0.is_ok(), "{coding:?}");
            for length in 1..body.len() {
                let cut = decode(coding, &body[..length], 10_000).0;
                assert!(matches!(cut, Err(Undecoded::Corrupt(_))), "{coding:?} {length} of {}", body.len());
            }
        }
    }

    #[test]
    fn no_step_is_long_whatever_the_body_holds() {
        let empty = GzEncoder::new(Vec::new(), Compression::default()).finish().unwrap();
        // Blocks of deflate that are stored, and empty; frames of zstd to skip, and of none but an empty block.
        let stored = [0, 0, 0, 0xff, 0xff];
        let skipped = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0];
        let begun = [0x28, 0xb5, 0x2f, 0xfd, 0x20, 0, 1, 0, 0];
        for (coding, body, steps) in [
            (Coding::Gzip, empty.repeat(10_000), 10_000 * empty.len() / STEP_IN),
            (Coding::Deflate, stored.repeat(10_000), 50_000 / STEP_IN),
            (Coding::Zstd, skipped.repeat(1000), 1000),
            (Coding::Zstd, begun.repeat(1000), 1000),
            (Coding::Brotli, BOMB.to_vec(), (16 << 20) / STEP_OUT),
        ] {
            let pauses = decode(coding, &body, 16 << 20).1;
            assert!(pauses >= steps, "{coding:?}: {pauses} pauses, not {steps}");
        }
    }

    #[test]
    fn windows_larger_than_any_content_coding_has_are_refused() {
        // A frame that wants 16 MiB of window, and a stream of brotli that wants 1 GiB.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0, 14 << 3, 1, 0, 0];
        let stream = [0x11, 0xde];
        for (coding, body) in [(Coding::Zstd, frame.as_slice()), (Coding::Brotli, &stream)] {
            let refused = decode(coding, body, 16 << 20).0;
            assert!(matches!(refused, Err(Undecoded::Corrupt(_))), "{coding:?}: {refused:?}");
        }
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0, 13 << 3, 1, 0, 0];
        assert!(decode(Coding::Zstd, &frame, 16 << 20).0.is_ok());
    }

    proptest! {
        #[test]
        fn bytes_that_are_no_such_body_end_without_a_panic(
            plain in prop::collection::vec(0_u8..4, 0..2000),
            noise in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            which in 0_usize..5,
        ) {
            let bodies = encoded(&plain).into_iter().chain([(Coding::Brotli, BROTLI.to_vec())]);
            let (coding, mut body) = bodies.into_iter().nth(which).unwrap();
            for (at, byte) in noise {
                let at = at.index(body.len());
                body[at] = byte;
            }
            if let Ok(decoded) = decode(coding, &body, 10_000).0 {
                prop_assert!(decoded.len() <= 10_000);
            }
        }
    }
}
