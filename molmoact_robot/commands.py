"""`molmoact eval | serve | portal`: where a model meets a robot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from molmoact_data.console import (
    DeviceOption,
    JsonOption,
    OverwriteOption,
    ResumeOption,
    conclude,
    emit_json,
    say,
    typed_again,
)
from molmoact_data.errors import LimitExceeded


def eval_(
    *,
    env: Annotated[
        str, typer.Option(help="tabletop, libero, or module:Class, a gymnasium class of your own.")
    ] = "tabletop",
    checkpoint: Annotated[
        str, typer.Option(help="Model folder; `embedded`; or a baseline: `expert`, `idle`.")
    ] = "",
    server: Annotated[
        str | None,
        typer.Option(help="ws://host:port of `molmoact serve`, instead of --checkpoint."),
    ] = None,
    output_path: Annotated[Path, typer.Option(help="Folder for results, page and films.")],
    tasks: Annotated[
        str | None, typer.Option(help="Names with commas; default: all of the environment.")
    ] = None,
    trials: Annotated[int, typer.Option(help="Episodes per task.")] = 10,
    seed: Annotated[int, typer.Option(help="Episode k of every task has seed + k.")] = 0,
    execute: Annotated[
        int | None, typer.Option(help="Steps of an answer before the next question; default: all.")
    ] = None,
    steer: Annotated[
        str, typer.Option(help="none, or expert: draw the demonstrator's path on every question.")
    ] = "none",
    env_arg: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE for the environment, e.g. split=train; repeat."),
    ] = None,
    env_python: Annotated[
        str | None,
        typer.Option(help="A Python of the environment's own, which asks the model over the wire."),
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(help="Per episode; default: the environment's own limit.")
    ] = None,
    jobs: Annotated[
        int, typer.Option(help="Processes; each loads the model, or asks the --server.")
    ] = 1,
    video: Annotated[
        bool, typer.Option("--video/--no-video", help="A film of every episode.")
    ] = True,
    vqvae: Annotated[
        str | None,
        typer.Option(help="Decoder of the films' depth, or `embedded`; default: the checkpoint's."),
    ] = None,
    unnorm_key: Annotated[
        str | None, typer.Option(help="Entry of norm_stats; needed when there are several.")
    ] = None,
    max_failed_predictions: Annotated[
        float, typer.Option(help="Share of answers without actions above which to exit with 3.")
    ] = 0.1,
    min_success: Annotated[
        float | None, typer.Option(help="Share of successes below which to exit with 3.")
    ] = None,
    device: DeviceOption = "auto",
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure how often a model succeeds: episodes, films, success rates with intervals.

    Example: molmoact eval --env tabletop --checkpoint embedded --tasks pick --trials 24 --output-path pick
    """
    from molmoact_data.config import build
    from molmoact_robot.environments.base import parse_settings
    from molmoact_robot.evaluation.evaluate import PAGE, EvalConfig, evaluate, one_line, summary

    options = {"device": device, "statistics_key": unnorm_key}
    config = build(
        EvalConfig,
        {
            "player": {
                "env": env,
                "checkpoint": checkpoint,
                "server": server,
                "env_python": env_python,
                "env_settings": parse_settings(env_arg or [], "--env-arg"),
                "policy_options": {k: v for k, v in options.items() if v is not None},
                "vqvae": vqvae,
                "rollout": {"execute": execute, "steer": steer, "max_steps": max_steps},
                "video": video,
            },
            "tasks": tuple(name.strip() for name in tasks.split(",")) if tasks else (),
            "trials": trials,
            "seed": seed,
            "jobs": jobs,
            "max_failed_predictions": max_failed_predictions,
            "min_success": min_success,
        },
    )
    try:
        results = evaluate(
            config,
            output_path,
            resume=resume,
            overwrite=overwrite,
            progress=lambda result, done, total: say(one_line(result, done, total)),
        )
    except (LimitExceeded, KeyboardInterrupt):
        if (output_path / PAGE).is_file():
            say(f"see {output_path / PAGE}")
        raise
    if as_json:
        emit_json(results)
    else:
        typer.echo(summary(results))
        conclude(
            f"{results['successes']} of {results['n']} episodes succeeded; see {output_path / PAGE}",
            then=(
                "molmoact",
                "serve",
                "--checkpoint",
                checkpoint or "MODEL",
                *typed_again("--unnorm-key", unnorm_key),
            )
            if checkpoint not in ("expert", "idle") and server is None
            else (),
        )


