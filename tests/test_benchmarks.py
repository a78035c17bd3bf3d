"""The benchmarks run, say what they ran on and refuse what they do not know; no peer is needed here."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import cold, loader, patch, phantom, registry, results, table  # noqa: E402
from benchmarks.contenders.nnunet_rule import chunking_since_2_8, chunking_up_to_2_7  # noqa: E402
from benchmarks.probes import summary  # noqa: E402

SHAPE = (96, 80, 64)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def volume():
    return phantom.phantom(SHAPE, 0)


def test_phantom_is_a_ct(volume):
    assert volume.shape == SHAPE
    assert volume.dtype == np.int16
    assert volume.flags.c_contiguous
    assert volume.min() == phantom.PADDING  # outside the field of view
    assert 600 < volume.max() <= phantom.HIGHEST  # bone
    middle = volume[:, :, SHAPE[2] // 4]
    assert -1100 < np.median(middle[30:60, :6]) < -950  # air above the body
    assert 20 < np.median(middle[40:56, 20:40]) < 90  # soft tissue
    assert (volume[:, 66:74, :] > -400).any()  # the table


def test_phantom_compresses_like_ct(volume):
    ratio = volume.nbytes / len(gzip.compress(volume.tobytes(order="F"), 6))
    assert 1.7 < ratio < 2.6


def test_phantom_noise_is_correlated():
    noise = phantom._correlated_noise(np.random.default_rng(0), (256, 256))
    first, second = next(noise), next(noise)
    assert first.std() == pytest.approx(1, abs=0.05)
    assert np.corrcoef(first[:, 1:].ravel(), first[:, :-1].ravel())[0, 1] == pytest.approx(2 / 3, abs=0.05)
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] == pytest.approx(0.4, abs=0.05)


def test_phantom_depends_on_its_arguments_alone(volume):
    np.testing.assert_array_equal(volume, phantom.phantom(SHAPE, 0))
    assert not np.array_equal(volume, phantom.phantom(SHAPE, 1))


def test_find_tells_where_a_crop_comes_from(volume):
    other = phantom.phantom(SHAPE, 1)
    crop = other[20:52, 30:62, 10:42]
    assert phantom.find(crop, [volume, other]) == (1, (20, 30, 10))
    assert phantom.find(crop.astype(np.float32), [volume, other]) == (1, (20, 30, 10))
    wrong = crop.copy()
    wrong[0, 0, 1] += 1
    assert phantom.find(wrong, [volume, other]) is None
    assert phantom.find(crop.transpose(1, 0, 2), [volume, other]) is None


@pytest.mark.parametrize("module", [patch, loader], ids=["patch", "loader"])
def test_rows_have_names_of_their_own_and_contenders_import_lazily(module):
    names = [row.name for row in module.ROWS]
    assert len(set(names)) == len(names)
    assert {"radiodata", *registry.READERS, "TorchIO", "MONAI", "zarr", "memmap"} <= {r.family for r in module.ROWS}
    for row in module.ROWS:  # building one needs none of the packages it measures
        assert module.cases(module.QUICK, row)
        assert row.build().requires[:1] == row.requires


def test_select_takes_families_and_rows():
    assert [r.name for r in registry.select(patch.ROWS, "memmap")] == ["memmap"]
    assert len(registry.select(patch.ROWS, "RADIODATA")) == 7
    two = ["memmap (w0)", "radiodata (tile 64, unit 8, w2)"]
    assert [r.name for r in registry.select(loader.ROWS, ", ".join(reversed(two)))] == two
    assert len(registry.select(patch.ROWS, None)) == len(patch.ROWS)
    with pytest.raises(ValueError, match=r"'nobody'.*RadiObject"):
        registry.select(patch.ROWS, "memmap,nobody")


@pytest.mark.parametrize("kind", ["random", "aligned"])
@pytest.mark.parametrize("crop", patch.FULL.crops)
def test_crop_starts_are_the_same_for_all_and_inside(kind, crop):
    starts = patch.starts(patch.FULL, kind, crop)
    assert starts.shape == (patch.FULL.reads, 3)
    assert (starts >= 0).all()
    assert (starts + crop <= patch.FULL.shape).all()
    np.testing.assert_array_equal(starts, patch.starts(patch.FULL, kind, crop))
    if kind == "aligned":
        assert (starts % patch.GRID == 0).all()


@pytest.mark.parametrize(
    ("rule", "image", "patch_size", "itemsize", "block", "chunk"),
    [  # what nnunetv2 2.7.0 and 2.8.1 work out
        (chunking_up_to_2_7, (512, 512, 300), (96, 96, 96), 2, (32, 16, 16), (160, 64, 64)),
        (chunking_up_to_2_7, (332, 37, 384), (148, 36, 16), 4, (64, 16, 4), (268, 37, 20)),
        (chunking_since_2_8, (512, 512, 300), (64, 64, 64), 2, (64, 32, 32), (96, 96, 96)),
        (chunking_since_2_8, (512, 512, 300), (96, 96, 96), 2, (64, 32, 32), (144, 144, 144)),
        (chunking_since_2_8, (512, 512, 300), (128, 128, 128), 2, (64, 32, 32), (192, 128, 128)),
    ],
)
def test_nnunet_chunks(rule, image, patch_size, itemsize, block, chunk):
    assert rule(image, patch_size, itemsize) == (block, chunk)


def test_summary():
    assert summary([4.0, 1.0, 2.0, 3.0, 5.0]) == {
        "median": 3.0, "q1": 2.0, "q3": 4.0, "iqr": 2.0, "min": 1.0, "max": 5.0, "n": 5,
    }  # fmt: skip
    assert summary([7.0])["iqr"] == 0


@pytest.mark.parametrize(("module", "times"), [(patch, 4.0), (loader, 0.25)], ids=["patch", "loader"])
def test_ratio_is_to_the_fastest_row_of_the_peer(module, times):
    def row(family, name, value, status="ok"):
        metrics = {module.PRIMARY: {"median": value}} if status == "ok" else {}
        return {"family": family, "row": name, "case": "c", "status": status, "metrics": metrics}

    best, worse = (8.0, 9.0) if module is patch else (8.0, 7.0)
    rows = [
        row("radiodata", "mine", 2.0),
        row("RadiObject", "worse", worse),
        row("RadiObject", "best", best),
        row("RadiObject", "broken", 0.0, "error"),
    ]
    assert results.ratio(rows[0], rows, "RadiObject", module) == {"times": times, "row": "best"}
    assert results.ratio(rows[0], rows, "blosc2", module) is None
    assert results.ratio(rows[3], rows, "RadiObject", module) is None


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    done = command(
        "run", "patch", "--quick", "--contenders", "memmap", "--repeats", "2",
        "--json", str(folder / "out" / "patch.json"), "--data", str(folder / "data"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "out" / "patch.json").read_text()), done.stdout


def test_json_says_what_it_ran_on(quick):
    result, _ = quick
    assert result["schema"] == results.SCHEMA
    assert result["benchmark"] == "patch"
    assert result["quick"] is True
    assert result["machine"]["cores"] >= 1
    assert result["versions"]["numpy"] == np.__version__
    assert result["parameters"]["shape"] == [128, 128, 96]
    assert 1.7 < result["data"]["nii_gz_ratio"] < 2.6
    raw = result["data"]["raw_bytes"]
    assert result["stores"]["memmap"]["bytes"] == raw + 128  # the header of a .npy
    assert result["stores"]["memmap"]["prepare_s"] >= 0


def test_json_has_every_case_with_its_spread(quick):
    result, _ = quick
    cubes = ["random 32", "aligned 32", "random 64", "aligned 64"]
    assert [row["case"] for row in result["rows"]] == [*cubes, *patch.SLICES, patch.WHOLE]
    x, y, z = result["parameters"]["shape"]
    slices = {"axial slice": x * y, "coronal slice": x * z, "sagittal slice": y * z, patch.WHOLE: x * y * z}
    for row in result["rows"]:
        metric = row["metrics"]["ms_per_read"]
        assert row["status"] == "ok"
        assert row["dtype"] == "int16"
        assert row["crop_bytes"] == 2 * slices.get(row["case"], row["crop"] ** 3)
        assert set(row["metrics"]["decoded_bytes"]["values"]) == {row["crop_bytes"]}  # a memmap decodes what is asked
        reads = patch.QUICK.whole if row["case"] == patch.WHOLE else patch.QUICK.reads
        assert metric["n"] == len(metric["values"]) == 2 * reads  # both repeats
        assert 0 < metric["q1"] <= metric["median"] <= metric["q3"]
        assert row["ratios"] == {"RadiObject": None, "blosc2": None, "nibabel": None}


def test_bytes_decoded_are_of_whole_blocks():
    box = (slice(10, 20), slice(0, 64), slice(63, 65))
    assert patch._decoded(box, (32, 32, 32)) == 32 * 64 * 64
    assert patch._decoded(box, (1, 1, 1)) == 10 * 64 * 2
    assert patch._decoded(box, (8, 64, 65)) == 16 * 64 * 65


def test_cold_crops_come_from_the_disk_and_warm_ones_do_not(tmp_path, monkeypatch):
    from benchmarks.contenders.memmap import Memmap

    if subprocess.run(["stat", "-fc", "%T", tmp_path], capture_output=True, text=True, check=True).stdout == "tmpfs\n":
        pytest.skip("the temporary folder is kept in memory")
    phantoms, folder = phantom.Phantoms(tmp_path, cold.QUICK.shape, cold.QUICK.volumes), tmp_path / "memmap"
    phantoms.make()
    folder.mkdir()
    contender, row = Memmap(), next(row for row in cold.ROWS if row.family == "memmap")
    contender.prepare(phantoms, folder, cold.QUICK.crop)
    for case in cold.cases(cold.QUICK, row):
        told = cold.measure(contender, phantoms, folder, cold.QUICK, row, case)
        assert min(told["device_mb"]) > 0
        assert min(told[cold.PRIMARY]) > 0
    monkeypatch.setattr(cold, "evict", lambda path: None)
    with pytest.raises(RuntimeError, match="pages cannot be let go of"):
        cold.measure(contender, phantoms, folder, cold.QUICK, row, case)


def rows_of(*given):
    return [
        {
            "family": family, "row": row, "case": case, "status": "ok", "note": "", "ratios": {"blosc2": None},
            "metrics": {"ms_per_read": {"median": value, "iqr": 0.1, "q1": value, "q3": value, "n": 3}},
        }
        for family, row, case, value in given
    ]  # fmt: skip


def test_the_page_tells_goals_and_losses(quick, tmp_path):
    result = {
        **quick[0],
        "rows": rows_of(
            ("radiodata", "radiodata (tile 32)", "random 96", 1.0),
            ("radiodata", "radiodata (tile 64)", "random 96", 2.0),
            ("RadiObject", "RadiObject", "random 96", 9.0),
            ("blosc2", "blosc2", "random 96", 0.5),
            ("memmap", "memmap", "random 96", 0.97),
            ("radiodata", "radiodata (tile 32)", "whole volume", 1.0),
            ("nibabel", "nibabel", "whole volume", 3.0),
        ),
    }
    (tmp_path / "patch.json").write_text(json.dumps(result))
    done = command("report", "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "README.md").read_text()
    assert "| random 96-cube: x RadiObject | >= 8 | 9 | yes |  |" in page
    assert "| whole volume: of nibabel's time | <= 0.25 | 0.333 | **no** |  |" in page
    assert "| loader, image: x RadiObject | >= 30 | not measured |  |  |" in page
    assert "| patch | random 96 | blosc2 | 2.00 |" in page
    assert "memmap | 1.03" not in page  # within what counts as a loss
    assert result["machine"]["cpu"] in page
    assert (tmp_path / "patch.png").stat().st_size > 1000


def test_the_page_tells_what_runs_before_found(quick, tmp_path):
    def page(date, theirs):
        rows = rows_of(
            ("radiodata", "radiodata (tile 32)", "random 96", 1.0), ("RadiObject", "it", "random 96", theirs)
        )
        result = {**quick[0], "quick": False, "date": f"{date}T10:00:00+00:00", "rows": rows}
        (tmp_path / "patch.json").write_text(json.dumps(result))
        assert command("report", "--results", str(tmp_path)).returncode == 0
        lines = (tmp_path / "README.md").read_text().splitlines()
        return next(line for line in lines if "random 96-cube: x RadiObject" in line)

    assert page("2026-01-02", 9.0) == "| random 96-cube: x RadiObject | >= 8 | 9 | yes |  |"
    after = "| random 96-cube: x RadiObject | >= 8 | 7 | **no** | 9 (2026-01-02) |"
    assert page("2026-01-03", 7.0) == after
    assert page("2026-01-03", 7.0) == after  # the same run is told once
    assert page("2026-01-01", 8.0).endswith("| 8 | yes | 7 (2026-01-03), 9 (2026-01-02) |")
    runs = json.loads((tmp_path / "runs.json").read_text())
    assert [run["date"][:10] for run in runs] == ["2026-01-01", "2026-01-02", "2026-01-03"]


def test_a_page_of_nothing_is_refused(tmp_path):
    done = command("report", "--results", str(tmp_path))
    assert done.returncode == 2
    assert "holds no result" in done.stderr


def test_foreground_is_drawn_for_a_third_of_the_crops(tmp_path):
    from benchmarks.contenders.base import LoaderSpec
    from benchmarks.contenders.labels import Memmap
    from benchmarks.labelled import Labelled

    phantoms = Labelled(tmp_path, (64, 64, 48), 2)
    phantoms.make()
    folder = tmp_path / "memmap"
    folder.mkdir()
    contender = Memmap()
    contender.prepare(phantoms, folder, 16)
    loader = contender.loader(phantoms, folder, LoaderSpec(16, 4, 0, 120))
    labels = [batch["label"] for batch in loader]
    share = np.mean([(label[:, 0, 8, 8, 8] > 0).numpy().mean() for label in labels])
    anywhere = np.mean([(phantoms.label_of(phantoms.truth(i)[:]) > 0).mean() for i in range(2)])
    assert share > 0.15 + anywhere  # crops at the rim are moved inside, away from their place


@pytest.mark.slow
def test_tables_are_filtered_as_numpy_does_by_every_contender(tmp_path):
    pytest.importorskip("pyarrow")
    done = command("run", "table", "--quick", "--json", str(tmp_path / "table.json"), "--data", str(tmp_path / "data"))
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert {(row["row"], row["status"]) for row in rows} == {(row.name, "ok") for row in table.ROWS}
    cases = ["open", "filter subjects", "filter volumes", "volumes of subjects", "one row"]
    assert list(dict.fromkeys(row["case"] for row in rows)) == cases
    assert all(row["ratios"]["pandas"]["times"] > 0 for row in rows)
    assert "x pandas" in done.stdout


@pytest.mark.filterwarnings("ignore:Engine has switched")  # where numexpr is there, pandas tries it
def test_a_filter_that_gives_other_ids_is_refused(tmp_path):
    from benchmarks.contenders.tables import Csv

    class Wrong(Csv):
        def subjects(self, tables):
            return super().subjects(tables)[:-1]

    people = table.data(tmp_path, table.QUICK)
    people.make()
    case = {"kind": "filter subjects"}
    with pytest.raises(AssertionError, match="and numpy"):
        table.measure(Wrong(), people, people.folder, table.QUICK, table.ROWS[2], case)
    assert table.measure(Csv(), people, people.folder, table.QUICK, table.ROWS[2], case)["ms"]


def test_report_is_made_of_the_json(quick):
    result, said = quick
    for text in ("memmap", "random 32", "x RadiObject", "x blosc2", result["machine"]["cpu"], "formats on disk"):
        assert text in said


def test_what_is_not_installed_is_listed(tmp_path, monkeypatch):
    from benchmarks.measure import Run

    row = registry.Row("ghost", "ghost", "benchmarks.contenders.memmap:Memmap", ("no_such_package",))
    run = Run("patch", patch, tmp_path, quick=True, repeats=1, tell=lambda line: None)
    monkeypatch.setattr(run, "_must", lambda job, what: None)
    entries = run.measure([row])
    assert {entry["status"] for entry in entries} == {"not installed"}
    assert all("no_such_package" in entry["error"] for entry in entries)


def test_what_quick_leaves_out_is_listed(tmp_path, monkeypatch):
    from benchmarks.measure import Run

    row = next(row for row in loader.ROWS if not row.quick and row.family == "memory")
    run = Run("loader", loader, tmp_path, quick=True, repeats=1, tell=lambda line: None)
    monkeypatch.setattr(run, "_must", lambda job, what: None)
    for entry in run.measure([row]):
        assert entry["status"] == "left out"
        assert "--quick" in entry["error"]


def test_a_failure_is_listed_with_its_error(tmp_path):
    from benchmarks.measure import run_child

    answer = run_child({"kind": "prepare", "benchmark": "patch", "quick": True, "data": str(tmp_path)}, 60)
    assert answer["status"] == "error"
    assert "KeyError" in answer["error"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("run", "nothing"), "patch, loader, cold"), (("run", "patch", "--contenders", "nobody"), "RadiObject")],
)
def test_unknown_name_is_status_2(arguments, said):
    done = command(*arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_list_names_all_rows():
    said = command("list").stdout
    assert all(row.name in said for module in (patch, loader, table) for row in module.ROWS)
