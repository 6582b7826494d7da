"""Merging against PEFT itself, exporting against what was exported, and the commands' refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

import cli
from molmoact_data.errors import UserError
from molmoact_data.files.folders import MARK, new_folder
from molmoact_data.processes import World
from molmoact_train import lora
from molmoact_train.checkpoint import TrainerState, save_checkpoint
from molmoact_train.config import resolve
from molmoact_train.debug.tiny import write_tiny_checkpoint
from molmoact_train.families.molmoact.network import MolmoActForActionReasoning
from molmoact_train.families.molmoact.predictor import PredictOptions, Predictor
from molmoact_train.families.molmoact.processor import MolmoActProcessor
from molmoact_train.folders.adapter import Adapter, read_adapter
from molmoact_train.folders.export import export_folder, unshard
from molmoact_train.folders.merge import merge_lora

ALONE = World(0, 1, torch.device("cpu"))
BASE_STATS = {"base": {"action": {"q01": [0.0, 0.0], "q99": [1.0, 1.0]}}}
NEW_STATS = {"new": {"action": {"q01": [0.0, 0.0], "q99": [2.0, 1.0]}}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("base"), norm_stats=BASE_STATS)


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every linear layer adapted by PEFT, with B away from zero, statistics beside it."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    model = MolmoActForActionReasoning.from_pretrained(base)
    settings = LoraConfig(
        r=4, lora_alpha=6, target_modules=lora.target_modules(model), init_lora_weights=False
    )
    peft_model = get_peft_model(model, settings)
    peft_model.save_pretrained(str(folder))
    (folder / "dataset_statistics.json").write_text(json.dumps(NEW_STATS))
    return folder


def logits(model: Any, folder: Path) -> Tensor:
    processor = MolmoActProcessor.from_pretrained(folder)
    picture = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    inputs = processor(text=processor.prompt("lift it"), images=[[picture, picture]])
    with torch.inference_mode():
        return model.eval()(**inputs).logits


def altered(adapter: Path, folder: Path, change: Any = None, **config: Any) -> Path:
    """A copy of the adapter with its tensors or its configuration changed."""
    folder.mkdir()
    tensors = load_file(adapter / "adapter_model.safetensors")
    if change is not None:
        changed = [change(name, tensor) for name, tensor in tensors.items()]
        tensors = {name: tensor.contiguous() for name, tensor in changed}
    save_file(tensors, folder / "adapter_model.safetensors")
    fields = json.loads((adapter / "adapter_config.json").read_text()) | config
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return folder


def test_merged_model_equals_base_with_peft_adapter(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    done = merge_lora(adapter, tmp_path / "out", base=str(base), verify=True)
    on = PeftModel.from_pretrained(MolmoActForActionReasoning.from_pretrained(base), str(adapter))
    expected = logits(on, base)
    found = logits(MolmoActForActionReasoning.from_pretrained(tmp_path / "out"), tmp_path / "out")
    assert (found - expected).abs().max() / expected.abs().max() < 1e-5
    assert done.logit_difference is not None
    assert done.logit_difference < 1e-5
    plain = logits(MolmoActForActionReasoning.from_pretrained(base), base)
    assert (plain - expected).abs().max() > 0.1  # the adapter really does something
    weights = on.merge_and_unload().state_dict()
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert merged.keys() == weights.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, weights[name], msg=name)
    stored = load_file(adapter / "adapter_model.safetensors")
    assert done.adapted == sum(name.endswith("lora_A.weight") for name in stored)


def test_merging_joins_statistics_and_takes_the_base_an_adapter_names(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    merge_lora(adapter, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["norm_stats"] == BASE_STATS | NEW_STATS
    predictor = Predictor.from_pretrained(tmp_path / "out", device="cpu")
    options = PredictOptions(unnorm_key="new", chunk_size=1)
    picture = np.zeros((20, 20, 3), dtype=np.uint8)
    assert predictor.predict([picture], "lift it", options=options).problems == []


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (lambda n, t: (n, t * 0 if "lora_B" in n else t), {}, "changes nothing"),
        (lambda n, t: (n.replace("blocks.1", "blocks.7"), t), {}, "does not match the base"),
        (lambda n, t: (n, t[:, :-1] if "lm_head.lora_A" in n else t), {}, "does not match the base"),
        (lambda n, t: (n.replace("lm_head.lora_A.w", "lm_head.lora_magnitude.w"), t), {}, "unknown tensor"),
        (lambda n, t: (n.replace("lm_head.lora_A", "lm_head_2.lora_A"), t), {}, "lacks one of"),
        (lambda n, t: (n, t / 0), {}, "NaN or infinity"),
        (lambda n, t: (n, t + ("base_layer" in n)), {}, r"brings its own lm_head\.weight"),
        (None, {"use_dora": True}, "use_dora=True cannot be merged"),
        (None, {"rank_pattern": {"lm_head": 2}}, "cannot be merged"),
        (None, {"peft_type": "IA3"}, "only LORA"),
        (None, {"init_lora_weights": "pissa"}, "init_lora_weights='pissa'.*another model"),
        (None, {"init_lora_weights": "pissa_niter_16"}, "init_lora_weights='pissa_niter_16'"),
        (None, {"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
        (None, {"init_lora_weights": "corda"}, "init_lora_weights='corda'"),
        (None, {"init_lora_weights": "loftq"}, "init_lora_weights='loftq'"),
        (None, {"init_lora_weights": "lora_ga"}, "init_lora_weights='lora_ga'"),
        (None, {"init_lora_weights": "of_next_year"}, "init_lora_weights='of_next_year'"),
        (None, {"a_field_of_next_year": 0.5}, "a_field_of_next_year=0.5 cannot be merged"),
        (None, {"trainable_token_indices": [1]}, "trainable_token_indices"),
        (None, {"layer_replication": [[0, 2]]}, "layer_replication"),
        (None, {"r": 8}, "rank 4 and 4.*says r=8"),
        (None, {"r": 0}, "a rank is at least 1"),
        (None, {"r": "4"}, "adapter_config.json: r: "),
        (None, {"lora_alpha": None}, "adapter_config.json: lora_alpha: "),
        (None, {"init_lora_weights": ["pissa"]}, "adapter_config.json: init_lora_weights"),
    ],
)  # fmt: skip
def test_adapters_that_do_not_fit_are_refused_before_anything_is_written(
    change: Any, config: dict[str, Any], message: str, base: Path, adapter: Path, tmp_path: Path
) -> None:
    bad = altered(adapter, tmp_path / "bad", change, **config)
    with pytest.raises(UserError, match=message):
        merge_lora(bad, tmp_path / "out", base=str(base))
    assert {p.name for p in tmp_path.iterdir()} == {"bad"}


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_adapter_that_changed_its_base_gives_no_model(
    start: str, base: Path, tmp_path: Path
) -> None:
    """Trained as PEFT does: the base is changed when training starts, and only A and B are saved."""
    torch.manual_seed(1)
    model = MolmoActForActionReasoning.from_pretrained(base)
    layers = [name for name in lora.target_modules(model) if "lm_head" not in name]
    settings = LoraConfig(r=4, lora_alpha=4, target_modules=layers, init_lora_weights=start)
    get_peft_model(model, settings).save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(UserError, match=f"init_lora_weights='{start}'"):
        merge_lora(tmp_path / "adapter", tmp_path / "out", base=str(base))
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("start", ["gaussian", "eva", "orthogonal"])
def test_starts_that_leave_the_base_alone_are_merged_as_peft_does(
    start: str, base: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    model = MolmoActForActionReasoning.from_pretrained(base)
    layers = [name for name in lora.target_modules(model) if "lm_head" not in name]
    adapted = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=4, target_modules=layers, init_lora_weights=start)
    )
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.02)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    merge_lora(tmp_path / "adapter", tmp_path / "out", base=str(base))
    found = MolmoActForActionReasoning.from_pretrained(tmp_path / "out")
    expected = logits(adapted, base)
    difference = (logits(found, tmp_path / "out") - expected).abs().max()
    assert difference / expected.abs().max() < 1e-5


def test_verify_fails_and_leaves_nothing_when_the_merged_model_is_another(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the formula were wrong: one matrix in ten gets half of what the adapter says."""
    right = Adapter.delta

    def wrong(self: Adapter, name: str) -> Tensor:
        return right(self, name) * (0.5 if "att_proj" in name else 1.0)

    monkeypatch.setattr(Adapter, "delta", wrong)
    with pytest.raises(UserError, match=r"--verify: .* differ from base \+ adapter by"):
        merge_lora(adapter, tmp_path / "out", base=str(base), verify=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"peft_type": "LORA", "r": 1e999}']
)
def test_an_adapter_whose_configuration_is_damaged_is_one_line(
    content: bytes, adapter: Path, tmp_path: Path
) -> None:
    bad = altered(adapter, tmp_path / "bad")
    (bad / "adapter_config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        read_adapter(bad)


def test_an_adapter_whose_weights_are_cut_is_one_line(adapter: Path, tmp_path: Path) -> None:
    bad = altered(adapter, tmp_path / "bad")
    weights = bad / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="missing or damaged"):
        read_adapter(bad)


