"""A small server that speaks what avmae needs of the Hugging Face Hub's API, over repositories in memory."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secret"


class Hub(ThreadingHTTPServer):
    """The server, under way.

    Attributes:
        repositories: contents of files by repository and name.
        revisions: that each of them has.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.revisions = {"main", COMMIT}
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.strip("/").split("?")[0].split("/")
        if self.path.startswith("/api/whoami"):
            known = self.headers.get("authorization") == f"Bearer {TOKEN}"
            self._json({"name": "org", "type": "user"} if known else {"error": "who are you?"}, 200 if known else 401)
        elif len(parts) >= 5 and parts[2] == "resolve":
            self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self._json({"error": f"no {self.path}"}, 404, {"X-Error-Code": "RepoNotFound"})

    def _file(self, repository: str, revision: str, name: str) -> None:
        files = self.server.repositories.get(repository)
        code = None
        if files is None:
            code = "RepoNotFound"
        elif revision not in self.server.revisions:
            code = "RevisionNotFound"
        elif name not in files:
            code = "EntryNotFound"
        if code:
            self._json({"error": code}, 404, {"X-Error-Code": code, "X-Repo-Commit": COMMIT})
            return
        assert files is not None
        self._send(files[name], 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{abs(hash(files[name])):x}"'})

    def do_POST(self) -> None:
        if self.headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
        parts = self.path.strip("/").split("?")[0].split("/")
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            self._json({"error": "not allowed"}, 401)
        elif self.path.startswith("/api/repos/create"):
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.server.repositories.setdefault(name if "/" in name else f"org/{name}", {})
            self._json({"url": f"{self.server.endpoint}/{name}", "id": name})
        elif self.path.startswith("/api/validate-yaml"):
            self._json({"errors": [], "warnings": []})
        elif "preupload" in parts:
            uploads = {"uploadMode": "regular", "shouldIgnore": False}
            files = [{"path": file["path"], **uploads} for file in json.loads(body)["files"]]
            self._json({"files": files})
        elif "commit" in parts:
            repository = "/".join(parts[2:4])
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    self.server.repositories[repository][entry["value"]["path"]] = content
            address = f"{self.server.endpoint}/{repository}/commit/{COMMIT}"
            self._json({"success": True, "commitOid": COMMIT, "commitUrl": address, "hookOutput": ""})
        else:
            self._json({"error": f"no {self.path}"}, 404)

    def _json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(content).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
