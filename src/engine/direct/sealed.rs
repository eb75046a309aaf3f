//! Compiled code on its way to wasmtime, with its SHA-256.
//!
//! Large code lies in a file of its own, which has no name and is sealed: nobody can write to it any more. wasmtime maps
//! that file, and maps from it into instances what their memories begin with. So code and data are in memory once, however
//! many instances there are, and nothing is copied when they are loaded. Small code lies in plain memory, to save files.
//!
//! Considered and not taken: mapping a file of the cache's folder (it can be changed while it runs).

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
};

use bytes::Bytes;
use rustix::process::Resource;
use sha2::{Digest as _, Sha256};
use wasmtime::{Engine, Module};

use crate::{host_limits::soft_limit, pages};

/// Code from this size on is mapped. In bytes. The smallest plugins of Rust have about 400 KiB of it; most of C
/// have less than 60, and a cache full of those would take thousands of files.
pub(super) const MAPPED: u64 = 256 << 10;

/// How much is moved at once into a file.
const PART: u64 = 64 << 10;

/// What `Module::serialize` gave, or `Engine::precompile_module`.
#[derive(Debug)]
pub(super) struct Sealed {
    digest: [u8; 32],
    code: Form,
}

#[derive(Debug)]
enum Form {
    Plain(Bytes),
    /// From the file's beginning to its end.
    Mapped(File),
}

/// Where code of a known size is to lie.
#[derive(Debug)]
pub(super) struct Destination {
    size: u64,
    file: Option<File>,
}

impl Destination {
    /// A file, if that is large enough, code can be `mapped` at all, and the system has a file to give.
    pub(super) fn new(size: u64, mapped: bool) -> Self {
        // The system ends a process that writes a larger file than it may.
        let may = mapped && size >= MAPPED && size <= soft_limit(Resource::Fsize);
        Self { size, file: if may { unnamed().ok() } else { None } }
    }

    pub(super) fn is_mapped(&self) -> bool {
        self.file.is_some()
    }

    /// Takes over a digest and the code after it. `None` if the two do not fit.
    ///
    /// # Errors
    ///
    /// Those of the source, `UnexpectedEof` among them, and of the system that lacks memory.
    pub(super) fn read(self, mut from: impl Read) -> io::Result<Option<Sealed>> {
        let mut digest = [0; 32];
        from.read_exact(&mut digest)?;
        let sealed = self.fill(from)?;
        Ok(Some(sealed).filter(|sealed| sealed.digest == digest))
    }

    /// Takes over the code alone.
    fn fill(self, mut from: impl Read) -> io::Result<Sealed> {
        let Some(mut file) = self.file else {
            let code = pages::read(from, self.size)?;
            return Ok(Sealed { digest: Sealed::digest(&code), code: Form::Plain(code) });
        };
        let (mut digest, mut part) = (Sha256::new(), Vec::new());
        let mut left = self.size;
        while left > 0 {
            part.resize(usize::try_from(left.min(PART)).map_err(io::Error::other)?, 0);
            from.read_exact(&mut part)?;
            digest.update(&part);
            file.write_all(&part)?;
            left -= part.len() as u64;
        }
        // Elsewhere there is no such file.
        #[cfg(target_os = "linux")]
        seal(&file)?;
        Ok(Sealed { digest: digest.finalize().into(), code: Form::Mapped(file) })
    }
}

impl Sealed {
    /// Bytes of the digest.
    pub(super) const DIGEST: u64 = 32;

    pub(super) fn digest(code: &[u8]) -> [u8; 32] {
        Sha256::digest(code).into()
    }

    /// What wasmtime has just given.
    ///
    /// # Errors
    ///
    /// The system lacks memory.
    pub(super) fn new(code: &[u8], to: Destination) -> io::Result<Self> {
        to.fill(code)
    }

    /// Whether it lies in a file that wasmtime maps.
    pub(super) fn is_mapped(&self) -> bool {
        matches!(self.code, Form::Mapped(_))
    }

