// The built-in plugin: `greet` turns {"name":"Ada"} into {"greeting":"Hello, Ada!"}.
//
// Freestanding C against Extism's guest ABI. It is meant to be small, so that a measurement made
// with it measures the pool, and to be safe to call with any bytes: it keeps no state, uses a few
// bytes of stack however deep the input nests, and touches the input only below its length.
//
// `tests/plugins/build.sh` builds it.

#include <stdbool.h>
#include <stdint.h>

// An offset into Extism's memory, where input and output live. It is not a pointer: this module's
// own memory is another one.
typedef uint64_t offset;

#define HOST(name) __attribute__((import_module("extism:host/env"), import_name(#name))) extern

HOST(input_length) uint64_t input_length(void);
HOST(input_load_u8) uint8_t input_load_u8(uint64_t index);
HOST(alloc) offset alloc(uint64_t length);
HOST(store_u8) void store_u8(offset at, uint8_t byte);
HOST(output_set) void output_set(offset start, uint64_t length);
HOST(error_set) void error_set(offset message);

// ---- Reading the input ----

enum { END = -1 };

struct cursor {
    uint64_t at;
    uint64_t end;
};

// Part of the input, from `start` up to but not including `end`.
struct span {
    uint64_t start;
    uint64_t end;
};

static int peek(const struct cursor *c) {
    return c->at < c->end ? input_load_u8(c->at) : END;
}

static int next(struct cursor *c) {
    int byte = peek(c);
    if (byte != END) c->at++;
    return byte;
}

static bool eat(struct cursor *c, int wanted) {
    if (peek(c) != wanted) return false;
    c->at++;
    return true;
}

static void skip_space(struct cursor *c) {
    while (eat(c, ' ') || eat(c, '\t') || eat(c, '\n') || eat(c, '\r')) {
    }
}

// Four hexadecimal digits, or -1.
static int hex4(struct cursor *c) {
    int value = 0;
    for (int i = 0; i < 4; i++) {
        int byte = next(c);
        int digit;
        if (byte >= '0' && byte <= '9') digit = byte - '0';
        else if (byte >= 'a' && byte <= 'f') digit = byte - 'a' + 10;
        else if (byte >= 'A' && byte <= 'F') digit = byte - 'A' + 10;
        else return -1;
        value = value * 16 + digit;
    }
    return value;
}

// ---- Finding the name ----
//
// The object's own level is read strictly. The values of other members are skipped, not judged:
// telling `{` from `[` inside them would take a stack as deep as the input wants, and nothing of
// them reaches the output.

// Reads a string and gives what stands between its quotes, escapes and all.
static bool string(struct cursor *c, struct span *content) {
    if (!eat(c, '"')) return false;
    content->start = c->at;
    for (;;) {
        int byte = next(c);
        if (byte == END) return false;
        if (byte == '"') break;
        if (byte == '\\') next(c); // An escaped quote does not end the string.
    }
    content->end = c->at - 1;
    return true;
}

static bool skip_nested(struct cursor *c) {
    struct span ignored;
    uint64_t depth = 0;
    do {
        switch (peek(c)) {
        case END:
            return false;
        case '"': // Brackets inside a string do not count.
            if (!string(c, &ignored)) return false;
            continue;
        case '{':
        case '[':
            depth++;
            break;
        case '}':
        case ']':
            depth--;
            break;
        }
        c->at++;
    } while (depth > 0);
    return true;
}

// A number, `true`, `false` or `null`.
static bool skip_scalar(struct cursor *c) {
    uint64_t start = c->at;
    for (;;) {
        int byte = peek(c);
        bool part = (byte >= '0' && byte <= '9') || (byte >= 'a' && byte <= 'z') ||
                    (byte >= 'A' && byte <= 'Z') || byte == '-' || byte == '+' || byte == '.';
        if (!part) return c->at > start;
        c->at++;
    }
}

static bool skip_value(struct cursor *c) {
    struct span ignored;
    switch (peek(c)) {
    case '"':
        return string(c, &ignored);
    case '{':
    case '[':
        return skip_nested(c);
    default:
        return skip_scalar(c);
    }
}

