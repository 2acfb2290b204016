"""Which TorchScript code is refused: what can do more than compute, or is written as no printer of code writes."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Operators that write, read or map files, or that run elsewhere; and what runs while an archive is being loaded.
_REFUSED = {
    **dict.fromkeys(("save", "from_file", "load_tensor"), "which reads or writes files"),
    **dict.fromkeys(("rpc_async", "rpc_sync", "rpc_remote"), "which runs on another machine"),
    **dict.fromkeys(("PythonOp", "IgnoredPythonOp"), "which runs Python"),
    "__setstate__": "which would run while it is loaded",
}
# Processes that talk to each other, debuggers and profilers.
_REFUSED_LIBRARIES = frozenset(
    "c10d _c10d_functional _c10d_functional_autograd symm_mem _dtensor dist rpc debugprims debug_mode_ops profiler "
    "inductor image".split()
)
# Libraries that only compute, with texts for modes and names of activations.
_KNOWN_LIBRARIES = frozenset(
    "aten prim prims quantized _quantized sparse mkldnn mkldnn_prepacked onednn mkl prepacked torchvision "
    "torch_ipex ipex ipex_prepack".split()
)
# Classes of C++ whose objects hold packed weights, and whose own __setstate__ does nothing but unpack them.
KNOWN_CLASSES = ("quantized", "rnn", "sparse", "mkldnn", "onednn", "xnnpack", "ipex_prepack")

_TOKEN = re.compile(
    r'(?P<space>[ \n]+)|(?P<text>"(?:[^"\\\n]|\\.)*")|(?P<name>[A-Za-z_]\w*)'
    r"|(?P<number>\d+(?:\.\d*)?(?:[eE][-+]?\d+)?j?)|(?P<mark>[-+*/%=<>!&|~@.,:;()\[\]{}^])",
    re.ASCII,
)


def why_refused(code: str) -> str | None:
    """Why the code of an archive is refused, or None.

    Every name is looked at, wherever it stands, because operators can be given other names and looked up by texts. So
    that this reads what TorchScript reads, anything that TorchScript's own printer does not write is refused too:
    comments, single quotes, texts behind each other, lines that go on in the next.

    Parameters
    ----------
    code
        The text of one ``code/**/*.py``.
    """
    tokens, stopped = _tokens(code)
    if stopped is not None:
        return f"has {stopped!r} in it, which TorchScript does not write"
    for place, token in enumerate(tokens):
        why = _why(token, tokens, place)
        if why:
            return why
    return None


def _tokens(code: str) -> tuple[list[str], str | None]:
    tokens, place = [], 0
    while place < len(code):
        found = _TOKEN.match(code, place)
        if found is None:
            return tokens, code[place]
        if found.lastgroup != "space":
            tokens.append(found[0])
        place = found.end()
    return tokens, None


def _why(token: str, tokens: Sequence[str], place: int) -> str | None:
    before, after = tokens[place - 1] if place else "", tokens[place + 1 : place + 7]
    if token in _REFUSED:
        return f"names {token!r}, {_REFUSED[token]}"
    if token[0] == '"' and before[:1] == '"':
        return "has two texts behind each other, which TorchScript does not write"
    if token == "getattr" and before != ".":
        return _why_looked_up(tokens, place + 1)
    if token == "ops" and before != ".":
        return _why_operator(after)
    if token == "__torch__":
        return _why_class(after)
    return None


def _why_looked_up(tokens: Sequence[str], place: int) -> str | None:
    """Why an attribute that is looked up by a text is refused, or None."""
    depth, last = 0, place
    for last in range(place, len(tokens)):
        depth += {"(": 1, ")": -1}.get(tokens[last], 0)
        if depth <= 0:
            break
    text = tokens[last - 1]
    if tokens[place : place + 1] != ["("] or text[0] != '"' or "\\" in text:
        return "looks up an attribute whose name cannot be seen"
    name = text.strip('"')
    return f"looks up {name!r}, {_REFUSED[name]}" if name in _REFUSED else None


def _why_operator(after: Sequence[str]) -> str | None:
    if len(after) < 4 or (after[0], after[2]) != (".", "."):
        return "gives a library of operators another name"
    library, operator = after[1], after[3]
    if library in _KNOWN_LIBRARIES:
        return None
    if library in _REFUSED_LIBRARIES or _takes_texts(f"{library}::{operator}"):
        return f"calls {library}::{operator}, which may do more than compute"
    return None


def _takes_texts(operator: str) -> bool:
    """Whether an operator that somebody has registered could be given the name of a file, or an address."""
    import torch

    schemas = torch._C._jit_get_schemas_for_operator(operator)
    return any("str" in str(argument.type) for schema in schemas for argument in schema.arguments)


def _why_class(after: Sequence[str]) -> str | None:
    if len(after) < 2 or after[0] != ".":
        return "gives its classes another name"
    if after[1] != "torch":
        return None
    if len(after) < 4 or after[2] != ".":
        return "gives classes of C++ another name"
    if after[3] == "classes" and (len(after) < 6 or after[5] not in KNOWN_CLASSES):
        return f"uses the class of C++ {''.join(after[1:])!r}"
    return None
