"""`molmoact merge-lora | export-hf | unshard`: whole model folders out of what training wrote."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from molmoact_data.console import (
    DryRunOption,
    JsonOption,
    OverwriteOption,
    chosen,
    emit_json,
)

DtypeOption = Annotated[str, typer.Option("--dtype", help="keep, float32 or bfloat16.")]


def merge_lora(
    *,
    adapter: Annotated[Path, typer.Option(help="PEFT folder: RUN/final of a LoRA run.")],
    output_path: Annotated[Path, typer.Option(help="Folder of the whole model.")],
    base: Annotated[
        str | None, typer.Option(help="Folder or Hub id; default: what the adapter names.")
    ] = None,
    dtype: DtypeOption = "keep",
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare logits with base + adapter (loads both).")
    ] = False,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Base model + LoRA adapter -> one whole model folder, a few tensors in memory at a time.

    Example: molmoact merge-lora --adapter RUN/final --output-path merged --dtype bfloat16 --verify
    """
    from molmoact_train.folders.layout import Dtype
    from molmoact_train.folders.merge import merge_lora as run, plan

    kept = chosen(dtype, "--dtype", Dtype)
    if dry_run:
        done = plan(adapter, output_path, base=base, dtype=kept, overwrite=overwrite)
    else:
        done = run(adapter, output_path, base=base, dtype=kept, verify=verify, overwrite=overwrite)
    if as_json:
        emit_json(asdict(done))
        return
    typer.echo(
        f"{done.folder}: {done.adapted} of {done.num_tensors} tensors changed by up to "
        f"{done.largest_change:.3g}, {done.num_bytes / 1e9:.2f} GB"
    )
    if done.logit_difference is not None:
        typer.echo(f"logits differ from base + adapter by {done.logit_difference:.2e} (relative)")


def export_hf(
    *,
    checkpoint: Annotated[str, typer.Option(help="Model folder, Hub id or RUN/stepN.")],
    output_path: Annotated[Path, typer.Option(help="The complete Hugging Face folder.")],
    norm_stats: Annotated[
        Path | None, typer.Option(help="dataset_statistics.json to add to the checkpoint's.")
    ] = None,
    dtype: DtypeOption = "keep",
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a folder that our code, the released code and vLLM load: weights, statistics, processor, tokenizer.

    Example: molmoact export-hf --checkpoint RUN/final --output-path my-model --dtype bfloat16
    """
    from molmoact_data.statistics import read_entries
    from molmoact_train.folders.export import export_folder, plan
    from molmoact_train.folders.layout import Dtype

    if dry_run:
        kept = chosen(dtype, "--dtype", Dtype)
        report_export(
            plan(checkpoint, output_path, dtype=kept, overwrite=overwrite), as_json=as_json
        )
        return
    done = export_folder(
        checkpoint,
        output_path,
        dtype=chosen(dtype, "--dtype", Dtype),
        norm_stats=None if norm_stats is None else read_entries(norm_stats),
        overwrite=overwrite,
    )
    report_export(done, as_json=as_json)


def unshard(
    *,
    checkpoint: Annotated[Path, typer.Option(help="A step folder: RUN/step00002000.")],
    output_path: Annotated[Path, typer.Option(help="Model folder, or adapter folder after LoRA.")],
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Turn one training checkpoint, written by any number of processes, into whole safetensors.

    Example: molmoact unshard --checkpoint RUN/step00002000 --output-path model
    """
    from molmoact_train.folders.export import plan, unshard as run

    if dry_run:
        report_export(plan(str(checkpoint), output_path, overwrite=overwrite), as_json=as_json)
        return
    report_export(run(checkpoint, output_path, overwrite=overwrite), as_json=as_json)


def report_export(done: Any, *, as_json: bool) -> None:
    """What was written, as JSON or as a line."""
    if as_json:
        emit_json(asdict(done))
    else:
        typer.echo(f"{done.folder}: {done.num_tensors} tensors, {done.num_bytes / 1e9:.2f} GB")
