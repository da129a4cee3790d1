"""A stand-in for the hub on loopback: enough of its API for an upload, and a record of it."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What arrived: `files` by path as a reader of the repository would see them."""

    def __init__(self) -> None:
        self.repos: dict[str, bool] = {}
        """Name to whether it is private."""
        self.files: dict[str, bytes] = {}
        self.large: dict[str, bytes] = {}
        """Uploaded by LFS, by SHA-256."""
        self.lfs_paths: set[str] = set()
        self.commits: list[str] = []
        self.requests: list[str] = []
        self.tokens: set[str | None] = set()
        self.refuse: dict[str, int] = {}
        """Part of a path to the status it is answered with."""
        self.url = ""


def _answer(hub: Hub, method: str, path: str, body: bytes) -> tuple[int, Any]:
    path = path.partition("?")[0]
    for part, status in hub.refuse.items():
        if part in path:
            return status, {"error": "as the test wants it"}
    if path == "/api/repos/create":
        asked = json.loads(body)
        name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
        address = {"url": f"{hub.url}/datasets/{name}", "name": name}
        if name in hub.repos:
            return 409, {"error": "You already created this dataset repo", **address}
        hub.repos[name] = bool(asked.get("private")) or asked.get("visibility") == "private"
        assert asked["type"] == "dataset"
        return 200, address
    if path == "/api/validate-yaml":
        return 200, {"errors": [], "warnings": []}
    if "/preupload/" in path:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".parquet") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        return 200, {"files": files}
    if path.endswith("/info/lfs/objects/batch"):
        objects = [
            {**one, "actions": {"upload": {"href": f"{hub.url}/lfs/{one['oid']}"}}}
            for one in json.loads(body)["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}
    if path.startswith("/lfs/"):
        oid = path.rpartition("/")[2]
        assert hashlib.sha256(body).hexdigest() == oid
        hub.large[oid] = body
        return 200, {}
    if "/commit/" in path:
        for line in body.splitlines():
            _commit(hub, json.loads(line))
        return 200, {"success": True, "commitOid": COMMIT, "commitUrl": f"{hub.url}/c/{COMMIT}"}
    name = path.removeprefix("/api/datasets/").partition("/revision/")[0]
    if method == "GET" and name in hub.repos:
        found = {"id": name, "private": hub.repos[name], "sha": COMMIT, "siblings": []}
        return 200, found
    return 404, {"error": "no such thing here"}


def _commit(hub: Hub, entry: dict[str, Any]) -> None:
    value = entry["value"]
    if entry["key"] == "header":
        hub.commits.append(value["summary"])
    elif entry["key"] == "file":
        assert value["encoding"] == "base64"
        hub.files[value["path"]] = base64.b64decode(value["content"])
    else:
        assert entry["key"] == "lfsFile"
        hub.files[value["path"]] = hub.large[value["oid"]]
        hub.lfs_paths.add(value["path"])


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """The stand-in at `hub.url` while the block runs."""
    hub = Hub()

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.requests.append(f"{self.command} {self.path}")
            if not self.path.startswith("/lfs/"):
                hub.tokens.add(self.headers.get("Authorization"))
            status, value = _answer(hub, self.command, self.path, body)
            text = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text)

        do_GET = do_POST = do_PUT = do_HEAD = _serve

        def log_message(self, *_: Any) -> None:
            """Quiet: what arrived is in `hub`."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
