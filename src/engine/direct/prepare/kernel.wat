;; The part of Extism's kernel that guests call for every byte: loads and stores with their bounds, and where input,
;; output and error are. What a guest calls a few times in an evaluation (alloc, free, length, reset) is host code: see
;; `kernel.rs`. Offsets and bounds are those of Extism's own kernel: a root of 64 bytes, which guests cannot reach, then
;; blocks. In the root: input at 8, its length at 16, output at 24, its length at 32, error at 40.
;;
;; A load of what a guest may not reach gives 0, a store to it does nothing. A range may begin and end at 65 to the end of
;; the memory. Functions call no other, and use nothing but the one memory: they are copied into the plugins, see `link.rs`.
(module
  (memory (export "memory") 1)

  (func (export "load_u8") (param $p i64) (result i32)
    ;; From 64 to the end of the memory, as one comparison.
    (if (i64.lt_u (i64.sub (local.get $p) (i64.const 64))
          (i64.sub (i64.shl (i64.extend_i32_u (memory.size)) (i64.const 16)) (i64.const 64)))
      (then (return (i32.load8_u (i32.wrap_i64 (local.get $p))))))
    (i32.const 0))

  (func (export "load_u64") (param $p i64) (result i64)
    (if (i64.lt_u (i64.sub (local.get $p) (i64.const 57))
          (i64.sub (i64.shl (i64.extend_i32_u (memory.size)) (i64.const 16)) (i64.const 64)))
      (then (return (i64.load (i32.wrap_i64 (local.get $p))))))
    (i64.const 0))

  (func (export "store_u8") (param $p i64) (param $x i32)
    (if (i64.lt_u (i64.sub (local.get $p) (i64.const 64))
          (i64.sub (i64.shl (i64.extend_i32_u (memory.size)) (i64.const 16)) (i64.const 64)))
      (then (i32.store8 (i32.wrap_i64 (local.get $p)) (local.get $x)))))

  (func (export "store_u64") (param $p i64) (param $x i64)
    (if (i64.lt_u (i64.sub (local.get $p) (i64.const 57))
          (i64.sub (i64.shl (i64.extend_i32_u (memory.size)) (i64.const 16)) (i64.const 64)))
      (then (i64.store (i32.wrap_i64 (local.get $p)) (local.get $x)))))

  (func (export "input_load_u8") (param $at i64) (result i32)
    (if (i64.lt_u (local.get $at) (i64.load (i32.const 16)))
      (then (return (i32.load8_u (i32.wrap_i64 (i64.add (i64.load (i32.const 8)) (local.get $at)))))))
    (i32.const 0))

  (func (export "input_load_u64") (param $at i64) (result i64)
    ;; Without the first condition, an offset just below 0 would wrap around and read what lies in front of the input.
    (if (i32.and (i64.lt_u (local.get $at) (i64.load (i32.const 16)))
          (i64.le_u (i64.add (local.get $at) (i64.const 8)) (i64.load (i32.const 16))))
      (then (return (i64.load (i32.wrap_i64 (i64.add (i64.load (i32.const 8)) (local.get $at)))))))
    (i64.const 0))

  (func (export "input_set") (param $p i64) (param $len i64)
    (if (i32.and
          (i64.le_u (i64.sub (local.get $p) (i64.const 65))
            (i64.sub (i64.shl (i64.extend_i32_u (memory.size)) (i64.const 16)) (i64.const 65)))
          (i64.le_u (i64.sub (i64.add (local.get $p) (local.get $len)) (i64.const 66))
            (i64.sub (i64.shl (i64.extend_i32_u (memory.size)) (i64.const 16)) (i64.const 65))))
      (then (i64.store (i32.const 8) (local.get $p)) (i64.store (i32.const 16) (local.get $len)))))

  (func (export "output_set") (param $p i64) (param $len i64)
    (if (i32.and
          (i64.le_u (i64.sub (local.get $p) (i64.const 65))
            (i64.sub (i64.shl (i64.extend_i32_u (memory.size)) (i64.const 16)) (i64.const 65)))
          (i64.le_u (i64.sub (i64.add (local.get $p) (local.get $len)) (i64.const 66))
            (i64.sub (i64.shl (i64.extend_i32_u (memory.size)) (i64.const 16)) (i64.const 65))))
      (then (i64.store (i32.const 24) (local.get $p)) (i64.store (i32.const 32) (local.get $len)))))

  (func (export "error_set") (param $p i64)
    (if (i32.or (i64.eqz (local.get $p))
          (i64.le_u (i64.sub (local.get $p) (i64.const 65))
            (i64.sub (i64.shl (i64.extend_i32_u (memory.size)) (i64.const 16)) (i64.const 65))))
      (then (i64.store (i32.const 40) (local.get $p)))))

  (func (export "input_length") (result i64) (i64.load (i32.const 16)))
  (func (export "input_offset") (result i64) (i64.load (i32.const 8)))
  (func (export "output_length") (result i64) (i64.load (i32.const 32)))
  (func (export "output_offset") (result i64) (i64.load (i32.const 24)))
  (func (export "error_get") (result i64) (i64.load (i32.const 40)))
  (func (export "memory_bytes") (result i64)
    (i64.sub (i64.shl (i64.extend_i32_u (memory.size)) (i64.const 16)) (i64.const 64))))