def test_rank_stabilised_adapters_have_their_own_scale(adapter: Path, tmp_path: Path) -> None:
    plain = read_adapter(adapter)
    other = read_adapter(altered(adapter, tmp_path / "rs", use_rslora=True))
    assert (plain.scale, other.scale) == (1.5, 3.0)  # 6 / 4 and 6 / sqrt(4)


def test_export_in_shards_holds_every_tensor_once(base: Path, tmp_path: Path) -> None:
    done = export_folder(str(base), tmp_path / "out", shard_bytes=200_000)
    files = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(files) > 3
    parts = [load_file(f) for f in files]
    assert max(sum(t.nbytes for t in p.values()) for p in parts if len(p) > 1) <= 200_000
    found = {name: tensor for part in parts for name, tensor in part.items()}
    expected = load_file(base / "model.safetensors")
    assert sum(map(len, parts)) == len(found) == done.num_tensors
    assert found.keys() == expected.keys()
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert all(name in load_file(tmp_path / "out" / f) for name, f in index["weight_map"].items())
    model = MolmoActForActionReasoning.from_pretrained(tmp_path / "out")
    again = logits(model, tmp_path / "out")
    assert torch.equal(again, logits(MolmoActForActionReasoning.from_pretrained(base), base))


def test_export_says_where_the_code_is_and_what_the_numbers_are(base: Path, tmp_path: Path) -> None:
    export_folder(str(base), tmp_path / "out", dtype="bfloat16", norm_stats=NEW_STATS)
    read = {p.name: json.loads(p.read_text()) for p in (tmp_path / "out").glob("*.json")}
    expected = json.loads((base / "config.json").read_text())
    config = read["config.json"]
    assert config["norm_stats"] == BASE_STATS | NEW_STATS
    assert config["dtype"] == "bfloat16"
    assert config["llm_config"] == expected["llm_config"]
    code = "allenai/MolmoAct-7B-D-0812--"
    assert config["auto_map"] == {
        "AutoConfig": code + "configuration_molmoact.MolmoActConfig",
        "AutoModelForImageTextToText": code + "modeling_molmoact.MolmoActForActionReasoning",
    }
    assert read["processor_config.json"]["auto_map"]["AutoProcessor"].startswith(code)
    assert read["generation_config.json"]["eos_token_id"] == 0
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {t.dtype for t in weights.values()} == {torch.bfloat16}


