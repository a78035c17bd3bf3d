"""A proxy before an object store: counts its requests, and adds latency, a bound on bandwidth, and faults.

Runs as a process of its own, for a client may hold the GIL while it waits. Started by ``Proxy``, which tells it what to
do in lines of JSON; each is answered by a line.

::

    with Proxy(server.port) as proxy:
        proxy.set(latency=0.03, mbit=1000, faults={"503": 0.05}, match="GET")
        ...
        requests = proxy.taken()
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FAULTS = ("503", "500", "reset", "cut", "stall")


@dataclass
class Orders:
    """What the proxy does to requests.

    Attributes
    ----------
    latency
        Seconds before a request goes on.
    mbit
        Of all responses together; None: no bound.
    faults
        Share of the requests that meet each of ``FAULTS``.
    match
        Faults only where this is found in ``"METHOD path"``.
    stall
        Seconds for which a stalled one is held.
    """

    latency: float = 0.0
    mbit: float | None = None
    faults: dict[str, float] = field(default_factory=dict)
    match: str = ""
    stall: float = 30.0
    seed: int = 0


@dataclass
class Request:
    """One request that was made."""

    method: str
    path: str
    span: str | None
    begun: float
    status: int = 0
    sent: int = 0
    received: int = 0
    fault: str | None = None
    ended: float = 0.0


class Server:
    """Connections of the proxy; one task each."""

    def __init__(self, upstream: int) -> None:
        self.upstream, self.orders = upstream, Orders()
        self.requests: list[Request] = []
        self.connections = 0
        self._draw, self._free_at = random.Random(0), 0.0

    def obey(self, orders: dict[str, Any]) -> None:
        """Take new orders; those that are not named are as at first."""
        self.orders = Orders(**orders)
        self._draw = random.Random(self.orders.seed)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass the requests of a connection on until an end closes it."""
        self.connections += 1
        up: asyncio.StreamWriter | None = None
        try:
            up_reader, up = await asyncio.open_connection("127.0.0.1", self.upstream)
            while await self._one(reader, writer, up_reader, up):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()
            if up is not None:
                up.close()

    async def _one(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        up: asyncio.StreamWriter,
    ) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        method, path, _ = head.split(b"\r\n", 1)[0].decode("latin1").split(" ", 2)
        fields = _fields(head)
        request = Request(method, path, fields.get("range"), time.time())
        self.requests.append(request)
        request.fault = self._fault(f"{method} {path}")
        await asyncio.sleep(self.orders.latency)
        if request.fault == "reset":
            writer.transport.abort()
            return False
        if request.fault == "stall":
            await asyncio.sleep(self.orders.stall)
            writer.transport.abort()
            return False
        if request.fault in ("500", "503"):
            return await self._refuse(request, fields, reader, writer)
        up.write(head)
        if "expect" in fields:
            answer = await up_reader.readuntil(b"\r\n\r\n")
            if not answer.startswith(b"HTTP/1.1 100"):
                raise ConnectionError("the server would not have the body")
            writer.write(answer)
        request.sent = await self._body(fields, reader, up)
        answer = await up_reader.readuntil(b"\r\n\r\n")
        while answer.startswith(b"HTTP/1.1 100"):
            answer = await up_reader.readuntil(b"\r\n\r\n")
        return await self._answer(request, answer, up_reader, writer)

    async def _answer(
        self, request: Request, head: bytes, up_reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        request.status, fields = int(head.split(b" ", 2)[1]), _fields(head)
        if request.span and "content-range" in fields and request.status == 200:
            head = head.replace(b" 200 OK", b" 206 Partial Content", 1)  # rclone says 200, which some clients refuse
        writer.write(head)
        if request.method != "HEAD" and request.status not in (204, 304):
            if request.fault == "cut" and int(fields.get("content-length", 0)) > 1:
                writer.write(await up_reader.readexactly(int(fields["content-length"]) // 2))
                await writer.drain()
                writer.transport.abort()
                return False
            request.received = await self._body(fields, up_reader, writer, slow=True)
        await writer.drain()
        request.ended = time.time()
        return fields.get("connection", "").lower() != "close"

    async def _refuse(
        self,
        request: Request,
        fields: dict[str, str],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        if "expect" not in fields:
            await reader.readexactly(int(fields.get("content-length", 0)))
        what = b"503 Slow Down" if request.fault == "503" else b"500 Internal Server Error"
        code = b"SlowDown" if request.fault == "503" else b"InternalError"
        body = b"" if request.method == "HEAD" else b"<Error><Code>" + code + b"</Code><Message>asked</Message></Error>"
        writer.write(b"HTTP/1.1 " + what + b"\r\nContent-Type: application/xml\r\n")
        writer.write(b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
        await writer.drain()
        request.status, request.ended = int(what[:3]), time.time()
        return False

    async def _body(
        self, fields: dict[str, str], source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, slow: bool = False
    ) -> int:
        if fields.get("transfer-encoding", "").lower() == "chunked":
            total = 0
            while True:
                line = await source.readuntil(b"\r\n")
                size = int(line.split(b";")[0], 16)
                sink.write(line)
                if size == 0:
                    sink.write(await source.readuntil(b"\r\n"))
                    return total
                sink.write(await source.readexactly(size + 2))
                total += size
                await self._drained(sink, size, slow=slow)
        left = total = int(fields.get("content-length", 0))
        while left:
            part = await source.read(min(left, 1 << 18))
            if not part:
                raise ConnectionError("the body was cut")
            sink.write(part)
            left -= len(part)
            await self._drained(sink, len(part), slow=slow)
        return total

    async def _drained(self, sink: asyncio.StreamWriter, size: int, *, slow: bool) -> None:
        if slow and self.orders.mbit:
            now = asyncio.get_running_loop().time()
            self._free_at = max(now - 0.01, self._free_at) + size * 8e-6 / self.orders.mbit
            if self._free_at > now + 0.002:
                await asyncio.sleep(self._free_at - now)
        await sink.drain()

    def _fault(self, what: str) -> str | None:
        if not re.search(self.orders.match, what):
            return None
        draw = self._draw.random()
        for name, share in self.orders.faults.items():
            if draw < share:
                return name
            draw -= share
        return None


def _fields(head: bytes) -> dict[str, str]:
    pairs = (line.split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
    return {name.strip().lower().decode(): value.strip().decode("latin1") for name, value in pairs}


async def _main(upstream: int) -> None:
    server = Server(upstream)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, limit=1 << 20)
    print(listening.sockets[0].getsockname()[1], flush=True)
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        asked = json.loads(line)
        if "orders" in asked:
            server.obey(asked["orders"])
        taken = [asdict(request) for request in server.requests]
        server.requests.clear()
        print(json.dumps({"requests": taken, "connections": server.connections}), flush=True)
    os._exit(0)  # connections that are open are nobody's now


class Proxy:
    """The proxy as a process; ends with its ``with``."""

    def __init__(self, upstream: int, **orders: Any) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), str(upstream)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        self.set(**orders)

    def set(self, **orders: Any) -> None:
        """Give orders, see ``Orders``, and forget the requests so far."""
        self._ask({"orders": orders})

    def taken(self) -> list[Request]:
        """Requests since the last time, in the order in which they began."""
        return [Request(**one) for one in self._ask({})["requests"]]

    def _ask(self, what: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.kill()  # a forked child may hold its stdin open
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def rounds(requests: list[Request]) -> int:
    """Longest chain of requests, each begun after the one before had ended."""
    count, end = 0, 0.0
    for request in sorted(requests, key=lambda r: r.begun):
        if request.begun >= end:
            count += 1
            end = request.ended or request.begun
    return count


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1])))
