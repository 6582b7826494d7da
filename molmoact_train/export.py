"""Any checkpoint of ours -> one folder in the released Hugging Face layout, a few tensors in memory at a time.

The folder loads with our class, with the released code (`auto_map` names it) and with vLLM, and carries everything:
weights, configuration with statistics, image processor, tokenizer.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_train import lora
from molmoact_train.checkpoint import STATE_DIR, TRAINER_FILE, load_config, verify_checkpoint
from molmoact_train.config import TrainConfig, to_json
from molmoact_train.optim import released_name
from molmoact_train.processor import PROCESSOR_NAME, MolmoActProcessor
from molmoact_train.weights import WeightFiles, resolve_model_folder

Dtype = Literal["keep", "float32", "bfloat16"]
SHARD_BYTES = 4 * 2**30
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
CODE_REPOSITORY = {"D": "allenai/MolmoAct-7B-D-0812", "O": "allenai/MolmoAct-7B-O-0812"}
"""Where the released modelling code lives; `auto_map` points there unless the folder brings its own."""
_SMALL_FILES = ("*.json", "*.txt", "*.jinja", "*.model", "*.py")
_NOT_COPIED = ("config.json", INDEX, "train_config.json", "files.json", TRAINER_FILE)


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: str
    num_tensors: int
    num_bytes: int
    dtype: str


def check_free(folder: Path, *, overwrite: bool) -> None:
    """Nothing is replaced unasked."""
    if folder.exists() and not overwrite:
        raise UserError(
            f"{folder} exists. Add --overwrite to replace it, or choose another --output-path."
        )


@contextmanager
def new_folder(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` when all went well; nothing is left otherwise."""
    check_free(folder, overwrite=overwrite)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@dataclass
