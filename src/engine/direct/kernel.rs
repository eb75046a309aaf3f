//! Extism's kernel: the memory through which guest and host exchange input, output, errors and all else.
//!
//! A plugin calls its accessors for each byte, or each eight, of input and output. So they are WebAssembly
//! (`prepare/kernel.wat`), and a part of the plugin's own module, with a memory that only they see: see
//! [`prepare`](super::prepare). A plugin with linked modules, which would have to import them from it, has an instance of
//! them beside it. Which blocks are allocated is host data (`allocator`).
//!
//! Considered and not taken: a kernel of host code only (a host call for each eight bytes takes about three times as
//! long as a call between modules, which a few kilobytes of input already outweigh), and an allocator in WebAssembly as
//! well, with its books in a third memory (a slot more for each instance, and host functions that return a block would
//! have to call into the store, where a call of the host from the guest takes some ten nanoseconds). Extism's own has its
//! books in the kernel's memory, where guests can reach them.
//!
//! Every range that this file gives out lies within the memory. Where Extism's kernel takes a range that does not, by a
//! length that wraps around, the call ends as `guest_error`.

use bytes::Bytes;
use wasmtime::{AsContext, AsContextMut, Engine, Instance, Memory, Module, ModuleExport, Store};

use super::{
    classify::{HostTrap, by_system},
    prepare, sealed,
    state::GuestState,
};
use crate::{engine::text::MAX_MESSAGE, error::Error};

const PAGE: u64 = 65_536;

/// The offsets of the kernel's own words in its memory. A guest's stores do not reach them.
mod root {
    pub(super) const INPUT: usize = 8;
    pub(super) const INPUT_LEN: usize = 16;
    pub(super) const OUTPUT: usize = 24;
    pub(super) const OUTPUT_LEN: usize = 32;
    pub(super) const ERROR: usize = 40;
    pub(super) const ALL: std::ops::Range<usize> = INPUT..ERROR + 8;
}

/// The compiled kernel, for plugins that do not have it in them.
pub(super) struct KernelModule {
    module: Module,
    memory: ModuleExport,
}

/// The kernel of one guest, by its memory. Copies refer to the same one.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    memory: Memory,
}

impl KernelModule {
    pub(super) fn compile(engine: &Engine) -> wasmtime::Result<Self> {
        let module = Module::new(engine, prepare::KERNEL)?;
        let missing = |name: &str| wasmtime::Error::msg(format!("the kernel has no {name}"));
        let find = |name: &str| module.get_export_index(name).ok_or_else(|| missing(name));
        Ok(Self { memory: find("memory")?, module })
    }

    /// Whether the system lets code be [mapped](sealed), tried with this module.
    pub(super) fn can_be_mapped(&self, engine: &Engine) -> bool {
        sealed::can_be_mapped(engine, &self.module)
    }

    /// The accessor of this name, if there is one.
    pub(super) fn accessor(&self, name: &str) -> Option<ModuleExport> {
        self.module.get_export(name)?.func()?;
        self.module.get_export_index(name)
    }

    /// Instantiates it for the guest of this store.
    pub(super) async fn instantiate(&self, store: &mut Store<GuestState>) -> wasmtime::Result<Instance> {
        let instance = Instance::new_async(&mut *store, &self.module, &[]).await?;
        Kernel::is_in(store, instance, &self.memory);
        Ok(instance)
    }
}

impl Kernel {
    /// Bytes with which its memory begins.
    pub(super) const INITIAL: u64 = PAGE;

    /// The kernel of this store's guest has its memory there.
    pub(super) fn is_in(store: &mut Store<GuestState>, instance: Instance, memory: &ModuleExport) {
        let memory = instance.get_module_export(&mut *store, memory).and_then(wasmtime::Extern::into_memory);
        store.data_mut().kernel_memory = memory;
    }

    /// The kernel of a store's guest.
    pub(super) fn of(store: &impl AsContext<Data = GuestState>) -> wasmtime::Result<Self> {
        let memory = store.as_context().data().kernel_memory;
        Ok(Self { memory: memory.ok_or_else(|| HostTrap::Broken("a guest without a kernel".into()))? })
    }

