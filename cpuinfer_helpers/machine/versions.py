"""Versions of the installed packages that decide what runs."""

from __future__ import annotations

from importlib import metadata

from packaging.version import InvalidVersion, Version

# Of this package. It stands here, at the bottom, because rooms that write it into their files may not ask the top.
OWN_VERSION = "0.1.0"

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


def release_of(version: str) -> tuple[int, ...]:
    """The numbers of a version, as PEP 440 has them; empty where the text is no version.

    Whatever is built before a release counts as that release: it has the code that is asked for.

    Examples
    --------
    >>> release_of("2.8.0+cpu"), release_of("5.0.0rc1"), release_of("unknown")
    ((2, 8, 0), (5, 0, 0), ())
    """
    try:
        return Version(version).release
    except InvalidVersion:
        return ()


def installed_versions() -> dict[str, str]:
    """Versions of the installed packages that decide what runs, in a fixed order, without importing them."""
    found: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
