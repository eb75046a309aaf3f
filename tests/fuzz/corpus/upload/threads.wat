(module (memory 1 2 shared) (func (export "run")))
