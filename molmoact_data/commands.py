"""`molmoact viz | parse | validate | stats | export | publish | download`: look at data, and what happens to it."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from molmoact_data.console import (
    DeviceOption,
    DryRunOption,
    JsonOption,
    OutputArgument,
    OverwriteOption,
    conclude,
    emit_json,
    say,
)
from molmoact_data.errors import LimitExceeded, UserError
from molmoact_data.schema import RecordLayout


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

    Example: molmoact viz out --episode 3 --output-path episode3.mp4 --vqvae released
    """
    from molmoact_data.outputs.output import Output
    from molmoact_data.pictures.film import (
        load_tokenizer,
        refuse_existing,
        show_codes,
        show_episode,
    )

    path = refuse_existing(output_path, overwrite=overwrite)
    if output is not None and tokens is None:
        Output.open(output)
    tokenizer = load_tokenizer(vqvae, device) if vqvae else None
    if tokens is not None:
        shown = f"{show_codes(path, tokens, tokenizer)} depth maps"
    elif output is not None:
        count = show_episode(
            path, output, episode, tokenizer=tokenizer, frames=frames, columns=columns
        )
        shown = f"{count} frames of episode {episode}"
    else:
        raise UserError("give a preprocessed output, or --tokens with --vqvae.")
    conclude(f"{shown}; see {path}")


