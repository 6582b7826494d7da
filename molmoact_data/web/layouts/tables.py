"""Question tables on the Hub, Parquet with the picture in the row, and TabMWP's JSON of tables drawn as pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from molmoact_data.errors import UserError
from molmoact_data.text.annotations import Annotation
from molmoact_data.web.examples import Picture, WebExample, field, read_json

Row = Mapping[str, Any]
CHART_QUESTIONS = {"human": 7398, "augmented": 20901}
"""Training questions of ChartQA by origin; the published weights make both origins count alike."""


def parquet_files(root: Path, split: str) -> list[Path]:
    """The Parquet files of a split, by name: `train-00000-of-00002.parquet`, `train/0000.parquet`."""
    found = [
        path
        for path in sorted(root.rglob("*.parquet"))
        if _names_split(path.relative_to(root), split)
    ]
    if not found:
        raise UserError(
            f"{root} has no Parquet file of the split {split!r}: run `molmoact download`."
        )
    return found


def _names_split(path: Path, split: str) -> bool:
    names = {"validation": ("validation", "val", "dev")}.get(split, (split,))
    stems = [part.partition(".")[0] for part in path.parts if not part.startswith(".")]
    return any(stem == name or stem.startswith(f"{name}-") for stem in stems for name in names)


def parquet_rows(
    root: Path, split: str, *, without: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Rows of a split as Python values, a bounded batch at a time; `without` leaves columns unread."""
    for _, _, row in _located_rows(root, split, without):
        yield row


def _located_rows(
    root: Path, split: str, without: Sequence[str]
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    for path in parquet_files(root, split):
        name = path.relative_to(root).as_posix()
        for number, row in enumerate(_rows_of(path, without)):
            yield name, number, row


def _rows_of(path: Path, without: Sequence[str]) -> Iterator[dict[str, Any]]:
    try:
        file = pq.ParquetFile(path)
        columns = [name for name in file.schema_arrow.names if name not in without]
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet: {error}") from error


def _table(
    root: Path, split: str, annotate: Callable[[Row], Annotation | None], key: str = ""
) -> Iterator[WebExample]:
    """One example a row; the picture stays in its file until it is needed."""
    for file, number, row in _located_rows(root, split, ["image"]):
        annotation = annotate(row)
        if annotation is not None:
            name = str(row[key]) if key in row else f"{file}:{number}"
            yield WebExample(name, Picture(parquet=file, row=number), (annotation,))


def chart_qa(root: Path, split: str) -> Iterator[WebExample]:
    """ChartQA with the published weights: questions of people and of a program count alike."""
    total = sum(CHART_QUESTIONS.values())
    for file, number, row in _located_rows(root, split, ["image"]):
        is_human = int(field(row, "human_or_machine", file)) == 0
        weight = 2 * CHART_QUESTIONS["augmented" if is_human else "human"] / total
        annotation = Annotation("chart_qa", str(row["query"]), _texts(row["label"]))
        picture = Picture(parquet=file, row=number)
        yield WebExample(f"{file}:{number}", picture, (annotation,), weight=weight)


def doc_qa(root: Path, split: str) -> Iterator[WebExample]:
    """DocumentVQA."""
    return _table(
        root,
        split,
        lambda row: Annotation("doc_qa", str(row["question"]), _texts(row["answers"])),
        key="questionId",
    )


def text_vqa(root: Path, split: str) -> Iterator[WebExample]:
    """TextVQA."""
    return _table(
        root,
        split,
        lambda row: Annotation("text_vqa", str(row["question"]), _texts(row["answers"])),
        key="question_id",
    )


def okvqa(root: Path, split: str) -> Iterator[WebExample]:
    """OK-VQA; the references are what people wrote, not their stems."""
    return _table(
        root,
        split,
        lambda row: Annotation(
            "okvqa",
            str(row["question"]),
            tuple(str(field(a, "raw_answer", "an answer")) for a in row["answers"]),
        ),
        key="question_id",
    )


def science_qa(root: Path, split: str) -> Iterator[WebExample]:
    """ScienceQA, the questions with a picture; a hint stands before its question."""
    pictured = _pictured_rows(root, split)

    def annotate(row: Row) -> Annotation:
        question = str(row["question"])
        if row["hint"]:
            question = f"{row['hint']}\n{question}"
        return Annotation(
            "science_qa",
            question,
            options=_texts(row["choices"]),
            answer_index=int(row["answer"]),
        )

    for file, number, row in _located_rows(root, split, ["image"]):
        if (file, number) in pictured:
            picture = Picture(parquet=file, row=number)
            yield WebExample(f"{file}:{number}", picture, (annotate(row),))


def _pictured_rows(root: Path, split: str) -> set[tuple[str, int]]:
    """Rows whose picture is not null, read without the pictures' bytes where the file allows it."""
    found = set()
    for path in parquet_files(root, split):
        name = path.relative_to(root).as_posix()
        number = 0
        for batch in pq.ParquetFile(path).iter_batches(batch_size=256, columns=["image"]):
            valid = batch.column(0).is_valid().to_pylist()
            found |= {(name, number + i) for i, has in enumerate(valid) if has}
            number += len(valid)
    return found


def tabmwp(root: Path, split: str) -> Iterator[WebExample]:
    """TabMWP: `data/tabmwp/problems_{split}.json` and the tables as pictures; answered directly."""
    home = next(iter(sorted(root.rglob("data/tabmwp"))), None)
    if home is None:
        raise UserError(f"{root} has no data/tabmwp: run `molmoact download tabwmp`.")
    name = home.relative_to(root).as_posix()
    published = {"validation": "dev"}.get(split, split)
    problems = read_json(root, f"{name}/problems_{published}.json")
    for number, problem in problems.items():
        annotation = Annotation(
            "tabwmp_da",
            str(field(problem, "question", f"problem {number}")),
            (str(field(problem, "answer", f"problem {number}")),),
        )
        yield WebExample(str(number), Picture(file=f"{name}/tables/{number}.png"), (annotation,))


def _texts(values: Any) -> tuple[str, ...]:
    """A text or a list of texts."""
    return (values,) if isinstance(values, str) else tuple(str(v) for v in values or ())