// Whether a key reads "name" once its escapes are undone: "n\u0061me" is the same key.
static bool is_name(struct span key) {
    struct cursor c = {key.start, key.end};
    for (const char *wanted = "name"; *wanted; wanted++) {
        int unit = next(&c);
        // No other kind of escape stands for a letter.
        if (unit == '\\') unit = next(&c) == 'u' ? hex4(&c) : -1;
        if (unit != *wanted) return false;
    }
    return c.at == c.end;
}

// Of several members called "name" the last one counts, as in most readers of JSON.
static bool find_name(struct span *name) {
    struct cursor c = {0, input_length()};
    bool found = false;
    skip_space(&c);
    if (!eat(&c, '{')) return false;
    do {
        struct span key;
        skip_space(&c);
        if (!string(&c, &key)) return false;
        skip_space(&c);
        if (!eat(&c, ':')) return false;
        skip_space(&c);
        if (is_name(key)) {
            if (!string(&c, name)) return false;
            found = true;
        } else if (!skip_value(&c)) {
            return false;
        }
        skip_space(&c);
    } while (eat(&c, ','));
    if (!eat(&c, '}')) return false;
    skip_space(&c);
    return found && c.at == c.end;
}

// ---- Judging the name ----
//
// The name is copied byte for byte, so the output is valid JSON only if the name is.

// The rest of an escape, after the backslash.
static bool valid_escape(struct cursor *c) {
    switch (next(c)) {
    case '"':
    case '\\':
    case '/':
    case 'b':
    case 'f':
    case 'n':
    case 'r':
    case 't':
        return true;
    case 'u':
        break;
    default:
        return false;
    }
    int unit = hex4(c);
    if (unit < 0xD800 || unit > 0xDFFF) return unit >= 0;
    // Half of a surrogate pair: the other half must follow. Most readers refuse it alone.
    if (unit > 0xDBFF || next(c) != '\\' || next(c) != 'u') return false;
    unit = hex4(c);
    return unit >= 0xDC00 && unit <= 0xDFFF;
}

// The rest of a UTF-8 sequence, after its first byte: no overlong form, no surrogate, nothing
// above U+10FFFF.
static bool valid_utf8(struct cursor *c, int first) {
    int more, low = 0x80, high = 0xBF;
    if (first < 0xC2) return false;
    else if (first <= 0xDF) more = 1;
    else if (first <= 0xEF) more = 2;
    else if (first <= 0xF4) more = 3;
    else return false;
    if (first == 0xE0) low = 0xA0;
    if (first == 0xED) high = 0x9F;
    if (first == 0xF0) low = 0x90;
    if (first == 0xF4) high = 0x8F;
    for (; more > 0; more--) {
        int byte = next(c);
        if (byte < low || byte > high) return false;
        low = 0x80, high = 0xBF; // Only the second byte's range depends on the first.
    }
    return true;
}

static bool valid_text(struct span text) {
    struct cursor c = {text.start, text.end};
    while (c.at < c.end) {
        int byte = next(&c);
        if (byte < 0x20) return false;
        if (byte == '\\' && !valid_escape(&c)) return false;
        if (byte >= 0x80 && !valid_utf8(&c, byte)) return false;
    }
    return true;
}

// ---- Answering ----

// Where the kernel is out of memory there is none for a message either.
static offset alloc_or_trap(uint64_t length) {
    offset start = alloc(length);
    if (start == 0) __builtin_trap();
    return start;
}

static offset put(offset at, const char *text) {
    while (*text) store_u8(at++, (uint8_t)*text++);
    return at;
}

static const char OPEN[] = "{\"greeting\":\"Hello, ";
static const char CLOSE[] = "!\"}";
static const char REFUSAL[] = "input must be a JSON object with a string member \"name\"";

__attribute__((export_name("greet"))) int32_t greet(void) {
    struct span name;
    if (!find_name(&name) || !valid_text(name)) {
        offset message = alloc_or_trap(sizeof REFUSAL - 1);
        put(message, REFUSAL);
        error_set(message);
        return 1;
    }
    uint64_t length = sizeof OPEN - 1 + (name.end - name.start) + sizeof CLOSE - 1;
    offset output = alloc_or_trap(length);
    offset at = put(output, OPEN);
    for (uint64_t i = name.start; i < name.end; i++) store_u8(at++, input_load_u8(i));
    put(at, CLOSE);
    output_set(output, length);
    return 0;
}
