"""The door: every `molmoact` command is a signature, a docstring and one call.

Heavy packages are imported inside the commands, so that `molmoact --help` needs neither torch nor Beam.
Results go to stdout, everything else to stderr. Exit codes: 0 done; 1 a bug; 2 the input or the flags
are wrong; 3 the run finished but what it found is above a limit that the user set.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from molmoact_data.errors import LimitExceeded, UserError

if TYPE_CHECKING:
    from pipelines.preprocess import Summary

app = typer.Typer(
    name="molmoact",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Robot demonstrations in, an Action Reasoning Model out.",
)

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON result on stdout, nothing else there.")
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="YAML with the same names as the flags; flags win. Strict."),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Do only what is missing in the output.")
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace the output that is there.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the plan and an estimate, do nothing.")
]


def emit_json(value: Any) -> None:
    """One JSON result on stdout."""
    typer.echo(json.dumps(value))


def say(text: str) -> None:
    """A line for a person, on stderr."""
    typer.echo(text, err=True)


def given(context: typer.Context) -> dict[str, Any]:
    """The flags that were typed, by parameter name; those left out belong to the config."""
    return {name: value for name, value in context.params.items() if value not in (None, [], ())}


# ---------------------------------------------------------------------------------- preprocess


def pairs(values: Sequence[str], flag: str) -> dict[str, str]:
    """`ROLE=KEY` flags as a mapping, in the order given."""
    parsed: dict[str, str] = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not equals or not name or not rest:
            raise UserError(
                f"{flag} wants ROLE=KEY, for example primary=observation.images.front; got {value!r}."
            )
        if name in parsed:
            raise UserError(f"{flag} names the role {name!r} twice.")
        parsed[name] = rest
    return parsed


@app.command()
def preprocess(
    context: typer.Context,
    *,
    dataset_path: Annotated[
        str | None, typer.Option(help="LeRobot or RLDS dataset: a folder or a Hub id.")
    ] = None,
    output_path: Annotated[str | None, typer.Option(help="Folder or URL for the shards.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="`embedded` (small teachers for rendered scenes) or `debug`.")
    ] = None,
    camera: Annotated[
        list[str] | None, typer.Option(help="ROLE=KEY, repeatable; the first is labelled.")
    ] = None,
    depth: Annotated[
        str | None, typer.Option(help="Depth teacher: depth-anything-v2, embedded, none.")
    ] = None,
    depth_encoder: Annotated[
        str | None, typer.Option(help="Depth-Anything-V2 size: vits, vitb, vitl.")
    ] = None,
    depth_checkpoint: Annotated[
        str | None, typer.Option(help="Hub id, folder or .pth of the depth model.")
    ] = None,
    vqvae: Annotated[
        str | None, typer.Option(help="VQ-VAE for the depth codes, for example vae-final.pt.")
    ] = None,
    depth_recipe: Annotated[
        str | None, typer.Option(help="checkpoint (right range) or reference (public code).")
    ] = None,
    pointer: Annotated[
        str | None,
        typer.Option(help="Gripper pointer: molmo, server, projection, column, embedded, none."),
    ] = None,
    pointer_checkpoint: Annotated[
        str | None, typer.Option(help="Hub id or folder of the pointing model.")
    ] = None,
    pointer_url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible endpoint of the server pointer.")
    ] = None,
    pointer_column: Annotated[
        str | None, typer.Option(help="Column that holds recorded points.")
    ] = None,
    pointer_units: Annotated[
        str | None, typer.Option(help="Its unit: unit, pixels, percent, grid.")
    ] = None,
    pointer_calibration: Annotated[
        str | None, typer.Option(help="Calibration YAML of the projection pointer.")
    ] = None,
    arms: Annotated[int | None, typer.Option(help="Grippers per frame, left to right.")] = None,
    point_cache: Annotated[
        str | None, typer.Option(help="Folder where answers of a slow pointer are kept.")
    ] = None,
    pointer_prompt: Annotated[
        str | None, typer.Option(help="What the pointing model is asked.")
    ] = None,
    point_every: Annotated[
        int | None, typer.Option(help="Point at every K-th frame, track in between.")
    ] = None,
    line_length: Annotated[int | None, typer.Option(help="Points per trace, at most 5.")] = None,
    filter_traces: Annotated[
        bool | None,
        typer.Option("--filter-traces/--no-filter-traces", help="Drop outlying points."),
    ] = None,
    process_actions: Annotated[
        bool | None,
        typer.Option("--process-actions/--no-process-actions", help="Write action columns."),
    ] = None,
    action_bins: Annotated[int | None, typer.Option(help="Bins per action dimension.")] = None,
    action_chunk_size: Annotated[int | None, typer.Option(help="Steps per action chunk.")] = None,
    gripper: Annotated[
        list[str] | None,
        typer.Option(
            help="DIM=keep or DIM=invert, repeatable: raw gripper values, 1 - a if inverted."
        ),
    ] = None,
    statistics: Annotated[
        str | None, typer.Option(help="Use this dataset_statistics.json, frozen.")
    ] = None,
    episodes: Annotated[str | None, typer.Option(help="For example 0,1,5-9; default all.")] = None,
    revision: Annotated[str | None, typer.Option(help="Hub revision of the dataset.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Frames labelled at once; decides the memory.")
    ] = None,
    jpeg_quality: Annotated[
        int | None, typer.Option(help="1..100, for frames that come from video.")
    ] = None,
    frames_per_shard: Annotated[
        int | None, typer.Option(help="Frames after which a shard is closed.")
    ] = None,
    max_reject_fraction: Annotated[
        float | None, typer.Option(help="Share of rejected episodes that is no failure.")
    ] = None,
    min_coverage: Annotated[
        float | None, typer.Option(help="Share of frames that must have a usable trace.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Local worker processes.")] = None,
    runner: Annotated[
        str | None,
        typer.Option(help="local, FlinkRunner, PortableRunner, DataflowRunner, SparkRunner."),
    ] = None,
    beam_option: Annotated[
        list[str] | None, typer.Option(help="Passed to Beam, repeatable: --flink_master=host:8081.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1.")] = None,
    isolate_decoder: Annotated[
        bool | None,
        typer.Option(
            "--isolate-decoder/--no-isolate-decoder",
            help="Decode video in a child process that may crash.",
        ),
    ] = None,
    config: ConfigOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Turn demonstrations into Action Reasoning shards.

    Example: molmoact preprocess --dataset-path my/dataset --output-path out --camera primary=observation.images.front
    --vqvae vae-final.pt
    """
    from pipelines.estimate import estimate
    from pipelines.options import preprocess_config
    from pipelines.preprocess import preprocess as run

    flags = given(context)
    flags.update({"cameras": pairs(camera, "--camera")} if camera else {})
    flags.update({"gripper": pairs(gripper, "--gripper")} if gripper else {})
    settings = preprocess_config(flags, config)
    if dry_run:
        plan = asdict(estimate(settings))
        emit_json(plan) if as_json else say(json.dumps(plan, indent=2))
        return
    finish_preprocess(run(settings, resume=resume, overwrite=overwrite), as_json=as_json)


