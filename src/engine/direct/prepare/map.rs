//! Where things of a prepared module were before.

use std::{fmt, ops::Range};

use wasmtime::{ExternType, Module, ModuleExport};

use crate::source::Digest;

/// How the name begins of the export that a prepared module has more than the plugin's own. Its digest follows, so a plugin
/// cannot have one of that name. The export is the kernel's memory, if the kernel is in the module.
const PREFIX: &str = "evalpool:";

/// Digits of a number.
const DIGITS: usize = 8;

/// What a prepared module has at other places than the plugin itself, or in addition. Functions have the index that they
/// had before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in super::super) struct Map {
    /// How many bytes the code lies further behind. It wraps around.
    pub(super) shift: u32,
    /// Whether code has moved within as well: then nobody knows where it was.
    pub(super) moved: bool,
    /// Functions of the kernel.
    pub(super) kernel: Range<u32>,
    /// The first function after the plugin's own.
    pub(super) end: u32,
}

impl Map {
    /// The name of the export that says so. Its length is always the same.
    pub(super) fn name(&self, digest: Digest) -> String {
        let Self { shift, moved, kernel, end } = self;
        let numbers = [*shift, u32::from(*moved), kernel.start, kernel.end, *end];
        numbers.iter().fold(format!("{PREFIX}{digest}:"), |name, number| format!("{name}{number:08x}"))
    }

    /// What a module was prepared to; `None` for one that was left as it was.
    pub(in super::super) fn of(module: &Module) -> Option<Self> {
        Self::read(module.exports().last()?.name())
    }

    pub(super) fn read(name: &str) -> Option<Self> {
        let (_, numbers) = name.strip_prefix(PREFIX)?.rsplit_once(':')?;
        let number = |index: usize| {
            let digits = numbers.get(index * DIGITS..(index + 1) * DIGITS)?;
            u32::from_str_radix(digits, 16).ok()
        };
        Some(Self { shift: number(0)?, moved: number(1)? != 0, kernel: number(2)?..number(3)?, end: number(4)? })
    }

    /// Whether it is a function of the plugin's own.
    pub(in super::super) fn is_own(&self, function: u32) -> bool {
        !self.kernel.contains(&function) && function < self.end
    }

    /// Where the code was that is there now, if that is known.
    pub(in super::super) fn before(&self, offset: usize) -> Option<usize> {
        let offset = u32::try_from(offset).ok()?;
        if self.moved { None } else { usize::try_from(offset.wrapping_sub(self.shift)).ok() }
    }
}

/// Whether a plugin imports by such a name, of a module that it is linked with. No toolchain makes one.
pub(in super::super) fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// The name of the export that is the start function of the plugin with this digest.
pub(super) fn name_of_start(digest: Digest) -> String {
    name_of(digest, "start")
}

/// The name of an export that is added to the plugin with this digest.
pub(super) fn name_of(digest: Digest, what: impl fmt::Display) -> String {
    format!("{PREFIX}{digest}:{what}")
}

/// The start function of the plugin with this digest, if the host is to call it.
pub(in super::super) fn start(module: &Module, digest: Digest) -> Option<ModuleExport> {
    module.get_export_index(&name_of_start(digest))
}

/// The kernel's memory in the module of the plugin with this digest, if it is there.
pub(in super::super) fn kernel_memory(module: &Module, digest: Digest) -> Option<ModuleExport> {
    let last = module.exports().last()?;
    let is_ours = last.name().strip_prefix(PREFIX)?.starts_with(&digest.to_string());
    let is_memory = matches!(last.ty(), ExternType::Memory(_));
    if is_ours && is_memory { module.get_export_index(last.name()) } else { None }
}
