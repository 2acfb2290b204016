"""Names of attention implementations in configurations: one that transformers does not know is fetched and run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_KEYS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")


def unknown_attention(settings: Any) -> str | None:
    """The first implementation, anywhere in a configuration, that transformers does not have here; None if all are.

    ``owner/name`` would be looked up on the hub, and what is found there is code.

    Parameters
    ----------
    settings
        A configuration as JSON gives it, parts of parts included; or the name alone.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    known = {"eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()}
    for name in [settings] if isinstance(settings, str) else _names(settings):
        if name is not None and (not isinstance(name, str) or name not in known):
            return str(name)
    return None


def _names(settings: Any) -> Iterator[Any]:
    """What is given as attention, on whichever level; a mapping gives one for each part."""
    if isinstance(settings, list):
        for entry in settings:
            yield from _names(entry)
    if not isinstance(settings, dict):
        return
    for key, value in settings.items():
        if key not in _KEYS:
            yield from _names(value)
        elif isinstance(value, dict):
            yield from value.values()
        else:
            yield value