def finish_preprocess(summary: Summary, *, as_json: bool) -> None:
    """Say what was done; a limit that the result breaks is exit code 3."""
    if as_json:
        emit_json(asdict(summary))
    else:
        say(
            f"{summary.frames} frames of {summary.episodes} episodes in {summary.shards} shards; see {summary.output}"
        )
    if summary.exceeded is not None:
        raise LimitExceeded(summary.exceeded)


# --------------------------------------------------------------------------------------- train


@app.command()
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
    from molmoact_train.config import resolve
    from molmoact_train.parallel import joined_world
    from molmoact_train.plan import plan
    from molmoact_train.train import train as run

    logging.getLogger("molmoact_train").setLevel(logging.INFO)
    not_settings = {"stage", "device", "config", "resume", "overwrite", "dry_run", "as_json"}
    flags = {name: v for name, v in given(context).items() if name not in not_settings}
    settings = resolve(stage, load_yaml(config) if config else {}, flags)
    if dry_run:
        with joined_world(device) as world:
            found = plan(settings, world).to_json()
        emit_json(found) if as_json else say(json.dumps(found, indent=2, ensure_ascii=False))
        return
    outcome = run(settings, resume=resume, overwrite=overwrite, device=device)
    if as_json:
        emit_json({**asdict(outcome), "folder": str(outcome.folder)})
    else:
        done = "finished" if outcome.finished else "stopped by a signal; continue with --resume"
        say(f"{done} after step {outcome.step}; see {outcome.folder}")


# ------------------------------------------------------------------------------ the trained model


