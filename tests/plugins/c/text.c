// A small real plugin in freestanding C, against Extism's guest ABI.

#include <stdbool.h>
#include <stdint.h>

// An offset into Extism's memory, where input and output live. It is not a pointer: this module's
// own memory is another one.
typedef uint64_t offset;

#define HOST(name) __attribute__((import_module("extism:host/env"), import_name(#name))) extern
#define EXPORT(name) __attribute__((export_name(#name))) int32_t name(void)

HOST(input_length) uint64_t input_length(void);
HOST(input_load_u8) uint8_t input_load_u8(uint64_t index);
HOST(alloc) offset alloc(uint64_t length);
HOST(store_u8) void store_u8(offset at, uint8_t byte);
HOST(output_set) void output_set(offset start, uint64_t length);
HOST(error_set) void error_set(offset message);

// What an entry point returns: anything but zero is a failure to the host.
enum { OK = 0, FAILED = 1 };

// The kernel answers 0 for no bytes, and also when it has no memory left.
static offset alloc_or_trap(uint64_t length) {
    offset start = alloc(length);
    if (start == 0 && length > 0) __builtin_trap();
    return start;
}

static offset put(offset at, const char *text) {
    while (*text) store_u8(at++, (uint8_t)*text++);
    return at;
}

static uint64_t length_of(const char *text) {
    uint64_t length = 0;
    while (text[length]) length++;
    return length;
}

// The output is `before`, the number in decimal, `after`.
static void output_number(const char *before, uint64_t number, const char *after) {
    char digits[21]; // 2^64 - 1 has twenty, and the terminating zero.
    char *first = digits + sizeof digits - 1;
    *first = '\0';
    do {
        *--first = (char)('0' + number % 10);
        number /= 10;
    } while (number > 0);

    uint64_t length = length_of(before) + length_of(first) + length_of(after);
    offset output = alloc_or_trap(length);
    put(put(put(output, before), first), after);
    output_set(output, length);
}

// The input in capitals. Only ASCII changes, so UTF-8 stays UTF-8.
EXPORT(upper) {
    uint64_t length = input_length();
    offset output = alloc_or_trap(length);
    for (uint64_t i = 0; i < length; i++) {
        uint8_t byte = input_load_u8(i);
        if (byte >= 'a' && byte <= 'z') byte -= 'a' - 'A';
        store_u8(output + i, byte);
    }
    output_set(output, length);
    return OK;
}

static bool is_vowel(uint8_t byte) {
    switch (byte | 0x20) { // Lower case, for a letter; no other byte becomes one of these.
    case 'a':
    case 'e':
    case 'i':
    case 'o':
    case 'u':
        return true;
    default:
        return false;
    }
}

EXPORT(count_vowels) {
    uint64_t length = input_length();
    uint64_t count = 0;
    for (uint64_t i = 0; i < length; i++) count += is_vowel(input_load_u8(i));
    output_number("{\"count\":", count, "}");
    return OK;
}

// Fails with the input as its message.
EXPORT(fail) {
    uint64_t length = input_length();
    offset message = alloc_or_trap(length);
    for (uint64_t i = 0; i < length; i++) store_u8(message + i, input_load_u8(i));
    error_set(message);
    return FAILED;
}

// How often this instance was asked, this time included. The answer is 1 every time if and only if
// every call gets an instance of its own.
EXPORT(counter) {
    static uint64_t calls = 0;
    output_number("", ++calls, "");
    return OK;
}
