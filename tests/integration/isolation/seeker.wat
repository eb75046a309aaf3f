;; Leaves a mark wherever it can, and looks for the marks of others wherever it can read. A mark is eight letters, of
;; which the last four are SEEK. The input is a command and the evaluation's own mark, which may be repeated: input that
;; stays behind is a mark as well. Comes after the imports and functions of `support/imports.wat`.

(global $here (mut i64) (i64.const 0))
(global $there (mut i64) (i64.const 0))
(table $t 10 funcref)
(data $d "once")
(elem $e func $digits)

;; Whether a word is a mark, and not the own one.
(func $other (param $word i64) (param $own i64) (result i32)
  (i32.and
    (i64.eq (i64.shr_u (local.get $word) (i64.const 32)) (i64.const 0x4b454553))
    (i64.ne (local.get $word) (local.get $own))))

(func $all_pages
  (if (i32.lt_u (memory.size) (i32.const 100))
    (then (drop (memory.grow (i32.sub (i32.const 100) (memory.size)))))))

;; What is found, a bit for each place.
(func $look (param $own i64) (result i64)
  (local $found i64) (local $p i64) (local $end i64) (local $i i32)
  ;; 64: output or an error that nobody has set yet.
  (if (i64.ne (i64.or (i64.or (call $output_offset) (call $output_length)) (call $error_get)) (i64.const 0))
    (then (local.set $found (i64.const 64))))
  ;; 128: more input than there is.
  (local.set $p (i64.add (call $input_length) (i64.const -8)))
  (loop $each
    (if (call $other (call $input64 (local.get $p)) (local.get $own))
      (then (local.set $found (i64.or (local.get $found) (i64.const 128)))))
    (br_if $each (i64.lt_u (local.tee $p (i64.add (local.get $p) (i64.const 1))) (i64.const 20000))))
  ;; 1: more memory than a new instance has. 2: a mark in it.
  (if (i32.ne (memory.size) (i32.const 1))
    (then (local.set $found (i64.or (local.get $found) (i64.const 1)))))
  (call $all_pages)
  (local.set $i (i32.const 64))
  (loop $each
    (if (call $other (i64.load (local.get $i)) (local.get $own))
      (then (local.set $found (i64.or (local.get $found) (i64.const 2)))))
    (br_if $each (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 8))) (i32.const 6553600))))
  ;; 4: globals.
  (if (i32.or (call $other (global.get $here) (local.get $own)) (call $other (global.get $there) (local.get $own)))
    (then (local.set $found (i64.or (local.get $found) (i64.const 4)))))
  ;; 8: a table that has grown, or holds something.
  (if (i32.ne (table.size $t) (i32.const 10))
    (then (local.set $found (i64.or (local.get $found) (i64.const 8)))))
  (local.set $i (i32.const 0))
  (loop $each
    (if (i32.eqz (ref.is_null (table.get $t (local.get $i))))
      (then (local.set $found (i64.or (local.get $found) (i64.const 8)))))
    (br_if $each (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (table.size $t))))
  ;; 16: the kernel's memory, in new blocks and outside of all blocks, at every offset.
  (local.set $i (i32.const 0))
  (loop $each
    (drop (call $alloc (i64.const 60000)))
    (br_if $each (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 6))))
  (local.set $p (i64.const 72))
  (local.set $end (call $memory_bytes))
  (loop $each
    (if (call $other (call $load64 (local.get $p)) (local.get $own))
      (then (local.set $found (i64.or (local.get $found) (i64.const 16)))))
    (br_if $each (i64.lt_u (local.tee $p (i64.add (local.get $p) (i64.const 1))) (local.get $end))))
  ;; 32: variables.
  (local.set $p (call $var_get (call $colour)))
  (if (i32.and (i64.ne (local.get $p) (i64.const 0)) (call $other (call $load64 (local.get $p)) (local.get $own)))
    (then (local.set $found (i64.or (local.get $found) (i64.const 32)))))
  ;; 256: the answer to a request of somebody else's.
  (if (i32.or (i32.ne (call $status) (i32.const 0)) (i64.gt_u (call $length (call $headers)) (i64.const 2)))
    (then (local.set $found (i64.or (local.get $found) (i64.const 256)))))
  (local.get $found))

;; A block full of marks.
(func $marked (param $own i64) (result i64) (local $p i64) (local $at i64)
  (local.set $p (call $alloc (i64.const 60000)))
  (loop $each
    (call $store64 (i64.add (local.get $p) (local.get $at)) (local.get $own))
    (br_if $each (i64.lt_u (local.tee $at (i64.add (local.get $at) (i64.const 8))) (i64.const 60000))))
  (local.get $p))

(func $mark (param $own i64) (local $i i32)
  (call $all_pages)
  (local.set $i (i32.const 64))
  (loop $each
    (i64.store (local.get $i) (local.get $own))
    (br_if $each (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 8))) (i32.const 6553600))))
  (global.set $here (local.get $own))
  (global.set $there (local.get $own))
  (drop (table.grow $t (ref.func $digits) (i32.const 1000)))
  (table.fill $t (i32.const 0) (ref.func $digits) (table.size $t))
  (data.drop $d)
  (elem.drop $e)
  (call $var_set (call $colour) (call $marked (local.get $own)))
  ;; Some blocks are freed and some are left.
  (call $free (call $marked (local.get $own)))
  (drop (call $marked (local.get $own)))
  (call $free (call $marked (local.get $own)))
  (drop (call $marked (local.get $own)))
  (call $error_set (call $marked (local.get $own)))
  (call $error_set (i64.const 0))
  (call $output_set (call $marked (local.get $own)) (i64.const 60000)))

(func (export "run") (result i32) (local $command i32) (local $own i64) (local $found i64)
  (local.set $command (call $input8 (i64.const 0)))
  (local.set $own (call $input64 (i64.const 1)))
  ;; {: a request. c: whose it is.
  (if (i32.eq (local.get $command) (i32.const 0x7b))
    (then (call $echo) (drop (call $http (call $output_offset) (i64.const 0))) (return (i32.const 0))))
  (if (i32.eq (local.get $command) (i32.const 0x63))
    (then (call $block (call $config_get (call $shape))) (return (i32.const 0))))
  ;; n: as a new instance, whose segments are whole; l: looks only; o: looks and marks.
  (if (i32.eq (local.get $command) (i32.const 0x6e))
    (then
      (memory.init $d (i32.const 32) (i32.const 0) (i32.const 4))
      (table.init $t $e (i32.const 0) (i32.const 0) (i32.const 1))
      (table.set $t (i32.const 0) (ref.null func))))
  (local.set $found (call $look (local.get $own)))
  (if (i32.ne (local.get $command) (i32.const 0x6c))
    (then (call $mark (local.get $own))))
  ;; Endings: t traps, e gives a code, x exits, s says that it is there and never ends.
  (if (i32.eq (local.get $command) (i32.const 0x74)) (then unreachable))
  (if (i32.eq (local.get $command) (i32.const 0x65)) (then (return (i32.const 3))))
  (if (i32.eq (local.get $command) (i32.const 0x78)) (then (call $exit (i32.const 1))))
  (if (i32.eq (local.get $command) (i32.const 0x73)) (then (call $reached) (loop (br 0))))
  (call $out (local.get $found))
  (i32.const 0))
