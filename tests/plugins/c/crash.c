// A freestanding C plugin that writes to WASI's standard streams, and fails in several ways. Its
// functions keep their names.

#include <stdint.h>

#define HOST(name) __attribute__((import_module("extism:host/env"), import_name(#name))) extern
#define WASI(name) __attribute__((import_module("wasi_snapshot_preview1"), import_name(#name))) extern
#define EXPORT(name) __attribute__((export_name(#name))) int32_t name(void)
#define KEPT __attribute__((noinline))

struct part {
    const void *bytes;
    uint32_t length;
};

HOST(input_length) uint64_t input_length(void);
HOST(input_load_u8) uint8_t input_load_u8(uint64_t index);
WASI(fd_write) int32_t fd_write(int32_t file, const struct part *parts, uint32_t count, uint32_t *written);
WASI(proc_exit) _Noreturn void proc_exit(int32_t code);

enum { OUT = 1, ERR = 2 };

static KEPT void write_bytes(int32_t file, const char *bytes, uint32_t length) {
    struct part part = {bytes, length};
    uint32_t written;
    fd_write(file, &part, 1, &written);
}

static void write_text(int32_t file, const char *text) {
    uint32_t length = 0;
    while (text[length]) length++;
    write_bytes(file, text, length);
}

static void write_input(int32_t file) {
    char bytes[64];
    uint32_t length = input_length() < sizeof bytes ? (uint32_t)input_length() : sizeof bytes;
    for (uint32_t at = 0; at < length; at++) bytes[at] = (char)input_load_u8(at);
    write_bytes(file, bytes, length);
}

// Greets on both streams.
EXPORT(say) {
    write_text(OUT, "out: ");
    write_input(OUT);
    write_text(OUT, "\n");
    write_text(ERR, "err: ");
    write_input(ERR);
    write_text(ERR, "\n");
    return 0;
}

static KEPT void give_up(const char *why) {
    write_text(ERR, why);
    write_input(ERR);
    write_text(ERR, "\n");
    __builtin_trap();
}

static KEPT void check_order(void) {
    give_up("no such order: ");
}

// Says why it gives up, as a failed assertion does, and traps.
EXPORT(crash) {
    check_order();
    return 0;
}

// The same, but exits.
EXPORT(leave) {
    write_text(ERR, "leaving\n");
    proc_exit(3);
}

// Says where it is and never returns.
EXPORT(hang) {
    write_text(ERR, "waiting\n");
    for (volatile uint32_t spins = 0;; spins++) {
    }
}

// Writes 64 KiB before it gives up.
EXPORT(chatter) {
    char bytes[1024];
    for (uint32_t at = 0; at < sizeof bytes; at++) bytes[at] = '.';
    write_text(ERR, "first\n");
    for (uint32_t round = 0; round < 64; round++) write_bytes(ERR, bytes, sizeof bytes);
    give_up("last: ");
    return 0;
}
