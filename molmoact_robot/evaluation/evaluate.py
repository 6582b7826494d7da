"""Play a policy in an environment many times and say how often it succeeds, with an interval.

A folder holds the plan, one file per trial, films, and at the end `results.json` and `eval.html`, which are computed
from the trials alone: a run that was killed and resumed leaves the same files as one that was not.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from molmoact_data.config import as_dict
from molmoact_data.errors import LimitExceeded, UserError, unknown_name
from molmoact_data.files.folders import MARK, check_free
from molmoact_data.files.storage import Storage
from molmoact_data.files.typed import parse_json
from molmoact_data.pages.page import percent
from molmoact_robot.evaluation.film import ENDED_IN_WORDS
from molmoact_robot.evaluation.page import render_results
from molmoact_robot.evaluation.player import Facts, PlayerConfig, read_results
from molmoact_robot.evaluation.results import TrialResult, summarize
from molmoact_robot.evaluation.sessions import open_session
from molmoact_robot.evaluation.versions import installed_versions
from molmoact_robot.rollout import Trial

PLAN, RESULTS, PAGE = "plan.json", "results.json", "eval.html"
PACKAGES = ("molmoact", "numpy", "torch", "transformers")

Progress = Callable[[TrialResult, int, int], None]
"""Called after every trial with its result, how many are done and how many there are."""


@dataclass(frozen=True)
class EvalConfig:
    """What is measured."""

    player: PlayerConfig
    tasks: tuple[str, ...] = ()
    """Empty = all of the environment."""
    trials: int = 10
    """Per task."""
    seed: int = 0
    """Trial k of every task has seed + k."""
    jobs: int = 1
    max_failed_predictions: float = 0.1
    """The run fails above this share of answers that are no actions."""
    min_success: float | None = None
    """The run fails below this share of successes."""

    def __post_init__(self) -> None:
        if self.trials < 1 or self.jobs < 1:
            raise ValueError(f"trials and jobs must be at least 1, got {self.trials}, {self.jobs}")
        for name in ("max_failed_predictions", "min_success"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is a share, 0..1, got {value}")

    def settings(self) -> dict[str, Any]:
        """What decides the result; how it is computed (jobs, server, Python) and judged (limits) is left out."""
        settings = as_dict(self)
        for name in ("jobs", "max_failed_predictions", "min_success"):
            del settings[name]
        for name in ("server", "env_python"):
            del settings["player"][name]
        return settings


@dataclass(frozen=True)
class Plan:
    """The trials of a run, and what they depend on."""

    settings: Mapping[str, Any]
    policy: Mapping[str, Any]
    environment: Mapping[str, Any]
    versions: Mapping[str, str]
    trials: tuple[Trial, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))


def evaluate(
    config: EvalConfig,
    output_path: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Play what is missing and write the result; returns the content of `results.json`.

    Raises `LimitExceeded` after the files are written where a limit of the config is exceeded.
    """
    if not resume:
        check_free(output_path, overwrite=overwrite)
    with open_session(config.player, output_path, config.jobs) as session:
        plan = make_plan(config, session.facts)
        claim(output_path, plan, resume=resume, overwrite=overwrite)
        missing = list(unplayed(plan, output_path))
        done = len(plan.trials) - len(missing)
        for result in session.play(missing):
            done += 1
            progress(result, done, len(plan.trials))
    results = finish(plan, output_path)
    check_limits(config, results)
    return results


def make_plan(config: EvalConfig, facts: Facts) -> Plan:
    """Which trials, and everything that their outcome depends on."""
    known = facts.tasks
    for task in config.tasks:
        if task not in known:
            raise unknown_name("task", task, known)
    tasks = config.tasks or known
    return Plan(
        settings=config.settings() | {"tasks": list(tasks)},
        policy=facts.policy,
        environment=facts.environment,
        versions={"python": platform.python_version(), **installed_versions(PACKAGES)},
        trials=tuple(Trial(t, k, config.seed + k) for t in tasks for k in range(config.trials)),
    )


