(module (memory (export "memory") 1) (func (export "run")))
---
0 0aAb1cB