class ShardWriter:
    """Safetensors files of bounded size, named as transformers expects once their number is known."""

    folder: Path
    dtype: Dtype = "keep"
    shard_bytes: int = SHARD_BYTES
    num_tensors: int = 0
    num_bytes: int = 0
    _pending: dict[str, torch.Tensor] = field(default_factory=dict)
    _pending_bytes: int = 0
    _files: list[list[str]] = field(default_factory=list)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take one tensor; a full shard is written at once."""
        if self.dtype != "keep" and tensor.is_floating_point():
            tensor = tensor.to(getattr(torch, self.dtype))
        tensor = tensor.detach().cpu().contiguous()
        if self._pending and self._pending_bytes + tensor.nbytes > self.shard_bytes:
            self._flush()
        self._pending[name] = tensor
        self._pending_bytes += tensor.nbytes
        self.num_tensors += 1
        self.num_bytes += tensor.nbytes

    def _flush(self) -> None:
        path = self.folder / f"{len(self._files)}.safetensors"
        save_file(self._pending, path, metadata={"format": "pt"})
        self._files.append(list(self._pending))
        self._pending, self._pending_bytes = {}, 0

    def finish(self) -> None:
        """Write the rest, the final names and, with several files, the index."""
        self._flush()
        if len(self._files) == 1:
            (self.folder / "0.safetensors").rename(self.folder / SINGLE)
            return
        weight_map = {}
        for number, names in enumerate(self._files):
            final = f"model-{number + 1:05d}-of-{len(self._files):05d}.safetensors"
            (self.folder / f"{number}.safetensors").rename(self.folder / final)
            weight_map.update(dict.fromkeys(names, final))
        index = {"metadata": {"total_size": self.num_bytes}, "weight_map": weight_map}
        write_json(self.folder / INDEX, index)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` as it is, so that no field that we do not know is lost."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a checkpoint: it has no config.json.")
    return json.loads(path.read_text(encoding="utf-8"))


def statistics_beside(folder: Path) -> dict[str, Any]:
    """`dataset_statistics.json` of a run or an adapter; empty where there is none."""
    path = folder / schema.STATISTICS_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def finish_folder(
    folder: Path, base: Path, config: Mapping[str, Any], norm_stats: Mapping[str, Any], dtype: str
) -> None:
    """Everything beside the weights: configuration with merged statistics, tokenizer, processor, code addresses."""
    for pattern in _SMALL_FILES:
        for path in base.glob(pattern):
            if path.name not in _NOT_COPIED and not path.name.startswith("adapter_"):
                shutil.copy2(path, folder / path.name)
    processor = MolmoActProcessor.from_pretrained(base)
    if not (folder / PROCESSOR_NAME).is_file():
        processor.save_pretrained(folder)
    _write_generation_config(folder / "generation_config.json", processor)
    merged = {**(config.get("norm_stats") or {}), **norm_stats}
    out = {k: v for k, v in config.items() if k != "torch_dtype"}
    out |= {"norm_stats": merged, "dtype": dtype, "architectures": ["MolmoActForActionReasoning"]}
    out["image_patch_id"] = processor.image_ids.patch
    write_json(folder / "config.json", out)
    if norm_stats:
        write_json(folder / schema.STATISTICS_FILE, norm_stats)
    _point_at_code(folder)


def _write_generation_config(path: Path, processor: MolmoActProcessor) -> None:
    """What is there stays; the ids of begin, end and padding are added where they are missing."""
    ids = {
        "bos_token_id": processor.bos_id,
        "eos_token_id": processor.eos_id,
        "pad_token_id": processor.pad_id,
    }
    given = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_json(path, {**ids, **given})


def _point_at_code(folder: Path) -> None:
    """`auto_map` of all three classes; local if the folder holds the code, else the released repository."""
    config = read_config(folder)
    variant = "O" if config["llm_config"]["norm_after"] else "D"
    local = (folder / "modeling_molmoact.py").is_file()
    where = "" if local else f"{CODE_REPOSITORY[variant]}--"
    for name, classes in {
        "config.json": {
            "AutoConfig": "configuration_molmoact.MolmoActConfig",
            "AutoModelForImageTextToText": "modeling_molmoact.MolmoActForActionReasoning",
        },
        PROCESSOR_NAME: {"AutoProcessor": "processing_molmoact.MolmoActProcessor"},
        "preprocessor_config.json": {
            "AutoProcessor": "processing_molmoact.MolmoActProcessor",
            "AutoImageProcessor": "image_processing_molmoact.MolmoActImageProcessor",
        },
    }.items():
        fields = json.loads((folder / name).read_text(encoding="utf-8"))
        fields["auto_map"] = {auto: where + path for auto, path in classes.items()}
        write_json(folder / name, fields)


def plan(
    checkpoint: str, output: Path, *, dtype: Dtype = "keep", overwrite: bool = False
) -> Exported:
    """What `export_folder` or `unshard` would write, from headers alone."""
    check_free(output, overwrite=overwrite)
    folder = Path(checkpoint)
    if (folder / TRAINER_FILE).is_file():
        sizes = [
            (math.prod(entry.size), entry.properties.dtype.itemsize)
            for _, entry in _stored_weights(folder)
        ]
    else:
        files = WeightFiles(resolve_model_folder(checkpoint))
        sizes = [(math.prod(files.shape(n)), files.item_bytes(n)) for n in files.names()]
    return Exported(str(output), len(sizes), planned_bytes(sizes, dtype), dtype)


def planned_bytes(sizes: Sequence[tuple[int, int]], dtype: Dtype) -> int:
    """Bytes of tensors given as (numbers, bytes of one as stored), written as `dtype`."""
    new = None if dtype == "keep" else getattr(torch, dtype).itemsize
    return sum(count * (new or stored) for count, stored in sizes)


# From a Hugging Face folder


def export_folder(
    checkpoint: str,
    output: Path,
    *,
    dtype: Dtype = "keep",
    norm_stats: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Exported:
    """A model folder, a Hub id or a training checkpoint (`RUN/stepN`) -> a complete folder.

    `norm_stats` are added to the checkpoint's own, entry by entry.
    """
    folder = Path(checkpoint)
    if (folder / TRAINER_FILE).is_file():
        return _export_training_checkpoint(
            folder,
            output,
            dtype,
            dict(norm_stats or {}),
            overwrite=overwrite,
            shard_bytes=shard_bytes,
        )
    base = resolve_model_folder(checkpoint)
    files = WeightFiles(base)
    with new_folder(output, overwrite=overwrite) as temporary:
        writer = ShardWriter(temporary, dtype, shard_bytes)
        for name in files.names():
            writer.add(name, files.read(name))
        writer.finish()
        stats = {**statistics_beside(base), **(norm_stats or {})}
        config = read_config(base)
        finish_folder(temporary, base, config, stats, stated_dtype(config, dtype))
    return Exported(str(output), writer.num_tensors, writer.num_bytes, dtype)


def stated_dtype(config: Mapping[str, Any], dtype: Dtype) -> str:
    """What `config.json` says about the weights' type."""
    if dtype != "keep":
        return dtype
    return config.get("dtype") or config.get("torch_dtype") or "float32"