def claim(folder: Path, plan: Plan, *, resume: bool, overwrite: bool) -> None:
    """Begin a new folder, or take up one that was begun with the same plan."""
    storage, planned = Storage(str(folder)), plan.to_json()
    if resume and storage.exists(PLAN):
        begun = parse_json(
            dict[str, Any],
            storage.read_bytes(PLAN),
            f"{folder}/{PLAN}",
            "Begin anew with --overwrite.",
        )
        differing = _differences(begun, planned)
        if differing:
            raise UserError(
                f"{folder} was begun with other settings ({'; '.join(differing)}). Give the same ones to "
                "--resume, or another --output-path."
            )
        return
    check_free(folder, overwrite=overwrite)
    for name in storage.list():
        storage.delete(name)
    (folder / MARK).parent.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
    storage.write_bytes(PLAN, json.dumps(planned, indent=1).encode())


def unplayed(plan: Plan, folder: Path) -> Iterator[Trial]:
    """What is still to do. A trial whose environment broke is played again."""
    done = {r.trial for r in read_results(folder) if r.ended != "environment_error"}
    return (trial for trial in plan.trials if trial not in done)


def finish(plan: Plan, folder: Path) -> dict[str, Any]:
    """Compute and write `results.json` and `eval.html` from the trials."""
    results = [r for r in read_results(folder) if r.trial in plan.trials]
    described = plan.to_json()
    described.pop("trials")
    whole = {**summarize(results), **described, "trials": [asdict(r) for r in results]}
    storage = Storage(str(folder))
    storage.write_bytes(RESULTS, json.dumps(whole, indent=1).encode())
    storage.write_bytes(PAGE, render_results(whole, folder).encode())
    return whole


def check_limits(config: EvalConfig, results: Mapping[str, Any]) -> None:
    """Raises `LimitExceeded`, the worst first."""
    if broken := results["failures"]["environment_error"]:
        raise LimitExceeded(
            f"{broken} of {results['n']} trials ended because the environment broke. See `message` in "
            f"{RESULTS}; --resume plays them again."
        )
    predictions = results["predictions"]
    if predictions["failed"] > config.max_failed_predictions * predictions["total"]:
        raise LimitExceeded(
            f"{predictions['failed']} of {predictions['total']} answers were no actions "
            f"({predictions['by_reason']}); --max-failed-predictions allows "
            f"{config.max_failed_predictions:.0%}."
        )
    if config.min_success is not None and results["successes"] < config.min_success * results["n"]:
        raise LimitExceeded(
            f"{results['successes']} of {results['n']} trials succeeded, below --min-success "
            f"{config.min_success}."
        )


def one_line(result: TrialResult, done: int, total: int) -> str:
    """One trial, for a person who waits."""
    why = f" ({result.message})" if result.message and not result.success else ""
    return (
        f"{done}/{total} {result.trial.name}, seed {result.seed}: {ENDED_IN_WORDS[result.ended]} after "
        f"{result.steps} steps{why}"
    )


def summary(results: Mapping[str, Any]) -> str:
    """The rates, one line per task and one for all."""
    rates = {**results["per_task"], "all": results}
    width = max(map(len, rates))
    lines = [
        f"{task:{width}}  {rate['successes']:3} of {rate['n']:<3}  {percent(rate['interval'][0]):>5} to "
        f"{percent(rate['interval'][1])}"
        for task, rate in rates.items()
    ]
    return "\n".join(["successes, 95 % interval", *lines])


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    old, new = _flat(before), _flat(now)
    return [
        f"{key}: {old.get(key)} there, {new.get(key)} now"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key) and not key.startswith("trials")
    ]


def _flat(value: Any, where: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {
            k: v for name, item in value.items() for k, v in _flat(item, f"{where}{name}.").items()
        }
    return {where.rstrip("."): value}
