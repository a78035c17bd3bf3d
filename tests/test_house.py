"""The house: imports run down only, the doors open quickly, modules stay small."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import radiodata

PACKAGE = Path(radiodata.__file__).parent
FLOORS = [
    {"_typing"},
    {"errors"},
    {"executors"},
    {"geometry"},
    {"store", "sampling"},
    {"loading", "ingest", "inference", "augment"},
    {"export"},
    {"demo", "pipeline"},
    {"lightning", "interop", "radiomics"},
    {"hydra"},
    {"cli"},
]
# doors on the store's own classes, opened only when they are used: Cohort.append, collection.map, volume.to_nifti
DOORS = {
    ("store/cohort.py", "ingest"),
    ("store/cohort.py", "export"),
    ("store/changes.py", "ingest"),
    ("store/collection.py", "pipeline"),
    ("store/collection.py", "export"),
    ("store/loaded.py", "export"),
}


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    found = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    found |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    return {name.split(".")[1] for name in found if name.startswith("radiodata.")}


def floor(room: str) -> int:
    return next((i for i, rooms in enumerate(FLOORS) if room in rooms), len(FLOORS))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_down_only(path: Path) -> None:
    inside = str(path.relative_to(PACKAGE))
    room = inside.split("/", maxsplit=1)[0].removesuffix(".py")
    if room in ("__init__", "recipes"):
        return
    for other in imports(path) - {room}:
        allowed = floor(other) < floor(room) or (inside, other) in DOORS
        assert allowed, f"{inside} imports radiodata.{other}, which is not below it"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("code", ["import radiodata", "import radiodata.cli", "import radiodata.hydra"])
def test_doors_import_nothing_heavy(code: str) -> None:
    heavy = "{'torch', 'tiledb', 'numpy', 'pandas', 'nibabel', 'lightning', 'monai', 'matplotlib'}"
    script = f"{code}; import sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_there() -> None:
    for name in radiodata.__all__:
        assert getattr(radiodata, name) is not None
    assert set(radiodata.__all__) <= set(dir(radiodata))
    with pytest.raises(AttributeError, match="no attribute 'Cohrt'"):
        _ = radiodata.Cohrt
