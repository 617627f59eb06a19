"""An imitation of the Hugging Face Hub: what huggingface_hub 1.21 asks for to list and download a model."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit


class Request(NamedTuple):
    method: str
    path: str
    range: str | None


class FakeHub:
    """Serves `repos`, logs every request, and misbehaves as told.

    `faults` maps a file name to what its next GETs meet, one entry each: "500", "drop" (the connection ends
    after half of the body) or "vanish" (so does the whole server). `listed_sizes` overrides the sizes that
    the listing states. Once set, `status` is the answer to everything, `file_status` to everything but the
    listing. With `xet` the files are said to be in a Xet storage, which cannot be reached. Branch main is the
    commit that `repos` holds; one that `tag` gave a name stays when `repos` goes on.
    """

    def __init__(self):
        self.repos: dict[str, dict[str, bytes]] = {}
        self.tags: dict[str, dict[str, dict[str, bytes]]] = {}
        self.gated: set[str] = set()
        self.faults: dict[str, list[str]] = {}
        self.listed_sizes: dict[str, int] = {}
        self.status: int | None = None
        self.file_status: int | None = None
        self.xet = False
        self.log: list[Request] = []
        self._address = ("127.0.0.1", 0)
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._address[1]}"

    def start(self) -> None:
        """Listen, after a `stop` on the same port as before."""
        self._server = ThreadingHTTPServer(self._address, _Handler)
        self._server.hub = self
        self._address = self._server.server_address
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def fetched(self) -> list[str]:
        """The names of the files whose content was asked for."""
        gets = [entry.path for entry in self.log if entry.method == "GET" and "/resolve/" in entry.path]
        return [path.split("/resolve/")[1].split("/", 1)[1] for path in gets]

    def revision(self, repo_id: str) -> str:
        """The commit of branch main."""
        return commit_hash(self.repos[repo_id])

    def tag(self, repo_id: str, name: str) -> None:
        """Give the commit of branch main a name that stays with it."""
        self.tags.setdefault(repo_id, {})[name] = self.repos[repo_id]

    def files(self, repo_id: str, revision: str | None) -> dict[str, bytes] | None:
        """The files of a branch, tag or commit; None if there is none of that name."""
        named = {"main": self.repos[repo_id]} | self.tags.get(repo_id, {})
        commits = {commit_hash(files): files for files in named.values()}
        return (named | commits).get(revision or "main")


def commit_hash(files: dict[str, bytes]) -> str:
    return hashlib.sha1(b"".join(files.values())).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def log_message(self, *args):
        """Keep quiet."""

    def _answer(self):
        hub, url = self.server.hub, urlsplit(self.path)
        hub.log.append(Request(self.command, url.path, self.headers["Range"]))
        signed_in = "Authorization" in self.headers
        listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", url.path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", url.path)
        if hub.status:
            return self._error(hub.status, "")
        if hub.file_status and file:
            return self._error(hub.file_status, "")
        if not (listing or file):
            return self._error(404, "")
        repo_id, revision = (listing or file).group(1, 2)
        if repo_id not in hub.repos:
            # The Hub does not tell strangers whether a repository is private or does not exist.
            return self._error(404 if signed_in else 401, "RepoNotFound")
        files = hub.files(repo_id, revision)
        if files is None:
            return self._error(404, "RevisionNotFound")
        if listing:
            return self._list(repo_id, files, with_sizes="blobs" in parse_qs(url.query))
        if repo_id in hub.gated:
            return self._error(403 if signed_in else 401, "GatedRepo")
        if file[3] not in files:
            return self._error(404, "EntryNotFound")
        return self._send_file(files, file[3])

    def _error(self, status: int, code: str):
        self._headers(status, {"X-Error-Code": code, "X-Error-Message": f"{code} says the fake Hub"}, 0)

    def _list(self, repo_id: str, files: dict[str, bytes], with_sizes: bool):
        hub = self.server.hub
        siblings = [
            {"rfilename": name} | ({"size": hub.listed_sizes.get(name, len(content))} if with_sizes else {})
            for name, content in files.items()
        ]
        body = json.dumps({"id": repo_id, "sha": commit_hash(files), "siblings": siblings}).encode()
        self._headers(200, {"Content-Type": "application/json"}, len(body))
        self.wfile.write(body)

    def _send_file(self, files: dict[str, bytes], name: str):
        hub = self.server.hub
        content = files[name]
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": commit_hash(files),
            "Accept-Ranges": "bytes",
        }
        if hub.xet:
            headers |= {"X-Xet-Hash": "0" * 64, "X-Xet-Refresh-Route": f"{hub.url}/nowhere"}
        if self.command == "HEAD":
            return self._headers(200, headers, len(content))
        fault = hub.faults[name].pop(0) if hub.faults.get(name) else None
        if fault == "500":
            return self._error(500, "")
        body, status = content, 200
        if self.headers["Range"]:
            start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
            body, status = content[start:], 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._headers(status, headers, len(body))
        self.wfile.write(body[: len(body) // 2] if fault else body)
        if fault == "vanish":
            hub.stop()

    def _headers(self, status: int, headers: dict[str, str], length: int):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()