def parse(
    file: Annotated[Path, typer.Argument(help="JSON lines with `text`; - reads stdin.")],
    *,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Model folder: its family says how to read, its statistics are used."),
    ] = None,
    norm_stats: Annotated[
        Path | None, typer.Option(help="dataset_statistics.json or a released model's norm_stats.")
    ] = None,
    unnorm_key: Annotated[
        str | None, typer.Option(help="Entry of the statistics; needed when there are several.")
    ] = None,
    action_tokenizer: Annotated[
        str | None,
        typer.Option(help="MolmoAct2: folder or Hub id; default: the one in the checkpoint."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 3 when any text has a problem.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read generated texts: depth codes, traces, un-normalised actions, and what is wrong with them.

    Example: molmoact parse generations.jsonl --norm-stats dataset_statistics.json --json
    """
    from molmoact_data.policies import family_name
    from molmoact_data.teachers.registry import ANSWER_READERS, resolve
    from molmoact_data.text.generated import open_texts, summary_line

    if checkpoint is None and norm_stats is None:
        raise UserError("give --checkpoint, the model that wrote the texts, or --norm-stats.")
    family = "molmoact" if checkpoint is None else family_name(checkpoint)
    open_reader = resolve("answer reader", family, ANSWER_READERS)
    decoder = open_reader(
        checkpoint, unnorm_key, norm_stats=norm_stats, action_tokenizer=action_tokenizer
    )
    num_texts = num_bad = 0
    for num_texts, text in enumerate(open_texts(file), start=1):
        decoded = decoder.decode(text)
        num_bad += bool(decoded["problems"])
        typer.echo(json.dumps(decoded) if as_json else summary_line(num_texts, decoded))
    conclude(f"{num_texts} texts, {num_bad} with problems")
    if strict and num_bad:
        raise LimitExceeded(
            f"{num_bad} of {num_texts} texts have problems, and --strict was given."
        )


def validate(
    output: OutputArgument,
    *,
    processor: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint or tokenizer folder: also put every row through the real processor."
        ),
    ] = None,
    output_path: Annotated[Path | None, typer.Option(help="Write the JSON report here.")] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check schema, hashes, counts, images, codes, traces and tokens of an output; exit code 3 on any finding.

    Example: molmoact validate out --processor MolmoAct-7B-D-0812 --output-path findings.json
    """
    from molmoact_data.console.tables import show_facts, show_table
    from molmoact_data.files.folders import check_new_file, write_bytes
    from molmoact_data.files.kinds import is_other_than_output, why_no_output
    from molmoact_data.files.storage import Storage
    from molmoact_data.outputs.output import Output
    from molmoact_data.policies import family_name
    from molmoact_data.teachers.registry import SAMPLE_CHECKS, resolve
    from molmoact_data.validate import validate as run

    check_new_file(output_path, overwrite=overwrite)
    if not Storage(output).is_remote and not Path(output).is_dir():
        raise UserError(f"{output}: no such folder; give an output of `molmoact preprocess`.")
    if not Storage(output).is_remote and is_other_than_output(Path(output)):
        raise UserError(f"{output}: {why_no_output(Path(output))}.")
    samples, family = None, None
    if processor is not None:
        if not processor.is_dir():
            raise UserError(f"{processor} is not a folder: expected a checkpoint or a tokenizer.")
        named = (processor / "config.json").is_file()
        family = family_name(processor) if named else "molmoact"
        samples = partial(resolve("sample check", family, SAMPLE_CHECKS), processor)
    found = run(output, samples=samples)
    result = found.to_json()
    if output_path is not None:
        write_bytes(output_path, (json.dumps(result, indent=2) + "\n").encode())
    if as_json:
        emit_json(result)
    else:
        looked = f"{found.samples:,}" if processor else "not tried: give --processor"
        facts = {"rows": f"{found.rows:,}", "images": f"{found.images:,}", "samples": looked,
                 "problems": f"{len(found.problems):,}" if found.problems else "none"}  # fmt: skip
        show_facts(f"{output} is {'valid' if found.passed else 'not valid'}", facts)
        if found.problems:
            rows = [(p.finding.value, p.where, p.detail) for p in found.problems[:20]]
            show_table("The first of them:", ("finding", "where", "what"), rows)
    if found.passed and not as_json:
        conclude(
            f"{found.rows:,} rows without a problem",
            then=("molmoact", *what_to_train(Output.open(output).layout, processor, family), "--data", output,
                  "--output-path", "RUN"),
        )  # fmt: skip
    if not found.passed:
        kinds = ", ".join(f"{name} ({n})" for name, n in result["findings"].items())
        raise LimitExceeded(f"{output} is not valid: {kinds}.")


def what_to_train(
    layout: RecordLayout, processor: Path | None, family: str | None
) -> tuple[object, ...]:
    """The words of the training that an output is for: that of the `processor` it was tried with, else by its columns.

    Without actions there is only depth to learn; a buffer of depth codes, or no depth or no trace, is MolmoAct2's.
    """
    if layout.action_dim is None:
        return ("vqvae", "train", "--depth-encoder", "depth-anything-v2")
    lacks = layout.depth_buffer or layout.depth_codes is None or layout.num_arms is None
    second = family == "molmoact2" if family else lacks
    start = (
        ("--family", "molmoact2", "--stage", "finetune-lora")
        if second
        else ("--stage", "finetune", "--lora")
    )
    return ("train", *start, "--checkpoint", processor or "MODEL")


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
    from molmoact_data.files.folders import check_new_file, write_bytes
    from molmoact_data.outputs import measuring

    check_new_file(output_path, overwrite=overwrite)
    if lerobot_feature:
        result = dict(measuring.lerobot_statistics_of(paths, lerobot_feature))
    else:
        name = key or "+".join(path.rstrip("/").rpartition("/")[2] for path in paths)
        result = measuring.action_statistics(paths, key=name).to_json()
    if output_path is None:
        emit_json(result)
    else:
        write_bytes(output_path, (json.dumps(result, indent=1) + "\n").encode())
        conclude(
            f"statistics of {', '.join(result)} in {output_path}",
            then=()
            if lerobot_feature
            else (
                "molmoact",
                "retokenize",
                "OUT",
                "--statistics",
                output_path,
                "--output-path",
                "NEW",
            ),
        )


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
        float | None,
        typer.Option(
            help="molmoact2-depth: compare frames anew, a cell below this similarity is new. Left out = the "
            "output's own buffer (`preprocess --depth-buffer`), else 0.996."
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write an output in the format of another program.

    Example: molmoact export out --format reference --output-path for-allenai
    """
    from molmoact_data.exporters import ExportOptions, export as run

    options = ExportOptions(dataset_path, single_action, cosine_threshold)
    done = run(output, output_path, format_name, options, overwrite=overwrite)
    if as_json:
        emit_json(asdict(done))
        return
    left_out = "".join(f"; {n} rows left out: {reason}" for reason, n in done.left_out.items())
    conclude(f"{done.rows} rows as {done.format} in {done.output}{left_out}")


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
    from molmoact_data.console.tables import show_facts, show_table, size
    from molmoact_data.publishing.publish import plan_publish, publish as run

    plan = plan_publish(output, repo_id, private=private)
    if plan.non_commercial:
        say(f"note: labels of {', '.join(plan.non_commercial)} are for non-commercial use only")
    if dry_run and not as_json:
        rows = [(f"{num_bytes:,}", path) for path, num_bytes in plan.files]
        show_table(f"Would publish {repo_id}", ("bytes", "file"), rows)
        show_facts("", {
            "total": f"{size(plan.num_bytes)} in {len(plan.files)} files",
            "seen by": "you and your organisation" if private else "everybody",
            "licence": f"not for commercial use: labels of {', '.join(plan.non_commercial)}"
            if plan.non_commercial
            else "no teacher forbids commercial use; the pictures keep their source's licence",
        })  # fmt: skip
    address = None if dry_run else run(output, plan, endpoint=endpoint)
    if address is not None:
        conclude(f"published at {address}: {len(plan.files)} files, {size(plan.num_bytes)}")
    if as_json:
        emit_json(plan.to_json())
    elif dry_run:
        hidden = ("--private",) if private else ()
        conclude(
            f"{len(plan.files)} files, {size(plan.num_bytes)}; nothing was uploaded",
            then=("molmoact", "publish", output, "--repo-id", repo_id, *hidden),
        )


def download(
    names: Annotated[
        list[str],
        typer.Argument(
            help="all; a stage: pretrain, midtrain, libero; a group: web, academic, pixmo; sets such as "
            "bridge_dataset or ChartQa; or a LeRobot dataset on the Hub, owner/name."
        ),
    ],
    *,
    output_path: Annotated[Path, typer.Option(help="Folder; each repository gets its own.")],
    revision: Annotated[str | None, typer.Option(help="Hub revision.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Another Hub than the default.")] = None,
    mirror: Annotated[
        str | None,
        typer.Option(help="URL below which other servers' files lie as HOST/PATH."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Files fetched at a time.")] = 8,
    mbit_per_s: Annotated[
        float, typer.Option(min=0.001, help="Your line, for the hours that --dry-run tells.")
    ] = 100.0,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch published training data by stage, group or name; only what is missing, offline what is there.

    Example: molmoact download libero_goal --output-path data --dry-run
    """
    from molmoact_data.console.tables import duration, show_table, size
    from molmoact_data.publishing.download import (
        choose,
        fetch,
        is_offline,
        plan_download,
        transfer_hours,
    )
    from molmoact_data.web.download import Servers, fetch_set, plan_set

    wanted = choose(names)
    servers = Servers(endpoint, mirror, offline=is_offline())
    results: list[dict[str, Any]] = []
    planned: list[tuple[str, ...]] = []
    for repository in wanted.repositories:
        if dry_run:
            plan = plan_download(repository, revision=revision, endpoint=endpoint)
            hours = transfer_hours(plan.num_bytes, mbit_per_s)
            results.append(plan.to_json() | {"hours": hours})
            planned.append((plan.repo_id, f"{len(plan.files):,}", size(plan.num_bytes),
                            duration(3600 * hours), plan.licence))  # fmt: skip
        else:
            folder = fetch(
                repository, output_path, revision=revision, endpoint=endpoint, workers=workers
            )
            results.append({"repo_id": repository.repo_id, "folder": str(folder)})
            say(f"{repository.repo_id} is in {folder}")
    by_hand: list[str] = []
    for entry in wanted.web:
        if dry_run:
            found = plan_set(entry, servers)
            known = found.num_bytes
            needed = None if known is None else transfer_hours(known, mbit_per_s)
            results.append(found.to_json() | {"hours": needed})
            volume, time = ("not known", "-") if known is None or needed is None else (
                size(known), duration(3600 * needed))  # fmt: skip
            planned.append((found.name, f"{found.files:,}", volume, time, found.licence))
            by_hand += found.by_hand
        else:
            by_hand += fetch_set(entry, output_path, servers, workers=workers)
            results.append({"set": entry.name, "folder": str(output_path / entry.folder)})
            say(f"{entry.name} is in {output_path / entry.folder}")
    if planned and not as_json:
        head = ("what", "files", "size", "time", "licence")
        show_table(f"Would fetch into {output_path}, at {mbit_per_s:g} Mbit/s", head, planned)
    for line in by_hand:
        say(f"by hand: {line}")
    if as_json:
        emit_json(results)
    elif dry_run:
        conclude(
            f"{len(results)} to fetch; nothing was",
            then=("molmoact", "download", *names, "--output-path", output_path),
        )
    else:
        conclude(f"{len(results)} fetched into {output_path}")
