//! More of the gallery: binaries that are large, odd or false in one of their sections. Most are put together byte by
//! byte, since their text would be larger still, or cannot be said in text at all.

use super::{
    Comes::{Ends, Nothing, Refused},
    Hostile, IMPORTS, module, numbered, upload,
};

pub(super) fn all() -> Vec<Hostile> {
    [counts(), weights(), names(), lies(), features()].into_iter().flatten().collect()
}

const TYPE: u8 = 1;
const IMPORT: u8 = 2;
const FUNCTION: u8 = 3;
const TABLE: u8 = 4;
const MEMORY: u8 = 5;
const GLOBAL: u8 = 6;
const EXPORT: u8 = 7;
const START: u8 = 8;
const ELEMENT: u8 = 9;
const CODE: u8 = 10;
const DATA: u8 = 11;
const DATA_COUNT: u8 = 12;
const CUSTOM: u8 = 0;

/// In which sections come.
const ORDER: [u8; 13] =
    [TYPE, IMPORT, FUNCTION, TABLE, MEMORY, GLOBAL, EXPORT, START, ELEMENT, DATA_COUNT, CODE, DATA, CUSTOM];

/// A number as binaries have it.
fn leb(mut number: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = (number & 0x7f) as u8;
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

/// So many of the same.
fn vector(count: u32, each: &[u8]) -> Vec<u8> {
    [leb(count), each.repeat(count as usize)].concat()
}

fn section(id: u8, contents: &[u8]) -> Vec<u8> {
    let length = u32::try_from(contents.len()).expect("a section below 4 GiB");
    [vec![id], leb(length), contents.to_vec()].concat()
}

fn binary(sections: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let sections = sections.iter().flat_map(|(id, contents)| section(*id, contents));
    b"\0asm\x01\0\0\0".iter().copied().chain(sections).collect()
}

/// `run`, which does nothing, with these sections; those of the same number take the place of its own.
fn with(more: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let own = [
        (TYPE, b"\x01\x60\0\0".to_vec()),
        (FUNCTION, b"\x01\0".to_vec()),
        (EXPORT, b"\x01\x03run\0\0".to_vec()),
        (CODE, b"\x01\x02\0\x0b".to_vec()),
    ];
    let kept = own.into_iter().filter(|(id, _)| more.iter().all(|(other, _)| other != id));
    let mut sections: Vec<_> = kept.chain(more.iter().cloned()).collect();
    sections.sort_by_key(|(id, _)| ORDER.iter().position(|other| other == id));
    binary(&sections)
}

/// A custom section.
fn custom(name: &[u8], contents: &[u8]) -> (u8, Vec<u8>) {
    let length = u32::try_from(name.len()).expect("a name below 4 GiB");
    (CUSTOM, [leb(length), name.to_vec(), contents.to_vec()].concat())
}

fn bytes(trick: &'static str, bytes: Vec<u8>, comes: super::Comes) -> Hostile {
    Hostile { comes, ..upload(trick, bytes) }
}

/// Too many of something, and as many as may be.
fn counts() -> Vec<Hostile> {
    let bad = Refused("invalid_plugin");
    let global = b"\x7f\0\x41\0\x0b";
    // Passive: nothing but an entry in the host's books.
    let (data, elements) = (b"\x01\0", b"\x01\0\0");
    let import = b"\x0fextism:host/env\x05reset\0\0";
    let tables = |count: usize, size: u32| {
        format!("(module {} (func (export \"run\")))", format!("(table {size} funcref)").repeat(count))
    };
    let types = |count: usize| {
        let one = format!("(type (func (param {})))", "i64 ".repeat(1_000));
        format!("(module {} (func (export \"run\")))", one.repeat(count))
    };
    let results = |count: usize| {
        let (types, values) = ("i32 ".repeat(count), "(i32.const 1) ".repeat(count));
        format!(
            "(module (func $many (result {types}) {values}) (func (export \"run\") (call $many) {}))",
            "drop ".repeat(count)
        )
    };
    vec![
        bytes("a million globals and one", with(&[(GLOBAL, vector(1_000_001, global))]), bad),
        bytes("ten thousand globals", with(&[(GLOBAL, vector(10_000, global))]), Nothing),
        bytes("ten thousand globals and one", with(&[(GLOBAL, vector(10_001, global))]), bad),
        bytes("a hundred thousand data segments and one", with(&[(DATA, vector(100_001, data))]), bad),
        bytes("fifty thousand data segments", with(&[(DATA, vector(50_000, data))]), Nothing),
        bytes("a hundred thousand element segments and one", with(&[(ELEMENT, vector(100_001, elements))]), bad),
        bytes("five thousand element segments and one", with(&[(ELEMENT, vector(5_001, elements))]), bad),
        bytes("a million functions and one", with(&[(FUNCTION, vector(1_000_001, b"\0"))]), bad),
        // Imports come before `run`, which is then the function of that number.
        bytes(
            "a thousand imports of one function",
            with(&[(IMPORT, vector(1_000, import)), (EXPORT, [&b"\x01\x03run\0"[..], &leb(1_000)].concat())]),
            Nothing,
        ),
        bytes(
            "a thousand imports and one",
            with(&[(IMPORT, vector(1_001, import)), (EXPORT, [&b"\x01\x03run\0"[..], &leb(1_001)].concat())]),
            bad,
        ),
        module("four tables as large as may be", &tables(4, 10_000), Nothing),
        module("a table of one element too many", &tables(1, 10_001), bad),
        module("five tables of nothing", &tables(5, 0), bad),
        module("fifty types of a thousand parameters", &types(50), Nothing),
        module("fifty-one types of a thousand parameters", &types(51), bad),
        module("a function of a thousand results", &results(1_000), Nothing),
        module("a function of a thousand results and one", &results(1_001), bad),
    ]
}

/// Much in one place. What has to be worked out before a module runs, an engine compiles, far more slowly than the code of
/// functions.
fn weights() -> Vec<Hostile> {
    let bad = Refused("invalid_plugin");
    // 0 + 1 + 1 + …, by WebAssembly's constant expressions.
    let sum = |terms: usize| [&b"\x01\x7f\0\x41\0"[..], &b"\x41\x01\x6a".repeat(terms), b"\x0b"].concat();
    // At 0 + 0, which is known only once it is worked out.
    let worked_out = b"\0\x41\0\x41\0\x6a\x0b";
    let elements = |offset: &[u8], segments: u32, each: u32| vector(segments, &[offset, &vector(each, b"\0")].concat());
    let data = |offset: &[u8], segments: u32| vector(segments, &[offset, &vector(10, b"x")].concat());
    let table = |elements: u32| (TABLE, [&b"\x01\x70\0"[..], &leb(elements)].concat());
    let memory = (MEMORY, b"\x01\0\x01".to_vec());
    let plain = b"\0\x41\0\x0b";
    // The second begins at the last byte.
    let beyond = [&b"\x02\0\x41\xff\xff\x03\x0b\x02xx"[..], plain, b"\x01x"].concat();
    vec![
        bytes("a custom section of four megabytes", with(&[custom(b"junk", &vec![7; 4 << 20])]), Nothing),
        bytes("twenty thousand custom sections", with(&vec![custom(b"junk", b"junk"); 20_000]), Nothing),
        bytes(
            "a million elements for later",
            with(&[(ELEMENT, [&b"\x01\x01\0"[..], &vector(1_000_000, b"\0")].concat())]),
            bad,
        ),
        bytes("a constant that takes a thousand additions", with(&[(GLOBAL, sum(1_000))]), Nothing),
        bytes("a constant that takes a hundred thousand additions", with(&[(GLOBAL, sum(100_000))]), bad),
        bytes(
            "a function as the value of nine thousand globals",
            with(&[(GLOBAL, vector(9_000, b"\x70\0\xd2\0\x0b"))]),
            bad,
        ),
        bytes(
            "a million elements, written over each other",
            with(&[table(1_000), (ELEMENT, elements(plain, 1_000, 900))]),
            Nothing,
        ),
        bytes(
            "elements whose place is worked out",
            with(&[table(1_000), (ELEMENT, elements(worked_out, 1, 1_000))]),
            Nothing,
        ),
        bytes(
            "ten thousand elements whose place is worked out",
            with(&[table(1_000), (ELEMENT, elements(worked_out, 10, 1_000))]),
            bad,
        ),
        bytes(
            "a hundred thousand elements in a table of ten",
            with(&[table(10), (ELEMENT, elements(plain, 1, 100_000))]),
            bad,
        ),
        bytes("ten elements in a table of nine", with(&[table(9), (ELEMENT, elements(plain, 1, 10))]), bad),
        bytes(
            "fifty thousand pieces of data, over each other",
            with(&[memory.clone(), (DATA, data(plain, 50_000))]),
            Nothing,
        ),
        bytes(
            "fifty thousand pieces of data whose place is worked out",
            with(&[memory.clone(), (DATA, data(worked_out, 50_000))]),
            bad,
        ),
        bytes(
            "six megabytes of data whose place is worked out",
            with(&[
                (MEMORY, b"\x01\0\x70".to_vec()),
                (DATA, vector(1, &[&worked_out[..], &vector(6 << 20, b"x")].concat())),
            ]),
            bad,
        ),
        bytes(
            "seven megabytes of data",
            with(&[
                (MEMORY, b"\x01\0\x70".to_vec()),
                (DATA, vector(1, &[&plain[..], &vector(7 << 20, b"x")].concat())),
            ]),
            Nothing,
        ),
        bytes("data that begins within the memory and ends behind it", with(&[memory, (DATA, beyond)]), bad),
        module(
            "a memory that may grow to all there is, and does",
            "(module (memory 1 65536) (func (export \"run\") (drop (memory.grow (i32.const 65535)))))",
            Ends("out_of_memory"),
        ),
    ]
}

/// Names that say more than names should.
fn names() -> Vec<Hostile> {
    let bad = Refused("invalid_plugin");
    // A name section that calls function 0 what a line of a backtrace looks like.
    let backtrace = b"wasm backtrace:\n  0: /root/secret.rs:7";
    let length = u8::try_from(backtrace.len()).expect("a short name");
    let named = [&[1, length + 3, 1, 0, length][..], backtrace].concat();
    let trap = (CODE, b"\x01\x03\0\0\x0b".to_vec());
    let many = numbered(2_000, |at| {
        format!("(func (export \"an entry point whose name is of a certain length, number {at}\"))")
    });
    vec![
        bytes("a name section of nonsense", with(&[custom(b"name", &[0xff; 1000])]), Nothing),
        bytes("a producers section of nonsense", with(&[custom(b"producers", &[0xff; 1000])]), Nothing),
        bytes("debug information of nonsense", with(&[custom(b".debug_info", &[0xff; 1000])]), Nothing),
        bytes("a function whose name is a backtrace", with(&[trap, custom(b"name", &named)]), Ends("guest_trap")),
        bytes("a custom section whose name is no text", with(&[custom(b"\xff\xfe", b"")]), bad),
        bytes("an export whose name is no text", with(&[(EXPORT, b"\x01\x02\xff\xfe\0\0".to_vec())]), bad),
        bytes("the same name for two exports", with(&[(EXPORT, b"\x02\x03run\0\0\x03run\0\0".to_vec())]), bad),
        module(
            "exports whose names move the cursor",
            "(module (func (export \"\\1b[2J\\1b]0;owned\\07\\0d\\0a\\00\")) (func (export \"run\")))",
            Nothing,
        ),
        module(
            "an import whose name is a line of the log",
            "(module (import \"env\\0a2026-01-01T00:00:00Z ERROR evalpool: all is lost\" \"\\1b[31m\" (func)) (func (export \"run\")))",
            bad,
        ),
        module(
            "two thousand entry points, and none is named",
            &format!("(module {many})"),
            Refused("entry_point_missing"),
        ),
        module("a memory as the entry point", "(module (memory (export \"run\") 1))", Refused("entry_point_missing")),
        module(
            "an entry point of another result",
            "(module (func (export \"run\") (result i64) i64.const 0))",
            Refused("entry_point_missing"),
        ),
        module(
            "nothing but an initialiser",
            "(module (func (export \"_initialize\")))",
            Refused("entry_point_missing"),
        ),
    ]
}

/// Sections that contradict each other, or themselves.
fn lies() -> Vec<Hostile> {
    let bad = Refused("invalid_plugin");
    let own = with(&[]);
    let again = [&own[..], &section(TYPE, b"\x01\x60\0\0")].concat();
    vec![
        bytes("a count of data that is not there", with(&[(DATA_COUNT, b"\x05".to_vec())]), bad),
        bytes("a section twice, and out of order", again, bad),
        bytes("a section that nobody knows", with(&[(99, b"\0".to_vec())]), bad),
        bytes("a function without code", with(&[(FUNCTION, b"\x02\0\0".to_vec())]), bad),
        bytes("code without a function", with(&[(CODE, b"\x02\x02\0\x0b\x02\0\x0b".to_vec())]), bad),
        bytes("a start that is no function", with(&[(START, b"\x63".to_vec())]), bad),
        bytes("an export of what is not there", with(&[(EXPORT, b"\x01\x03run\0\x63".to_vec())]), bad),
        bytes("a function of a type that is not there", with(&[(FUNCTION, b"\x01\x63".to_vec())]), bad),
        bytes("data for a memory that is not there", with(&[(DATA, b"\x01\0\x41\0\x0b\x01x".to_vec())]), bad),
        bytes("a memory whose most is less than its least", with(&[(MEMORY, b"\x01\x01\x05\x02".to_vec())]), bad),
        bytes("a global of another type than its value", with(&[(GLOBAL, b"\x01\x7e\0\x41\0\x0b".to_vec())]), bad),
        bytes("a global that is its own value", with(&[(GLOBAL, b"\x01\x7f\0\x23\0\x0b".to_vec())]), bad),
        bytes("a number in more bytes than it may have", with(&[(TYPE, b"\x81\x80\x80\x80\x80\x80\0".to_vec())]), bad),
        bytes("a body that goes on after its end", with(&[(CODE, b"\x01\x04\0\x0b\x0b\x0b".to_vec())]), bad),
        bytes("a body of an unknown instruction", with(&[(CODE, b"\x01\x03\0\xff\x0b".to_vec())]), bad),
        bytes(
            "locals that add up to more than there are numbers",
            with(&[(
                CODE,
                [&b"\x01\x0e\x02"[..], b"\xff\xff\xff\xff\x0f\x7f", b"\xff\xff\xff\xff\x0f\x7f", b"\x0b"].concat(),
            )]),
            bad,
        ),
        module("a start with parameters", "(module (func $s (param i32)) (start $s) (func (export \"run\")))", bad),
    ]
}

/// What WebAssembly may have some day, used in a body, which only the engine reads.
fn features() -> Vec<Hostile> {
    let bad = Refused("invalid_plugin");
    let body = |text: &str| format!("(module (memory 1) (func $f) (func (export \"run\") {text}))");
    vec![
        module(
            "vectors, which are allowed",
            &body("(drop (i8x16.swizzle (v128.const i32x4 1 2 3 4) (v128.load (i32.const 16))))"),
            Nothing,
        ),
        module("a vector beyond the memory", &body("(drop (v128.load (i32.const 65521)))"), Ends("guest_trap")),
        module(
            "vectors that would differ from machine to machine",
            &body("(drop (i8x16.relaxed_swizzle (v128.const i32x4 1 2 3 4) (v128.const i32x4 1 2 3 4)))"),
            Nothing,
        ),
        module("an atomic access", &body("(drop (i32.atomic.load (i32.const 0)))"), bad),
        module("a reference in a body alone", &body("(drop (ref.i31 (i32.const 7)))"), Nothing),
        module(
            "the length of no array, in a body alone",
            &body("(drop (array.len (ref.null array)))"),
            Ends("guest_trap"),
        ),
        module("a handler in a body alone", &body("(block (try_table (catch_all 0) (call $f)))"), Nothing),
        module(
            "all of Extism's functions and none used",
            &format!("(module {IMPORTS} (func (export \"run\")))"),
            Nothing,
        ),
    ]
}
