"""The door: which `molmoact` commands there are, and what a mistake looks like.

Each command is a signature, a docstring and one call, in a `commands` module of the package that does the
work. Heavy packages are imported inside the commands, so that `molmoact --help` needs neither torch nor Beam.
Results go to stdout, everything else to stderr. Exit codes: 0 done; 1 a bug; 2 the input or the flags are wrong, or
the system refuses to write; 3 the run finished but what it found is above a limit that the user set; 130 stopped by
Ctrl-C; 143 stopped by SIGTERM.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from molmoact_data import commands as data
from molmoact_data.console import (
    DryRunOption,
    JsonOption,
    OverwriteOption,
    ResumeOption,
    conclude,
    emit_json,
    say,
)
from molmoact_data.console.command import OURS, Command, VerboseOption, set_up_log, with_verbose
from molmoact_data.errors import LimitExceeded, UserError, refused_by_system
from molmoact_data.redaction import redact
from molmoact_data.schema import DEMO_ANSWER_DIR, DEMO_RUN_DIR, REPORT_FILE
from molmoact_robot import commands as robots
from molmoact_train import commands as models
from molmoact_train.evaluation import commands as asking
from pipelines import commands as labelling
from pipelines.web import commands as web
from vqvae import commands as codebooks

INTERRUPTED, TERMINATED = 130, 143
"""Exit codes after Ctrl-C and after SIGTERM, as shells count them: 128 + the signal."""
EXTRAS = (
    "'molmoact[data]' for datasets and labels, 'molmoact[train]' for models, 'molmoact[all]' for "
    "everything"
)


def version() -> None:
    """Print the installed version.

    Example: molmoact version
    """
    typer.echo(installed_version())


def demo(
    *,
    output_path: Annotated[Path, typer.Option(help="Folder for the result.")] = Path("out/demo"),
    duration: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Optimiser steps; 0 = stop after the dataset and its report; default: about a minute.",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(help="Local worker processes that label.")] = 1,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show the whole way on the shipped episodes: labels and their report, a minute of training, one answer.

    The teachers and the model that training starts from are small and shipped: nothing is fetched.

    Example: molmoact demo --output-path out/demo
    """
    labels = labelling.demo_labels(output_path, workers)
    run, answers = output_path / DEMO_RUN_DIR, output_path / DEMO_ANSWER_DIR
    training = None if duration == 0 else models.demo_training(output_path, run, duration)
    if dry_run:
        plans = {"labels": labelling.plan_labels(labels, as_json=as_json)}
        if training is not None:
            plans["training"] = models.plan_demo(training, as_json=as_json)
        if as_json:
            emit_json(plans)
        return
    summary = labelling.label(labels, resume=resume, overwrite=overwrite)
    if training is None:
        labelling.finish_preprocess(summary, as_json=as_json)
        return
    say(
        f"{summary.frames} frames of {summary.episodes} episodes; look at {output_path / REPORT_FILE}"
    )
    answer = models.train_and_ask(training, answers, resume=resume, overwrite=overwrite)
    if as_json:
        emit_json({**asdict(summary), "run": str(run), "answer": asdict(answer)})
    else:
        conclude(
            f"{models.told(answer)}; see {answer.picture}",
            then=("molmoact", "preview", "--dataset-path", "YOUR_DATASET", "--output-path", "preview.png",
                  "--vqvae", "released"),
        )  # fmt: skip
    if summary.exceeded is not None:
        raise LimitExceeded(summary.exceeded)


def installed_version() -> str:
    """As pip knows it."""
    from importlib import metadata

    try:
        return metadata.version("molmoact")
    except metadata.PackageNotFoundError as error:
        raise UserError(
            "molmoact is not installed, only run from its folder, so it has no version. "
            "Install it with: pip install -e ."
        ) from error


