"""Every config composes, what it builds is plain Python, and users' own files come first."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

import radiodata.hydra
from hydra_plugins.radiodata_searchpath import RadiodataSearchPathPlugin
from radiodata.errors import ConfigError
from radiodata.hydra import config_dir, require_group

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
APPENDED = ("data", "sampler", "transforms", "trainer", "augment", "split", "storage", "loader")
MISSING = {"hippocampus", "mr_multimodal", "pet_ct", "multimodal"}
FILLED = {"weighted": "data.policy.by=age", "frozen": "data.split.path=split.json"}
OPTIONS = [
    (folder.name, path.stem) for folder in sorted(config_dir().glob("*/")) for path in sorted(folder.glob("*.yaml"))
]
RECIPE = str(ROOT / "recipes" / "train.py")


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("train", [*overrides])


def said(group: str, option: str) -> str:
    return f"{'+' * (group in APPENDED)}{group}={option}"


def python(*command: str, cwd: Path, ok: bool = True) -> subprocess.CompletedProcess[str]:
    """Run this Python as a user would, with the repository and the tests importable."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert not ok or done.returncode == 0, done.stdout + done.stderr
    return done


def targets(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key == "_target_")
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_with_importable_targets(group: str, option: str) -> None:
    pytest.importorskip("monai")
    data = [] if group in ("data", "experiment") else ["+data=ct_isotropic"]
    filled = [FILLED[option]] if option in FILLED else ["data.uri=here"] if option in MISSING else []
    config = composed(*data, said(group, option), *filled)
    plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    found = {*targets(plain)}
    assert found
    for target in found:
        module, _, name = target.rpartition(".")
        assert module.split(".")[0] in {"radiodata", "lightning", "monai", "torch"}
        assert callable(getattr(import_module(module), name))


@pytest.mark.parametrize(
    "group", ["data", "experiment", "loader", "model", "optim", "sampler", "split", "storage", "trainer", "transforms"]
)
def test_groups(group: str) -> None:
    assert [option for folder, option in OPTIONS if folder == group]


def test_appended_trainer_merges_over_the_default() -> None:
    config = composed("+data=ct_isotropic", "+trainer=ddp_cpu", "trainer.max_epochs=1").trainer
    assert (config.devices, config.strategy, config.accelerator, config.max_epochs) == (2, "ddp", "cpu", 1)
    assert config.log_every_n_steps == composed("+data=ct_isotropic").trainer.log_every_n_steps


@pytest.mark.parametrize("order", [1, -1])
def test_sampler_and_transforms_land_in_the_data(order: int) -> None:
    data = composed(*["+data=ct_isotropic", "+sampler=uniform", "+transforms=light"][::order]).data
    assert data["_target_"] == "radiodata.lightning.RadiologyDataModule"
    assert data.policy == {"_target_": "radiodata.Uniform", "_convert_": "all"}
    assert data.transforms["_target_"] == "monai.transforms.Compose"


def test_model_follows_the_data_and_the_optimizer() -> None:
    config = composed("+data=hippocampus", "model=unet_large", "optim=sgd_poly", "data.patch_size=40")
    assert config.model.roi_size == 40
    assert config.model.optimizer["_target_"] == "torch.optim.SGD"
    assert config.model.network.channels == [32, 64, 128, 256, 320]
    assert config.model.network.spatial_dims == 3


def leaks(node: Any) -> bool:
    if isinstance(node, ListConfig | DictConfig):
        return True
    parts = node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else []
    return any(leaks(part) for part in parts)


def test_no_omegaconf_object_reaches_what_is_built() -> None:
    pytest.importorskip("monai")
    config = composed(
        "+data=ct_isotropic",
        "+transforms=light",
        "data._target_=fake_data.FakeDataModule",
        "+data.more=[1,{a: [2]}]",
        "data.patch_size=[32,32,16]",
    )
    data = instantiate(config.data)  # as a train.py would that has not heard of _convert_
    assert type(data.patch_size) is list
    assert not leaks(data.settings)
    assert data.settings["more"] == [1, {"a": [2]}]
    assert data.settings["transforms"].transforms[0].keys == ("image", "label")
    model = instantiate(config.model, num_classes=3)
    assert model.roi_size == (32, 32, 16)
    assert not leaks(dict(model.hparams))
    assert type(model.hparams["network"]["channels"]) is list


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "optim"])
def test_optimizers_are_built_with_their_schedules(option: str) -> None:
    pytest.importorskip("monai")
    from types import SimpleNamespace

    config = composed("+data=ct_isotropic", f"optim={option}", "optim.optimizer.lr=0.25")
    model = instantiate(config.model, num_classes=2)
    model._trainer = SimpleNamespace(estimated_stepping_batches=20)
    made = model.configure_optimizers()
    rates = []
    for _ in range(21):
        rates.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    assert max(rates) == 0.25
    assert rates[19] > rates[20] == pytest.approx(0.0, abs=1e-9)


