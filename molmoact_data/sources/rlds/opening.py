"""Open an RLDS dataset: features, shards of the wanted split, mapping, and what disagrees."""

from __future__ import annotations

import codecs
import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from molmoact_data.errors import EpisodeRejected, UserError, unknown_name
from molmoact_data.files.inputs import Folder, HubFolder
from molmoact_data.files.typed import parse_json
from molmoact_data.sources.base import CameraFeature, EpisodeRef, SourceInfo
from molmoact_data.sources.channels import OWN_MAPPING
from molmoact_data.sources.rlds.features import RldsFeature, read_features
from molmoact_data.sources.rlds.mapping import RldsMapping, find_mapping
from molmoact_data.sources.rlds.source import (
    RecordReader,
    RldsSource,
    Shard,
    count_steps,
    look_into,
)
from molmoact_data.sources.rlds.tfrecord import (
    DamagedRecordError,
    open_records,
    parse_example,
    read_record,
)

FEATURES_FILE, INFO_FILE = "features.json", "dataset_info.json"
DEFAULT_SPLIT = "train"
COUNTED_BYTES = 2**30
"""Up to this much, every record is parsed once for its number of steps; beyond, it is estimated."""

_SHARD_NAME = re.compile(
    r"(?P<dataset>.+)-(?P<split>[^-]+)\.tfrecord[^-]*-(?P<number>\d+)-of-(?P<total>\d+)(\.gz)?"
)


@dataclass(frozen=True)
class _Split:
    name: str
    shardLengths: tuple[int | str, ...] = ()
    """Episodes in each file; TFDS writes numbers as text."""


@dataclass(frozen=True)
class _DatasetInfo:
    """What is read of `dataset_info.json`."""

    name: str | None = None
    version: str | None = None
    splits: tuple[_Split, ...] | None = None

    def lengths(self) -> dict[str, list[int]]:
        """Split -> episodes per file."""
        return {split.name: _whole_numbers(split) for split in self.splits or ()}


def _whole_numbers(split: _Split) -> list[int]:
    lengths = [
        int(n) if str(n).isdecimal() and len(str(n)) < 10 else -1 for n in split.shardLengths
    ]
    if -1 in lengths:
        found = split.shardLengths[lengths.index(-1)]
        raise UserError(
            f"{INFO_FILE}: shardLengths of split {split.name!r} must be whole numbers, found "
            f"{repr(found)[:40]}"
        )
    return lengths


def open_rlds(folder: Folder, split: str | None = None) -> RldsSource:
    """One split of the dataset in `folder` (`train` unless named). Raises `UserError`."""
    declared = parse_json(_DatasetInfo, _content(folder, INFO_FILE), _where(folder, INFO_FILE))
    name = declared.name or folder.name
    features = read_features(_content(folder, FEATURES_FILE), _where(folder, FEATURES_FILE))
    own = folder.fetch(OWN_MAPPING) if folder.exists(OWN_MAPPING) else None
    mapping, note = find_mapping(name, features, own)
    split, paths, warnings = _split_files(folder, declared, split)
    shards, shard_warnings = _shards(folder, paths, declared.lengths().get(split, []))
    reader = RecordReader(folder, tuple(shards))
    source = RldsSource(
        info=SourceInfo(
            name=name,
            revision=_revision(folder, declared, paths),
            format="rlds",
            fps=mapping.fps,
            cameras=_cameras(features, mapping),
            action_dim=0,
            action_names=None,
            state_dim=None,
            warnings=(*([note] if note else []), *warnings, *shard_warnings),
            columns=tuple(f.name for f in features.values() if f.per_step and f.is_numeric),
        ),
        episodes=(),
        records=reader,
        features=features,
        mapping=mapping,
    )
    return _with_counts(source, shards)


def _with_counts(source: RldsSource, shards: Sequence[Shard]) -> RldsSource:
    """Add what only the records tell: steps per episode, action and state dimensions."""
    numbers = [s.first_episode + i for s in shards for i in range(s.num_records)]
    problems: list[str] = []
    for number in numbers:
        try:
            columns = source.read_columns(EpisodeRef(number, 0))
        except EpisodeRejected as rejected:
            problems.append(str(rejected))
            continue
        info = dataclasses.replace(
            source.info,
            action_dim=columns.action.shape[1],
            state_dim=None if columns.state is None else columns.state.shape[1],
        )
        episodes = tuple(_episode_lengths(source, shards))
        return dataclasses.replace(source, info=info, episodes=episodes)
    raise UserError(
        f"RLDS dataset {source.info.name!r}: not one of {len(numbers)} episodes can be read"
        + (f"; the first: {problems[0]}" if problems else "")
    )


def _episode_lengths(source: RldsSource, shards: Sequence[Shard]) -> list[EpisodeRef]:
    """Exact steps where the split is small; else one episode's frames per byte, for planning only."""
    records = [_record_bytes(shard, i) for shard in shards for i in range(shard.num_records)]
    small = sum(filter(None, records)) <= COUNTED_BYTES
    refs: list[EpisodeRef] = []
    bytes_per_step: float | None = None
    for number, num_bytes in enumerate(records):
        if small or bytes_per_step is None or num_bytes is None:
            steps = _count_steps(source, number)
            if steps and num_bytes:
                bytes_per_step = num_bytes / steps
        else:
            steps = max(1, round(num_bytes / bytes_per_step))
        refs.append(EpisodeRef(number, steps))
    return refs