def serve(
    *,
    checkpoint: Annotated[str, typer.Option(help="Model folder, or `embedded`.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for a robot on the network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 = any free one.")] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="File with the key that clients must send; or set MOLMOACT_API_KEY."),
    ] = None,
    max_request_mb: Annotated[int, typer.Option(min=1, help="Largest request, MB.")] = 32,
    fields: Annotated[
        Path | None,
        typer.Option(help="YAML with your robot's keys: images, state, prompt, layout."),
    ] = None,
    declare: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE for the handshake, e.g. gripper=open_is_1; repeat."),
    ] = None,
    unnorm_key: Annotated[
        str | None, typer.Option(help="Entry of norm_stats; needed when there are several.")
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Serve a model to robots: openpi's WebSocket protocol and MolmoAct2's HTTP, on one port.

    Example: molmoact serve --checkpoint embedded --port 8000
    """
    import asyncio

    from molmoact_data.config import build
    from molmoact_data.policies import checkpoint_folder, load_policy, policy_class
    from molmoact_robot.environments.base import parse_settings
    from molmoact_robot.serving.config import (
        ServeConfig,
        check_can_listen,
        read_api_key,
        read_fields,
    )

    policy_class(checkpoint_folder(checkpoint))
    config = build(
        ServeConfig,
        {
            "host": host,
            "port": port,
            "api_key": read_api_key(api_key_file),
            "max_request_bytes": max_request_mb * 2**20,
            "declared": parse_settings(declare or [], "--declare"),
            "own_fields": None if fields is None else read_fields(fields),
        },
    )
    check_can_listen(host, port)
    from molmoact_robot.serving.server import serve_until_told

    options = {"device": device, "statistics_key": unnorm_key}
    policy = load_policy(checkpoint, **{k: v for k, v in options.items() if v is not None})

    def listening(port: int) -> None:
        if as_json:
            emit_json({"host": host, "port": port, "checkpoint": policy.info.checkpoint})
        say(f"listening on ws://{host}:{port} and http://{host}:{port}/act")

    asyncio.run(serve_until_told(policy, config, listening))


def portal(
    *,
    checkpoint: Annotated[str, typer.Option(help="Model folder, or `embedded`.")],
    data: Annotated[
        str | None,
        typer.Option(
            help="Output of `preprocess`: step through its episodes, recorded beside predicted."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the page.")] = 7860,
    vqvae: Annotated[
        str | None,
        typer.Option(help="Decoder of the depth, or `embedded`; default: the checkpoint's."),
    ] = None,
    unnorm_key: Annotated[
        str | None, typer.Option(help="Entry of norm_stats; needed when there are several.")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Open a page to look at a model: pictures in, depth, path and action out; steer it with the finger.

    Example: molmoact portal --checkpoint embedded
    """
    from molmoact_data.outputs.output import Output
    from molmoact_data.policies import load_policy
    from molmoact_data.teachers.codebook import codebook_path
    from molmoact_robot.evaluation.player import PlayerConfig, check_checkpoint, depth_picture
    from molmoact_robot.serving.config import check_can_listen

    config = PlayerConfig(env="tabletop", checkpoint=checkpoint, vqvae=vqvae)
    check_checkpoint(config)
    output = None if data is None else Output.open(data)
    check_can_listen(host, port)
    if vqvae is not None:
        codebook_path(vqvae)
    from molmoact_robot.portal.app import build, serve
    from molmoact_robot.portal.live import Scenes
    from molmoact_robot.portal.recorded import Episodes

    options = {"device": device, "statistics_key": unnorm_key}
    policy = load_policy(checkpoint, **{k: v for k, v in options.items() if v is not None})
    say(f"open http://{host}:{port}")
    episodes = None if output is None else Episodes(output)
    page = build(policy, depth_picture(config), Scenes(), episodes)
    serve(page, host=host, port=port)
