"""A real S3 server that denies, delays, cuts off and changes: one message or a retry, and never half a copy."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from radin.errors import PoolError, RadinError
from radin.weights import Pool
from radin.weights.uploads import require_target, upload

pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")

SIZE = 300_000  # numbers: 1.2 MB, which no buffer between here and there holds
DENIED = (
    b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\nContent-Length: 66\r\nConnection: close\r\n\r\n"
    b"<Error><Code>AccessDenied</Code><Message>not yours</Message></Error>"
).replace(b"66", b"68")


class Proxy:
    """Between a client and the server. deny: answer 403. cuts: answers to be cut off. delay: seconds before each."""

    def __init__(self, port: int) -> None:
        self.deny, self.cuts, self.delay, self.gets = False, 0, 0.0, 0
        self._port = port
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._port)) as server:
            while request := client.recv(65536):
                of_file = request.startswith(b"GET /bucket/m.safetensors HTTP")
                self.gets += of_file
                time.sleep(self.delay)
                if self.deny:
                    client.sendall(DENIED)
                    return
                server.sendall(request)
                answer = self._answer(server, head=request.startswith(b"HEAD"))
                if self.cuts and of_file:
                    self.cuts -= 1
                    client.sendall(answer[: len(answer) // 2])
                    return
                client.sendall(answer)

    @staticmethod
    def _answer(server: socket.socket, head: bool) -> bytes:
        """One whole answer."""
        found = b""
        while b"\r\n\r\n" not in found:
            found += server.recv(65536)
        fields = found.split(b"\r\n\r\n")[0].lower().split(b"\r\n")
        lengths = [int(field.split(b":")[1]) for field in fields if field.startswith(b"content-length:")]
        end = found.index(b"\r\n\r\n") + 4 + (0 if head or not lengths else lengths[0])
        while len(found) < end:
            found += server.recv(1 << 20)
        return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def proxy(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    import boto3
    import s3fs

    host, port = server.get_host_and_port()
    proxy = Proxy(port)
    for name, value in {
        "RADIN_CACHE": str(tmp_path / "cache"),
        "HOME": str(tmp_path),
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
    client.create_bucket(Bucket="bucket")
    client.put_object(Bucket="bucket", Key="m.safetensors", Body=data(1))
    proxy.client = client  # type: ignore[attr-defined]
    yield proxy
    proxy.close()
    s3fs.S3FileSystem.clear_instance_cache()


def data(value: float) -> bytes:
    return save({"w": torch.full((SIZE,), float(value))})


URL = "s3://bucket/m.safetensors"


def value() -> float:
    return float(Pool.open(URL).tensors(0)["w"][-1])


def copies(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "cache" / "remote").rglob("*.safetensors*")]


def test_what_is_missing_or_denied_is_one_message(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    for url in ("s3://bucket/gone.safetensors", "s3://nowhere/m.safetensors"):
        with pytest.raises(PoolError, match=rf"{url}: (no such file or folder|.*does not exist)"):
            Pool.open(url)
    proxy.deny = True
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(PoolError, match=rf"{URL}: cannot be read: PermissionError: .*Credentials are looked for where"):
        Pool.open(URL)
    proxy.deny = False
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(PoolError, match=rf"{URL}: cannot be read: .*Credentials are looked for where"):
        Pool.open(URL)
    assert copies(tmp_path) == []


def test_an_answer_that_is_slow_or_cut_off_once_is_waited_for_or_asked_for_again(proxy: Proxy, tmp_path: Path) -> None:
    proxy.delay = 0.3
    proxy.cuts = 1
    assert value() == 1.0
    assert proxy.cuts == 0
    assert len(copies(tmp_path)) == 2  # the copy, and its note


def test_answers_that_are_always_cut_off_leave_no_copy(proxy: Proxy, tmp_path: Path) -> None:
    proxy.cuts = 1000
    with pytest.raises(PoolError, match=rf"{URL}: "):
        Pool.open(URL)
    assert copies(tmp_path) == []
    proxy.cuts = 0
    assert value() == 1.0


def test_a_file_that_changes_while_it_is_copied_is_copied_anew(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    get, changes = s3fs.S3FileSystem.get_file, [2.0]

    def changing(self: Any, source: str, file: str, **given: Any) -> None:
        get(self, source, file, **given)
        if changes:
            body = data(changes.pop())
            proxy.client.put_object(Bucket="bucket", Key="m.safetensors", Body=body)  # type: ignore[attr-defined]

    monkeypatch.setattr(s3fs.S3FileSystem, "get_file", changing)
    assert value() == 2.0
    changes += [float(k) for k in range(10, 20)]
    proxy.client.put_object(Bucket="bucket", Key="m.safetensors", Body=data(9))  # type: ignore[attr-defined]
    with pytest.raises(PoolError, match=rf"{URL}: it changed 3 times while it was copied"):
        Pool.open(URL)


def test_two_processes_at_once_copy_it_once(proxy: Proxy) -> None:
    proxy.delay = 0.2
    code = f"from radin.weights import Pool; print(float(Pool.open({URL!r}).tensors(0)['w'][-1]))"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=120)[0].strip() for process in both] == ["1.0", "1.0"]
    assert proxy.gets == 1


@pytest.fixture
def straight(server: Any, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The server without the proxy, which knows only what is read."""
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    return proxy.client  # type: ignore[attr-defined]


def test_a_soup_is_uploaded_whole_and_read_back(straight, tmp_path):
    local = tmp_path / "soup.safetensors"
    local.write_bytes(data(7))
    assert upload(local, "s3://bucket/soups/soup.safetensors") == "s3://bucket/soups/soup.safetensors"
    kept = straight.get_object(Bucket="bucket", Key="soups/soup.safetensors")["Body"].read()
    assert kept == local.read_bytes()
    with pytest.raises(RadinError, match=r"soup\.safetensors: it exists; give another name, or --force"):
        require_target("s3://bucket/soups/soup.safetensors")
    local.write_bytes(data(8))
    upload(local, "s3://bucket/soups/soup.safetensors", force=True)
    assert float(Pool.open("s3://bucket/soups/soup.safetensors").tensors(0)["w"][-1]) == 8.0


def test_a_bucket_that_is_not_there_is_one_message(straight, tmp_path):
    (tmp_path / "soup.safetensors").write_bytes(data(7))
    with pytest.raises(PoolError, match=r"s3://no-such-bucket-here/a: cannot be written|no such file or folder"):
        upload(tmp_path / "soup.safetensors", "s3://no-such-bucket-here/a")
