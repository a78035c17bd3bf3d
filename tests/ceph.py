"""A Ceph cluster of one monitor, one store in memory and one S3 gateway, as processes of this machine."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from cloud import KEY, SECRET, free_port, listens

PROGRAMS = ("monmaptool", "ceph", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin")
CONFIG = """
[global]
fsid = {fsid}
mon_initial_members = a
mon_host = v1:127.0.0.1:{monitor}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_msgr2 = false
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
auth_allow_insecure_global_id_reclaim = true
keyring = {folder}/keyring
run_dir = {folder}
admin_socket = {folder}/$name.asok
pid_file = {folder}/$name.pid
log_file = {folder}/$name.log
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pgp_num = 8
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
[mon]
mon_data = {folder}/mon
mon_data_avail_warn = 2
mon_data_avail_crit = 1
[osd]
osd_data = {folder}/osd
osd_objectstore = memstore
memstore_device_bytes = 2147483648
memstore_page_set = false
osd_crush_update_on_start = false
osd_class_update_on_start = false
osd_class_load_list = *
osd_class_default_list = *
[client.rgw]
rgw_data = {folder}/rgw
rgw_frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw_run_sync_thread = false
rgw_override_bucket_index_max_shards = 1
rgw_dynamic_resharding = false
"""


def lacking() -> str:
    """Programs that are not there, in words; none where Ceph is."""
    return ", ".join(name for name in PROGRAMS if shutil.which(name) is None)


class Ceph:
    """S3 by radosgw on `port`; begins with its ``with``, and is gone, with all that it holds, after it."""

    def __init__(self) -> None:
        self.port = free_port()
        self._monitor, self._fsid = free_port(), uuid.uuid4()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            # its sockets need a short path
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ceph-", dir="/tmp")))
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self, stack: ExitStack) -> None:
        folder = self._folder
        for name in ("mon", "osd", "rgw"):
            (folder / name).mkdir()
        (folder / "keyring").touch()
        made = CONFIG.format(folder=folder, fsid=self._fsid, monitor=self._monitor, port=self.port)
        (folder / "ceph.conf").write_text(made)
        where = f"[v1:127.0.0.1:{self._monitor}]"
        self._run("monmaptool", "--create", "--fsid", str(self._fsid), "--addv", "a", where, str(folder / "map"))
        self._run("ceph-mon", "-i", "a", "--mkfs", "--monmap", str(folder / "map"))
        self._daemon(stack, "ceph-mon", "-i", "a")
        of_osd = str(uuid.uuid4())
        number = self._run("ceph", "osd", "new", of_osd).strip()
        self._run("ceph-osd", "-i", number, "--mkfs", "--osd-uuid", of_osd)
        self._run("ceph", "osd", "crush", "add", f"osd.{number}", "1.0", "root=default", "host=localhost")
        osd = self._daemon(stack, "ceph-osd", "-i", number)
        self._until(lambda: "1 up" in self._run("ceph", "osd", "stat"), osd)
        keys = [f"--access-key={KEY}", f"--secret={SECRET}"]
        self._run("radosgw-admin", "user", "create", "--uid=test", "--display-name=test", *keys)
        gateway = self._daemon(stack, "radosgw", "-n", "client.rgw")
        self._until(lambda: listens(self.port), gateway)

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            [*command, "-c", str(self._folder / "ceph.conf")], capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} gave {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def _daemon(self, stack: ExitStack, *command: str) -> subprocess.Popen[bytes]:
        said = stack.enter_context((self._folder / f"{command[0]}.out").open("wb"))
        with_config = [*command, "-c", str(self._folder / "ceph.conf"), "-f"]
        process = subprocess.Popen(with_config, stdout=said, stderr=said)
        stack.callback(process.wait)
        stack.callback(process.kill)
        return process

    def _until(self, ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
        for _ in range(600):
            if process.poll() is not None:
                break
            if ready():
                return
            time.sleep(0.1)
        said = "".join(path.read_text(errors="replace")[-2000:] for path in self._folder.glob("*.out"))
        raise RuntimeError(f"{process.args} gave {process.poll()}: {said}")
