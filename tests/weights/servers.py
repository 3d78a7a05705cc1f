"""Two small web servers on loopback: files as they lie in a folder, and the endpoints of the Hub's file system."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs


class Served(SimpleHTTPRequestHandler):
    """A folder's files with sizes and times, and pages of links for its folders. ``asked``: (method, path)."""

    asked: list[tuple[str, str]]

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.asked.append(("GET", self.path))
        super().do_GET()


class Hub(Served):
    """One repository, org/model, whose files lie in the folder."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        paths = json.loads(asked)["paths"] if asked.startswith("{") else []
        if not paths:
            paths = parse_qs(asked)["paths"]
        self.answer(
            [self.about(Path(self.directory) / path) for path in paths if (Path(self.directory) / path).exists()]
        )

    def do_GET(self) -> None:
        self.asked.append((self.command, self.path))
        path = self.path.split("?")[0]
        for start in (
            "/api/models/org/model/tree/main",
            "/api/models/org/model/revision/main",
            "/api/models/org/model",
        ):
            if path.startswith(start):
                if "/tree/" not in start:
                    return self.answer({"id": "org/model", "sha": "0" * 40, "siblings": [], "private": False})
                folder = Path(self.directory) / path.removeprefix(start).strip("/")
                if not folder.is_dir():
                    return self.send_error(404)
                return self.answer([self.about(file) for file in sorted(folder.iterdir())])
        file = Path(self.directory) / path.removeprefix("/org/model/resolve/main/")
        if not path.startswith("/org/model/") or not file.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound" if "org/model" not in path else "EntryNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        content = file.read_bytes()
        self.send_response(200)
        for name, value in (
            ("Content-Length", str(len(content))),
            ("ETag", f'"{self.about(file)["oid"]}"'),
            ("X-Repo-Commit", "0" * 40),
        ):
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
        return None

    def about(self, path: Path) -> dict[str, Any]:
        name = path.relative_to(self.directory).as_posix()
        if path.is_dir():
            return {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}
        content = path.read_bytes()
        return {"type": "file", "oid": hashlib.sha1(content).hexdigest(), "size": len(content), "path": name}

    def answer(self, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def serving(kind: type[Served], folder: Path) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The server's address, and what it is asked for meanwhile."""
    asked: list[tuple[str, str]] = []
    handler = type(kind.__name__, (kind,), {"asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
