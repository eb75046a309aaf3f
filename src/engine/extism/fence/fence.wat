;; Stands between a plugin and extism's kernel. See `mod.rs`.
;;
;; The kernel keeps a header of 12 bytes in front of each block, in the memory that its `store` functions write to. Here
;; the bytes of headers are marked, one bit for each, in a memory of our own, and stores to them do nothing; nor do
;; those behind the last block, where the kernel looks for more headers and must find zeros.
(module
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "error_set" (func $error_set (param i64)))
  (import "extism:host/env" "length" (func $length (param i64) (result i64)))
  (import "extism:host/env" "load_u64" (func $load_u64 (param i64) (result i64)))
  (import "extism:host/env" "load_u8" (func $load_u8 (param i64) (result i32)))
  (import "extism:host/env" "store_u8" (func $store_u8 (param i64 i32)))
  (import "extism:host/env" "store_u64" (func $store_u64 (param i64 i64)))
  (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
  (import "extism:host/env" "reset" (func $reset))
  (import "evalpool:host" "outside" (func $outside))
  (import "evalpool:host" "written" (func $written (result i64)))

  (memory $marks 1)

  ;; Offsets of the kernel's memory that have a bit, less a few that a mark may reach beyond.
  (global $covered (mut i64) (i64.const 0x7ffc0))
  ;; Of the blocks that are marked, the last.
  (global $last (mut i64) (i64.const 77))
  ;; Where the last block that is known ends.
  (global $end (mut i64) (i64.const 77))

  (func $forget
    (memory.fill (i32.const 0) (i32.const 0) (i32.add (i32.wrap_i64 (i64.shr_u (global.get $last) (i64.const 3))) (i32.const 8)))
    (global.set $last (i64.const 77))
    (global.set $end (i64.const 77)))

  ;; This block of so many bytes exists: the twelve bytes before it are marked.
  (func $mark (param $block i64) (param $bytes i64)
    (local $at i32)
    (if (i64.lt_u (local.get $block) (i64.const 77)) (then (return)))
    (if (i64.gt_u (i64.add (local.get $block) (local.get $bytes)) (global.get $end))
      (then (global.set $end (i64.add (local.get $block) (local.get $bytes)))))
    ;; What is in front of the first block is never stored to.
    (if (i64.eq (local.get $block) (i64.const 77)) (then (return)))
    (if (i64.ge_u (local.get $block) (global.get $covered))
      (then (call $cover (local.get $block))))
    (if (i64.gt_u (local.get $block) (global.get $last))
      (then (global.set $last (local.get $block))))
    (local.set $at (i32.wrap_i64 (i64.shr_u (i64.sub (local.get $block) (i64.const 12)) (i64.const 3))))
    (i32.store (local.get $at)
      (i32.or (i32.load (local.get $at))
        (i32.shl (i32.const 0xfff) (i32.and (i32.sub (i32.wrap_i64 (local.get $block)) (i32.const 12)) (i32.const 7))))))

  (func $cover (param $block i64)
    (local $pages i32)
    (local.set $pages
      (i32.add (i32.const 1) (i32.wrap_i64 (i64.shr_u (i64.sub (local.get $block) (global.get $covered)) (i64.const 19)))))
    (if (i32.eq (memory.grow (local.get $pages)) (i32.const -1)) (then (unreachable)))
    (global.set $covered
      (i64.add (global.get $covered) (i64.shl (i64.extend_i32_u (local.get $pages)) (i64.const 19)))))

  ;; The marks of eight bytes.
  (func $marks (param $p i64) (result i32)
    (if (i64.ge_u (local.get $p) (global.get $covered)) (then (return (i32.const 0))))
    (i32.and (i32.const 0xff)
      (i32.shr_u (i32.load16_u (i32.wrap_i64 (i64.shr_u (local.get $p) (i64.const 3))))
        (i32.and (i32.wrap_i64 (local.get $p)) (i32.const 7)))))

  ;; Whether so many bytes from here on may be stored to; `$bits` has one for each.
  (func $may_store (param $p i64) (param $bytes i64) (param $bits i32) (result i32)
    (if (i64.lt_u (local.get $p) (i64.const 77)) (then (return (i32.const 0))))
    ;; `$end` is at least 77.
    (if (i64.gt_u (local.get $p) (i64.sub (global.get $end) (local.get $bytes))) (then (return (i32.const 0))))
    (i32.eqz (i32.and (call $marks (local.get $p)) (local.get $bits))))

  ;; A call begins: extism has reset its kernel, and the input, if there is any, is the first block.
  (func (export "begin")
    (call $forget)
    (call $mark (i64.const 77) (call $length (i64.const 77))))

  (func (export "reset")
    ;; The kernel forgets its blocks first, then clears what was in them, where it can be interrupted, and then the error:
    ;; which the host would look for among what is left.
    (call $error_set (i64.const 0))
    (call $reset)
    (call $forget))

  (func (export "alloc") (param $n i64) (result i64)
    (local $block i64)
    ;; More than there ever is, and what follows from it, the kernel does not reckon with.
    (if (i64.gt_u (local.get $n) (i64.const 0xfff00000)) (then (local.set $n (i64.const 0xfff00000))))
    (local.set $block (call $alloc (local.get $n)))
    (call $mark (local.get $block) (local.get $n))
    (local.get $block))

  (func (export "store_u8") (param $p i64) (param $x i32)
    (if (call $may_store (local.get $p) (i64.const 1) (i32.const 1))
      (then (call $store_u8 (local.get $p) (local.get $x)))))

  (func (export "store_u64") (param $p i64) (param $x i64)
    (if (call $may_store (local.get $p) (i64.const 8) (i32.const 0xff))
      (then (call $store_u64 (local.get $p) (local.get $x)))))

  (func (export "output_set") (param $p i64) (param $len i64)
    ;; The kernel's own check takes sums that are too large for 64 bits.
    (if (i64.gt_u (i64.or (local.get $p) (local.get $len)) (i64.const 0xffffffff)) (then (call $outside)))
    (call $output_set (local.get $p) (local.get $len)))

  ;; A function of the host has returned: the blocks that it made are marked.
  (func (export "returned")
    (local $block i64)
    (loop $next
      (if (i64.ne (local.tee $block (call $written)) (i64.const 0))
        (then (call $mark_block (local.get $block)) (br $next)))))

  ;; It has returned this, which may be a block.
  (func $mark_block (export "returned_value") (param $value i64)
    (local $bytes i64)
    (if (i64.ne (local.tee $bytes (call $length (local.get $value))) (i64.const 0))
      (then (call $mark (local.get $value) (local.get $bytes)))))

  ;; One has returned that may have made any number of blocks: all that there are are marked. A header is a byte that is
  ;; 1 or 2, and 0 where there is none; at 4, the size of its block.
  (func (export "returned_native")
    (local $header i64) (local $bytes i64)
    (local.set $header (i64.const 65))
    (loop $next
      (if (call $load_u8 (local.get $header))
        (then
          (local.set $bytes (i64.and (call $load_u64 (i64.add (local.get $header) (i64.const 4))) (i64.const 0xffffffff)))
          (local.set $header (i64.add (local.get $header) (i64.const 12)))
          (call $mark (local.get $header) (local.get $bytes))
          (local.set $header (i64.add (local.get $header) (local.get $bytes)))
          (br $next))))))
