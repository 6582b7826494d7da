"""`molmoact preprocess-web`: a general vision-language set becomes shards that train like everything else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer

from molmoact_data.console import DryRunOption, JsonOption, conclude, emit_json, options_of
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
    from molmoact_data.console.tables import duration, show_facts
    from molmoact_data.web.catalogue import web_set
    from pipelines.web.config import web_config
    from pipelines.web.run import SECONDS_PER_PICTURE, plan_web, preprocess_web as run

    entry = web_set(name)
    config = web_config({**settings, "name": name})
    if dry_run:
        plan = plan_web(config)
        if as_json:
            emit_json(plan)
            return
        show_facts(
            f"Would write {config.output_path}",
            {
                "set": name,
                "examples": f"{plan['examples']:,}",
                "downloads": f"{plan['addresses']:,} pictures from {plan['hosts']:,} hosts",
                "time": f"about {duration(3600 * plan['hours'])} at {SECONDS_PER_PICTURE} s a picture",
                "disk": "as much as the pictures; their sizes are not known before they are fetched",
                "licence": entry.licence,
            },
        )
        return
    done = run(config)
    if as_json:
        emit_json(asdict(done))
    else:
        conclude(
            f"{done.rows:,} rows in {done.shards} shards of {done.output}; {sum(done.rejects.values()):,} rejected",
            then=("molmoact", "train", "--stage", "pretrain", "--data", done.output, "..."),
        )
