// A plugin as a customer would write it in AssemblyScript, with the official PDK.

import { Config, Host, Memory, Var } from "@extism/as-pdk";
// The PDK's `Host` cannot set an error; this is the import underneath.
import { error_set } from "@extism/as-pdk/lib/env";

const OK: i32 = 0;
const FAILED: i32 = 1;

// `--use abort=words/trap` puts this in place of the import `env.abort`, which Extism hosts do not
// have. The compiler traps after every call of it. Build without that option, and this function
// is left out and the import is in: that is `no_abort.wasm`.
function trap(message: string | null, file: string | null, line: u32, column: u32): void {}

function bytes(text: string): Uint8Array {
  return Uint8Array.wrap(String.UTF8.encode(text));
}

// Not `Host.outputString`: that counts UTF-16 units and writes UTF-8 bytes, so the end of any text
// beyond ASCII is lost.
function output(text: string): i32 {
  Host.output(bytes(text));
  return OK;
}

function fail(message: string): i32 {
  error_set(Memory.allocateString(message).offset);
  return FAILED;
}

function isSpace(unit: i32): bool {
  return unit == 0x20 || (unit >= 0x09 && unit <= 0x0d);
}

// A JSON string: in quotes, with what JSON forbids in them escaped.
function quoted(text: string): string {
  let out = '"';
  for (let i = 0; i < text.length; i++) {
    const unit = text.charCodeAt(i);
    if (unit == 0x22 || unit == 0x5c) {
      out += "\\" + text.charAt(i);
    } else if (unit < 0x20) {
      out += "\\u" + unit.toString(16).padStart(4, "0");
    } else {
      out += text.charAt(i);
    }
  }
  return out + '"';
}

// Counts the words between white space and names the longest; of several, the first. Length is in
// UTF-16 units, as AssemblyScript counts.
export function word_count(): i32 {
  const text = Host.inputString();
  let words = 0;
  let longest = "";
  let start = 0;
  for (let i = 0; i <= text.length; i++) {
    if (i < text.length && !isSpace(text.charCodeAt(i))) continue;
    if (i > start) {
      words++;
      if (i - start > longest.length) longest = text.substring(start, i);
    }
    start = i + 1;
  }
  return output('{"words":' + words.toString() + ',"longest":' + quoted(longest) + "}");
}

// Appends its input to what this instance was told before, and gives back all of it. The log is
// kept in an Extism variable, as bytes, so that a character may come in two halves.
export function remember(): i32 {
  let log = Host.input();
  const before = Var.get("log");
  if (before !== null) {
    const added = log;
    log = new Uint8Array(before.length + added.length);
    log.set<Uint8Array>(before);
    log.set(added, before.length);
  }
  Var.set("log", log);
  Host.output(log);
  return OK;
}

// Gives the config value whose key is the input. To the PDK an empty value is one that is not set.
export function setting(): i32 {
  const key = Host.inputString();
  const value = Config.get(key);
  if (value === null) return fail("no setting " + quoted(key));
  return output(value);
}
