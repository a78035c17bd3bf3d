"""nnU-Net v2's two rules for the (block, chunk) shape of a blosc2 array, for 3-D patches."""

from __future__ import annotations

from math import prod

Shape = tuple[int, ...]
L1_BYTES, L3_BYTES, CACHE_SHARE = 32_768, 1_441_792, 0.8
BLOCK_BYTES, CHUNK_BYTES, PATCHES_PER_CHUNK = 128 * 1024, 6 * 1024**2, 1.5


def chunking_up_to_2_7(image: Shape, patch: Shape, itemsize: int) -> tuple[Shape, Shape]:
    """Return (block, chunk): powers of two that fill 80 % of L1, grown block by block to 80 % of L3.

    The mean of chunk/patch over the axes stays at or below 1.5.
    """
    block = [_power_of_two(p) for p in patch]
    while prod(block) * itemsize > L1_BYTES * CACHE_SHARE:
        axis = _last_largest([b / p if b > 1 else 0.0 for b, p in zip(block, patch, strict=True)])
        block[axis] = min(block[axis] // 2, image[axis])
    block = [min(b, n) for b, n in zip(block, image, strict=True)]
    chunk = list(block)
    while prod(chunk) * itemsize < L3_BYTES * CACHE_SHARE and (growable := _growable(chunk, image, patch)):
        axis = min(growable, key=lambda a: chunk[a] / block[a])
        grown = [*chunk]
        grown[axis] = min(chunk[axis] + block[axis], image[axis])
        if sum(c / p for c, p in zip(grown, patch, strict=True)) / len(patch) > PATCHES_PER_CHUNK:
            chunk[axis] = grown[axis] - block[axis]  # the rule takes back a whole block even where it was cut short
            break
        chunk = grown
    return tuple(block), tuple(chunk)


def chunking_since_2_8(image: Shape, patch: Shape, itemsize: int) -> tuple[Shape, Shape]:
    """Return (block, chunk): at most 128 KiB and 6 MiB, no axis of a chunk above 1.5 patches."""
    target = [min(n, int(PATCHES_PER_CHUNK * p)) for n, p in zip(image, patch, strict=True)]
    block = [min(_power_of_two(p), n) for p, n in zip(patch, image, strict=True)]
    while prod(block) * itemsize > BLOCK_BYTES:
        axis = _last_largest([b / t if b > 1 else 0.0 for b, t in zip(block, target, strict=True)])
        block[axis] = _power_of_two(block[axis]) // 2
    chunk = list(block)
    while options := list(_larger(chunk, block, target, itemsize)):
        axis = min(options, key=lambda a: (chunk[a] / target[a], -image[a], a))
        chunk[axis] = _step(chunk, block, target, axis)
    return tuple(block), tuple(chunk)


def _step(chunk: list[int], block: list[int], target: list[int], axis: int) -> int:
    """Return the chunk's extent on ``axis`` after one more block, stopped at the target."""
    return min(chunk[axis] + block[axis], target[axis])


def _larger(chunk: list[int], block: list[int], target: list[int], itemsize: int) -> list[int]:
    fits = []
    for axis in range(len(chunk)):
        extent = _step(chunk, block, target, axis)
        if extent > chunk[axis] and prod(chunk) // chunk[axis] * extent * itemsize <= CHUNK_BYTES:
            fits.append(axis)
    return fits


def _growable(chunk: list[int], image: Shape, patch: Shape) -> list[int]:
    return [a for a in range(len(chunk)) if chunk[a] != image[a] and patch[a] != 1]


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _last_largest(values: list[float]) -> int:
    return max(range(len(values)), key=lambda axis: (values[axis], axis))