    fn get(&self, store: &impl AsContext<Data = GuestState>, word: usize) -> u64 {
        let bytes = self.memory.data(store.as_context()).get(word..).and_then(<[u8]>::first_chunk);
        bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    fn set(&self, store: &mut impl AsContextMut<Data = GuestState>, word: usize, value: u64) {
        if let Some(bytes) = self.memory.data_mut(store).get_mut(word..word + 8) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// Clears what an earlier call left, and puts an input into the memory.
    pub(super) fn begin(&self, store: &mut Store<GuestState>, input: &[u8]) -> wasmtime::Result<()> {
        self.reset(store);
        let offset = self.write(store, input)?;
        if offset != 0 {
            self.set(store, root::INPUT, offset);
            self.set(store, root::INPUT_LEN, input.len() as u64);
        }
        Ok(())
    }

    /// The output, if it is within the memory and its limit.
    pub(super) fn output(&self, store: &Store<GuestState>, limit: u64) -> Result<Bytes, Error> {
        let (offset, len) = (self.get(store, root::OUTPUT), self.get(store, root::OUTPUT_LEN));
        match slice(self.memory.data(store), offset, len) {
            Some(_) if len > limit => Err(Error::output_too_large(limit)),
            Some(bytes) => Ok(Bytes::copy_from_slice(bytes)),
            None => Err(Error::guest_error("its output is not within its memory")),
        }
    }

    /// The beginning of the error that the guest has set, if it has, and the length of all of it.
    pub(super) fn error<'a>(&self, store: &'a Store<GuestState>) -> Option<(&'a [u8], usize)> {
        let offset = self.get(store, root::ERROR);
        let len = store.data().allocator.length(offset);
        if offset == 0 || len == 0 {
            return None;
        }
        // One character more than is shown: the message is then cut between characters. The rest is not looked at, which
        // would take the longer the more memory the guest has.
        let beginning = slice(self.memory.data(store), offset, len.min(MAX_MESSAGE as u64 + 4))?;
        Some((beginning, usize::try_from(len).unwrap_or(usize::MAX)))
    }

    /// Sets the guest's error, as the guest does by `error_set`.
    pub(super) fn set_error(
        &self,
        store: &mut impl AsContextMut<Data = GuestState>,
        message: &str,
    ) -> wasmtime::Result<()> {
        let offset = self.write(store, message.as_bytes())?;
        self.set(store, root::ERROR, offset);
        Ok(())
    }

    /// Frees and clears all blocks, as Extism's kernel does.
    pub(super) fn reset(&self, store: &mut impl AsContextMut<Data = GuestState>) {
        let (memory, state) = self.memory.data_and_store_mut(&mut *store);
        state.budget.give_back(state.allocator.cost(0));
        if let Some(used) = indices(state.allocator.clear()).and_then(|used| memory.get_mut(used)) {
            used.fill(0);
        }
        if let Some(root) = memory.get_mut(root::ALL) {
            root.fill(0);
        }
    }

    /// Allocates a block; 0 for an empty one.
    pub(super) fn alloc(&self, store: &mut impl AsContextMut<Data = GuestState>, length: u64) -> wasmtime::Result<u64> {
        if length == 0 {
            return Ok(0);
        }
        let size = self.memory.data_size(&*store) as u64;
        let placement = store.as_context().data().allocator.place(length, size).ok_or(HostTrap::OutOfMemory)?;
        if placement.end > size {
            // Whether our limiter refuses or wasmtime, the guest is out of memory; unless the host is.
            self.memory.grow(&mut *store, (placement.end - size).div_ceil(PAGE)).map_err(|error| {
                if by_system(&error).next().is_some() { error } else { HostTrap::OutOfMemory.into() }
            })?;
        }
        let mut context = store.as_context_mut();
        let state = context.data_mut();
        let more = u64::from(placement.adds_block);
        state.budget.take(state.allocator.cost(more) - state.allocator.cost(0))?;
        state.allocator.allocate(placement, length);
        Ok(placement.offset)
    }

    pub(super) fn free(&self, store: &mut impl AsContextMut<Data = GuestState>, offset: u64) {
        let freed = store.as_context_mut().data_mut().allocator.free(offset);
        if freed && offset == self.get(store, root::INPUT) {
            self.set(store, root::INPUT_LEN, 0);
        }
    }

    /// The length of the block that begins at `offset`; 0 when none does.
    pub(super) fn length(store: &impl AsContext<Data = GuestState>, offset: u64) -> u64 {
        store.as_context().data().allocator.length(offset)
    }

    /// Allocates a block with these bytes; 0 when there are none.
    pub(super) fn write(
        &self,
        store: &mut impl AsContextMut<Data = GuestState>,
        bytes: &[u8],
    ) -> wasmtime::Result<u64> {
        let offset = self.alloc(store, bytes.len() as u64)?;
        fill(self.memory.data_mut(store), offset, bytes)
    }

    /// Allocates a block with what `find` finds in the guest's state; 0 when it finds nothing.
    pub(super) fn write_found(
        &self,
        store: &mut impl AsContextMut<Data = GuestState>,
        find: impl Fn(&GuestState) -> Option<&[u8]>,
    ) -> wasmtime::Result<u64> {
        let length = find(store.as_context().data()).map_or(0, <[u8]>::len);
        let offset = self.alloc(store, length as u64)?;
        let (memory, state) = self.memory.data_and_store_mut(store);
        fill(memory, offset, find(state).unwrap_or_default())
    }

    /// The block that begins at `offset`: empty for 0, `None` when none does.
    pub(super) fn read<'a>(&self, store: &'a impl AsContext<Data = GuestState>, offset: u64) -> Option<&'a [u8]> {
        match (offset, Self::length(store, offset)) {
            (0, _) => Some(&[]),
            (_, 0) => None,
            (_, len) => slice(self.memory.data(store.as_context()), offset, len),
        }
    }
}

fn indices(bytes: std::ops::Range<u64>) -> Option<std::ops::Range<usize>> {
    Some(usize::try_from(bytes.start).ok()?..usize::try_from(bytes.end).ok()?)
}

fn range(offset: u64, len: u64) -> Option<std::ops::Range<usize>> {
    indices(offset..offset.checked_add(len)?)
}

fn slice(memory: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    memory.get(range(offset, len)?)
}

/// Copies bytes into the block at `offset`, which has room for them.
fn fill(memory: &mut [u8], offset: u64, bytes: &[u8]) -> wasmtime::Result<u64> {
    if !bytes.is_empty() {
        let target = range(offset, bytes.len() as u64).and_then(|range| memory.get_mut(range));
        target.ok_or(HostTrap::OutOfMemory)?.copy_from_slice(bytes);
    }
    Ok(offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_has_its_accessors_and_its_code_can_be_mapped() {
        let engine = Engine::default();
        let kernel = KernelModule::compile(&engine).unwrap();
        assert!(kernel.accessor("load_u8").is_some());
        assert!(kernel.accessor("memory").is_none() && kernel.accessor("alloc").is_none(), "that is the host's");
        assert!(kernel.can_be_mapped(&engine));
    }
}
