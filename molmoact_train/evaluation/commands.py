"""`molmoact predict`: ask a model about pictures, or about the frames of an output whose actions are known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from molmoact_data.console import (
    DeviceOption,
    JsonOption,
    OverwriteOption,
    chosen,
    conclude,
    emit_json,
    say,
    typed_again,
)
from molmoact_data.errors import UserError
from molmoact_train.families import registry


def predict(
    *,
    checkpoint: Annotated[
        Path, typer.Option(help="Model folder: released, exported or merged; or `embedded`.")
    ],
    images: Annotated[
        list[Path] | None,
        typer.Option(help="Pictures of one moment, external camera first; repeat."),
    ] = None,
    instruction: Annotated[str | None, typer.Option(help="What to do, in words.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Instead: an output of `preprocess`, whose recorded actions to compare."),
    ] = None,
    episodes: Annotated[
        str | None, typer.Option(help="With --data: for example 0,3,5-9; default all.")
    ] = None,
    every: Annotated[
        int | None,
        typer.Option(
            min=1, help="With --data: every N-th frame; default: one chunk after the other."
        ),
    ] = None,
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
    action_chunk_size: Annotated[
        int | None,
        typer.Option(help="Steps per answer; default: what the checkpoint says, else 8."),
    ] = None,
    single_action: Annotated[
        bool, typer.Option("--single-action", help="One flat action (pre- and mid-trained models).")
    ] = False,
    num_arms: Annotated[
        int | None,
        typer.Option(help="Traces per answer; default: what the checkpoint says, else 1."),
    ] = None,
    wording: Annotated[
        str | None,
        typer.Option(help="released or reference; default: what the checkpoint was trained on."),
    ] = None,
    constrained: Annotated[
        bool,
        typer.Option("--constrained/--unconstrained", help="Valid answers only, or free decoding."),
    ] = True,
    state: Annotated[
        str | None, typer.Option(help="MolmoAct2: the robot's state, a JSON list in its units.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="MolmoAct2: of the noise that actions start from; default 0."),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(help="MolmoAct2: continuous or discrete; default: as it was trained."),
    ] = None,
    think: Annotated[
        bool | None,
        typer.Option("--think/--no-think", help="MolmoAct2: depth before the action, or not."),
    ] = None,
    action_tokenizer: Annotated[
        str | None,
        typer.Option(help="MolmoAct2, discrete: folder or Hub id; default: in the checkpoint."),
    ] = None,
    output_path: Annotated[
        Path | None,
        typer.Option(help="Folder for pictures and numbers: prediction.json, or comparison.json."),
    ] = None,
    vqvae: Annotated[
        Path | None,
        typer.Option(
            help="Decoder of depth.png, `released` too; default: vae-final.pt in the checkpoint."
        ),
    ] = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Ask a model: depth codes, a trace, and actions in the robot's units; with --data, beside recorded actions.

    Example: molmoact predict --checkpoint my-model --images front.png wrist.png --instruction "close the box"
    """
    from molmoact_data.policies import checkpoint_folder
    from molmoact_data.statistics import read_entries
    from molmoact_data.teachers.codebook import codebook_path
    from molmoact_data.text.prompts import Wording
    from molmoact_train.families.molmoact.answers import (
        check_answer_folder,
        parse_trace_flag,
        read_images,
    )

    flow = {"--state": state, "--seed": seed, "--mode": mode, "--think": think,
            "--action-tokenizer": action_tokenizer}  # fmt: skip
    text = {"--action-chunk-size": action_chunk_size, "--single-action": single_action or None,
            "--num-arms": num_arms, "--wording": wording}  # fmt: skip
    asked = {"--images": images or more_images, "--instruction": instruction, "--trace": trace,
             "--state": state, "--vqvae": vqvae}  # fmt: skip
    # Everything that can be wrong is looked at before torch is imported.
    checkpoint = checkpoint_folder(checkpoint)
    drawn = None if trace is None else parse_trace_flag(trace)
    if data is None:
        _refuse({"--episodes": episodes, "--every": every}, "it goes with --data")
        _require(asked)
        check_answer_folder(output_path, overwrite=overwrite)
        pictures = read_images([*(images or []), *(more_images or [])])
    else:
        _refuse(asked, "--data brings pictures, words and actions")
        check_comparison_folder(output_path, overwrite=overwrite)
    textual = registry.family_name(checkpoint) == registry.DEFAULT
    _refuse(
        flow if textual else text,
        f"{checkpoint} is a {'MolmoAct' if textual else 'MolmoAct2'} folder",
    )
    options: dict[str, Any] = {
        "device": device,
        "statistics_key": unnorm_key,
        "constrained": constrained,
    }
    if textual:
        entries = None if norm_stats is None else read_entries(norm_stats)
        spoken = None if wording is None else chosen(wording, "--wording", Wording)
        options |= {"statistics": entries, "chunk_size": action_chunk_size,
                    "single_action": single_action, "num_arms": num_arms, "wording": spoken}  # fmt: skip
    else:
        kind = None if mode is None else chosen(mode, "--mode", Literal["continuous", "discrete"])
        options |= {"statistics": norm_stats, "mode": kind or "auto", "think": think,
                    "action_tokenizer": action_tokenizer}  # fmt: skip
    if data is not None:
        compare_with(checkpoint, data, options, episodes, every, output_path, as_json=as_json)
    elif not textual:
        from molmoact_train.evaluation.asking import ask

        _refuse(
            {"--output-path": output_path, "--vqvae": vqvae}, f"{checkpoint} is a MolmoAct2 folder"
        )
        chunk = ask(checkpoint, pictures, str(instruction), state=state, trace=drawn,
                    seed=seed or 0, **options)  # fmt: skip
        if as_json:
            emit_json(chunk)
        else:
            typer.echo(json.dumps(chunk, indent=1))
            conclude(f"{len(chunk['actions'])} actions, {chunk['num_tokens']} tokens")
    else:
        codebook = vqvae or next(iter(checkpoint.glob("vae-final.pt")), None)
        decoder = None if codebook is None or output_path is None else codebook_path(codebook)
        answer(
            checkpoint,
            pictures,
            str(instruction),
            drawn,
            options,
            decoder,
            output_path,
            as_json=as_json,
        )


