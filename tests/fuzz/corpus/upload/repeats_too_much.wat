(module (func (export "run") [99999 [99999 (nop)]]))