def test_trainer_is_built() -> None:
    trainer = instantiate(composed("+data=ct_isotropic").trainer, logger=False, enable_checkpointing=False)
    assert trainer.max_epochs == 10
    assert trainer.num_devices == 1


def test_config_dir_of_a_wheel_and_of_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "radiodata"
    package.mkdir()
    monkeypatch.setattr(radiodata.hydra, "__file__", str(package / "hydra.py"))
    with pytest.raises(ConfigError, match=r"no Hydra configs beside .*radiodata.*install radiodata again"):
        config_dir()
    for parent in (tmp_path, package):  # the repository's, then the wheel's, which comes first
        (parent / "configs").mkdir()
        (parent / "configs" / "train.yaml").touch()
        assert config_dir() == parent / "configs"


def test_missing_group_names_the_options() -> None:
    config = {"data": {"policy": {"_target_": "radiodata.Uniform"}}}
    with pytest.raises(
        ConfigError, match=r"say \+data=hippocampus .*available: classification, .*ct_isotropic, hippocampus"
    ):
        require_group(config, "data", "hippocampus")
    require_group({"data": {"_target_": "mine.Data"}}, "data", "hippocampus")


def test_plugin_appends_once() -> None:
    from hydra._internal.config_search_path_impl import ConfigSearchPathImpl

    path = ConfigSearchPathImpl()
    path.append("main", "file:///mine")
    for _ in range(2):
        RadiodataSearchPathPlugin().manipulate_search_path(path)
    assert [(element.provider, element.path) for element in path.get_path()] == [
        ("main", "file:///mine"),
        ("radiodata", f"file://{config_dir()}"),
    ]


def test_plugin_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys, hydra_plugins.radiodata_searchpath\n"
        "heavy = {'torch', 'lightning', 'monai', 'tiledb', 'numpy', 'pandas', 'nibabel'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    assert python("-c", code, cwd=tmp_path).stdout.strip() == "[]"


USERS_TRAIN = """
import hydra
from omegaconf import OmegaConf

@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg):
    print(OmegaConf.to_yaml(cfg))

main()
"""


@pytest.fixture
def users_project(tmp_path: Path) -> Path:
    (tmp_path / "conf" / "data").mkdir(parents=True)
    (tmp_path / "train.py").write_text(USERS_TRAIN)
    (tmp_path / "conf" / "config.yaml").write_text("mine: 1\n")
    (tmp_path / "conf" / "data" / "hippocampus.yaml").write_text("_target_: my.own.Data\n")
    return tmp_path


@pytest.mark.parametrize(
    ("data", "target"),
    [("ct_isotropic", "radiodata.lightning.RadiologyDataModule"), ("hippocampus", "my.own.Data")],
)
def test_users_own_files_come_first(users_project: Path, data: str, target: str) -> None:
    done = python("train.py", f"+data={data}", "+sampler=uniform", cwd=users_project)
    config = OmegaConf.create(done.stdout)
    assert (config.mine, config.data["_target_"]) == (1, target)
    assert config.data.policy["_target_"] == "radiodata.Uniform"


def test_recipe_without_data_says_what_to_type(tmp_path: Path) -> None:
    done = python(RECIPE, cwd=tmp_path, ok=False)
    assert done.returncode == 2
    assert (
        "say +data=ct_isotropic on the command line; available: classification, ct_axial_slices, ct_isotropic, hippo"
        in done.stderr
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [["trainer.devices=2", "trainer.max_epochs=1"], ["+trainer=ddp_cpu", "model=unet_large"], ["+transforms=none"]],
    ids=" ".join,
)
def test_recipe_parses_its_command_line(tmp_path: Path, words: list[str]) -> None:
    shown = OmegaConf.create(python(RECIPE, "+data=ct_isotropic", *words, "--cfg", "job", cwd=tmp_path).stdout)
    expected = composed("+data=ct_isotropic", *words)
    assert OmegaConf.to_container(shown) == OmegaConf.to_container(expected)


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    """Words that make the recipe train on cubes in noise."""
    (tmp_path / "more" / "data").mkdir(parents=True)
    (tmp_path / "more" / "data" / "cubes.yaml").write_text("_target_: fake_data.FakeDataModule\npatch_size: 16\n")
    words = ["--config-dir", str(tmp_path / "more"), "+data=cubes", "name=cubes", "trainer.max_epochs=2"]
    return [*words, "model.network.channels=[4,8]", "model.network.strides=[2]"]