def answer(
    checkpoint: Path,
    pictures: list[Any],
    instruction: str,
    trace: list[list[int]] | None,
    options: Mapping[str, Any],
    decoder: Path | None,
    output_path: Path | None,
    *,
    as_json: bool,
) -> None:
    """One answer of a MolmoAct; the codebook is opened before anything is generated."""
    from molmoact_data.policies import PredictionFailed
    from molmoact_data.teachers.registry import DEPTH_TOKENIZERS, resolve
    from molmoact_train.evaluation.picture import PICTURE_FILE
    from molmoact_train.families.molmoact.answers import summary, write_pictures
    from molmoact_train.families.molmoact.policy import load_policy

    tokenizer = None
    if decoder is not None:
        tokenizer = resolve("depth tokenizer", "vqvae", DEPTH_TOKENIZERS)(decoder)
    policy = load_policy(checkpoint, **options)
    try:
        found = policy.answer(pictures, instruction, trace=trace)
    except PredictionFailed as failed:
        raise UserError(f"{checkpoint} gave no action: {failed}.") from failed
    if output_path is not None:
        for path in write_pictures(found, pictures[0], instruction, output_path, tokenizer):
            say(f"wrote {path}")
    if as_json:
        emit_json(found.to_json())
    else:
        typer.echo(summary(found))
        where = "" if output_path is None else f"; see {output_path / PICTURE_FILE}"
        conclude(f"{len(found.actions)} actions, {found.num_tokens} tokens{where}")
    if found.problems:
        raise UserError(
            f"the answer is not well-formed ({'; '.join(found.problems)[:200]}); its actions must not move a robot. "
            "--constrained allows valid answers only."
        )


def compare_with(
    checkpoint: Path,
    data: str,
    options: Mapping[str, Any],
    episodes: str | None,
    every: int | None,
    output_path: Path | None,
    *,
    as_json: bool,
) -> None:
    """Predicted beside recorded actions over whole episodes, with one loaded model."""
    from molmoact_data.console.tables import show_table
    from molmoact_data.files.folders import together
    from molmoact_data.outputs.output import Output
    from molmoact_data.outputs.recorded import choose_episodes
    from molmoact_data.policies import load_policy
    from molmoact_train.evaluation import comparing

    output = Output.open(data)
    choose_episodes(output, episodes)
    policy = load_policy(checkpoint, **{k: v for k, v in options.items() if v is not None})
    found = comparing.compare(policy, output, episodes, every=every, progress=say)
    result = comparing.results(found, str(checkpoint), data)
    names = comparing.names_of(output)
    if output_path is not None:
        content = (json.dumps(result, indent=1) + "\n").encode()
        with together({output_path / comparing.COMPARISON_FILE: content}):
            comparing.plot(found, names, output_path / comparing.PLOT_FILE)
    if as_json:
        emit_json(result)
        return
    title = "Mean absolute error beside the recorded actions, in their units"
    show_table(title, *comparing.table(result, names))
    where = "" if output_path is None else f"; see {output_path / comparing.PLOT_FILE}"
    conclude(
        comparing.headline(result) + where,
        then=(
            "molmoact",
            "serve",
            "--checkpoint",
            checkpoint,
            *typed_again("--unnorm-key", options["statistics_key"]),
        ),
    )


def check_comparison_folder(folder: Path | None, *, overwrite: bool) -> None:
    """Raises `UserError` where an earlier comparison would be lost."""
    from molmoact_data.files.folders import check_new_file
    from molmoact_train.evaluation.comparing import COMPARISON_FILE, PLOT_FILE

    if folder is not None:
        for name in (COMPARISON_FILE, PLOT_FILE):
            check_new_file(folder / name, overwrite=overwrite)


def _require(asked: Mapping[str, object]) -> None:
    """Raises `UserError` where pictures or words are missing."""
    for flag in ("--images", "--instruction"):
        if not asked[flag]:
            raise UserError(
                f"{flag} is missing: a question is pictures and words. To ask about recorded frames: --data OUT."
            )


def _refuse(flags: Mapping[str, object], why: str) -> None:
    """Raises `UserError` for a flag that was given and means nothing to this family."""
    given = [flag for flag, value in flags.items() if value is not None]
    if given:
        raise UserError(f"{given[0]} means nothing here: {why}.")
