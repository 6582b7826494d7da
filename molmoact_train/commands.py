"""`molmoact train | predict`: make a model, and ask it."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from molmoact_data.console import (
    ConfigOption,
    DeviceOption,
    DryRunOption,
    JsonOption,
    OverwriteOption,
    chosen,
    emit_json,
    given,
    say,
)


def train(
    context: typer.Context,
    *,
    stage: Annotated[
        str,
        typer.Option(
            help="Published settings: debug, pretrain, midtrain, libero-spatial, libero-object, libero-goal, "
            "libero-long, finetune."
        ),
    ],
    checkpoint: Annotated[
        str | None, typer.Option(help="Model to start from: a folder or a Hub id.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="PATH[:weight], repeatable: preprocess outputs or published-mixture rows."
        ),
    ] = None,
    mixture: Annotated[
        str | None,
        typer.Option(help="Folder of downloads and outputs: draw the stage's published mixture."),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(help="Group or set of the mixture to leave out, repeatable."),
    ] = None,
    save_folder: Annotated[str | None, typer.Option(help="Folder of the run.")] = None,
    duration: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    global_batch_size: Annotated[int | None, typer.Option(help="Samples per step.")] = None,
    device_batch_size: Annotated[
        int | None, typer.Option(help="Samples per forward pass of one process.")
    ] = None,
    seq_len: Annotated[
        int | None, typer.Option(help="Longer samples are left out and counted, never cut.")
    ] = None,
    max_images: Annotated[int | None, typer.Option(help="Cameras per sample.")] = None,
    lr_connector: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    lr_vit: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    lr_llm: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    lr_scheduler: Annotated[
        str | None, typer.Option(help="cosine_with_warmup or constant.")
    ] = None,
    warmup: Annotated[int | None, typer.Option(help="Warm-up steps.")] = None,
    ft_embedding: Annotated[
        str | None, typer.Option(help="Full fine-tuning: all, lm_head, ln_f or wte.")
    ] = None,
    lora: Annotated[
        bool | None, typer.Option("--lora/--no-lora", help="Adapters instead of all weights.")
    ] = None,
    lora_rank: Annotated[int | None, typer.Option(help="Rank r.")] = None,
    lora_alpha: Annotated[float | None, typer.Option(help="Scale is alpha / r.")] = None,
    lora_dropout: Annotated[float | None, typer.Option(help="Dropout before A.")] = None,
    lora_base_bf16: Annotated[
        bool | None,
        typer.Option("--lora-base-bf16/--no-lora-base-bf16", help="Keep the frozen base in bf16."),
    ] = None,
    img_aug: Annotated[
        bool | None,
        typer.Option("--img-aug/--no-img-aug", help="Crop and colour jitter; traces move along."),
    ] = None,
    wording: Annotated[
        str | None, typer.Option(help="Answers as released (default) or as reference.")
    ] = None,
    norm_stats_path: Annotated[
        str | None, typer.Option(help="Statistics for the export; must agree with the data.")
    ] = None,
    new_action_dim: Annotated[
        bool | None,
        typer.Option("--new-action-dim", help="The robot has another action dimension; go on."),
    ] = None,
    precision: Annotated[str | None, typer.Option(help="auto, float32, bfloat16.")] = None,
    activation_checkpointing: Annotated[
        bool | None,
        typer.Option(
            "--activation-checkpointing/--no-activation-checkpointing",
            help="Less memory for a third more time.",
        ),
    ] = None,
    torch_compile: Annotated[
        bool | None,
        typer.Option("--torch-compile/--no-torch-compile", help="torch.compile of every block."),
    ] = None,
    num_workers: Annotated[int | None, typer.Option(help="Processes that decode ahead.")] = None,
    save_interval: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    keep: Annotated[int | None, typer.Option(help="Checkpoints kept.")] = None,
    log_interval: Annotated[int | None, typer.Option(help="Steps between reports.")] = None,
    eval_data: Annotated[
        list[str] | None, typer.Option(help="Held-out folder, repeatable.")
    ] = None,
    eval_fraction: Annotated[
        float | None, typer.Option(help="Share of episodes held out of --data.")
    ] = None,
    eval_interval: Annotated[int | None, typer.Option(help="Steps between evaluations.")] = None,
    wandb_project: Annotated[
        str | None, typer.Option(help="Also log there; WANDB_MODE=offline works.")
    ] = None,
    wandb_entity: Annotated[str | None, typer.Option(help="Team of the project.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    config: ConfigOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --save-folder exactly.")
    ] = False,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train or fine-tune; the same command under torchrun uses every process.

    Example: molmoact train --stage finetune --checkpoint allenai/MolmoAct-7B-D-0812 --data out/my_robot
    --save-folder runs/my_robot
    """
    from molmoact_data.config import load_yaml
    from molmoact_data.processes import join_world
    from molmoact_train.config import resolve
    from molmoact_train.plan import plan
    from molmoact_train.train import train as run

    logging.getLogger("molmoact_train").setLevel(logging.INFO)
    not_settings = {"stage", "device", "config", "resume", "overwrite", "dry_run", "as_json"}
    flags = {name: v for name, v in given(context).items() if name not in not_settings}
    settings = resolve(stage, load_yaml(config) if config else {}, flags)
    if dry_run:
        with join_world(device, group_of_one=True) as world:
            found = plan(settings, world).to_json()
        emit_json(found) if as_json else say(json.dumps(found, indent=2, ensure_ascii=False))
        return
    outcome = run(settings, resume=resume, overwrite=overwrite, device=device)
    if as_json:
        emit_json({**asdict(outcome), "folder": str(outcome.folder)})
    else:
        done = "finished" if outcome.finished else "stopped by a signal; continue with --resume"
        say(f"{done} after step {outcome.step}; see {outcome.folder}")