# From a training checkpoint


def unshard(
    checkpoint: Path, output: Path, *, overwrite: bool = False, shard_bytes: int = SHARD_BYTES
) -> Exported:
    """`RUN/stepN` -> a model folder, or, from a LoRA run, a plain PEFT adapter folder."""
    config = _config_of(checkpoint)
    if not config.lora:
        return _export_training_checkpoint(
            checkpoint, output, "keep", {}, overwrite=overwrite, shard_bytes=shard_bytes
        )
    with new_folder(output, overwrite=overwrite) as temporary:
        weights = {lora.plain_name(n): t for n, t in stream_weights(checkpoint, shard_bytes)}
        targets = sorted({n.split(".lora_")[0].rpartition(".")[2] for n in weights})
        lora.save_adapter(
            temporary,
            weights,
            lora.LoraSettings.of(config),
            targets,
            base=config.checkpoint,
            statistics=statistics_beside(checkpoint),
            run=to_json(config),
        )
    num_bytes = sum(t.nbytes for t in weights.values())
    return Exported(str(output), len(weights), num_bytes, "keep")


def _export_training_checkpoint(
    checkpoint: Path,
    output: Path,
    dtype: Dtype,
    norm_stats: Mapping[str, Any],
    *,
    overwrite: bool,
    shard_bytes: int,
) -> Exported:
    run = _config_of(checkpoint)
    if run.lora:
        raise UserError(
            f"{checkpoint} holds a LoRA adapter, not a model. Write the adapter with `molmoact unshard`, then make "
            "a whole model with `molmoact merge-lora`."
        )
    base = resolve_model_folder(run.checkpoint)
    with new_folder(output, overwrite=overwrite) as temporary:
        writer = ShardWriter(temporary, dtype, shard_bytes)
        for name, tensor in stream_weights(checkpoint, shard_bytes):
            writer.add(released_name(name), tensor)
        writer.finish()
        stats = {**statistics_beside(checkpoint), **norm_stats}
        config = read_config(base)
        stated = dtype if dtype != "keep" else "float32"  # training keeps fp32 master weights
        finish_folder(temporary, base, config, stats, stated)
        write_json(temporary / "train_config.json", to_json(run))
    return Exported(str(output), writer.num_tensors, writer.num_bytes, stated)


def _config_of(checkpoint: Path) -> TrainConfig:
    if not (checkpoint / TRAINER_FILE).is_file():
        raise UserError(
            f"{checkpoint} is not a training checkpoint: expected a step folder of a run, such as RUN/step00002000."
        )
    return load_config(checkpoint)


def stream_weights(checkpoint: Path, batch_bytes: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Whole tensors of a distributed checkpoint by name, read at most `batch_bytes` at a time; moments are left."""
    verify_checkpoint(checkpoint)
    state = checkpoint / STATE_DIR
    batch: dict[str, Any] = {}
    size = 0
    for name, entry in _stored_weights(checkpoint):
        tensor = torch.empty(entry.size, dtype=entry.properties.dtype)
        if batch and size + tensor.nbytes > batch_bytes:
            yield from _load(batch, state)
            batch, size = {}, 0
        batch[name] = tensor
        size += tensor.nbytes
    yield from _load(batch, state)


def _stored_weights(checkpoint: Path) -> list[tuple[str, TensorStorageMetadata]]:
    """The model's tensors in a distributed checkpoint, by name."""
    metadata = FileSystemReader(checkpoint / STATE_DIR).read_metadata().state_dict_metadata
    return [
        (name, entry)
        for name, entry in sorted(metadata.items())
        if name.startswith("model.") and isinstance(entry, TensorStorageMetadata)
    ]


def _load(batch: dict[str, Any], state: Path) -> Iterator[tuple[str, torch.Tensor]]:
    dcp.load(batch, checkpoint_id=state, no_dist=True)
    for name, tensor in batch.items():
        yield name.removeprefix("model."), tensor