def test_a_folder_with_its_own_code_keeps_it(base: Path, tmp_path: Path) -> None:
    export_folder(str(base), tmp_path / "one")
    (tmp_path / "one" / "modeling_molmoact.py").write_text("# the released code\n")
    export_folder(str(tmp_path / "one"), tmp_path / "two")
    config = json.loads((tmp_path / "two" / "config.json").read_text())
    assert (tmp_path / "two" / "modeling_molmoact.py").is_file()
    assert config["auto_map"]["AutoConfig"] == "configuration_molmoact.MolmoActConfig"


def training_checkpoint(base: Path, run: Path, **changes: Any) -> tuple[Path, torch.nn.Module]:
    """One saved step of a run that started from `base`, weights moved a little."""
    given = {"checkpoint": str(base), "data": ["d"], "output_path": str(run), **changes}
    config = resolve("debug", given)
    model = MolmoActForActionReasoning.from_pretrained(base)
    if config.lora:
        lora.add_adapters(model, lora.LoraSettings.of(config))
        lora.initialise(model, config.lora_rank, seed=0)
    torch.manual_seed(5)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for parameter in trained:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    state = TrainerState(step=3, position=12, world_size=1, seed=1, data_seed=2)
    run.mkdir()
    return save_checkpoint(run, model, optimizer, state, config, NEW_STATS, ALONE), model


