"""Where a model runs, by name."""

from __future__ import annotations

import torch

from molmoact_data.errors import UserError, unknown_name


def pick_device(name: str) -> torch.device:
    """`auto` = the GPU where there is one, else the CPU; otherwise any name torch knows.

    Raises `UserError` for other names, and for a GPU that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise unknown_name("device", name, ("auto", "cpu", "cuda", "cuda:0", "cuda:1")) from error
    available = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= available:
        raise UserError(
            f"--device {name}: torch can use {available} GPUs here. Take cpu or auto, or look at the "
            "driver with nvidia-smi."
        )
    return device
