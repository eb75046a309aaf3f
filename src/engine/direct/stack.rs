//! The functions that were active when a guest failed, for people.

use std::{
    fmt::{self, Write},
    num::NonZeroUsize,
};

use wasmtime::{FrameInfo, Module, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use super::prepare::Map;

/// How many functions are kept, the innermost.
pub(super) const FRAMES: NonZeroUsize = NonZeroUsize::new(32).unwrap();

/// Bytes of one name, before it is demangled and after.
const MANGLED: usize = 4096;
const NAME: usize = 256;

/// Where the guest was that failed with this error: nothing if it returned, or exited as a success.
pub(super) fn of(error: &wasmtime::Error) -> Vec<String> {
    if error.downcast_ref::<I32Exit>().is_some_and(|exit| exit.0 == 0) {
        return Vec::new();
    }
    let frames = error.downcast_ref::<WasmBacktrace>().map_or(&[][..], WasmBacktrace::frames);
    // To look for a module's map takes the longer the more it exports.
    let mut known: Vec<(&Module, Option<Map>)> = Vec::new();
    let mut lines = Vec::new();
    for frame in frames {
        let module = frame.module();
        let at = known.iter().position(|(other, _)| Module::same(other, module)).unwrap_or_else(|| {
            known.push((module, Map::of(module)));
            known.len() - 1
        });
        let map = known.get(at).and_then(|(_, map)| map.as_ref());
        lines.extend(line(frame, map));
    }
    lines
}

/// The offset in the plugin's binary, for its author's tools, and the name. Nothing for what is not the plugin's own: where
/// an instruction was [cut](super::prepare), the function that has it comes next.
fn line(frame: &FrameInfo, map: Option<&Map>) -> Option<String> {
    let mut line = String::new();
    if map.is_some_and(|map| !map.is_own(frame.func_index())) {
        return None;
    }
    let before = |offset| map.map_or(Some(offset), |map| map.before(offset));
    // A `String` takes everything.
    let _ = frame.module_offset().and_then(before).map_or(Ok(()), |offset| write!(line, "{offset:#x} - "));
    match frame.func_name() {
        Some(mangled) => name(&mut line, mangled),
        None => drop(write!(line, "function {}", frame.func_index())),
    }
    Some(line)
}

/// Rust's names are mangled; those of the other toolchains are not, or no longer.
fn name(line: &mut String, mangled: &str) {
    let most = line.len() + NAME;
    let mut line = Cut { line, most };
    let demangled = Some(mangled).filter(|name| name.len() <= MANGLED).map(rustc_demangle::try_demangle);
    // Without the hash at its end. It fails once it is cut, and then there is enough.
    let _ = match demangled {
        Some(Ok(name)) => write!(line, "{name:#}"),
        _ => line.write_str(mangled),
    };
}

/// Writes until the line is long enough: a short mangled name can stand for a very long one. Control characters are
/// replaced, so that a name stays on its line.
struct Cut<'a> {
    line: &'a mut String,
    most: usize,
}

impl Write for Cut<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            if self.line.len() >= self.most {
                self.line.push('…');
                return Err(fmt::Error);
            }
            self.line.push(if character.is_control() { '\u{fffd}' } else { character });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(mangled: &str) -> String {
        let mut line = String::from("0x1 - ");
        name(&mut line, mangled);
        line.split_off(6)
    }

    #[test]
    fn names_are_demangled_and_short() {
        for (mangled, shown) in [
            ("_ZN4core9panicking5panic17h0123456789abcdefE", "core::panicking::panic"),
            ("_RNvNtCs1234_7mycrate3foo3bar", "mycrate::foo::bar"),
            ("runtime.gopanic", "runtime.gopanic"),
            ("_Zoo", "_Zoo"),
            ("two\nlines", "two\u{fffd}lines"),
            ("", ""),
        ] {
            assert_eq!(named(mangled), shown);
        }
        let long = "é".repeat(1 << 20);
        assert_eq!(named(&long), format!("{}…", "é".repeat(NAME / 2)));
        // Each of these names the one before it twice.
        let bomb = format!("_RIC0{}E", "TB_B_E".repeat(100));
        assert!(named(&bomb).len() <= NAME + '…'.len_utf8());
    }
}
