"""Object stores as processes of their own: rclone for S3, azurite for Azure, each on a free port of this machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from radiodata.store import ReadConfig

KEY, SECRET = "radiodata-test-key", "radiodata-test-secret-4d1f"
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "cmFkaW9kYXRhLXRlc3QtYWNjb3VudC1rZXktOWYzYQ=="  # of the test's own account
BUCKET = "scans"


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def listens(port: int) -> bool:
    """Whether somebody listens on a port of this machine."""
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


@dataclass
class Cloud:
    """A server of objects, which it keeps in the folder `data`; ends with its ``with``."""

    command: list[str]
    port: int
    log: Path
    env: dict[str, str]
    data: Path

    def start(self) -> Self:
        """Start it, again on the same port where it was ended."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as log:
            self._process = subprocess.Popen(self.command, stdout=log, stderr=log, env={**os.environ, **self.env})
        for _ in range(600):
            if self._process.poll() is not None:
                raise RuntimeError(f"{self.command[0]} ended: {self.log.read_text()[-2000:]}")
            if listens(self.port):
                return self
            time.sleep(0.05)
        raise RuntimeError(f"{self.command[0]} does not listen: {self.log.read_text()[-2000:]}")

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.log.unlink(missing_ok=True)


def rclone() -> str | None:
    """The program, where there is one."""
    beside = Path(sys.executable).with_name("rclone")
    return shutil.which("rclone") or (str(beside) if beside.exists() else None)


def azurite() -> str | None:
    """The program, where there is one: on the path, or where ``make azurite`` puts it."""
    made = Path(__file__).parents[1] / ".venv" / "npm" / "node_modules" / ".bin" / "azurite-blob"
    return str(made) if made.exists() else shutil.which("azurite-blob")


def s3_server(folder: Path) -> Cloud:
    """S3 with one bucket, ``BUCKET``, in a folder of `folder`."""
    (folder / "data" / BUCKET).mkdir(parents=True, exist_ok=True)
    return served(folder / "data")


def served(data: Path) -> Cloud:
    """S3 whose buckets are the folders of `data`."""
    port = free_port()
    command = [rclone() or "rclone", "serve", "s3", "--config", os.devnull, "--addr", f"127.0.0.1:{port}"]
    log = Path(tempfile.gettempdir(), f"radiodata-rclone-{port}.log")
    return Cloud([*command, "--auth-key", f"{KEY},{SECRET}", str(data)], port, log, {}, data)


def azure_server(folder: Path) -> Cloud:
    """Azure Blob Storage with one account, ``ACCOUNT``."""
    port = free_port()
    command = [azurite() or "azurite-blob", "--silent", "--location", str(folder / "azure"), "--skipApiVersionCheck"]
    command += ["--disableTelemetry", "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    accounts = {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{ACCOUNT_KEY}"}
    return Cloud(command, port, folder / "azurite.log", accounts, folder / "azure")


def s3_config(port: int, tiledb: dict[str, str] | None = None, **changes: Any) -> ReadConfig:
    """How to reach S3 on a port of this machine, with credentials in the configuration."""
    plain = {
        "vfs.s3.endpoint_override": f"127.0.0.1:{port}",
        "vfs.s3.scheme": "http",
        "vfs.s3.use_virtual_addressing": "false",
        "vfs.s3.region": "us-east-1",
        "vfs.s3.aws_access_key_id": KEY,
        "vfs.s3.aws_secret_access_key": SECRET,
    }
    return ReadConfig(**{"threads": 2, "tiledb": {**plain, **(tiledb or {})}, **changes})


def azure_config(port: int, **changes: Any) -> ReadConfig:
    """How to reach Azure Blob Storage on a port of this machine."""
    plain = {
        "vfs.azure.storage_account_name": ACCOUNT,
        "vfs.azure.storage_account_key": ACCOUNT_KEY,
        "vfs.azure.blob_endpoint": f"http://127.0.0.1:{port}/{ACCOUNT}",
    }
    return ReadConfig(**{"threads": 2, "tiledb": plain, **changes})
