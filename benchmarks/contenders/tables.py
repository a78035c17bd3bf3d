"""Ways of keeping the tables of a cohort: radiodata, TileDB's own conditions, and files that pandas reads."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchmarks.contenders.base import Contender

if TYPE_CHECKING:
    from benchmarks.people import People

SUBJECTS = "age > 40 and sex == 'F'"
VOLUMES = "spacing_z < 3 and age > 40"
VOXELS = np.arange(8, dtype=np.int16).reshape(1, 2, 2, 2)


class Tables(Contender):
    """Methods get what ``open`` gave; filters give ids, in any order; ``row`` gives the subject of a CT by position."""

    def open(self, folder: Path) -> Any:
        raise NotImplementedError

    def subjects(self, tables: Any) -> list[str]:
        raise NotImplementedError

    def volumes(self, tables: Any) -> list[str]:
        raise NotImplementedError

    def volumes_of_subjects(self, tables: Any) -> list[str]:
        raise NotImplementedError

    def row(self, tables: Any, at: int) -> str:
        raise NotImplementedError


class Radiodata(Tables):
    requires = ("radiodata",)

    def import_all(self) -> None:
        from radiodata import Cohort  # noqa: F401

    def store(self, crop: int) -> str:
        return "radiodata"

    def prepare(self, people: People, folder: Path, crop: int) -> None:  # type: ignore[override]
        """Write a cohort of those tables, with voxels of 2 x 2 x 2, in one commit."""
        write_cohort(str(folder / "cohort"), people)

    def open(self, folder: Path) -> Any:
        from radiodata import Cohort

        return Cohort(folder / "cohort")

    def subjects(self, tables: Any) -> list[str]:
        return tables.filter(SUBJECTS).subjects  # type: ignore[no-any-return]

    def volumes(self, tables: Any) -> list[str]:
        return tables.CT.filter(VOLUMES).ids  # type: ignore[no-any-return]

    def volumes_of_subjects(self, tables: Any) -> list[str]:
        return tables.filter(SUBJECTS).CT.ids  # type: ignore[no-any-return]

    def row(self, tables: Any, at: int) -> str:
        return tables.CT.iloc[at].obs_subject_id  # type: ignore[no-any-return]


class Apart(Radiodata):
    """A cohort whose CTs are a fragment each, as an ingest leaves them; `crop` is the number of subjects."""

    def store(self, crop: int) -> str:
        return f"radiodata-{crop}"

    def prepare(self, people: Any, folder: Path, crop: int) -> None:
        write_cohort(str(folder / "cohort"), people.of(crop), apart=True)


class Condition(Radiodata):
    """The same arrays, read from disk by TileDB at each filter: what pushing an expression down would do."""

    requires = ("tiledb", "radiodata")

    def open(self, folder: Path) -> Any:
        import tiledb

        from radiodata import ReadConfig
        from radiodata.store.commits import latest

        record = latest(str(folder / "cohort"), ReadConfig())
        assert record is not None
        tables = {"meta": record.obs_meta, "CT": record.collections["CT"].obs}
        return {n: tiledb.open(str(folder / "cohort" / t.segments[0].path)) for n, t in tables.items()}

    def subjects(self, tables: Any) -> list[str]:
        return _texts(_where(tables["meta"], SUBJECTS, [])["obs_subject_id"])

    def volumes(self, tables: Any) -> list[str]:
        known = set(_texts(_where(tables["meta"], "age > 40", [])["obs_subject_id"]))
        found = _where(tables["CT"], "spacing_z < 3", ["obs_subject_id"])
        pairs = zip(_texts(found["obs_id"]), found["obs_subject_id"].tolist(), strict=True)
        return [obs_id for obs_id, subject in pairs if subject in known]

    def volumes_of_subjects(self, tables: Any) -> list[str]:
        known = set(self.subjects(tables))
        found = tables["CT"].query(attrs=["obs_subject_id"])[:]
        pairs = zip(_texts(found["obs_id"]), found["obs_subject_id"].tolist(), strict=True)
        return [obs_id for obs_id, subject in pairs if subject in known]

    def row(self, tables: Any, at: int) -> str:
        found = tables["CT"].query(attrs=["obs_subject_id"])[f"sub-{at:06d}_CT"]  # by id: it has no positions
        return str(found["obs_subject_id"][0])


class Csv(Tables):
    requires = ("pandas",)
    suffix = "csv"

    def store(self, crop: int) -> str:
        return f"pandas-{self.suffix}-{crop}"

    def prepare(self, people: Any, folder: Path, crop: int) -> None:
        for path in (people.of(crop) if crop else people).files:
            (folder / path.name).write_bytes(path.read_bytes())

    def open(self, folder: Path) -> Any:
        meta = pd.read_csv(folder / "obs_meta.csv", index_col=0, dtype={"age": "Int64"}, parse_dates=["scanned"])
        return meta, *(pd.read_csv(folder / f"{name}.csv", index_col=0) for name in ("CT", "PET"))

    def subjects(self, tables: Any) -> list[str]:
        return tables[0].query(SUBJECTS).index.tolist()  # type: ignore[no-any-return]

    def volumes(self, tables: Any) -> list[str]:
        meta, ct, _ = tables
        return ct.join(meta[["age"]], on="obs_subject_id").query(VOLUMES).index.tolist()  # type: ignore[no-any-return]

    def volumes_of_subjects(self, tables: Any) -> list[str]:
        meta, ct, _ = tables
        return ct[ct["obs_subject_id"].isin(meta.query(SUBJECTS).index)].index.tolist()  # type: ignore[no-any-return]

    def row(self, tables: Any, at: int) -> str:
        return str(tables[1].iloc[at]["obs_subject_id"])


class Parquet(Csv):
    requires = ("pandas", "pyarrow")
    suffix = "parquet"

    def prepare(self, people: Any, folder: Path, crop: int) -> None:
        people = people.of(crop) if crop else people
        people.obs_meta.to_parquet(folder / "obs_meta.parquet")
        for name in ("CT", "PET"):
            people.obs(name).to_parquet(folder / f"{name}.parquet")

    def open(self, folder: Path) -> Any:
        return tuple(pd.read_parquet(folder / f"{name}.parquet") for name in ("obs_meta", "CT", "PET"))


def write_cohort(uri: str, people: People, *, apart: bool = False) -> None:
    """Write a cohort of the tables of `people`, with volumes of 2 x 2 x 2; a shard at once, or (CT) volumes apart."""
    from radiodata.ingest.volume import Slot, write_voxels
    from radiodata.store import ReadConfig, StoreConfig, layout
    from radiodata.store.context import context
    from radiodata.store.draft import new_folder
    from radiodata.store.obs import OBS_COLUMNS
    from radiodata.store.writing import Writer

    config, read = StoreConfig(tiling=2), ReadConfig()
    layout.create_root(uri, context(read))
    with Writer(uri, read) as writer:
        tables, folders = {}, {}
        for name in ("CT", "PET"):
            folders[name] = new_folder(uri, name, writer.run, context(read))
            where = layout.join(uri, folders[name])
            tables[name] = people.obs(name)
            slot, source = (
                Slot(name, where, "image", writer.run, 0),
                dict.fromkeys(_SOURCE, "") | {"source_header": b""},
            )
            template = write_voxels(slot, "s", f"s_{name}", VOXELS, np.eye(4), source, config, read).obs
            at, given = np.arange(people.count), tables[name].drop(columns=[f"size_{a}" for a in "xyz"])
            rows = given.assign(**{k: [v] * people.count for k, v in template.items() if k not in given.columns})
            rows["shard"] = [layout.shard_name(writer.run, i // config.slots, "int16") for i in at]
            rows["slot"] = at % config.slots
            tables[name] = rows[[c.name for c in OBS_COLUMNS]]
            each = apart and name == "CT"
            _write_shards(where, sorted(set(rows["shard"])), people.count, config, context(read), each=each)

        def change(draft: Any) -> None:
            draft.begin_subjects(people.obs_meta)
            draft.add_subjects(people.obs_meta)
            for name, rows in tables.items():
                draft.ensure_collection(name, "image", config.tile, folder=folders[name])
                draft.add_volumes(name, rows)

        writer.commit("write", change)


_SOURCE = ("source_uri", "source_format", "source_dtype", "source_orientation", "source_hash")


def _write_shards(where: str, names: list[str], count: int, config: Any, ctx: Any, *, each: bool) -> None:
    import tiledb

    from radiodata.store.layout import shard_uri
    from radiodata.store.writer import consolidate_metadata, ensure_shard, write_volume

    for number, name in enumerate(names):
        many = min(config.slots, count - number * config.slots)
        ensure_shard(shard_uri(where, name), "int16", config, ctx)
        if each:
            if number:  # the first volume of the first one is there
                write_volume(shard_uri(where, name), 0, VOXELS, ctx)
            _repeat(Path(shard_uri(where, name)), many)
            consolidate_metadata([shard_uri(where, name)], ctx)
            continue
        with tiledb.open(shard_uri(where, name), "w", ctx=ctx) as array:
            array[0:many, 0:1, 0:2, 0:2, 0:2] = np.broadcast_to(VOXELS, (many, *VOXELS.shape)).copy()


def _repeat(shard: Path, many: int) -> None:
    """Give all slots of a shard the fragment of the first: the files that writing each would leave, in less time."""
    from radiodata.store.direct.compose import VERSION, compose
    from radiodata.store.direct.schema import Layout

    (first,) = (shard / "__fragments").iterdir()
    (schema,) = (path for path in (shard / "__schema").iterdir() if path.is_file())  # beside a folder of enumerations
    data, layout = (first / "a0.tdb").read_bytes(), Layout(VOXELS.dtype, (2, 2, 2), shuffle=True, zstd=True)
    ends, sums = np.array([[VOXELS.min(), VOXELS.max()]]), np.array([VOXELS.sum()], np.int64)
    for slot in range(1, many):
        name = f"__{slot + 1}_{slot + 1}_{uuid.uuid4().hex}_{VERSION}"
        folder = shard / "__fragments" / name
        folder.mkdir()
        (folder / "a0.tdb").write_bytes(data)
        told = compose(schema.name, slot, (1, 2, 2, 2), layout, np.array([0, len(data)]), ends, sums)
        (folder / "__fragment_metadata.tdb").write_bytes(told)
        (shard / "__commits" / f"{name}.wrt").touch()


def _where(array: Any, condition: str, attrs: list[str]) -> Any:
    return array.query(cond=condition, attrs=attrs)[:]


def _texts(ids: Any) -> list[str]:
    return [i.decode() for i in ids.tolist()]
