"""`molmoact train | predict | unshard | merge-lora | export-hf`: make a model, ask it, write it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from molmoact_data.console import (
    ConfigOption,
    DeviceOption,
    DryRunOption,
    JsonOption,
    OverwriteOption,
    chosen,
    conclude,
    emit_json,
    options_of,
    say,
)
from molmoact_data.errors import UserError
from molmoact_train.config import TrainConfig, resolve
from molmoact_train.families import registry
from molmoact_train.families.molmoact.settings import Settings as MolmoActSettings
from molmoact_train.families.molmoact2.settings import Settings as MolmoAct2Settings

if TYPE_CHECKING:
    from molmoact_train.debug.demo import Answer

DtypeOption = Annotated[str, typer.Option("--dtype", help="keep, float32 or bfloat16.")]


@dataclass(frozen=True)
class TrainFlags:
    """The flags of `train`: every field of a run, then those of each family."""

    run: TrainConfig
    molmoact: MolmoActSettings = field(metadata={"panel": "MolmoAct"})
    molmoact2: MolmoAct2Settings = field(metadata={"panel": "MolmoAct2"})


STAGES = "; ".join(f"{f}: {', '.join(registry.stages(f))}" for f in registry.FAMILIES)
FROM_THE_STAGE = dict.fromkeys(
    {key for name in registry.FAMILIES for stage in registry.stages(name).values() for key in stage}
    | {"family", "data"}
)
"""Flags whose default depends on the stage: none is shown."""


@options_of(TrainFlags, without=("stage",), defaults=FROM_THE_STAGE)
def train(
    flags: Mapping[str, Any],
    *,
    stage: Annotated[
        str | None,
        typer.Option(help=f"Published settings. {STAGES}."),
    ] = None,
    device: DeviceOption = "auto",
    config: ConfigOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --output-path exactly.")
    ] = False,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train or fine-tune; the same command under torchrun uses every process.

    Example: molmoact train --stage finetune --checkpoint allenai/MolmoAct-7B-D-0812 --data out/my_robot
    --output-path runs/my_robot
    """
    from molmoact_data.config import load_yaml

    written = load_yaml(config) if config else {}
    settings = resolve(_stage(stage, written), written, flags)
    logging.getLogger("molmoact_train").setLevel(logging.INFO)
    if dry_run:
        _plan(settings, device, as_json=as_json)
        return
    from molmoact_train.data.mixture import parse_data_argument
    from molmoact_train.inputs import check_training

    check_training(settings, resume=resume, overwrite=overwrite)
    from molmoact_train.train import train as run

    outcome = run(settings, resume=resume, overwrite=overwrite, device=device)
    if as_json:
        emit_json({**asdict(outcome), "folder": str(outcome.folder)})
    elif outcome.finished:
        data = parse_data_argument(settings.data[0]).path
        then: tuple[object, ...] = (
            ("molmoact", "merge-lora", "--adapter", outcome.folder, "--output-path", "MODEL")
            if settings.lora
            else ("molmoact", "predict", "--checkpoint", outcome.folder, "--data", data,
                  *which_robot(outcome.folder))
        )  # fmt: skip
        conclude(headline(outcome.step, outcome.metrics, outcome.folder), then=then)
    if not outcome.finished:
        say(f"stopped after step {outcome.step}, which is saved in {outcome.folder}")
        raise typer.Exit(128 + outcome.signal)


# The demo, which the door puts together.


def demo_training(data: Path, run: Path, steps: int | None) -> TrainConfig:
    """A minute of training, unless `steps` says otherwise."""
    from molmoact_train.debug.demo import STEPS, demo_config

    return demo_config(data, run, STEPS if steps is None else steps)


def plan_demo(config: TrainConfig, *, as_json: bool) -> dict[str, Any]:
    """What it would do, before its data are there: as a table for a person; returned for JSON."""
    from molmoact_data.console.tables import show_facts

    if not as_json:
        facts = {"starts from": f"{config.checkpoint}: shipped, Apache-2.0",
                 "steps": f"{config.duration} of {config.global_batch_size} samples",
                 "held out": "one episode, which it is asked about afterwards",
                 "time": "about a minute on two cores with the default steps", "downloads": "none"}  # fmt: skip
        show_facts(f"Would then train in {config.output_path}", facts)
    return {"output_path": config.output_path, "steps": config.duration}


