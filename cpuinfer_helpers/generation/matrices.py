"""The matrices of an OpenVINO model: what multiplies with them or looks them up, and how they are stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# Between a constant and who reads it: what unpacks it, and what turns it.
_UNPACKING = ("Convert", "Multiply", "Reshape", "Subtract", "Transpose")
_FLOATS = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
DTYPES = {**_FLOATS, "u8": "uint8", "i8": "int8", "u4": "uint4", "i4": "int4"}


@dataclass(frozen=True)
class Matrix:
    """A matrix that an operation reads.

    Attributes
    ----------
    reader
        The operation's name, which has the path of the module that it comes from in it.
    looked_up
        Whether rows of it are looked up, as in an embedding; False where something is multiplied with it.
    dtype
        In which it is stored, as PyTorch calls it.
    constants
        The bytes of each constant that it is made of, scales among them, by the constant's name.
    """

    reader: str
    looked_up: bool
    dtype: str
    constants: dict[str, int]

    @property
    def packed(self) -> bool:
        """Whether it is stored in 8 or 4 bits."""
        return "int" in self.dtype


def matrices_of(converted: Any) -> list[Matrix]:
    """The matrices of linear layers and embeddings, one for each operation that reads it.

    Parameters
    ----------
    converted
        An ``openvino.Model``.
    """
    return [found for node in converted.get_ordered_ops() for found in _matrices_read_by(node)]


def bytes_read(converted: Any) -> int:
    """Bytes of all constants that computing a token reads: none of those that are only looked up, the others once."""
    matrices = matrices_of(converted)
    looked_up = {name for one in matrices if one.looked_up for name in one.constants}
    multiplied = {name for one in matrices if not one.looked_up for name in one.constants}
    constants = [node for node in converted.get_ops() if node.get_type_name() == "Constant"]
    left_out = looked_up - multiplied
    return sum(node.get_byte_size() for node in constants if node.get_name() not in left_out)


def comes_from(reader: str, path: str) -> bool:
    """Whether an operation comes from a module of the model, given by its path, or of one within it."""
    return f"__module.model.{path}/" in reader or f"__module.model.{path}." in reader


def _matrices_read_by(node: Any) -> Iterator[Matrix]:
    kind = node.get_type_name()
    if kind not in ("MatMul", "Gather"):
        return
    looked_up = kind == "Gather"
    for port in (0,) if looked_up else (0, 1):
        constants = _constants(node.input_value(port).get_node())
        dtype = constants[0].get_element_type().get_type_name() if constants else ""
        if dtype in DTYPES and sum(size > 1 for size in constants[0].get_output_shape(0)) >= 2:
            sizes = {one.get_name(): one.get_byte_size() for one in constants}
            yield Matrix(node.get_friendly_name(), looked_up, DTYPES[dtype], sizes)


def _constants(node: Any) -> list[Any]:
    """The constants that a value is unpacked from, its numbers first; empty where it is computed from anything else."""
    if node.get_type_name() == "Constant":
        return [node]
    if node.get_type_name() not in _UNPACKING:
        return []
    parts = [_constants(value.get_node()) for value in node.input_values()]
    return [one for part in parts for one in part] if all(parts) else []
