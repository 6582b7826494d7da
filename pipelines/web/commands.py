"""`molmoact preprocess-web`: a general vision-language set becomes shards that train like everything else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer

from molmoact_data.console import DryRunOption, JsonOption, emit_json, options_of, say
from pipelines.web.config import WebConfig


@options_of(WebConfig, without=("name",))
def preprocess_web(
    settings: Mapping[str, Any],
    name: Annotated[
        str, typer.Argument(help="A set, for example pixmo_cap; `molmoact download` lists them.")
    ],
    *,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make Parquet shards of conversations out of a general set's raw files, pictures inside.

    Example: molmoact preprocess-web pixmo_cap --input-path raw --output-path web/pixmo_cap
    """
    from molmoact_data.web.catalogue import web_set
    from pipelines.web.config import web_config
    from pipelines.web.run import SECONDS_PER_PICTURE, plan_web, preprocess_web as run

    entry = web_set(name)
    config = web_config({**settings, "name": name})
    if dry_run:
        plan = plan_web(config)
        say(
            f"{name}: {plan['examples']:,} examples, {plan['addresses']:,} pictures to fetch from "
            f"{plan['hosts']:,} hosts, about {plan['hours']:.1f} h at {SECONDS_PER_PICTURE} s a picture; "
            f"licence: {entry.licence}"
        )
        if as_json:
            emit_json(plan)
        return
    done = run(config)
    if as_json:
        emit_json(asdict(done))
    else:
        say(
            f"{done.rows:,} rows in {done.shards} shards of {done.output}; {sum(done.rejects.values()):,} rejected"
        )
