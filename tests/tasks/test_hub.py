"""The hub: found or not within seconds, used when it answers, left when it fails half way.

The hub here is a server on this machine that speaks the part of the hub's interface that huggingface_hub uses.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.tasks import hub
from tests.conftest import make_bert, write_tokenizer

ROOT = Path(hub.__file__).parents[2]
MODEL = "csarron/bert-base-uncased-squad-v1"
DATA = "rajpurkar/squad"
DATA_FILE = "plain_text/validation-00000-of-00001.parquet"
CONTEXT = "Anna Smith works in Paris. The old tower was built in 1889."


class Hub(ThreadingHTTPServer):
    """A hub with the given repositories: files by path, by ``models/owner/name`` or ``datasets/owner/name``."""

    daemon_threads = True

    def __init__(self, repositories: dict[str, dict[str, bytes]], *, status: int = 200, dies_in: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repositories = repositories
        self.status = status
        self.dies_in = dies_in
        self.asked: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Hub:
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()
        self.thread.join()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error of the server."""


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        if self.server.status != 200:
            self._send(self.server.status, b"", with_body)
        elif path == "/":
            self._send(200, b"hub", with_body)
        elif path.startswith("/api/"):
            self._describe(path.removeprefix("/api/"), with_body)
        elif "/resolve/" in path:
            self._resolve(path.lstrip("/"), with_body)
        else:
            self._send(404, b"", with_body)

    def _describe(self, path: str, with_body: bool) -> None:
        """``/api/models/owner/name``, with ``/revision/...`` or ``/tree/...`` behind it."""
        kind, owner, name, *rest = path.split("/")
        files = self.server.repositories.get(f"{kind}/{owner}/{name}")
        if files is None:
            self._send(404, b'{"error": "Repository not found"}', with_body)
            return
        if rest[:1] == ["tree"]:
            content: Any = [
                {"type": "file", "path": file, "size": len(data), "oid": _git_id(data)} for file, data in files.items()
            ]
        else:
            siblings = [{"rfilename": file, "size": len(data)} for file, data in files.items()]
            repository = f"{owner}/{name}"
            content = {"_id": "1", "id": repository, "sha": _commit(files), "siblings": siblings, "private": False}
            content |= {"modelId": repository, "tags": [], "downloads": 0, "likes": 0, "gated": False}
        self._send(200, json.dumps(content).encode(), with_body, {"Content-Type": "application/json"})

    def _resolve(self, path: str, with_body: bool) -> None:
        repository, _, rest = path.partition("/resolve/")
        repository = repository if repository.startswith("datasets/") else f"models/{repository}"
        revision, _, file = rest.partition("/")
        if revision == "refs":
            file = file.split("/", 2)[-1]
        files = self.server.repositories.get(repository, {})
        if file not in files:
            self._send(404, b"", with_body, {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"ETag": f'"{_git_id(files[file])}"', "X-Repo-Commit": _commit(files), "Accept-Ranges": "bytes"}
        self._send(200, files[file], with_body, headers, dies=with_body and file == self.server.dies_in)

    def _send(
        self, status: int, body: bytes, with_body: bool, headers: dict[str, str] | None = None, dies: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body[: len(body) // 2] if dies else body)
        if dies:
            self.wfile.flush()
            self.close_connection = True
            # From now on it is gone for good, as a server that died is.
            threading.Thread(target=_stop, args=(self.server,)).start()


def _stop(server: Hub) -> None:
    server.shutdown()
    server.socket.close()


def _git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _commit(files: dict[str, bytes]) -> str:
    listing = json.dumps({name: _git_id(data) for name, data in files.items()})
    return hashlib.sha1(listing.encode(), usedforsecurity=False).hexdigest()


# Whether the hub answers


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub, "_probe", None)
    monkeypatch.setattr(hub, "_PROBE_SECONDS", 0.5)


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
@pytest.mark.parametrize("value", ["1", "true", "YES", "on"])
def test_switched_off_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with Hub({}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        assert hub.hub_unavailable() == f"{variable} is set"
        assert server.asked == []


def test_hub_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with Hub({}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        assert hub.hub_unavailable() is None
        assert hub.hub_unavailable() is None
        assert server.asked == ["HEAD /"]


def test_answer_is_kept_for_a_while_and_for_one_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    with Hub({}) as first, Hub({}) as second:
        monkeypatch.setenv("HF_ENDPOINT", first.endpoint)
        hub.hub_unavailable()
        monkeypatch.setenv("HF_ENDPOINT", second.endpoint)
        hub.hub_unavailable()
        assert (len(first.asked), len(second.asked)) == (1, 1)
        monkeypatch.setattr(hub, "_PROBE_VALID_SECONDS", -1.0)
        hub.hub_unavailable()
        assert len(second.asked) == 2


@pytest.mark.parametrize(("status", "usable"), [(503, False), (500, False), (404, True), (403, True)])
def test_hub_that_answers_with_an_error(monkeypatch: pytest.MonkeyPatch, status: int, usable: bool) -> None:
    with Hub({}, status=status) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        assert hub.hub_unavailable() == (None if usable else f"{server.endpoint} answers {status}")


def test_hub_that_refuses_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        reason = hub.hub_unavailable()
    assert reason is not None
    assert reason.startswith(f"{endpoint} cannot be reached (")


def test_hub_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        started = time.monotonic()
        reason = hub.hub_unavailable()
        waited = time.monotonic() - started
    assert reason is not None
    assert endpoint in reason
    # Half a second is allowed here; without a limit it would wait for ever. The rest is for a busy machine.
    assert waited < 10


def test_name_resolution_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time-out of a connection bounds it."""
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **more: release.wait(60) and [])
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    try:
        assert hub.hub_unavailable() == "http://hub.invalid did not answer within 0.5 s"
    finally:
        release.set()


@pytest.mark.filterwarnings("error")
def test_something_else_answers_in_the_hubs_place(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def greet() -> None:
            connection, _ = other.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                connection.recv(1000)

        thread = threading.Thread(target=greet)
        thread.start()
        endpoint = f"http://127.0.0.1:{other.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        reason = hub.hub_unavailable()
        thread.join()
    assert reason is not None
    assert reason.startswith(f"{endpoint} cannot be reached (")


@pytest.mark.parametrize("endpoint", ["no-scheme", "ftp//broken", "http://"])
def test_endpoint_that_is_no_address(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    reason = hub.hub_unavailable()
    assert reason is not None
    assert "cannot be reached" in reason


# A whole task from a hub. huggingface_hub reads its settings when it is imported, so a child process does this.

LOAD = """
import json, logging, sys
import cpuinfer_helpers as cpu
from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.tasks import hub
records = []
class Keep(logging.Handler):
    def emit(self, record):
        records.append([record.levelname, record.getMessage()])
logging.getLogger("cpuinfer_helpers").addHandler(Keep())
logging.getLogger("cpuinfer_helpers").setLevel(logging.INFO)
for line in sys.stdin:
    records.clear()
    hub._probe = None
    task = cpu.load_task("question-answering")
    score = task.evaluate(limit=2)
    seen = {
        "origin": task.origin,
        "records": records,
        "examples": len(task.dataset),
        "first": task.dataset[0].id,
        "same": task.trained_model is task.model,
        "training": task.model.training,
        "dtype": str(next(task.model.parameters()).dtype),
        "weight": next(task.model.parameters()).flatten()[:3].tolist(),
        "shape": list(task.example_inputs["input_ids"].shape),
        "metrics": score.metrics,
    }
    print(json.dumps(seen), flush=True)
"""


class Child:
    """A child process that loads the task whenever it is told to, with caches in the given folder."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower() and name[:3] != "HF_"}
        self.environment = {
            **kept,
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(folder / "hugging face"),
            "CPUINFER_CACHE": str(folder / "cache"),
            "PYTHONPATH": str(ROOT),
        }
        self.errors = folder / "stderr.txt"

    def __enter__(self) -> Child:
        with self.errors.open("w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", LOAD],
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()

    def load(self) -> dict[str, Any]:
        print("load", file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        assert line, self.errors.read_text(encoding="utf-8")
        return json.loads(line)


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """A tiny model with random weights, and a data set of three questions in a parquet file."""
    pyarrow = pytest.importorskip("pyarrow", reason="a data set on the hub is a parquet file, which pyarrow reads")
    parquet = pytest.importorskip("pyarrow.parquet", reason="the same")
    folder = tmp_path_factory.mktemp("model")
    make_bert(vocab_size=200, max_position_embeddings=512, initializer_range=0.5).save_pretrained(folder)
    write_tokenizer(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["model_max_length"] = 512
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    rows = [
        {
            "id": f"q{number}",
            "title": "Paris",
            "context": CONTEXT,
            "question": question,
            "answers": {"text": [answer], "answer_start": [CONTEXT.index(answer)]},
        }
        for number, (question, answer) in enumerate([("Where?", "Paris"), ("When?", "1889"), ("Who?", "Anna Smith")])
    ]
    written = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), written)
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    assert len(files["model.safetensors"]) > 10_000
    return {
        f"models/{MODEL}": {**files, "README.md": b"#", "tf_model.h5": b"not wanted", "pytorch_model.bin": b""},
        f"datasets/{DATA}": {DATA_FILE: written.getvalue()},
    }


def warnings_in(seen: dict[str, Any]) -> list[str]:
    return [text for level, text in seen["records"] if level == "WARNING"]


def in_cache(folder: Path, name: str) -> Path:
    (found,) = (folder / "hugging face").rglob(name)
    return found


def _from_the_hub(seen: dict[str, Any]) -> bool:
    return seen["origin"].startswith(f"hub: {MODEL}, {DATA}")


def test_task_from_a_hub_then_from_damaged_copies_then_from_the_cache(
    repositories: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    with Hub(repositories) as server, Child(tmp_path, server.endpoint) as child:
        first = child.load()
        assert _from_the_hub(first)
        assert (first["examples"], first["first"], first["same"], first["training"]) == (3, "q0", True, False)
        assert (first["dtype"], first["shape"]) == ("torch.float32", [1, 384])
        assert first["records"] == []
        assert not [line for line in server.asked if "tf_model" in line or "pytorch_model" in line]
        assert len([line for line in server.asked if line.startswith("GET") and "model.safetensors" in line]) == 1

        weights, data = in_cache(tmp_path, "model.safetensors"), in_cache(tmp_path, "*.parquet")
        weights.resolve().write_bytes(weights.read_bytes()[:100])
        data.resolve().write_bytes(data.read_bytes()[:50])
        again = child.load()
        assert _from_the_hub(again)
        assert (again["weight"], again["metrics"]) == (first["weight"], first["metrics"])
        of_model, of_data = warnings_in(again)
        assert f"the cached copy of {MODEL} cannot be read" in of_model
        assert f"the cached copy of {DATA} cannot be read" in of_data
        whole = repositories[f"models/{MODEL}"]["model.safetensors"]
        assert in_cache(tmp_path, "model.safetensors").read_bytes() == whole

        server.shutdown()
        server.socket.close()
        without = child.load()
        assert _from_the_hub(without), "what is in the cache needs no hub"
        assert (without["weight"], warnings_in(without)) == (first["weight"], [])


def test_hub_that_dies_half_way_through_the_weights(repositories: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    with Hub(repositories, dies_in="model.safetensors") as server, Child(tmp_path, server.endpoint) as child:
        seen = child.load()
    assert f"GET /{MODEL}/resolve/{_commit(repositories[f'models/{MODEL}'])}/model.safetensors" in server.asked
    assert seen["origin"].startswith("offline: ")
    assert "the hub failed half way" in seen["origin"]
    assert [text for text in warnings_in(seen) if "going offline, because the hub failed half way" in text]
    assert (seen["same"], seen["training"], seen["shape"]) == (False, False, [1, 384])


def test_limit_on_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="a data set on the hub is a parquet file, which pyarrow reads")
    parquet = pytest.importorskip("pyarrow.parquet", reason="the same")
    parquet.write_table(pyarrow.table({"n": list(range(5))}), tmp_path / "rows.parquet")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *arguments, **more: str(tmp_path / "rows.parquet"))
    file = hub.DatasetFile("a/b", "rows.parquet")
    assert hub.fetch_rows(file, limit=2) == [{"n": 0}, {"n": 1}]
    assert len(hub.fetch_rows(file)) == 5


def test_model_that_cannot_be_read_and_no_hub_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hub, "fetch_model", lambda repository, fresh=False: tmp_path)

    def load(folder: Path) -> None:
        raise OSError("damaged")

    with caplog.at_level(logging.WARNING), pytest.raises(OSError, match="damaged"):
        hub.load_or_download_again("a/b", load)
    assert not caplog.records


def test_a_request_that_cannot_be_met_is_no_damage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def load(folder: Path) -> None:
        raise InputError("this model tells no task")

    fetched = []
    monkeypatch.setattr(hub, "hub_unavailable", lambda: None)
    monkeypatch.setattr(hub, "fetch_model", lambda name, fresh=False: fetched.append(fresh) or tmp_path)
    with pytest.raises(InputError, match="tells no task"):
        hub.load_or_download_again("a/b", load)
    assert fetched == [False]
