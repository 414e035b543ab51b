"""A Hugging Face Hub of one's own: the endpoints that a download and an upload use, in memory.

Repositories have one branch, `main`, and a commit for each upload. Files whose name ends in
`.safetensors` take the way of large files (git LFS), as on the real one.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

READ, WRITE = "hf_read", "hf_write"
"""Tokens: with the first nobody may write."""


@dataclass
class Repository:
    """A model repository.

    Attributes:
        private: Whether it takes a token to see it.
        gated: Whether its terms have to be accepted.
        commits: Hash of each commit to its files.
        main: Hash of the newest commit.
    """

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    main: str = ""

    def commit(self, files: dict[str, bytes]) -> str:
        """Makes these the files of the branch."""
        digest = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode())
        self.main = digest.hexdigest()
        self.commits[self.main] = files
        return self.main

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Hash and files of a revision."""
        commit = self.main if revision == "main" else revision
        return (commit, self.commits[commit]) if commit in self.commits else None


class Hub:
    """The server's state, and what tests look at.

    Attributes:
        url: Its address.
        repositories: By name.
        blobs: Large files that were uploaded, by sha256.
        requests: Method and path of all requests.
        broken: Status that paths, as patterns, are answered with.
    """

    def __init__(self) -> None:
        self.url = ""
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.broken: dict[str, int] = {}

    def add(self, name: str, folder: Path, **settings: bool) -> Repository:
        """Makes a repository of a folder's files."""
        repository = Repository(**settings)
        files = {str(f.relative_to(folder)): f for f in folder.rglob("*") if f.is_file()}
        repository.commit({path: file.read_bytes() for path, file in files.items()})
        self.repositories[name] = repository
        return repository

    def files(self, name: str) -> dict[str, bytes]:
        """The files of a repository's branch."""
        repository = self.repositories[name]
        return repository.commits[repository.main]


class _RefusalError(Exception):
    """An answer that is an error: status, and the Hub's code of it."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Keeps silent."""

    def _answer(self, content: bytes | Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {path}")
        try:
            for pattern, status in self.hub.broken.items():
                if re.search(pattern, path):
                    raise _RefusalError(status, "")
            for pattern, name in ROUTES:
                found = re.fullmatch(pattern, path)
                if found is not None:
                    getattr(self, name)(*found.groups(), body=body)
                    return
            raise _RefusalError(404, "")
        except _RefusalError as refusal:
            status, code = refusal.args
            self._answer({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

    do_GET = do_HEAD = do_POST = do_PUT = _handle  # noqa: N815

    @property
    def _token(self) -> str:
        return str(self.headers.get("Authorization", "")).removeprefix("Bearer ")

    def _repository(self, name: str, write: bool = False) -> Repository:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and self._token not in (READ, WRITE)):
            raise _RefusalError(401 if not self._token else 404, "RepoNotFound")
        if repository.gated:
            raise _RefusalError(403, "GatedRepo")
        if write and self._token != WRITE:
            raise _RefusalError(403, "")
        return repository

    def _at(self, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        found = self._repository(name).at(revision)
        if found is None:
            raise _RefusalError(404, "RevisionNotFound")
        return found

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if self._token != WRITE:
            raise _RefusalError(401 if self._token not in (READ,) else 403, "")
        if name in self.hub.repositories:
            self._answer({"url": f"{self.hub.url}/{name}"}, 409)
            return
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.repositories[name] = Repository(private=bool(private))
        self.hub.repositories[name].commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        self._answer({"url": f"{self.hub.url}/{name}"})

    def _info(self, name: str, revision: str | None = None, body: bytes = b"") -> None:
        commit, files = self._at(name, revision or "main")
        self._answer(
            {
                "id": name,
                "sha": commit,
                "private": self._repository(name).private,
                "siblings": [{"rfilename": path} for path in files],
                "tags": [],
            }
        )

    def _tree(self, name: str, revision: str, body: bytes) -> None:
        _, files = self._at(name, revision)
        self._answer(
            [
                {"type": "file", "path": path, "size": len(content), "oid": _etag(content)}
                for path, content in files.items()
            ]
        )

    def _resolve(self, name: str, revision: str, path: str, body: bytes) -> None:
        commit, files = self._at(name, revision)
        if path not in files:
            raise _RefusalError(404, "EntryNotFound")
        self._answer(files[path], ETag=f'"{_etag(files[path])}"', X_Repo_Commit=commit)

    def _validate(self, body: bytes) -> None:
        if "license: proprietary" in json.loads(body)["content"]:
            message = '"license" must be one of [apache-2.0, cc-by-nc-4.0, ...]'
            self._answer({"errors": [{"message": message}], "warnings": []}, status=400)
        else:
            self._answer({"errors": [], "warnings": []})

    def _preupload(self, name: str, revision: str, body: bytes) -> None:
        self._repository(name, write=True)
        asked = json.loads(body)["files"]
        large = {f["path"]: f["path"].endswith(".safetensors") for f in asked}
        answers = [
            {"path": p, "uploadMode": "lfs" if large[p] else "regular", "shouldIgnore": False}
            for p in large
        ]
        self._answer({"files": answers})

    def _batch(self, name: str, body: bytes) -> None:
        self._repository(name, write=True)
        objects = [
            part | {"actions": {"upload": {"href": f"{self.hub.url}/upload/{part['oid']}"}}}
            for part in json.loads(body)["objects"]
        ]
        self._answer({"transfer": "basic", "objects": objects})

    def _upload(self, oid: str, body: bytes) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.blobs[oid] = body
        self._answer(b"")

    def _commit(self, name: str, revision: str, body: bytes) -> None:
        repository = self._repository(name, write=True)
        files = dict(repository.commits[repository.main])
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        commit = repository.commit(files)
        self._answer({"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit})


NAME = r"([^/]+/[^/]+)"
ROUTES = (
    (r"/api/repos/create", "_create"),
    (r"/api/validate-yaml", "_validate"),
    (rf"/api/models/{NAME}", "_info"),
    (rf"/api/models/{NAME}/revision/([^/]+)", "_info"),
    (rf"/api/models/{NAME}/tree/([^/]+)", "_tree"),
    (rf"/api/models/{NAME}/preupload/([^/]+)", "_preupload"),
    (rf"/api/models/{NAME}/commit/([^/]+)", "_commit"),
    (rf"/{NAME}\.git/info/lfs/objects/batch", "_batch"),
    (rf"/{NAME}/resolve/([^/]+)/(.+)", "_resolve"),
    (r"/upload/(\w+)", "_upload"),
)


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Runs a hub in a thread."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def use_hub(monkeypatch: pytest.MonkeyPatch, hub: Hub, cache: Path, token: str = WRITE) -> None:
    """Points the Hub's client of this process to a server.

    Args:
        monkeypatch: Undoes it.
        hub: The server.
        cache: Folder of what is downloaded.
        token: Of the user; empty for nobody.
    """
    values = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": True,
        "HF_TOKEN_PATH": str(cache / "token"),
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
    }
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", token)