def _record_bytes(shard: Shard, record: int) -> int | None:
    """Size of one record: known, or the mean of a file that was not looked at, or None."""
    if shard.spans is not None:
        return shard.spans[record].length if record < len(shard.spans) else None
    return None if shard.num_bytes is None else shard.num_bytes // max(1, shard.num_records)


def _count_steps(source: RldsSource, episode_index: int) -> int:
    """0 for an episode that cannot be read: it is rejected, by name, when its turn comes."""
    try:
        payload = source.records.read(episode_index)
        keys = {f.key for f in source.features.values() if f.per_step and f.dtype == "bool"}
        keys |= {source.features[c.feature].key for c in source.mapping.action}
        return count_steps(parse_example(payload, keys), source.features)
    except (EpisodeRejected, DamagedRecordError):
        return 0


def _split_files(
    folder: Folder, declared: _DatasetInfo, split: str | None
) -> tuple[str, list[str], list[str]]:
    """(split, its shard files in order, warnings). A declared split without files is not offered."""
    by_split: dict[str, list[tuple[int, int, str]]] = {}
    for path in folder.listing("", ""):
        match = _SHARD_NAME.fullmatch(path)
        if match:
            entry = (int(match["number"]), int(match["total"]), path)
            by_split.setdefault(match["split"], []).append(entry)
    if not by_split:
        raise UserError(
            f"RLDS dataset {folder.name!r} has no *.tfrecord-* shard beside {INFO_FILE}"
        )
    if split is not None and split not in by_split:
        raise unknown_name("split", split, by_split)
    chosen = split or (DEFAULT_SPLIT if DEFAULT_SPLIT in by_split else sorted(by_split)[0])
    files = sorted(by_split[chosen])
    for (number, _, path), (following, _, other) in pairwise(files):
        if number == following:
            raise UserError(
                f"{path} and {other} of {folder.name!r} are both file {number} of a split"
            )
    warnings = []
    if len(files) != files[0][1]:
        warnings.append(f"split {chosen!r}: {len(files)} of {files[0][1]} shards are here")
    others = sorted(set(declared.lengths()) - set(by_split))
    if others:
        warnings.append(f"metadata declares splits without any file: {', '.join(others)}")
    return chosen, [path for _, _, path in files], warnings


def _shards(
    folder: Folder, paths: Sequence[str], declared: Sequence[int]
) -> tuple[list[Shard], list[str]]:
    """Number the episodes by what is in the files; metadata fills in what cannot be seen from here."""
    shards: list[Shard] = []
    warnings: list[str] = []
    first = 0
    may_look = folder.gather(paths)
    for path in paths:
        match = _SHARD_NAME.fullmatch(path)
        number = int(match["number"]) if match else 0
        expected = declared[number] if number < len(declared) else None
        if may_look or expected is None:
            shard = _shard(folder, path, first, expected)
        else:
            shard = Shard(path, first, expected, None, num_bytes=folder.size(path))
        if expected is not None and shard.num_records != expected:
            warnings.append(
                f"{path}: metadata declares {expected} episodes, there are {shard.num_records}"
            )
        if shard.damage:
            warnings.append(shard.damage)
        shards.append(shard)
        first += shard.num_records
    return shards, warnings


def _shard(folder: Folder, path: str, first: int, expected: int | None) -> Shard:
    shard = look_into(folder.fetch(path), Shard(path, first, 0, None))
    if shard.spans is None:
        count = expected if expected is not None else _count_records(folder, path)
    else:
        # Records behind the damage exist but cannot be found: they are rejected one by one.
        found = len(shard.spans)
        count = max(found + 1, expected or 0) if shard.damage else found
    return dataclasses.replace(shard, num_records=count)


def _count_records(folder: Folder, path: str) -> int:
    count = 0
    with open_records(folder.fetch(path)) as file:
        while read_record(file, f"{path}, record {count}") is not None:
            count += 1
    return count


def _cameras(
    features: Mapping[str, RldsFeature], mapping: RldsMapping
) -> tuple[CameraFeature, ...]:
    """Image features per step, the mapping's order of preference first."""
    images = [f for f in features.values() if f.kind == "image" and f.per_step and not f.nested]
    preferred = [name for name in mapping.cameras if name in features]
    images.sort(key=lambda f: (preferred.index(f.name) if f.name in preferred else 99, f.name))
    return tuple(
        CameraFeature(f.name, *_height_width(f.shape), "image", _is_depth(f)) for f in images
    )


def _height_width(shape: tuple[int | None, ...]) -> tuple[int, int]:
    """0 where it is not declared."""
    return (shape[0] or 0, shape[1] or 0) if len(shape) in (2, 3) else (0, 0)


def _is_depth(feature: RldsFeature) -> bool:
    return feature.dtype != "uint8" or "depth" in feature.name.lower()


def _revision(folder: Folder, declared: _DatasetInfo, paths: Sequence[str]) -> str:
    own = [OWN_MAPPING] if folder.exists(OWN_MAPPING) else []  # other numbers, so another revision
    revision = folder.revision([FEATURES_FILE, INFO_FILE, *own, *paths])
    if isinstance(folder, HubFolder):
        return revision
    return f"{declared.version or '0'}+{revision}"


def _content(folder: Folder, path: str) -> bytes:
    try:
        return folder.fetch(path).read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise UserError(f"{_where(folder, path)} cannot be read: {error.strerror}") from error


def _where(folder: Folder, path: str) -> str:
    return f"{path} of {folder.name!r}"
