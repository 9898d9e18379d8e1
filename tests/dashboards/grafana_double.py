"""A double of the part of Grafana's HTTP API that an import uses, over real HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

TOKEN = "glsa_right"
VIEWER = "glsa_viewer"


class GrafanaDouble:
    """What the double holds. Its answers are those of Grafana 11's documentation."""

    def __init__(self) -> None:
        self.url = ""
        self.folders = [{"id": 1, "uid": "f1", "title": "Team"}]
        self.boards: dict[str, dict[str, Any]] = {}
        self.sources = [{"type": "prometheus", "name": "Prometheus"}]
        self.plain = False
        """Whether it is a web server that is no Grafana."""

    def answer(self, method: str, path: str, token: str, body: Any) -> tuple[int, Any]:
        if self.plain:
            return 200, "<html>hello</html>"
        if path == "/api/health":
            return 200, {"database": "ok", "version": "11.6.0"}
        if token not in (TOKEN, VIEWER):
            return 401, {"message": "Invalid API key"}
        match method, path:
            case "GET", "/api/folders":
                return 200, self.folders
            case "GET", "/api/datasources":
                return 200, self.sources
            case "POST", _ if token == VIEWER:
                return 403, {"message": "You'll need additional permissions"}
            case "POST", "/api/folders":
                self.folders.append({"id": 9, "uid": "f9", "title": body["title"]})
                return 200, self.folders[-1]
            case "POST", "/api/dashboards/db":
                return self._save(body)
        return 404, {"message": "Not found"}

    def _save(self, body: Any) -> tuple[int, Any]:
        board = body["dashboard"]
        if board["id"] is not None or not board["title"]:
            return 400, {"message": "bad request data"}
        if body.get("folderUid", "f1") not in {folder["uid"] for folder in self.folders}:
            return 400, {"message": "folder not found"}
        if board["uid"] in self.boards and not body["overwrite"]:
            return 412, {"message": "A dashboard with the same uid already exists"}
        self.boards[board["uid"]] = body
        return 200, {"status": "success", "uid": board["uid"], "url": f"/d/{board['uid']}/x"}


@contextmanager
def running() -> Iterator[GrafanaDouble]:
    double = GrafanaDouble()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            length = int(self.headers["content-length"])
            self._answer(json.loads(self.rfile.read(length)))

        def _answer(self, body: Any) -> None:
            token = self.headers.get("authorization", "").removeprefix("Bearer ")
            status, page = double.answer(self.command, urlsplit(self.path).path, token, body)
            text = page if isinstance(page, str) else json.dumps(page)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        double.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield double
        server.shutdown()
