"""Encryption at rest: nothing of a patient lies readable on the disk, and only the key opens it."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Tiny, save

from radiodata import PatchDataset, PatchLoader
from radiodata.errors import ConfigError, EncryptionError, TileReadError
from radiodata.ingest import ingest_niftis
from radiodata.pipeline import Clip
from radiodata.store import Cohort, ReadConfig, verify

pytest.importorskip("cryptography", reason="needs radiodata[encryption]")
MARKS = (b"Zebedee", b"glioblastoma", b"secret_column", b"OTHERMARK")


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, ReadConfig]:
    monkeypatch.setenv("COHORT_KEY", secrets.token_hex(32))
    monkeypatch.setenv("OTHER_KEY", secrets.token_hex(32))
    raw = tmp_path / "key"
    raw.write_bytes(secrets.token_bytes(32))
    return {
        "env": ReadConfig(encryption_key="env:COHORT_KEY"),
        "other": ReadConfig(encryption_key="env:OTHER_KEY"),
        "file": ReadConfig(encryption_key=f"file:{raw}"),
        "none": ReadConfig(),
    }


def table(tiny: Tiny) -> pd.DataFrame:
    return tiny.obs_meta.assign(name="Zebedee", secret_column=[f"glioblastoma {i}" for i in range(len(tiny.obs_meta))])


@pytest.fixture
def sealed(tiny: Tiny, tmp_path: Path, keys: dict[str, ReadConfig]) -> Cohort:
    return Cohort.from_niftis(tmp_path / "sealed", tiny.images, obs_meta=table(tiny), read=keys["env"])


def on_disk(uri: Any) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(Path(uri).rglob("*")) if path.is_file())


def test_everything_is_as_in_a_cohort_that_is_not_encrypted(tiny: Tiny, sealed: Cohort) -> None:
    for name in ("CT", "seg"):
        assert sealed[name].ids == tiny.cohort[name].ids
        for ours, theirs in zip(sealed[name], tiny.cohort[name], strict=True):
            np.testing.assert_array_equal(ours.to_numpy(), theirs.to_numpy())
            np.testing.assert_array_equal(ours[3:9, 4:11, 5:20], theirs[3:9, 4:11, 5:20])
    assert not verify(sealed).problems
    assert sealed.filter("secret_column == 'glioblastoma 1'").subjects == [sealed.subjects[1]]


def test_nothing_lies_readable_on_the_disk(tiny: Tiny, sealed: Cohort, tmp_path: Path) -> None:
    sealed = sealed.update_obs_meta(pd.DataFrame({"more": ["OTHERMARK"]}, index=[sealed.subjects[0]]))
    sealed.CT.lazy().map(Clip(0, 100)).write(name="clipped")
    raw = on_disk(sealed.uri)
    for word in (*MARKS, *(s.encode() for s in sealed.subjects)):
        assert word not in raw, word
    ingest_niftis(str(tmp_path / "plain"), tiny.images, obs_meta=table(tiny))
    plain = on_disk(tmp_path / "plain")
    assert b"secret_column" in plain  # else this finds nothing anywhere
    voxels = next((Path(sealed.uri) / "CT" / "voxels").rglob("a0.tdb"))
    zstd = b"\x28\xb5\x2f\xfd"
    assert zstd not in voxels.read_bytes()
    assert zstd in next((tmp_path / "plain" / "CT" / "voxels").rglob("a0.tdb")).read_bytes()


@pytest.mark.parametrize(
    ("key", "why"),
    [("other", "the key that was given is not that of the cohort at .*sealed"), ("none", "is encrypted: say where")],
)
def test_only_the_key_opens_it(tiny: Tiny, sealed: Cohort, keys: dict[str, ReadConfig], key: str, why: str) -> None:
    before = on_disk(sealed.uri)
    with pytest.raises(EncryptionError, match=why):
        Cohort(sealed.uri, config=keys[key])
    with pytest.raises(EncryptionError, match=why):
        Cohort(sealed.uri, config=keys[key], at=1)
    with pytest.raises(EncryptionError, match=why):
        ingest_niftis(sealed.uri, tiny.images, read=keys[key])
    assert on_disk(sealed.uri) == before


def test_a_key_for_a_cohort_that_is_not_encrypted_is_refused(tiny: Tiny, keys: dict[str, ReadConfig]) -> None:
    with pytest.raises(EncryptionError, match="is not encrypted, and an encryption_key was given: leave it out"):
        Cohort(tiny.cohort.uri, config=keys["env"])


def test_records_are_sealed_each_in_its_place(sealed: Cohort, keys: dict[str, ReadConfig]) -> None:
    sealed.update_obs_meta(pd.DataFrame({"n": [1]}, index=[sealed.subjects[0]]))
    records = sorted((Path(sealed.uri) / "__commits").glob("*.json"))
    records[-1].write_bytes(records[0].read_bytes())  # whole, of the same key, and not this version
    with pytest.raises(EncryptionError, match="does not open"):
        Cohort(sealed.uri, config=keys["env"])
    records[-1].write_bytes(json.dumps({}).encode())
    with pytest.raises(EncryptionError, match="is not encrypted"):
        Cohort(sealed.uri, config=keys["env"])


def test_every_change_and_every_reader_works_with_a_key_in_a_file(
    tiny: Tiny, tmp_path: Path, keys: dict[str, ReadConfig]
) -> None:
    images = {name: files[:4] for name, files in tiny.images.items()}
    cohort = Cohort.from_niftis(tmp_path / "sealed", images, obs_meta=tiny.obs_meta.iloc[:4], read=keys["file"])
    more = {name: files[4:] for name, files in tiny.images.items()}
    cohort = cohort.append(more, obs_meta=tiny.obs_meta.iloc[4:])
    cohort = cohort.remove(subjects=cohort.subjects[:1]).rename_collection("CT", "ct")
    cohort = cohort.update_obs("ct", pd.DataFrame({"score": [0.5]}, index=[cohort.ct.ids[0]])).optimize()
    derived = cohort.ct.lazy().map(Clip(-100, 100)).write(tmp_path / "derived").collection
    with pytest.raises(EncryptionError, match="is encrypted"):  # what is made of it is encrypted as well
        Cohort(tmp_path / "derived")
    for made, volume in zip(derived, cohort.ct, strict=True):
        np.testing.assert_array_equal(made.to_numpy(), np.clip(volume.to_numpy(), -100, 100))
    loader = PatchLoader(PatchDataset(cohort, {"image": "ct"}, patch_size=16, batch_size=2, seed=1), 2, num_workers=2)
    seen = 0
    for batch in loader:
        for crop, subject, box in zip(batch["image"], batch["obs_subject_id"], batch["box"].tolist(), strict=True):
            (x, to_x), (y, to_y), (z, to_z) = box
            np.testing.assert_array_equal(crop[0], tiny.cohort.CT.loc[f"{subject}_CT"][x:to_x, y:to_y, z:to_z])
            seen += 1
    assert seen > 0


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "the environment variable COHORT_KEY is not set"),
        ("", "is not set"),
        ("abc", "holds no key: it must be 64 hexadecimal digits"),
        ("0" * 63, "holds no key"),
        ("x" * 32, "holds no key"),
    ],
)
def test_what_is_no_key_is_refused(
    sealed: Cohort, monkeypatch: pytest.MonkeyPatch, content: str | None, why: str
) -> None:
    monkeypatch.setenv("COHORT_KEY_2", content) if content is not None else None
    with pytest.raises(ConfigError, match=why.replace("COHORT_KEY", "COHORT_KEY_2")):
        Cohort(sealed.uri, config=ReadConfig(encryption_key="env:COHORT_KEY_2"))


def test_a_key_file_that_is_not_there_is_named(sealed: Cohort, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"file cannot be read: .*nokey"):
        Cohort(sealed.uri, config=ReadConfig(encryption_key=f"file:{tmp_path}/nokey"))


def test_the_key_shows_nowhere(sealed: Cohort, keys: dict[str, ReadConfig]) -> None:
    import os
    import pickle

    secret = os.environ["COHORT_KEY"]
    told = [repr(sealed.config), repr(sealed), sealed._repr_html_(), pickle.dumps(sealed.config).hex()]
    told += [pickle.dumps(sealed.CT.iloc[0]).hex(), sealed.freeze().hash]
    for text in told:
        assert secret not in text
        assert secret.encode().hex() not in text


def test_the_command_line_takes_the_key_from_the_environment(
    tiny: Tiny, tmp_path: Path, keys: dict[str, ReadConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def radiodata(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "radiodata.cli", *arguments], capture_output=True, text=True, check=False
        )

    uri, folder = str(tmp_path / "cli"), str(Path(tiny.images["CT"][0]).parent)
    monkeypatch.setenv("RADIODATA_READ_ENCRYPTION_KEY", "env:COHORT_KEY")
    assert radiodata("ingest", uri, "--nifti", f"CT={folder}").returncode == 0
    assert radiodata("info", uri).returncode == 0
    assert radiodata("verify", uri).returncode == 0
    assert radiodata("export", uri, str(tmp_path / "out")).returncode == 0
    assert len(list((tmp_path / "out").rglob("*.nii.gz"))) == len(tiny.images["CT"])
    monkeypatch.delenv("RADIODATA_READ_ENCRYPTION_KEY")
    refused = radiodata("info", uri)
    assert refused.returncode == 1
    assert "is encrypted: say where the key is" in refused.stderr


def test_voxels_read_with_another_config_are_refused(sealed: Cohort, keys: dict[str, ReadConfig]) -> None:
    from radiodata.store import read_box

    source, whole = sealed.CT.sources()[0], np.array([[0, 4]] * 3)
    with pytest.raises((EncryptionError, TileReadError), match="encrypted"):
        read_box(source, whole, config=keys["none"])


def test_damage_is_noticed(sealed: Cohort, keys: dict[str, ReadConfig]) -> None:
    """GCM says whether a tile is what was written, where most flipped bits pass otherwise."""
    voxels = next((Path(sealed.uri) / "CT" / "voxels").rglob("a0.tdb"))
    raw = bytearray(voxels.read_bytes())
    raw[len(raw) // 2] ^= 1
    voxels.write_bytes(raw)
    assert len(verify(Cohort(sealed.uri, config=keys["env"])).problems) == 1


def test_several_channels_and_large_tables_are_encrypted_too(tmp_path: Path, keys: dict[str, ReadConfig]) -> None:
    files = [save(np.full((5, 6, 7), i, np.int16), np.eye(4), tmp_path / "CT" / f"s{i:03d}.nii") for i in range(40)]
    cohort = Cohort.from_niftis(tmp_path / "sealed", {"CT": files}, read=keys["file"])  # in processes, too
    assert [int(volume.to_numpy()[0, 0, 0]) for volume in cohort.CT] == list(range(40))