    /// The same code. Plain code is shared; of a file there is one more descriptor.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        let code = match &self.code {
            Form::Plain(code) => Form::Plain(code.clone()),
            Form::Mapped(file) => Form::Mapped(file.try_clone()?),
        };
        Ok(Self { digest: self.digest, code })
    }

    /// Bytes of the code with its digest.
    pub(super) fn len(&self) -> u64 {
        let code = match &self.code {
            Form::Plain(code) => code.len() as u64,
            Form::Mapped(file) => file.metadata().map_or(0, |metadata| metadata.len()),
        };
        Self::DIGEST + code
    }

    /// Writes the digest and the code, as [`Destination::read`] reads them.
    pub(super) fn write(&self, mut to: impl Write) -> io::Result<()> {
        to.write_all(&self.digest)?;
        match &self.code {
            Form::Plain(code) => to.write_all(code),
            Form::Mapped(file) => {
                let mut file: &File = file;
                file.rewind()?;
                io::copy(&mut file, &mut to).map(drop)
            }
        }
    }

    /// The module. Fails also if the system has no room for the code.
    #[expect(unsafe_code, reason = "the one exception: see below")]
    pub(super) fn load(self, engine: &Engine) -> wasmtime::Result<Module> {
        // SAFETY: wasmtime runs these bytes, so they must be what wasmtime's own serialization gave. `Sealed` has them from
        // one of three. `Sealed::new` gets them from wasmtime. A file in the folder begins with the SHA-256 of what was
        // written (`Destination::read`); the folder belongs to this user and nobody else can enter it (`check_private`, at
        // start), and a file appears in it whole, by a rename. A compile worker sends them, with their SHA-256, through a
        // pipe that only it and this process have; it is a process of this user, of the same release of this crate, and ran
        // wasmtime's `precompile_module`. Someone who can write other bytes there can as well replace this program. wasmtime
        // checks itself that the code is of its version and settings and for this processor.
        //
        // What wasmtime maps must stay as it is. The file is `unnamed`, its descriptor never leaves this process, and
        // `Destination::fill` seals it once the bytes are in it whose digest it took: from then on the system refuses every
        // write to it and every change of its length, by whomever.
        unsafe {
            match self.code {
                Form::Plain(code) => Module::deserialize(engine, code),
                Form::Mapped(file) => Module::deserialize_open_file(engine, file),
            }
        }
    }
}

/// Whether the system lets code be mapped from a file without a name: tried with this module. A policy may forbid it.
pub(super) fn can_be_mapped(engine: &Engine, module: &Module) -> bool {
    // The system ends a process that writes a larger file than it may.
    if soft_limit(Resource::Fsize) < MAPPED {
        return false;
    }
    // Another time it may have a file to give.
    let Ok(file) = unnamed() else { return true };
    let load = || {
        let code = module.serialize().ok()?;
        let to = Destination { size: code.len() as u64, file: Some(file) };
        Sealed::new(&code, to).ok()?.load(engine).ok()
    };
    load().is_some()
}

/// A file that has no name and lies in memory.
#[cfg(target_os = "linux")]
fn unnamed() -> io::Result<File> {
    use rustix::fs::{MemfdFlags, memfd_create};

    Ok(memfd_create("evalpool-code", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?.into())
}

#[cfg(not(target_os = "linux"))]
fn unnamed() -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Nobody can change it from here on, or take that back.
#[cfg(target_os = "linux")]
fn seal(file: &File) -> io::Result<()> {
    use rustix::fs::{SealFlags, fcntl_add_seals};

    Ok(fcntl_add_seals(file, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::{
        fs::OpenOptions,
        os::{fd::AsRawFd, unix::fs::FileExt},
    };

    use super::*;

    fn sealed(code: &[u8], mapped: bool) -> Sealed {
        Sealed::new(code, Destination::new(code.len() as u64, mapped)).unwrap()
    }

    #[test]
    fn nobody_can_change_large_code_once_it_is_in_its_file() {
        let code = vec![7; usize::try_from(MAPPED).unwrap()];
        let Form::Mapped(file) = sealed(&code, true).code else { panic!("it is large") };
        let named = format!("/proc/self/fd/{}", file.as_raw_fd());
        let again = OpenOptions::new().read(true).write(true).open(named).unwrap();
        for file in [file, again] {
            assert!(file.write_at(b"x", 0).is_err() && file.write_at(b"x", MAPPED).is_err());
            assert!(file.set_len(0).is_err() && file.set_len(MAPPED + 1).is_err());
            assert!(rustix::fs::fcntl_add_seals(&file, rustix::fs::SealFlags::empty()).is_err(), "nor take that back");
        }
    }

    #[test]
    fn only_large_code_takes_a_file_and_both_forms_are_read_as_they_were_written() {
        let large = usize::try_from(MAPPED).unwrap();
        for (size, mapped) in [(0, true), (large - 1, true), (large, true), (large + 1, true), (large, false)] {
            let code: Vec<u8> = (0..=250).cycle().take(size).collect();
            let first = sealed(&code, mapped);
            let is_mapped = mapped && size >= large;
            assert_eq!([first.is_mapped(), Destination::new(size as u64, mapped).is_mapped()], [is_mapped; 2]);
            let mut written = Vec::new();
            first.write(&mut written).unwrap();
            assert_eq!((written.len() as u64, &written[32..]), (first.len(), &code[..]));
            let read = |bytes: &[u8]| Destination::new(size as u64, mapped).read(bytes);
            assert_eq!(read(&written).unwrap().unwrap().digest, Sealed::digest(&code));
            written[0] ^= 1;
            assert!(read(&written).unwrap().is_none(), "of another digest");
            written.pop();
            assert_eq!(read(&written).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn code_is_mapped_where_the_system_lets_it() {
        let engine = Engine::default();
        let module = Module::new(&engine, b"\0asm\x01\0\0\0").unwrap();
        assert!(can_be_mapped(&engine, &module));
    }
}
