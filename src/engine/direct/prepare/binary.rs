//! The sections of a binary, read, and written anew with some that are different.

use std::ops::Range;

use wasmparser::Payload;

use super::leb;

/// The ids of sections, in the order in which a module has them. Custom ones, with the id 0, may be anywhere.
pub(super) mod id {
    pub(crate) const TYPE: u8 = 1;
    pub(crate) const IMPORT: u8 = 2;
    pub(crate) const FUNCTION: u8 = 3;
    pub(crate) const TABLE: u8 = 4;
    pub(crate) const MEMORY: u8 = 5;
    pub(crate) const TAG: u8 = 13;
    pub(crate) const GLOBAL: u8 = 6;
    pub(crate) const EXPORT: u8 = 7;
    pub(crate) const START: u8 = 8;
    pub(crate) const ELEMENT: u8 = 9;
    pub(crate) const DATA_COUNT: u8 = 12;
    pub(crate) const CODE: u8 = 10;
    pub(crate) const DATA: u8 = 11;
    pub(crate) const ORDER: [u8; 13] =
        [TYPE, IMPORT, FUNCTION, TABLE, MEMORY, TAG, GLOBAL, EXPORT, START, ELEMENT, DATA_COUNT, CODE, DATA];
}

/// Bytes in front of the first section.
const HEADER: usize = 8;

/// A section: its id, and where its contents are.
pub(super) struct Section {
    pub(super) id: u8,
    pub(super) contents: Range<usize>,
}

impl Section {
    /// `None` for what is no section.
    pub(super) fn of(payload: &Payload<'_>) -> Option<Self> {
        let (id, contents) = payload.as_section()?;
        Some(Self { id, contents })
    }
}

/// What takes the place of a section, or is new.
pub(super) struct New {
    pub(super) id: u8,
    pub(super) contents: Vec<u8>,
}

/// A module, and where the contents of its sections are.
pub(super) struct Written {
    pub(super) bytes: Vec<u8>,
    sections: Vec<Section>,
}

/// The module with `new` sections, which are in order. All others stay as they are.
pub(super) fn write(wasm: &[u8], sections: &[Section], new: &[New]) -> Option<Written> {
    let extent = wasm.len() + new.iter().map(|new| new.contents.len() + 16).sum::<usize>();
    let mut written =
        Written { bytes: Vec::with_capacity(extent), sections: Vec::with_capacity(sections.len() + new.len()) };
    written.bytes.extend(wasm.get(..HEADER)?);
    let mut new = new.iter().peekable();
    for section in sections {
        let at = place(section.id);
        // Those that the module did not have go in front of the first that comes later.
        while let Some(next) = new.next_if(|next| at.is_some_and(|at| place(next.id).is_some_and(|place| place < at))) {
            written.section(next.id, &next.contents)?;
        }
        match new.next_if(|next| next.id == section.id) {
            Some(next) => written.section(next.id, &next.contents)?,
            None => written.section(section.id, wasm.get(section.contents.clone())?)?,
        }
    }
    for next in new {
        written.section(next.id, &next.contents)?;
    }
    Some(written)
}

/// `None` for a custom section, and for one that nobody knows.
fn place(id: u8) -> Option<usize> {
    id::ORDER.iter().position(|known| *known == id)
}

impl Written {
    fn section(&mut self, id: u8, contents: &[u8]) -> Option<()> {
        self.bytes.push(id);
        leb::unsigned(&mut self.bytes, u32::try_from(contents.len()).ok()?.into());
        let begin = self.bytes.len();
        self.bytes.extend(contents);
        self.sections.push(Section { id, contents: begin..self.bytes.len() });
        Some(())
    }

    /// Where the contents of a section begin.
    pub(super) fn begin(&self, id: u8) -> Option<usize> {
        Some(self.contents(id)?.start)
    }

    /// Where the contents of a section are.
    pub(super) fn contents(&self, id: u8) -> Option<Range<usize>> {
        self.sections.iter().find(|section| section.id == id).map(|section| section.contents.clone())
    }
}
