"""Flags that `preprocess`, `preview` and `evaluate-labels` have in common, each explained once."""

from __future__ import annotations

import typer

DATASET = typer.Option(help="LeRobot or RLDS dataset: folder, URL or Hub id.")
EPISODES = typer.Option(help="For example 0,1,5-9; default all.")
REVISION = typer.Option(help="Hub revision of the dataset.")
DEVICE = typer.Option(help="auto, cpu, cuda, cuda:1.")

DEPTH = typer.Option(help="Depth teacher: depth-anything-v2, embedded, none.")
DEPTH_ENCODER = typer.Option(help="Depth-Anything-V2 size: vits, vitb, vitl.")
DEPTH_CHECKPOINT = typer.Option(help="Hub id, folder or .pth of the depth model.")
POINTER = typer.Option(help="Gripper pointer: molmo, server, projection, column, embedded, none.")
POINTER_CHECKPOINT = typer.Option(help="Hub id or folder of the pointing model.")
POINTER_URL = typer.Option(help="OpenAI-compatible endpoint of the server pointer.")
POINTER_COLUMN = typer.Option(help="Column that holds recorded points.")
POINTER_UNITS = typer.Option(help="Its unit: unit, pixels, percent, grid.")
POINTER_CALIBRATION = typer.Option(help="Calibration YAML of the projection pointer.")
POINTER_PROMPT = typer.Option(help="What the pointing model is asked.")