@app.command()
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
        typer.Option(help='Steer: "[[x,y],...]" on 0..255, drawn on the first picture.'),
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
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Ask a model: depth codes, a trace, and actions in the robot's units.

    Example: molmoact predict --checkpoint D --images front.png wrist.png --instruction "close the box"
    """
    from molmoact_data.parsing import read_norm_stats
    from molmoact_data.prompts import Wording
    from molmoact_data.registry import DEPTH_TOKENIZERS, resolve
    from molmoact_train.predict import (
        PredictOptions,
        Predictor,
        parse_trace_flag,
        read_images,
        summary,
        write_pictures,
    )

    pictures = read_images([*images, *(more_images or [])])
    drawn = None if trace is None else parse_trace_flag(trace)
    options = PredictOptions(
        unnorm_key=unnorm_key,
        chunk_size=None if single_action else action_chunk_size,
        num_arms=num_arms,
        constrained=constrained,
        wording=chosen(wording, "--wording", Wording),
    )
    stats = None if norm_stats is None else read_norm_stats(norm_stats)
    predictor = Predictor.from_pretrained(checkpoint, device=device, norm_stats=stats)
    found = predictor.predict(pictures, instruction, trace=drawn, options=options)
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


def chosen(value: str, flag: str, literal: Any) -> Any:
    """A flag's value if it is one of a Literal's."""
    from typing import get_args

    if value not in get_args(literal):
        raise UserError(f"{flag} is one of {', '.join(get_args(literal))}; got {value!r}.")
    return value


DtypeOption = Annotated[str, typer.Option("--dtype", help="keep, float32 or bfloat16.")]


@app.command("merge-lora")
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
    from molmoact_train.export import Dtype
    from molmoact_train.merge import merge_lora as run
    from molmoact_train.merge import plan

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


@app.command("export-hf")
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
    from molmoact_data.parsing import read_norm_stats
    from molmoact_train.export import Dtype, export_folder, plan

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
        norm_stats=None if norm_stats is None else read_norm_stats(norm_stats),
        overwrite=overwrite,
    )
    report_export(done, as_json=as_json)


@app.command()
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
    from molmoact_train.export import plan
    from molmoact_train.export import unshard as run

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


# -------------------------------------------------------------------------------------- labels


@app.command()
def parse(
    file: Annotated[Path, typer.Argument(help="JSON lines with `text`; - reads stdin.")],
    *,
    norm_stats: Annotated[
        Path, typer.Option(help="dataset_statistics.json or a released model's norm_stats.")
    ],
    unnorm_key: Annotated[
        str | None, typer.Option(help="Entry of the statistics; needed when there are several.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 3 when any text has a problem.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read generated texts: depth codes, traces, un-normalised actions, and what is wrong with them.

    Example: molmoact parse generations.jsonl --norm-stats dataset_statistics.json --json
    """
    from molmoact_data.parsing import ActionDecoder, open_texts, read_norm_stats, summary_line

    decoder = ActionDecoder.from_norm_stats(read_norm_stats(norm_stats), unnorm_key)
    num_texts = num_bad = 0
    for num_texts, text in enumerate(open_texts(file), start=1):
        decoded = decoder.decode(text)
        num_bad += bool(decoded["problems"])
        typer.echo(json.dumps(decoded) if as_json else summary_line(num_texts, decoded))
    say(f"{num_texts} texts, {num_bad} with problems")
    if strict and num_bad:
        raise LimitExceeded(
            f"{num_bad} of {num_texts} texts have problems, and --strict was given."
        )


# ------------------------------------------------------------------------------- label quality


