"""Benchmark ``gpu_training``: a 3-D U-Net fed by each loader; samples/s, and the share of a step spent waiting.

The limit is the same loop over batches that lie on the device already. On a GPU it computes in bfloat16. Where there is
none it runs on the CPU, with a network a hundredth of the size: the result says which it was, and the share of waiting
tells little there, for the network has the processors that the loader needs.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.contenders.base import Contender, LoaderSpec
from benchmarks.contenders.ram import InMemory
from benchmarks.loader import Run
from benchmarks.phantom import Phantoms
from benchmarks.probes import memory_bytes, touch
from benchmarks.registry import Row

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SUMMARY = "a 3-D U-Net fed by each loader: samples/s, share of a step spent waiting"
PRIMARY, UNIT, HIGHER_IS_BETTER = "samples_per_s", "samples/s", True
PEERS = ("limit", "MONAI")
HERE = "benchmarks.contenders."


@dataclass(frozen=True)
class Parameters:
    shape: tuple[int, int, int] = (512, 512, 200)
    volumes: int = 4
    crop: int = 96
    batch: int = 4
    crops_per_volume: int = 64
    warm_up: int = 6
    steps: int = 40
    limit_s: float = 600.0
    repeats: int = 3
    seed: int = 0


FULL = Parameters()
QUICK = Parameters(shape=(128, 128, 96), volumes=2, crop=32, crops_per_volume=16, warm_up=2, steps=6, repeats=1)

OURS = {"tile": 32, "unit": 8}
ROWS = (
    Row("limit", "tensors on the device", "benchmarks.gpu_training:OnDevice", note="the limit: nothing is loaded"),
    Row("radiodata", "radiodata, 2 workers", HERE + "radiodata:Radiodata", ("radiodata",), OURS, 2),
    Row("radiodata", "radiodata, threads", HERE + "radiodata:Radiodata", ("radiodata",), OURS, 0),
    Row("MONAI", "MONAI CacheDataset, 2 workers", HERE + "monai:Monai", ("monai",), {"cache": True}, 2, None,
        "volumes in memory"),
    Row("memory", "in memory, 2 workers", HERE + "ram:InMemory", (), {}, 2, None, "DataLoader over arrays in memory"),
)  # fmt: skip


class OnDevice(InMemory):
    """One epoch's batches of ``InMemory``, moved to the device before anything is timed."""

    def loader(self, phantoms: Phantoms, folder: Path, spec: LoaderSpec) -> Iterable[Any]:
        return [batch.to(_device()) for _, batch in zip(range(4), super().loader(phantoms, folder, spec), strict=False)]


def data(folder: Path, parameters: Parameters) -> Phantoms:
    return Phantoms(folder, parameters.shape, parameters.volumes)


def cases(parameters: Parameters, row: Row) -> list[dict[str, Any]]:
    """Return the network as it is and compiled; without a GPU only the first."""
    crop, device = parameters.crop, _device()
    kinds = ("eager", "compiled") if device == "cuda" else ("eager",)
    return [
        {"case": f"{kind}, {crop}-cube, batch {parameters.batch}, {_named(device)}", "kind": kind, "crop": crop}
        for kind in kinds
    ]


def measure(
    contender: Contender,
    phantoms: Phantoms,
    folder: Path,
    parameters: Parameters,
    row: Row,
    case: dict[str, Any],
) -> dict[str, Any]:
    """Train for some steps; return samples/s, ms a step, and the share of it spent waiting for a batch."""
    import torch

    p, device = parameters, _device()
    for path in [folder] if contender.store(p.crop) else phantoms.niftis:
        touch(path)
    spec = LoaderSpec(p.crop, p.batch, row.workers, row.crops_per_volume or p.crops_per_volume, p.seed)
    run, step = Run(contender.loader(phantoms, folder, spec)), _step(device, compiled=case["kind"] == "compiled")
    losses = [step(contender.image(run.step())) for _ in range(p.warm_up)]
    waited, begin = 0.0, time.perf_counter()
    for _ in range(p.steps):
        tick = time.perf_counter()
        batch = contender.image(run.step())
        waited += time.perf_counter() - tick
        losses.append(step(batch))
    seconds = time.perf_counter() - begin
    if not all(torch.isfinite(torch.tensor(losses))):
        raise AssertionError(f"{row.name}: the loss is not finite: {losses}")
    return {
        PRIMARY: [p.steps * p.batch / seconds],
        "step_ms": [1e3 * seconds / p.steps],
        "wait_share": [waited / seconds],
        "memory_bytes": [memory_bytes()],
        "device": _named(device),
    }


def describe(parameters: Parameters) -> dict[str, Any]:
    """Return the parameters as they go into the JSON."""
    return {**asdict(parameters), "device": _named(_device())}


def _step(device: str, *, compiled: bool) -> Any:
    """Make a training step, that returns the loss: so it ends when the device is done."""
    import torch
    from monai.networks.nets import UNet

    torch.manual_seed(0)
    channels = (32, 64, 128, 256, 320) if device == "cuda" else (4, 8, 16)
    network: Any = UNet(3, 1, 2, channels, (2,) * (len(channels) - 1), num_res_units=2 if device == "cuda" else 0)
    network = network.to(device)
    if compiled:
        network = torch.compile(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, nesterov=True)

    def step(batch: Any) -> float:
        image = (batch.to(device, non_blocking=True).float() + 200) / 400
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):  # CPUs emulate it
            loss = torch.nn.functional.cross_entropy(network(image).float(), (image[:, 0] > 0.5).long())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _named(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else "CPU, a small network"
