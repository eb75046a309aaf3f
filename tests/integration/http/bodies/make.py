"""Makes the bodies beside it. Needs the package `brotli` and the program `zstd`.

`colours.*` are the word `colour ` a thousand times; `numbers.br` is each number below 20,000 on a line. `bomb.br` is
1 GiB of zeros, `bomb.zst` 64 MiB of them, `bomb.gz` 1 MiB."""

import gzip
import pathlib
import subprocess
import zlib

import brotli

here = pathlib.Path(__file__).parent
colours = b"colour " * 1000


def zstd(data, *options):
    return subprocess.run(["zstd", "-q", "-c", *options], input=data, stdout=subprocess.PIPE, check=True).stdout


def brotli_zeros(count):
    compressor = brotli.Compressor(quality=5, lgwin=24)
    parts = [compressor.process(bytes(1 << 20)) for _ in range(count >> 20)]
    return b"".join([*parts, compressor.finish()])


raw = zlib.compressobj(9, wbits=-15)
half = len(colours) // 2
skipped = bytes.fromhex("502a4d18") + (3).to_bytes(4, "little") + b"any"
for name, body in {
    "colours.gz": gzip.compress(colours, mtime=0),
    # Two members, one after another.
    "members.gz": gzip.compress(colours[:half], mtime=0) + gzip.compress(colours[half:], mtime=0),
    "colours.zlib": zlib.compress(colours, 9),
    "colours.deflate": raw.compress(colours) + raw.flush(),
    "colours.br": brotli.compress(colours),
    "numbers.br": brotli.compress("".join(f"{number}\n" for number in range(20_000)).encode()),
    "colours.zst": zstd(colours),
    # Two frames with one between that is to be skipped.
    "frames.zst": zstd(colours[:half]) + skipped + zstd(colours[half:], "--no-check"),
    "bomb.gz": gzip.compress(bytes(1 << 20), mtime=0),
    "bomb.br": brotli_zeros(1 << 30),
    "bomb.zst": zstd(bytes(1 << 26), "--no-check"),
}.items():
    (here / name).write_bytes(body)