@app.command()
def preview(
    context: typer.Context,
    *,
    dataset_path: Annotated[
        str | None, typer.Option(help="LeRobot or RLDS dataset: a folder or a Hub id.")
    ] = None,
    output_path: Annotated[
        str | None, typer.Option(help="The sheet to write: .png or .jpg.")
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="How many frames to show.")] = 12,
    preset: Annotated[str | None, typer.Option(help="As for `preprocess`.")] = None,
    camera: Annotated[list[str] | None, typer.Option(help="ROLE=KEY, as for `preprocess`.")] = None,
    depth: Annotated[str | None, typer.Option(help="Depth teacher.")] = None,
    depth_encoder: Annotated[str | None, typer.Option(help="Depth-Anything-V2 size.")] = None,
    depth_checkpoint: Annotated[
        str | None, typer.Option(help="Weights of the depth model.")
    ] = None,
    vqvae: Annotated[str | None, typer.Option(help="VQ-VAE for the depth codes.")] = None,
    depth_recipe: Annotated[str | None, typer.Option(help="checkpoint or reference.")] = None,
    pointer: Annotated[str | None, typer.Option(help="Gripper pointer.")] = None,
    pointer_checkpoint: Annotated[str | None, typer.Option(help="Pointing model.")] = None,
    pointer_url: Annotated[str | None, typer.Option(help="Endpoint of the server pointer.")] = None,
    pointer_column: Annotated[str | None, typer.Option(help="Column of recorded points.")] = None,
    pointer_units: Annotated[str | None, typer.Option(help="Its unit.")] = None,
    pointer_calibration: Annotated[str | None, typer.Option(help="Calibration YAML.")] = None,
    pointer_prompt: Annotated[str | None, typer.Option(help="What the model is asked.")] = None,
    episodes: Annotated[str | None, typer.Option(help="For example 0,1,5-9; default all.")] = None,
    revision: Annotated[str | None, typer.Option(help="Hub revision of the dataset.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1.")] = None,
    config: ConfigOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show what the teachers see on a few frames, before a long `preprocess`.

    Per frame: the cameras with point and trace, the depth, and what its codes keep of it.

    Example: molmoact preview --dataset-path my/dataset --vqvae vae-final.pt --output-path preview.png
    """
    from molmoact_data.viz import refuse_existing, write_picture
    from pipelines.options import preprocess_config
    from pipelines.preview import preview as run

    flags = {k: v for k, v in given(context).items() if k != "frames"}
    flags.update({"cameras": pairs(camera, "--camera")} if camera else {})
    settings = preprocess_config(flags, config)
    path = refuse_existing(Path(settings.output_path), overwrite=overwrite)
    shown = run(settings, frames=frames)
    write_picture(path, shown.sheet)
    if as_json:
        result = {"output": str(path), "frames": shown.frames, "found": shown.found}
        emit_json({**result, "rejected": shown.rejected})
    else:
        say(f"{shown.frames} frames, gripper found in {shown.found}; see {path}")


@app.command()
def viz(
    output: Annotated[
        str | None, typer.Argument(help="A preprocessed output; not needed with --tokens.")
    ] = None,
    *,
    output_path: Annotated[Path, typer.Option(help="What to write: .mp4, .png or .jpg.")],
    episode: Annotated[int, typer.Option(help="Episode to show.")] = 0,
    frames: Annotated[
        int, typer.Option(min=1, help="Frames on a contact sheet; a film has them all.")
    ] = 24,
    columns: Annotated[int, typer.Option(min=1, help="Columns of a contact sheet.")] = 4,
    vqvae: Annotated[
        str | None, typer.Option(help="VQ-VAE that shows depth from codes, or `embedded`.")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="Show this depth instead: <DEPTH_START>... or integers.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    overwrite: OverwriteOption = False,
) -> None:
    """Show labels: an episode as a film or a contact sheet, or the depth that codes stand for.

    Example: molmoact viz out --episode 3 --output-path episode3.mp4 --vqvae vae-final.pt
    """
    from molmoact_data.viz import load_tokenizer, refuse_existing, show_codes, show_episode

    path = refuse_existing(output_path, overwrite=overwrite)
    tokenizer = load_tokenizer(vqvae, device) if vqvae else None
    if tokens is not None:
        show_codes(path, tokens, tokenizer)
    elif output is not None:
        show_episode(path, output, episode, tokenizer=tokenizer, frames=frames, columns=columns)
    else:
        raise UserError("give a preprocessed output, or --tokens with --vqvae.")
    say(f"see {path}")


@app.command("evaluate-labels")
def evaluate_labels(
    *,
    dataset_path: Annotated[
        str,
        typer.Option(help="Dataset with ground truth: rendered episodes, a folder or a Hub id."),
    ],
    output_path: Annotated[Path, typer.Option(help="Folder for labels.json and labels.html.")],
    depth: Annotated[
        str, typer.Option(help="Depth teacher: depth-anything-v2, embedded, none.")
    ] = "embedded",
    depth_encoder: Annotated[
        str, typer.Option(help="Depth-Anything-V2 size: vits, vitb, vitl.")
    ] = "vitb",
    depth_checkpoint: Annotated[
        str | None, typer.Option(help="Hub id, folder or .pth of the depth model.")
    ] = None,
    vqvae: Annotated[str, typer.Option(help="VQ-VAE for the depth codes.")] = "embedded",
    pointer: Annotated[
        str,
        typer.Option(help="Gripper pointer: molmo, server, projection, column, embedded, none."),
    ] = "embedded",
    pointer_checkpoint: Annotated[
        str | None, typer.Option(help="Hub id or folder of the pointing model.")
    ] = None,
    pointer_url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible endpoint of the server pointer.")
    ] = None,
    pointer_column: Annotated[
        str | None, typer.Option(help="Column that holds recorded points.")
    ] = None,
    pointer_units: Annotated[
        str, typer.Option(help="Its unit: unit, pixels, percent, grid.")
    ] = "pixels",
    pointer_calibration: Annotated[
        str | None, typer.Option(help="Calibration YAML of the projection pointer.")
    ] = None,
    pointer_prompt: Annotated[
        str, typer.Option(help="What the pointing model is asked.")
    ] = "point to the robot gripper",
    point_every: Annotated[
        str, typer.Option(help="K of the tracking curve, comma separated.")
    ] = "1,2,4,8,16,32",
    depth_every: Annotated[int, typer.Option(help="Score depth on every n-th frame.")] = 4,
    outlier_share: Annotated[
        float, typer.Option(help="Share of points replaced to try the trace filter.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="Of that replacement.")] = 0,
    camera: Annotated[
        str, typer.Option(help="Colour camera that is labelled.")
    ] = "observation.images.front",
    truth_depth: Annotated[
        str, typer.Option(help="Its true depth, 16 bits in steps of 0.5 mm.")
    ] = "observation.depth.front",
    truth_point: Annotated[
        str, typer.Option(help="Column with the true pixel of the grip point.")
    ] = "observation.gripper_pixel",
    truth_visible: Annotated[
        str, typer.Option(help="Column that says whether it is to be seen.")
    ] = "observation.gripper_visible",
    episodes: Annotated[str | None, typer.Option(help="For example 0,1,5-9; default all.")] = None,
    batch_size: Annotated[int, typer.Option(help="Frames labelled at once.")] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure teachers, tracking, the trace filter and the depth codes against ground truth.

    Example: molmoact evaluate-labels --dataset-path heldout --output-path quality --point-every 1,10
    """
    from molmoact_data.config import as_dict, build
    from molmoact_data.episodes import open_source, select_episodes
    from molmoact_data.label_evaluation import (
        EvaluationConfig,
        Teachers,
        evaluate_labels,
        parse_point_every,
    )
    from molmoact_data.label_report import prepare_folder, write_results
    from pipelines.job import LabelConfig
    from pipelines.teachers import load_teachers

    truth = {
        "camera": camera,
        "depth": truth_depth,
        "point": truth_point,
        "visible": truth_visible,
    }
    settings = build(
        EvaluationConfig,
        {
            "truth": truth,
            "prompt": pointer_prompt,
            "point_every": parse_point_every(point_every),
            "depth_every": depth_every,
            "batch_size": batch_size,
            "filter": {"outlier_share": outlier_share, "seed": seed},
        },
    )
    labels = build(
        LabelConfig,
        {
            "depth": depth,
            "depth_encoder": depth_encoder,
            "depth_checkpoint": depth_checkpoint,
            "vqvae": vqvae,
            "pointer": pointer,
            "pointer_checkpoint": pointer_checkpoint,
            "pointer_url": pointer_url,
            "pointer_column": pointer_column,
            "pointer_units": pointer_units,
            "pointer_calibration": pointer_calibration,
            "pointer_prompt": pointer_prompt,
        },
    )
    prepare_folder(output_path, overwrite=overwrite)
    source = open_source(dataset_path)
    chosen = select_episodes(episodes, source.episodes)
    loaded = load_teachers(labels, device)
    teachers = Teachers(loaded.depth, loaded.tokenizer, loaded.pointer)
    for result in evaluate_labels(source, chosen, teachers, settings):
        say(f"{result.episodes} of {len(chosen)} episodes, {result.frames} frames")
    write_results(output_path, result)
    if as_json:
        emit_json(as_dict(result))
    else:
        say(f"see {output_path / 'labels.html'}")


