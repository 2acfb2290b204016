"""Models and data from the Hugging Face hub, when it answers; otherwise the reason why not, quickly."""

from __future__ import annotations

import http.client
import logging
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cpuinfer_helpers.errors import InputError

logger = logging.getLogger("cpuinfer_helpers")

DEFAULT_ENDPOINT = "https://huggingface.co"
_PROBE_SECONDS = 3.0
_PROBE_VALID_SECONDS = 60.0
_MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
# Where one file would be too large, there is an index of several.
_WEIGHTS = (("model.safetensors",), ("model.safetensors.index.json", "model-*.safetensors"), ("pytorch_model.bin",))
_OFF_WORDS = ("1", "true", "yes", "on")

_probe: tuple[str, float, str | None] | None = None
Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class DatasetFile:
    """One parquet file of a data set on the hub."""

    repository: str
    path: str
    revision: str = "main"


def hub_unavailable() -> str | None:
    """Why the hub cannot be used now, or None if it answers.

    Respects ``HF_HUB_OFFLINE``, ``TRANSFORMERS_OFFLINE`` and ``HF_ENDPOINT``. Waits three seconds at most, also where
    name resolution hangs; the answer is kept for a minute.

    Returns
    -------
    str or None
    """
    global _probe
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(variable, "").lower() in _OFF_WORDS:
            return f"{variable} is set"
    endpoint = os.environ.get("HF_ENDPOINT", DEFAULT_ENDPOINT)
    if _probe is None or _probe[0] != endpoint or time.monotonic() - _probe[1] > _PROBE_VALID_SECONDS:
        _probe = (endpoint, time.monotonic(), _ask(endpoint))
    return _probe[2]


def fetch_model(repository: str, *, fresh: bool = False) -> Path:
    """Download a model's configuration, tokenizer and weights, or find them in the hub's cache.

    Safetensors are preferred. Where a repository has only ``pytorch_model.bin``, transformers reads it with
    ``weights_only=True``, which runs no code from the file.

    Parameters
    ----------
    repository
        Owner and name on the hub.
    fresh
        Download again, whatever the cache holds.

    Returns
    -------
    Path
        Folder for ``from_pretrained``.
    """
    from huggingface_hub import HfApi, snapshot_download

    if hub_unavailable():
        # Without patterns, huggingface_hub 2 asks for every file of the repository, wanted or not.
        wanted = [*_MODEL_FILES, *_WEIGHTS[0], *_WEIGHTS[1]]
        return Path(snapshot_download(repository, allow_patterns=wanted, local_files_only=True))
    names = HfApi(endpoint=os.environ.get("HF_ENDPOINT")).list_repo_files(repository)
    weights = next((files for files in _WEIGHTS if files[0] in names), _WEIGHTS[-1])
    return Path(
        _once_more_if_broken_off(
            lambda: snapshot_download(
                repository,
                endpoint=os.environ.get("HF_ENDPOINT"),
                allow_patterns=[*_MODEL_FILES, *weights],
                etag_timeout=_PROBE_SECONDS,
                force_download=fresh,
            )
        )
    )


def fetch_rows(file: DatasetFile, limit: int | None = None) -> list[dict[str, Any]]:
    """Download one parquet file of a data set, or find it in the hub's cache, and return its rows.

    Parameters
    ----------
    file
        Which file.
    limit
        At most so many rows, the first ones.

    Returns
    -------
    list of dict
    """
    import pyarrow.parquet

    path = _fetch_file(file, fresh=False)
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        if hub_unavailable():
            raise
        _warn_of_damage(file.repository, error)
        table = pyarrow.parquet.read_table(_fetch_file(file, fresh=True))
    return (table if limit is None else table.slice(0, limit)).to_pylist()


def _fetch_file(file: DatasetFile, *, fresh: bool) -> str:
    from huggingface_hub import hf_hub_download

    return _once_more_if_broken_off(
        lambda: hf_hub_download(
            file.repository,
            file.path,
            repo_type="dataset",
            revision=file.revision,
            endpoint=os.environ.get("HF_ENDPOINT"),
            etag_timeout=_PROBE_SECONDS,
            force_download=fresh,
            local_files_only=hub_unavailable() is not None,
        )
    )


def _once_more_if_broken_off(download: Callable[[], str]) -> str:
    """Ask again, once, for a file whose connection broke off in the middle; the library does not (seen: 0.36, 2.4)."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return download()
    except (OSError, *_transport_errors()) as error:
        # What has a number is this machine's own trouble, such as a full disk; the others are answers of the hub.
        if getattr(error, "errno", None) is not None or isinstance(error, (HfHubHTTPError, FileNotFoundError)):
            raise
        logger.info("a download broke off (%s); trying once more", error)
        return download()


def _transport_errors() -> tuple[type[Exception], ...]:
    """Those of the library that huggingface_hub has used since 1.0; the earlier one's are OSErrors."""
    try:
        import httpx
    except ImportError:
        return ()
    return (httpx.TransportError,)


def load_or_download_again(repository: str, load: Callable[[Path], Loaded]) -> Loaded:
    """Load a fetched model; if the cached copy is damaged and the hub answers, download it once more.

    Parameters
    ----------
    repository
        Owner and name on the hub.
    load
        Loads from a folder; raises if the files cannot be read, and InputError if it is not for the files that it
        cannot.

    Returns
    -------
    What ``load`` returns.
    """
    folder = fetch_model(repository)
    try:
        return load(folder)
    except InputError:  # of the request, not of the files
        raise
    except Exception as error:  # safetensors, JSON and pickle readers each have errors of their own
        if hub_unavailable():
            raise
        _warn_of_damage(repository, error)
        return load(fetch_model(repository, fresh=True))


def _warn_of_damage(repository: str, error: Exception) -> None:
    logger.warning("the cached copy of %s cannot be read (%s); downloading it again", repository, error)


def _ask(endpoint: str) -> str | None:
    """Ask in a thread of its own, because a time-out for the connection does not bound name resolution."""
    answer: list[str | None] = []
    thread = threading.Thread(target=lambda: answer.append(_request(endpoint)), daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return answer[0] if answer else f"{endpoint} did not answer within {_PROBE_SECONDS:g} s"


def _request(endpoint: str) -> str | None:
    try:
        request = urllib.request.Request(endpoint, method="HEAD")
        with urllib.request.urlopen(request, timeout=_PROBE_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        return f"{endpoint} answers {error.code}" if error.code >= 500 else None
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"{endpoint} cannot be reached ({getattr(error, 'reason', error)})"