@pytest.mark.slow
@pytest.mark.parametrize("trainer", [[], ["+trainer=ddp_cpu"]], ids=["one process", "two processes"])
def test_recipe_trains(tmp_path: Path, small: list[str], trainer: list[str]) -> None:
    pytest.importorskip("monai")
    pytest.importorskip("matplotlib")
    done = python(RECIPE, *small, *trainer, cwd=tmp_path)
    (folder,) = (tmp_path / "runs" / "cubes").iterdir()
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("val Dice")]
    for path in (folder / "checkpoints", folder / "preview.png", folder / "logs"):
        assert path.exists()
        assert str(path) in line
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert "Warning" not in done.stderr
    assert "recommended" not in done.stderr
    header, *rows = (folder / "logs" / "csv" / "metrics.csv").read_text().splitlines()
    assert {"train/loss", "val/dice", "val/dice_class1", "val/dice_class2"} <= {*header.split(",")}
    assert len(rows) >= 2 * 3

    again = python(RECIPE, *small, *trainer, "trainer.max_epochs=3", f"ckpt_path={folder}/checkpoints/last.ckpt",
                   "hydra.run.dir=again", cwd=tmp_path)  # fmt: skip
    assert [line for line in again.stdout.splitlines() if "epoch 3: " in line]
    assert not [line for line in again.stdout.splitlines() if "epoch 2: " in line]


@pytest.mark.slow
def test_recipe_sweeps(tmp_path: Path, small: list[str]) -> None:
    pytest.importorskip("monai")
    python(RECIPE, "--multirun", *small, "seed=0,1", "trainer.max_epochs=1", "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert sorted(path.parts[-3] for path in tmp_path.glob("sweep/*/checkpoints/best.ckpt")) == ["0", "1"]


@pytest.mark.parametrize("split", [o for g, o in OPTIONS if g == "split"])
@pytest.mark.parametrize("data", [o for g, o in OPTIONS if g == "data"])
def test_any_split_goes_with_any_data(data: str, split: str) -> None:
    """Nothing of the split that was there is left in the one that is chosen."""
    filled = [f"data.uri={'here' if data in MISSING else 'null'}", *[FILLED[o] for o in [split] if o in FILLED]]
    config = composed(f"+data={data}", f"+split={split}", *filled)
    made = instantiate(config.data.split)
    assert type(made).__name__ == {"kfold": "KFold"}.get(split, split.capitalize())


@pytest.mark.parametrize("option", [o for g, o in OPTIONS if g == "storage"])
def test_storage_tells_how_to_read(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    made = instantiate(composed("+data=ct_isotropic", f"+storage={option}").data.read)
    assert type(made).__name__ == "ReadConfig"
    if option == "s3":
        assert made.tiledb["vfs.s3.region"] == "eu-west-1"


def test_all_options_are_listed_with_a_line_each() -> None:
    listed = radiodata.hydra.options()
    assert {(o.group, o.name) for o in listed} == set(OPTIONS)
    assert all(o.summary and not o.summary.startswith("@") for o in listed)
    assert {o.given for o in listed} >= {"+data=ct_isotropic", "model=unet", "experiment=hippocampus"}
    assert [o.group for o in radiodata.hydra.options("split")] == ["split"] * 4
    with pytest.raises(ConfigError, match="no group 'datas'; there are augment, data"):
        radiodata.hydra.options("datas")


@pytest.mark.parametrize("option", [o for g, o in OPTIONS if g == "augment"])
def test_augmentation_is_built_and_any_value_of_it_can_be_set(option: str) -> None:
    from radiodata.augment import Augment

    if option == "none":
        assert composed("+data=ct_isotropic", "+augment=none").data.augment is None
        return
    config = composed("+data=ct_isotropic", f"+augment={option}", "data.augment.flips=[0]", "data.augment.noise_p=0.5")
    made = instantiate(config.data.augment)
    assert (made.flips, made.noise_p) == ([0], 0.5)
    assert made.elastic_p == (0.3 if option == "elastic" else 0.0)
    assert made.rotation_p == (0.0 if option == "mirror" else Augment().rotation_p)
    assert set(OmegaConf.to_container(config.data.augment)) - {"_target_", "_convert_"} == set(vars(Augment()))