# ---------------------------------------------------------------------------------- vqvae


vqvae_app = typer.Typer(
    no_args_is_help=True, help="The depth VQ-VAE: train, measure, encode, decode, convert."
)
app.add_typer(vqvae_app, name="vqvae")

CheckpointOption = Annotated[
    Path,
    typer.Option(help="vae-final.pt, a .safetensors of ours, or a run folder of `vqvae train`."),
]
DepthDataOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Output of `preprocess`, LeRobot dataset, folder of PNG/npy depth, procedural:N or "
        "simulator:N[:test]; repeatable."
    ),
]
DepthModelOption = Annotated[
    str | None,
    typer.Option(
        help="Depth model for data that holds images only: depth-anything-v2 or embedded."
    ),
]
DepthKindOption = Annotated[
    str | None,
    typer.Option(help="inverse (larger = nearer), metric (distance, 0 = missing) or auto."),
]
ScalingOption = Annotated[
    str | None, typer.Option(help="8-bit range per image (as released) or per episode.")
]
RangeOption = Annotated[
    str | None, typer.Option(help="signed or unit, instead of the checkpoint's own range.")
]
ResizeOption = Annotated[
    str | None, typer.Option(help="nearest or bilinear, instead of the checkpoint's own filter.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")]


@vqvae_app.command("train")
def vqvae_train(
    context: typer.Context,
    *,
    output_path: Annotated[Path, typer.Option(help="Folder of the run.")],
    data: DepthDataOption = None,
    preset: Annotated[
        str, typer.Option(help="released, fine (20x20), residual (2x100), embedded (small), debug.")
    ] = "released",
    batch_size: Annotated[
        int | None, typer.Option(help="Maps per step over all processes [64].")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate [1e-3].")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data [20].")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Stop earlier than --epochs.")] = None,
    codebook_size: Annotated[int | None, typer.Option(help="Codes per level [128].")] = None,
    grid_size: Annotated[int | None, typer.Option(help="Codes per side [10].")] = None,
    num_code_levels: Annotated[
        int | None, typer.Option(help="Residual levels; each adds grid x grid tokens [1].")
    ] = None,
    depth_encoder: DepthModelOption = None,
    depth_kind: DepthKindOption = None,
    scaling: ScalingOption = None,
    hold_out_fraction: Annotated[
        float | None, typer.Option(help="Share of episodes only measured on [0.1].")
    ] = None,
    eval_every: Annotated[int | None, typer.Option(help="Steps between evaluations [200].")] = None,
    save_every: Annotated[
        int | None, typer.Option(help="Steps between saved states [200].")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of weights, order and revived codes [0].")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="auto (bf16 on GPUs), fp32, bf16.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1.")] = None,
    wandb_project: Annotated[
        str | None, typer.Option(help="Also log to this Weights & Biases project.")
    ] = None,
    config: ConfigOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a depth codebook; on several GPUs under torchrun.

    Example: molmoact vqvae train --data out --depth-encoder depth-anything-v2 --output-path runs/vqvae
    """
    from vqvae import commands

    own = {"output_path", "preset", "config", "resume", "overwrite", "dry_run", "as_json"}
    flags = {name: value for name, value in given(context).items() if name not in own}
    settings = commands.train_config(
        output_path, preset=preset, config=config, flags=flags, resume=resume
    )
    if dry_run:
        plan = commands.plan(settings)
        emit_json(plan) if as_json else say(json.dumps(plan, indent=2))
        return
    from vqvae.train import train

    result = train(settings, output_path, resume=resume, overwrite=overwrite)
    if as_json:
        emit_json(asdict(result))
    if result.stopped_by_signal:
        say(f"stopped at step {result.step} of {result.num_steps}; continue with --resume")
        raise typer.Exit(143)


@vqvae_app.command("eval")
def vqvae_eval(
    *,
    checkpoint: CheckpointOption,
    data: DepthDataOption = None,
    depth_encoder: DepthModelOption = None,
    depth_kind: DepthKindOption = None,
    scaling: ScalingOption = None,
    max_episodes: Annotated[int | None, typer.Option(help="Per place.")] = None,
    min_codes: Annotated[
        int | None, typer.Option(help="Exit with 3 if fewer codes are used.")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="PNG of inputs, reconstructions, errors.")
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure a codebook: reconstruction, boundaries, codes used, codes that flicker.

    Example: molmoact vqvae eval --checkpoint runs/vqvae --data simulator:200:test --min-codes 100
    """
    from vqvae import commands, measure

    flags = {
        "depth_encoder": depth_encoder, "depth_kind": depth_kind, "scaling": scaling,
        "max_episodes": max_episodes, "min_codes": min_codes, "sheet": sheet, "device": device,
    }  # fmt: skip
    settings = commands.eval_config(checkpoint, data or [], flags)
    report = measure.measure(settings)
    emit_json(report) if as_json else say(measure.as_table(report))
    measure.check_min_codes(report, min_codes)


@vqvae_app.command("encode")
def vqvae_encode(
    *,
    checkpoint: CheckpointOption,
    input_path: Annotated[
        Path, typer.Option("--input", help="npy uint8 [N,H,W] or [H,W], or a depth image.")
    ],
    output_path: Annotated[
        Path, typer.Option("--output", help=".npy (int16 [N,100]) or .txt (depth tokens).")
    ],
    depth_recipe: Annotated[
        str, typer.Option(help="checkpoint (right range), released or reference (public code).")
    ] = "checkpoint",
    input_range: RangeOption = None,
    resize: ResizeOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Depth maps to codes.

    Example: molmoact vqvae encode --checkpoint vae-final.pt --input depth.npy --output codes.npy
    """
    from vqvae import commands

    result = commands.encode(
        checkpoint, input_path, output_path,
        recipe=depth_recipe, input_range=input_range, resize=resize, device=device,
    )  # fmt: skip
    emit_json(result) if as_json else say(f"{result['maps']} maps coded, see {output_path}")


@vqvae_app.command("decode")
def vqvae_decode(
    *,
    checkpoint: CheckpointOption,
    output_path: Annotated[
        Path, typer.Option("--output", help=".png (8 bits) or .npy (float32 0..1).")
    ],
    tokens: Annotated[
        str | None,
        typer.Option(help="Text with <DEPTH_START>...<DEPTH_END>, or integers."),
    ] = None,
    input_path: Annotated[
        Path | None, typer.Option("--input", help="Codes as .npy or text, instead of --tokens.")
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Codes to depth maps.

    Example: molmoact vqvae decode --checkpoint vae-final.pt --tokens "<DEPTH_START>..." --output depth.png
    """
    from vqvae import commands

    result = commands.decode(
        checkpoint, output_path, tokens=tokens, source=input_path, device=device
    )
    emit_json(result) if as_json else say(f"{result['maps']} maps decoded, see {output_path}")


@vqvae_app.command("convert")
def vqvae_convert(
    *,
    input_path: Annotated[Path, typer.Option("--input", help="Checkpoint of either layout.")],
    output_path: Annotated[
        Path, typer.Option("--output", help=".safetensors (ours) or .pt (the released layout).")
    ],
    input_range: RangeOption = None,
    resize: ResizeOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Convert between the released vae-final.pt and our layout; the codes stay the same.

    Example: molmoact vqvae convert --input vae-final.pt --output vae.safetensors
    """
    from vqvae import commands

    result = commands.convert(
        input_path, output_path, input_range=input_range, resize=resize, overwrite=overwrite
    )
    emit_json(result) if as_json else say(f"wrote {output_path}")


DEMO_DATASET = Path(__file__).parent / "examples" / "demo_dataset"


@app.command()
def demo(
    *,
    output_path: Annotated[Path, typer.Option(help="Folder for the result.")] = Path("out/demo"),
    workers: Annotated[int, typer.Option(help="Local worker processes.")] = 1,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run the whole pipeline on the shipped episodes, with the embedded teachers, without network.

    Example: molmoact demo --output-path out/demo
    """
    from pipelines.options import preprocess_config
    from pipelines.preprocess import preprocess as run

    if not DEMO_DATASET.is_dir():
        raise UserError(
            "the demo's episodes ship with the repository, not with the installed package. "
            "Run this from a checkout, or give your own data to molmoact preprocess."
        )
    flags = {
        "dataset_path": str(DEMO_DATASET),
        "output_path": str(output_path),
        "preset": "embedded",
        "workers": workers,
    }
    finish_preprocess(
        run(preprocess_config(flags, None), resume=False, overwrite=overwrite), as_json=as_json
    )


# ---------------------------------------------------------------------------------- data life cycle

StatisticsOption = Annotated[
    Path | None, typer.Option(help="dataset_statistics.json to tokenise with, frozen.")
]
OutputArgument = Annotated[
    str, typer.Argument(help="Output folder (or URL) of `molmoact preprocess`.")
]
NewFolderOption = Annotated[str, typer.Option("--output-path", help="Folder or URL to write.")]


@app.command()
def validate(
    output: OutputArgument,
    *,
    processor: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint or tokenizer folder: also put every row through the real processor."
        ),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write the JSON report here.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check schema, hashes, counts, images, codes, traces and tokens of an output; exit code 3 on any finding.

    Example: molmoact validate out --processor MolmoAct-7B-D-0812 --report findings.json
    """
    from molmoact_data.validate import validate as run

    loss_tokens = None
    if processor is not None:
        from molmoact_train.row_check import loss_counter

        loss_tokens = loss_counter(processor)
    found = run(output, loss_tokens=loss_tokens)
    result = found.to_json()
    if report is not None:
        report.write_text(json.dumps(result, indent=2) + "\n")
    if as_json:
        emit_json(result)
    else:
        for problem in found.problems[:20]:
            say(f"{problem.finding.value}: {problem.where}: {problem.detail}")
        samples = f"{found.samples} samples" if processor else "no samples (give --processor)"
        say(f"{found.rows} rows, {found.images} images, {samples}; {len(found.problems)} problems")
    if not found.passed:
        kinds = ", ".join(f"{name} ({n})" for name, n in result["findings"].items())
        raise LimitExceeded(f"{output} is not valid: {kinds}.")


@app.command()
def retokenize(
    output: OutputArgument,
    *,
    output_path: NewFolderOption,
    statistics: StatisticsOption = None,
    statistics_key: Annotated[
        str | None, typer.Option(help="Which entry of the file, where it has several.")
    ] = None,
    action_bins: Annotated[int | None, typer.Option(help="Bins per action dimension.")] = None,
    action_chunk_size: Annotated[int | None, typer.Option(help="Steps per action chunk.")] = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make new action tokens for an output without running a teacher or decoding an image.

    Example: molmoact retokenize out --statistics merged.json --output-path out-merged
    """
    from molmoact_data.feature_stats import read_statistics
    from molmoact_data.outputs import Output
    from molmoact_data.storage import Storage
    from pipelines.retokenize import RetokenizeConfig
    from pipelines.retokenize import retokenize as run

    frozen = read_statistics(statistics, statistics_key) if statistics else None
    if frozen is None and action_bins is None and action_chunk_size is None:
        raise UserError(
            "nothing to change: give --statistics, --action-bins or --action-chunk-size."
        )
    config = RetokenizeConfig(frozen, action_bins, action_chunk_size)
    source, target = Output.open(output), Storage(output_path)
    done = run(source, target, config, resume=resume, overwrite=overwrite)
    emit_json(asdict(done)) if as_json else say(f"{done.frames} frames in {done.output}")


@app.command()
def merge(
    outputs: Annotated[list[str], typer.Argument(help="Two or more outputs of equal settings.")],
    *,
    output_path: NewFolderOption,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Join outputs of equal settings and statistics into one; different depth recipes refuse.

    Example: molmoact merge out-a out-b --output-path out-both
    """
    from molmoact_data.outputs import Output
    from molmoact_data.storage import Storage
    from pipelines.merge import merge as run

    sources = [Output.open(path) for path in outputs]
    done = run(sources, Storage(output_path), resume=resume, overwrite=overwrite)
    emit_json(asdict(done)) if as_json else say(f"{done.frames} frames in {done.output}")


@app.command()
def stats(
    paths: Annotated[list[str], typer.Argument(help="Datasets or outputs; taken together.")],
    *,
    output_path: Annotated[Path | None, typer.Option(help="JSON file; default stdout.")] = None,
    key: Annotated[
        str | None, typer.Option(help="Name of the entry; default the paths' last parts.")
    ] = None,
    lerobot_feature: Annotated[
        list[str] | None,
        typer.Option(help="Write LeRobot's q01..q99 of this feature instead; repeatable."),
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Exact statistics over one or several datasets: for tokens, or as LeRobot's meta/stats.json.

    Example: molmoact stats out-a out-b --key both --output-path merged.json
    """
    from molmoact_data import feature_stats

    if output_path is not None and output_path.exists() and not overwrite:
        raise UserError(f"{output_path} exists; add --overwrite to replace it.")
    if lerobot_feature:
        result = dict(feature_stats.lerobot_statistics_of(paths, lerobot_feature))
    else:
        name = key or "+".join(path.rstrip("/").rpartition("/")[2] for path in paths)
        result = feature_stats.action_statistics(paths, key=name).to_json()
    if output_path is None:
        emit_json(result)
    else:
        output_path.write_text(json.dumps(result, indent=1) + "\n")
        say(f"statistics of {', '.join(result)} in {output_path}")


@app.command()
def export(
    output: OutputArgument,
    *,
    output_path: Annotated[Path, typer.Option(help="New folder.")],
    format_name: Annotated[
        str,
        typer.Option("--format", help="reference, conversations, lerobot or molmoact2-depth."),
    ],
    dataset_path: Annotated[
        str | None, typer.Option(help="molmoact2-depth: the dataset that the output was made from.")
    ] = None,
    single_action: Annotated[
        bool, typer.Option("--single-action", help="conversations: one action, not the chunk.")
    ] = False,
    cosine_threshold: Annotated[
        float, typer.Option(help="molmoact2-depth: below this similarity a patch is new.")
    ] = 0.996,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write an output in the format of another program.

    Example: molmoact export out --format reference --output-path for-allenai
    """
    from molmoact_data.exporters import ExportOptions
    from molmoact_data.exporters import export as run

    options = ExportOptions(dataset_path, single_action, cosine_threshold)
    done = run(output, output_path, format_name, options, overwrite=overwrite)
    if as_json:
        emit_json(asdict(done))
        return
    left_out = "".join(f"; {n} rows left out: {reason}" for reason, n in done.left_out.items())
    say(f"{done.rows} rows as {done.format} in {done.output}{left_out}")


@app.command()
def publish(
    output: Annotated[Path, typer.Argument(help="Output folder of `molmoact preprocess`.")],
    *,
    repo_id: Annotated[str, typer.Option(help="USER/NAME on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Nobody else can see it.")] = False,
    endpoint: Annotated[str | None, typer.Option(help="Another Hub than the default.")] = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Upload an output with a dataset card; run it again after an interruption.

    Example: molmoact publish out --repo-id lab/kitchen-molmoact --private --dry-run
    """
    from molmoact_data.publish import plan_publish
    from molmoact_data.publish import publish as run

    plan = plan_publish(output, repo_id, private=private)
    if plan.non_commercial:
        say(f"note: labels of {', '.join(plan.non_commercial)} are for non-commercial use only")
    if dry_run:
        for path, size in plan.files:
            say(f"{size:>14,}  {path}")
        say(f"{plan.num_bytes:>14,}  in {len(plan.files)} files would go to {repo_id}")
    else:
        say(f"published at {run(output, plan, endpoint=endpoint)}")
    if as_json:
        emit_json(plan.to_json())


@app.command()
def download(
    names: Annotated[
        list[str],
        typer.Argument(help="pretrain, midtrain, libero, or sets such as bridge_dataset."),
    ],
    *,
    output_path: Annotated[Path, typer.Option(help="Folder; each repository gets its own.")],
    revision: Annotated[str | None, typer.Option(help="Hub revision.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Another Hub than the default.")] = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch the published MolmoAct data by stage or name; only what is missing, offline what is there.

    Example: molmoact download libero_goal --output-path data --dry-run
    """
    from molmoact_data.download import choose, fetch, plan_download

    results: list[dict[str, Any]] = []
    for wanted in choose(names):
        if dry_run:
            plan = plan_download(wanted, revision=revision, endpoint=endpoint)
            results.append(plan.to_json())
            say(f"{plan.repo_id}: {len(plan.files)} files, {results[-1]['bytes']:,} bytes")
        else:
            folder = fetch(wanted, output_path, revision=revision, endpoint=endpoint)
            results.append({"repo_id": wanted.repo_id, "folder": str(folder)})
            say(f"{wanted.repo_id} is in {folder}")
    if as_json:
        emit_json(results)


@app.command()
def version() -> None:
    """Print the installed version."""
    from importlib.metadata import version as installed_version

    typer.echo(installed_version("molmoact"))


OURS = ("molmoact_data", "molmoact_train", "vqvae", "pipelines")


@app.callback()
def _configure(
    *, verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log debug output.")] = False
) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(levelname)s: %(message)s",
        stream=sys.stderr,
    )
    for name in OURS:
        logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.INFO)
    if not verbose:
        # Beam logs a traceback for every error it passes on; the error itself is what a user needs.
        logging.getLogger("apache_beam").setLevel(logging.CRITICAL)


def main() -> None:
    """Entry point: a user's mistake is one clear line and exit code 2, a bug keeps its traceback."""
    try:
        app()
    except (UserError, LimitExceeded) as error:
        if os.environ.get("MOLMOACT_TRACEBACK"):
            raise
        typer.secho(f"error: {error}", fg="red", err=True)
        raise SystemExit(2 if isinstance(error, UserError) else 3) from None


if __name__ == "__main__":
    main()
