"""`molmoact viz | parse`: look at labels, and read what a model wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from molmoact_data.console import DeviceOption, JsonOption, OverwriteOption, say
from molmoact_data.errors import LimitExceeded, UserError


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
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
) -> None:
    """Show labels: an episode as a film or a contact sheet, or the depth that codes stand for.

    Example: molmoact viz out --episode 3 --output-path episode3.mp4 --vqvae vae-final.pt
    """
    from molmoact_data.pictures.film import (
        load_tokenizer,
        refuse_existing,
        show_codes,
        show_episode,
    )

    path = refuse_existing(output_path, overwrite=overwrite)
    tokenizer = load_tokenizer(vqvae, device) if vqvae else None
    if tokens is not None:
        show_codes(path, tokens, tokenizer)
    elif output is not None:
        show_episode(path, output, episode, tokenizer=tokenizer, frames=frames, columns=columns)
    else:
        raise UserError("give a preprocessed output, or --tokens with --vqvae.")
    say(f"see {path}")


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
    from molmoact_data.statistics import read_entries
    from molmoact_data.text.generated import ActionDecoder, open_texts, summary_line

    decoder = ActionDecoder.from_norm_stats(read_entries(norm_stats), unnorm_key)
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