def train_and_ask(config: TrainConfig, answers: Path, *, resume: bool, overwrite: bool) -> Answer:
    """Train as the demo does, and ask about the episode that was held out. A signal ends the command."""
    from molmoact_train.debug.demo import ask
    from molmoact_train.train import train as run

    outcome = run(config, resume=resume, overwrite=overwrite, device="cpu")
    if not outcome.finished:
        raise typer.Exit(128 + outcome.signal)
    say(headline(outcome.step, outcome.metrics, outcome.folder))
    return ask(config, outcome.folder, answers)


def told(answer: Answer) -> str:
    """The demo's answer in a line."""
    error = "" if answer.trace_error is None else f", its path {answer.trace_error:.0f} of 255 off"
    return f"asked to {answer.instruction!r}, an episode that it has not seen{error}"


def headline(step: int, metrics: Mapping[str, float], folder: Path) -> str:
    """How a run ended: its last losses, and where it is."""
    shown = {"loss": "train/loss", "accuracy": "train/accuracy", "held-out loss": "eval/loss"}
    numbers = [f"{word} {metrics[key]:.3g}" for word, key in shown.items() if key in metrics]
    return f"finished after step {step}: {', '.join(numbers) or 'no step was left'}; see {folder.parent / 'run.html'}"


def _stage(given: str | None, written: Mapping[str, Any]) -> str:
    """The stage of the command line or of the YAML file."""
    stage = given or written.get("stage")
    if stage is None:
        names = ", ".join(registry.stages(registry.DEFAULT))
        raise UserError(f"--stage is missing: choose the settings to start from ({names}).")
    return str(stage)


def _plan(settings: TrainConfig, device: str, *, as_json: bool) -> None:
    from molmoact_data.console.tables import show_facts
    from molmoact_train.inputs import check_training

    check_training(settings, resume=True, overwrite=False)  # nothing is written
    from molmoact_data.processes import join_world
    from molmoact_train.plan import facts, plan

    with join_world(device, group_of_one=True) as world:
        found = plan(settings, world)
    if as_json:
        emit_json(found.to_json())
    else:
        show_facts(f"Would train in {settings.output_path}", facts(found))


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
    from molmoact_data.console.tables import show_facts, size
    from molmoact_data.files.folders import check_free
    from molmoact_train.inputs import Dtype, check_adapter, check_model

    kept = chosen(dtype, "--dtype", Dtype)
    check_adapter(adapter)
    if base is not None:
        check_model(base)
    check_free(output_path, overwrite=overwrite, inputs=[adapter])
    from molmoact_train.folders.merge import merge_lora as run, plan

    if dry_run:
        done = plan(adapter, output_path, base=base, dtype=kept, overwrite=overwrite)
    else:
        done = run(adapter, output_path, base=base, dtype=kept, verify=verify, overwrite=overwrite)
    if as_json:
        emit_json(asdict(done))
        return
    if dry_run:
        facts = {"base": done.base, "tensors": f"{done.adapted} of {done.num_tensors} changed",
                 "largest change": f"{done.largest_change:.3g}", "disk": size(done.num_bytes),
                 "memory": "a few tensors at a time; with --verify base and merged model at once",
                 "licence": "the base model's: see its card"}  # fmt: skip
        show_facts(f"Would write {done.folder}", facts)
        return
    if done.logit_difference is not None:
        typer.echo(f"logits differ from base + adapter by {done.logit_difference:.2e} (relative)")
    conclude(
        f"{done.folder}: {done.adapted} of {done.num_tensors} tensors changed by up to "
        f"{done.largest_change:.3g}, {size(done.num_bytes)}",
        then=ask_it(done.folder),
    )


def ask_it(folder: object) -> tuple[object, ...]:
    """The next thing to do with a whole model."""
    return ("molmoact", "predict", "--checkpoint", folder, "--images", "PICTURE", "--instruction", "WORDS",
            *which_robot(folder), *state_of_robot(folder))  # fmt: skip


