"""Versions of the installed packages that decide what runs."""

from __future__ import annotations

from importlib import metadata

_PACKAGES = (
    "torch",
    "intel-extension-for-pytorch",
    "transformers",
    "accelerate",
    "tokenizers",
    "datasets",
    "openvino",
    "onnxruntime",
)


def version_tuple(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: ``"2.8.0+cpu"`` becomes ``(2, 8, 0)``."""
    numbers: list[int] = []
    for part in version.split("+")[0].split("."):
        digits = part if part.isdigit() else ""
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def installed_versions() -> dict[str, str]:
    """Versions of the installed packages that decide what runs, in a fixed order, without importing them."""
    found: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
