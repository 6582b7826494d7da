"""Counters in Prometheus' text form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping


class Metrics:
    """What a server has done since it listens. Seconds are sums; with the counts they give means."""

    def __init__(self) -> None:
        self.answers: Counter[tuple[str, str]] = Counter()
        """(protocol, outcome) -> requests; the outcome is `answered` or the name of a refusal."""
        self.seconds: Counter[str] = Counter()
        """Stage -> seconds: `queue`, `model`, `whole`."""
        self.bytes_received = 0

    def add_seconds(self, stages: Mapping[str, float]) -> None:
        for stage, seconds in stages.items():
            self.seconds[stage] += seconds  # type: ignore[assignment]

    def text(self, labels: Mapping[str, str], *, waiting: int, clients: int) -> str:
        """One page for a scraper."""
        lines = [
            *_head("molmoact_info", "gauge", "What is served."),
            f"molmoact_info{{{_labels(labels)}}} 1",
            *_head("molmoact_requests_total", "counter", "Requests by protocol and outcome."),
        ]
        lines += [
            f"molmoact_requests_total{{{_labels({'protocol': p, 'outcome': o})}}} {n}"
            for (p, o), n in sorted(self.answers.items())
        ]
        lines += _head(
            "molmoact_seconds_total", "counter", "Seconds by stage, of answered requests."
        )
        lines += [
            f"molmoact_seconds_total{{{_labels({'stage': stage})}}} {seconds:.6f}"
            for stage, seconds in sorted(self.seconds.items())
        ]
        for name, value, words in (
            ("molmoact_clients", clients, "Open WebSocket connections."),
            ("molmoact_waiting", waiting, "Questions that wait for the model."),
            ("molmoact_received_bytes_total", self.bytes_received, "Bytes of requests."),
        ):
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [*_head(name, kind, words), f"{name} {value}"]
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, words: str) -> list[str]:
    return [f"# HELP {name} {words}", f"# TYPE {name} {kind}"]


def _labels(labels: Mapping[str, str]) -> str:
    return ",".join(f'{key}="{_escaped(value)}"' for key, value in labels.items())


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