def which_robot(folder: object) -> tuple[str, ...]:
    """The flag without which a model that knows several robots does not answer; only the person knows its value."""
    path = Path(str(folder))
    return ("--unnorm-key", "KEY") if len(registry.family_of(path).robots(path)) > 1 else ()


def state_of_robot(folder: object) -> tuple[str, ...]:
    """The flag without which a model that reads a robot's state does not answer; recorded data bring it."""
    path = Path(str(folder))
    return ("--state", "STATE") if any(registry.family_of(path).robots(path).values()) else ()


def export_hf(
    *,
    checkpoint: Annotated[
        str, typer.Option(help="Model folder, Hub id, RUN/stepN, or a MolmoAct2 policy of LeRobot.")
    ],
    output_path: Annotated[Path, typer.Option(help="The complete Hugging Face folder.")],
    layout: Annotated[
        str, typer.Option(help="released, or lerobot: LeRobot's own, for a MolmoAct2 checkpoint.")
    ] = "released",
    base: Annotated[
        str | None, typer.Option(help="From LeRobot: the released folder it stands on.")
    ] = None,
    unnorm_key: Annotated[
        str | None, typer.Option(help="To or from LeRobot: the robot's tag.")
    ] = None,
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
    from molmoact_data.files.folders import check_free
    from molmoact_data.statistics import read_entries
    from molmoact_train.inputs import Dtype, check_model

    to = chosen(layout, "--layout", Literal["released", "lerobot"])
    kept = chosen(dtype, "--dtype", Dtype)
    check_model(checkpoint)
    added = None if norm_stats is None else read_entries(norm_stats)
    check_free(output_path, overwrite=overwrite, inputs=[Path(checkpoint)])
    from molmoact_train.families.molmoact2.lerobot import convert
    from molmoact_train.folders.export import export_folder, plan

    converted = convert(
        checkpoint, output_path, to, base=base, tag=unnorm_key, overwrite=overwrite, dry_run=dry_run
    )
    if converted is not None:
        then = ("lerobot-eval", f"--policy.path={output_path}", "--env.type=ENV")
        report_export(
            converted, as_json=as_json, dry_run=dry_run, then=then if to == "lerobot" else None
        )
        return
    if dry_run:
        planned = plan(checkpoint, output_path, dtype=kept, overwrite=overwrite)
        report_export(planned, as_json=as_json, dry_run=True)
        return
    done = export_folder(
        checkpoint,
        output_path,
        dtype=kept,
        norm_stats=added,
        overwrite=overwrite,
    )
    report_export(done, as_json=as_json)


def after_export(folder: object) -> tuple[object, ...]:
    """An adapter is merged, a whole model asked."""
    from molmoact_data.files.kinds import ADAPTER_CONFIG

    if (Path(str(folder)) / ADAPTER_CONFIG).is_file():
        return ("molmoact", "merge-lora", "--adapter", folder, "--output-path", "MODEL")
    return ask_it(folder)


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
    from molmoact_data.files.folders import check_free
    from molmoact_train.inputs import check_training_checkpoint

    check_training_checkpoint(checkpoint)
    check_free(output_path, overwrite=overwrite, inputs=[checkpoint])
    from molmoact_train.folders.export import plan, unshard as run

    if dry_run:
        planned = plan(str(checkpoint), output_path, overwrite=overwrite)
        report_export(planned, as_json=as_json, dry_run=True)
        return
    report_export(run(checkpoint, output_path, overwrite=overwrite), as_json=as_json)


def report_export(
    done: Any, *, as_json: bool, dry_run: bool = False, then: tuple[object, ...] | None = None
) -> None:
    """What was or would be written, as JSON or for people. Without `then`, what comes next is seen in the folder."""
    from molmoact_data.console.tables import show_facts, size

    if as_json:
        emit_json(asdict(done))
    elif dry_run:
        facts = {"tensors": f"{done.num_tensors:,}", "disk": size(done.num_bytes),
                 "numbers": "as they are" if done.dtype == "keep" else done.dtype,
                 "memory": "a few tensors at a time", "licence": "the model's: see its card"}  # fmt: skip
        show_facts(f"Would write {done.folder}", facts)
    else:
        conclude(
            f"{done.folder}: {done.num_tensors} tensors, {size(done.num_bytes)}",
            then=then or after_export(done.folder),
        )
