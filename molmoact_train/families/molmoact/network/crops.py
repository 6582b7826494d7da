"""Which crops really need the image encoder: padded slots never, equal pixels once.

Any image of at most 378 px becomes two pixel-identical crops (the overview and the single tile), so
half of the image encoder's work, and of the connector's, repeats itself. Legend: B batch, T crop slots,
U distinct crops, P patches, C = patch * patch * 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CropBatch:
    """The crops to encode, and where they are used."""

    crops_UPC: Tensor
    """Pixels, float [U, P, C]."""
    slot_BT: Tensor
    """Row of `crops_UPC` for each crop slot, int64; -1 = no crop there."""


def every_slot(images_BTPC: Tensor) -> CropBatch:
    """The plain path: each slot is encoded, padding included, as the reference does."""
    batch, slots = images_BTPC.shape[:2]
    index = torch.arange(batch * slots, device=images_BTPC.device).view(batch, slots)
    return CropBatch(images_BTPC.flatten(0, 1), index)


def slots_in_use(pooled_patches_idx_BM4: Tensor, num_slots: int, num_patches: int) -> Tensor:
    """Which crop slots are read by some window, bool [B, T].

    Pixels cannot tell: a black picture is -1 everywhere once normalised, exactly as padding is.
    """
    slots_BN = pooled_patches_idx_BM4.flatten(1) // num_patches  # -1 stays -1: floor division
    used = torch.zeros(len(slots_BN), num_slots + 1, dtype=torch.bool, device=slots_BN.device)
    used.scatter_(1, slots_BN + 1, 1)
    return used[:, 1:]


def distinct_crops(images_BTPC: Tensor, used_BT: Tensor | None = None) -> CropBatch:
    """Keep one copy of equal crops, and none of unused slots; equality is exact, on every pixel."""
    flat_NPC = images_BTPC.flatten(0, 1)
    is_crop_N = (
        torch.ones(len(flat_NPC), dtype=torch.bool) if used_BT is None else used_BT.flatten()
    )
    keys = _fingerprints(flat_NPC)
    rows: list[int] = []
    slot_N = [-1] * len(flat_NPC)
    seen: dict[int, list[int]] = {}
    for place, (is_crop, key) in enumerate(zip(is_crop_N.tolist(), keys, strict=True)):
        if not is_crop:
            continue
        same = [r for r in seen.get(key, []) if torch.equal(flat_NPC[rows[r]], flat_NPC[place])]
        if not same:
            same = [len(rows)]
            rows.append(place)
            seen.setdefault(key, []).append(same[0])
        slot_N[place] = same[0]
    chosen = torch.tensor(rows, dtype=torch.long, device=flat_NPC.device)
    slot_BT = torch.tensor(slot_N, device=flat_NPC.device).view(images_BTPC.shape[:2])
    return CropBatch(flat_NPC[chosen], slot_BT)


def _fingerprints(flat_NPC: Tensor) -> list[int]:
    """The sum of each crop's bits as integers: equal for equal crops, whatever the order of summing.

    Only crops that share it are compared in full.
    """
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[flat_NPC.element_size()]
    return flat_NPC.flatten(1).contiguous().view(integers).sum(1, dtype=torch.int64).tolist()
