"""A hub that is slow, refuses for a while, or breaks off once: what arrives is whole, or the reason is an error."""

from __future__ import annotations

import hashlib
import time

import pytest

from tests.conftest import seen_in_child
from tests.tasks.test_hub import Hub, _Answers

FETCH = """
import hashlib, json, os, sys
from cpuinfer_helpers.tasks import hub

seen = {}
for words in sys.argv[1:]:
    name, os.environ["HF_ENDPOINT"] = words.split()
    hub._probe = None
    try:
        folder = hub.fetch_model(f"owner/{name}")
        seen[name] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    except Exception as error:
        seen[name] = f"{type(error).__name__}: {error}"
print("SEEN", json.dumps(seen))
"""
WEIGHTS = bytes(range(256)) * 2000
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS}
NAMES = ("slow", "half", "stalled", "busy")
PATIENCE_S, STALLED_S = 2, 6


class Troubled(_Answers):
    """Answers as the hub does, but for the weights."""

    def _send(self, status, body, with_body, headers=None, dies=False):
        server = self.server
        if server.trouble == "busy" and self.path.startswith("/api/"):
            super()._send(429, b"", with_body, {"Retry-After": "0"})
        elif server.trouble in ("slow", "half", "stalled") and with_body and body == WEIGHTS:
            self._send_weights(headers)
        else:
            super()._send(status, body, with_body, headers, dies)

    def _send_weights(self, headers):
        asked = self.headers.get("Range", "")
        begin = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        self.server.asked.append(f"weights from {begin}")
        self.send_response(206 if asked else 200)
        headers = {**headers, "Content-Length": str(len(WEIGHTS) - begin)}
        if asked:
            headers["Content-Range"] = f"bytes {begin}-{len(WEIGHTS) - 1}/{len(WEIGHTS)}"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        end = len(WEIGHTS)
        first = len([line for line in self.server.asked if "weights" in line]) == 1
        if self.server.trouble in ("half", "stalled") and first:
            end //= 2
            self.close_connection = True
        step = len(WEIGHTS) // 16
        for start in range(begin, end, step):
            self.wfile.write(WEIGHTS[start : min(start + step, end)])
            self.wfile.flush()
            if self.server.trouble == "slow":
                time.sleep(0.05)
        if self.server.trouble == "stalled" and first:
            time.sleep(STALLED_S)


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """One child asks all of them, one after the other."""
    hubs = {name: Hub({f"models/owner/{name}": FILES}) for name in NAMES}
    for name, server in hubs.items():
        server.trouble = name
        server.RequestHandlerClass = Troubled
        server.__enter__()
    try:
        words = [f"{name} {server.endpoint}" for name, server in hubs.items()]
        home = str(tmp_path_factory.mktemp("hub"))
        environment = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "http_proxy", "HTTP_PROXY"), "")
        # The library waits for ten seconds, then it asks for the rest.
        environment |= {"HF_HUB_DOWNLOAD_TIMEOUT": str(PATIENCE_S), "HF_HOME": home, "HF_HUB_CACHE": f"{home}/hub"}
        seen = seen_in_child("-c", FETCH, *words, **environment)
    finally:
        for server in hubs.values():
            server.__exit__()
    return seen, {name: server.asked for name, server in hubs.items()}


@pytest.mark.parametrize("name", ["slow", "half", "stalled"])
def test_weights_arrive_whole(fetched, name):
    seen, asked = fetched
    assert seen[name] == hashlib.sha256(WEIGHTS).hexdigest(), seen[name]
    parts = [line for line in asked[name] if line.startswith("weights")]
    assert len(parts) == (1 if name == "slow" else 2), "broken off once, it is asked again"


def test_too_many_requests_is_an_error_that_says_so(fetched):
    assert "429" in fetched[0]["busy"]