def predict(
    *,
    checkpoint: Annotated[Path, typer.Option(help="Model folder: released, exported or merged.")],
    images: Annotated[
        list[Path], typer.Option(help="Pictures of one moment, external camera first; repeat.")
    ],
    instruction: Annotated[str, typer.Option(help="What to do, in words.")],
    more_images: Annotated[list[Path] | None, typer.Argument(hidden=True)] = None,
    unnorm_key: Annotated[
        str | None, typer.Option(help="Entry of norm_stats; needed when there are several.")
    ] = None,
    norm_stats: Annotated[
        Path | None,
        typer.Option(help="dataset_statistics.json to use instead of the checkpoint's."),
    ] = None,
    trace: Annotated[
        str | None,
        typer.Option(
            help="Steer: a JSON list of x, y pairs on 0..255, drawn on the first picture."
        ),
    ] = None,
    action_chunk_size: Annotated[int, typer.Option(help="Steps per answer.")] = 8,
    single_action: Annotated[
        bool, typer.Option("--single-action", help="One flat action (pre- and mid-trained models).")
    ] = False,
    num_arms: Annotated[int, typer.Option(help="Traces per answer.")] = 1,
    wording: Annotated[
        str, typer.Option(help="What it was trained on: released or reference.")
    ] = "released",
    constrained: Annotated[
        bool,
        typer.Option("--constrained/--unconstrained", help="Valid answers only, or free decoding."),
    ] = True,
    output_path: Annotated[
        Path | None, typer.Option(help="Folder for trace.png, depth.png and prediction.json.")
    ] = None,
    vqvae: Annotated[
        Path | None,
        typer.Option(help="Decoder of depth.png; default: vae-final.pt in the checkpoint."),
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Ask a model: depth codes, a trace, and actions in the robot's units.

    Example: molmoact predict --checkpoint D --images front.png wrist.png --instruction "close the box"
    """
    from molmoact_data.errors import UserError
    from molmoact_data.policies import PredictionFailed
    from molmoact_data.statistics import read_entries
    from molmoact_data.teachers.registry import DEPTH_TOKENIZERS, resolve
    from molmoact_data.text.prompts import Wording
    from molmoact_train.families.molmoact.answers import (
        parse_trace_flag,
        read_images,
        summary,
        write_pictures,
    )
    from molmoact_train.families.molmoact.predictor import PredictOptions, Predictor

    pictures = read_images([*images, *(more_images or [])])
    drawn = None if trace is None else parse_trace_flag(trace)
    options = PredictOptions(
        unnorm_key=unnorm_key,
        chunk_size=None if single_action else action_chunk_size,
        num_arms=num_arms,
        constrained=constrained,
        wording=chosen(wording, "--wording", Wording),
    )
    stats = None if norm_stats is None else read_entries(norm_stats)
    predictor = Predictor.from_pretrained(checkpoint, device=device, norm_stats=stats)
    try:
        found = predictor.predict(pictures, instruction, trace=drawn, options=options)
    except PredictionFailed as failed:
        raise UserError(f"{checkpoint} gave no action: {failed}.") from failed
    if output_path is not None:
        decoder = vqvae or next(iter(checkpoint.glob("vae-final.pt")), None)
        tokenizer = None
        if decoder is not None:
            tokenizer = resolve("depth tokenizer", "vqvae", DEPTH_TOKENIZERS)(decoder)
        for path in write_pictures(found, pictures[0], output_path, tokenizer):
            say(f"wrote {path}")
    if as_json:
        emit_json(found.to_json())
    else:
        typer.echo(summary(found))