@pytest.mark.parametrize("command", [unshard, lambda c, o, **k: export_folder(str(c), o, **k)])
def test_training_checkpoint_becomes_a_model_with_the_same_logits(
    command: Any, base: Path, tmp_path: Path
) -> None:
    step, model = training_checkpoint(base, tmp_path / "run", lora=False)
    command(step, tmp_path / "out", shard_bytes=300_000)
    found = MolmoActForActionReasoning.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(found, tmp_path / "out"), logits(model, base))
    assert found.config.norm_stats == BASE_STATS | NEW_STATS


def test_lora_checkpoint_becomes_an_adapter_that_merges(base: Path, tmp_path: Path) -> None:
    step, model = training_checkpoint(base, tmp_path / "run", lora=True)
    with pytest.raises(UserError, match="molmoact unshard"):
        export_folder(str(step), tmp_path / "no")
    unshard(step, tmp_path / "adapter")
    merge_lora(tmp_path / "adapter", tmp_path / "whole")
    found = logits(MolmoActForActionReasoning.from_pretrained(tmp_path / "whole"), base)
    expected = logits(model, base)
    assert (found - expected).abs().max() / expected.abs().max() < 1e-5


def test_existing_folders_are_not_replaced_unasked(base: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="--overwrite"):
        export_folder(str(base), tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_a_failed_export_leaves_the_old_folder_and_no_rubbish(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.txt").write_text("old")
    (tmp_path / "out" / MARK).touch()

    def fail() -> None:
        with new_folder(tmp_path / "out", overwrite=True) as temporary:
            (temporary / "half.txt").write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="no space left"):
        fail()
    assert sorted(p.name for p in tmp_path.rglob("*")) == sorted(["out", MARK, "old.txt"])


def test_dry_runs_say_what_would_be_written_and_write_nothing(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    step, _ = training_checkpoint(base, tmp_path / "run", lora=False)
    out = tmp_path / "out"
    for command in (
        ("export-hf", "--checkpoint", base, "--dtype", "bfloat16"),
        ("unshard", "--checkpoint", step),
        ("merge-lora", "--adapter", adapter, "--base", base),
    ):
        planned = run_command(*command, "--output-path", out, "--dry-run", "--json")
        assert not out.exists()
        done = run_command(*command, "--output-path", out, "--json", "--overwrite")
        sizes = ("num_tensors", "num_bytes")
        assert [json.loads(planned.stdout)[k] for k in sizes] == [
            json.loads(done.stdout)[k] for k in sizes
        ]
        shutil.rmtree(out)


def run_command(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def test_commands_merge_export_and_predict(base: Path, adapter: Path, tmp_path: Path) -> None:
    merged, exported = tmp_path / "merged", tmp_path / "exported"
    done = run_command("merge-lora", "--adapter", adapter, "--output-path", merged, "--verify")
    assert "logits differ from base + adapter by" in done.stdout
    done = run_command("export-hf", "--checkpoint", merged, "--output-path", exported, "--json")
    assert json.loads(done.stdout)["folder"] == str(exported)
    for name in ("a", "b"):
        Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    asked = ("predict", "--checkpoint", exported, "--instruction", "lift it")
    asked = (*asked, "--images", tmp_path / "a.png", tmp_path / "b.png", "--action-chunk-size", "2")
    done = run_command(*asked, "--unnorm-key", "new", "--json", "--output-path", tmp_path / "out")
    answer = json.loads(done.stdout)
    assert np.array(answer["actions"]).shape == (2, 2)
    assert "first image" in answer["text"]  # both pictures were read
    assert json.loads((tmp_path / "out" / "prediction.json").read_text()) == answer
    two_keys = run_command(*asked)
    assert isinstance(two_keys.exception, UserError)
    assert "Keys: base, new" in str(two_keys.exception)
    steered = run_command(*asked, "--unnorm-key", "new", "--trace", "[[0,0],[9,9]]", "--json")
    assert json.loads(steered.stdout)["depth_codes"] == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--trace", "[[1,2]"), "--trace wants"),
        (("--wording", "relesed"), "Did you mean 'released'"),
        (("--images", "nowhere.png"), r"cannot read the image nowhere\.png"),
    ],
)
def test_predict_names_the_flag_that_is_wrong(
    flags: tuple[str, ...], message: str, base: Path, tmp_path: Path
) -> None:
    Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    common = ("predict", "--checkpoint", base, "--instruction", "x", "--images", tmp_path / "a.png")
    done = run_command(*common, *flags)
    with pytest.raises(UserError, match=message):
        raise done.exception