# Heading of `molmoact --help` -> its commands, in the order in which people need them.
COMMANDS: Mapping[str, Sequence[Callable[..., None]]] = {
    "Data": (
        demo,
        labelling.preview,
        labelling.preprocess,
        web.preprocess_web,
        data.viz,
        labelling.evaluate_labels,
    ),
    "Life cycle of an output": (
        data.validate,
        data.stats,
        labelling.retokenize,
        labelling.merge,
        data.export,
        data.publish,
        data.download,
    ),
    "Models": (
        models.train,
        asking.predict,
        data.parse,
        models.unshard,
        models.merge_lora,
        models.export_hf,
    ),
    "Robots": (robots.eval_, robots.serve, robots.portal),
    "Other": (version,),
}
VQVAE_COMMANDS: Mapping[str, Callable[..., None]] = {
    "train": codebooks.train,
    "eval": codebooks.evaluate,
    "encode": codebooks.encode,
    "decode": codebooks.decode,
    "convert": codebooks.convert,
}


def say_version(asked: bool) -> None:  # noqa: FBT001 - Typer passes the flag's value
    """`--version`: the version and nothing else."""
    if asked:
        typer.echo(installed_version())
        raise typer.Exit


def configure(
    *,
    verbose: VerboseOption = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", help="Print the version.", callback=say_version, is_eager=True
        ),
    ] = False,
) -> None:
    """What holds for every command: what is logged, and where."""
    set_up_log(verbose=verbose)


def door() -> typer.Typer:
    """The program: every command under its heading; names are the functions', with dashes.

    A function whose name would hide a builtin ends in an underscore, which its command does not.
    """
    whole = typer.Typer(
        name="molmoact",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Robot demonstrations in, an Action Reasoning Model out.",
        callback=configure,
    )
    for heading, functions in COMMANDS.items():
        for function in functions:
            name = function.__name__.rstrip("_").replace("_", "-")
            whole.command(name, rich_help_panel=heading, cls=Command)(with_verbose(function))
    vqvae = typer.Typer(
        no_args_is_help=True, help="The depth VQ-VAE: train, measure, encode, decode, convert."
    )
    for name, function in VQVAE_COMMANDS.items():
        vqvae.command(name, cls=Command)(with_verbose(function))
    whole.add_typer(vqvae, name="vqvae", rich_help_panel="Models")
    return whole


app = door()


def main() -> None:
    """Entry point: a user's mistake is one clear line and exit code 2, a bug keeps its traceback."""
    before = signal.signal(signal.SIGTERM, _end)
    try:
        app()
    except SystemExit as ended:
        if ended.code in (INTERRUPTED, TERMINATED):
            say(f"{STOPPED[ended.code]}; {way_on(sys.argv[1:])}")
        raise
    except Exception as error:
        meant = explained(error)
        if meant is None or os.environ.get("MOLMOACT_TRACEBACK"):
            raise
        typer.secho(f"error: {redact(meant)}", fg="red", err=True)
        raise SystemExit(3 if isinstance(error, LimitExceeded) else 2) from None
    finally:
        signal.signal(signal.SIGTERM, before)


STOPPED = {INTERRUPTED: "interrupted", TERMINATED: "terminated"}


def _end(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends a command as Ctrl-C does: what is open is closed, what is half done removed."""
    raise SystemExit(TERMINATED)


def way_on(words: Sequence[str]) -> str:
    """How to go on after a command was stopped."""
    named = [word for word in words if not word.startswith("-")]
    functions = {f.__name__.rstrip("_"): f for fs in COMMANDS.values() for f in fs}
    functions.update({f"vqvae {name}": f for name, f in VQVAE_COMMANDS.items()})
    name = " ".join(named[:2]) if named[:1] == ["vqvae"] else "".join(named[:1])
    function = functions.get(name.replace("-", "_"))
    if function is not None and "resume" in inspect.signature(function).parameters:
        return "what is complete is kept, and --resume goes on from it"
    return "nothing unfinished is left; run the same command again"


def explained(error: Exception) -> str | None:
    """What an error means to a user; None for a bug."""
    if isinstance(error, UserError | LimitExceeded):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        package = str(error.name).partition(".")[0]
        if package in (*OURS, "cli"):
            return None
        return f"the Python package {package!r} is not installed. pip install {EXTRAS}."
    return refused_by_system(error)


if __name__ == "__main__":
    main()
