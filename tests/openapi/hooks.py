"""What schemathesis cannot make up: plugins. Most are real ones, so that there are evaluators to call, change and remove."""

from pathlib import Path

import schemathesis
from hypothesis import strategies as st

FOLDER = Path(__file__).parent.parent / "plugins" / "wat"
PLUGINS = [(FOLDER / f"{name}.wasm").read_bytes() for name in ("mirror", "fetch")]

plugin = st.one_of(st.sampled_from(PLUGINS), st.sampled_from(PLUGINS), st.binary(max_size=64))
for kind in ("application/wasm", "application/octet-stream"):
    schemathesis.openapi.media_type(kind, plugin)
