"""A name that is nearly right is answered with the right one, by every command that takes names."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_commands import Molmoact

ROOT = Path(__file__).resolve().parent.parent
DEMO = str(ROOT / "examples/demo_dataset")
CODEBOOK = str(ROOT / "molmoact_data/teachers/weights/embedded_vqvae.safetensors")

PREPROCESS = f"preprocess --dataset-path {DEMO} --output-path out --depth none --pointer none"
COLUMN = "--pointer column --pointer-column observation.griper_pixel"
QUALITY = f"evaluate-labels --dataset-path {DEMO} --output-path out"
TRAIN = "train --stage debug --checkpoint c --data d --output-path out"
CODEBOOK_RUN = "vqvae train --output-path out --preset debug"

NEAREST = {
    "preproces": "preprocess",
    "vqvae trian": "train",
    f"{PREPROCESS} --preset embeded": "embedded",
    f"{PREPROCESS} --depth embeded --vqvae embedded": "embedded",
    f"{PREPROCESS} --depth-encoder vit --depth depth-anything-v2 --vqvae embedded": "vits",
    f"{PREPROCESS} --pointer colunm": "column",
    f"{PREPROCESS} --pointer-units pixel": "pixels",
    f"{PREPROCESS} {COLUMN}": "observation.gripper_pixel",
    f"{PREPROCESS} {COLUMN} --dry-run": "observation.gripper_pixel",
    f"preview --dataset-path {DEMO} --output-path s.png --depth none {COLUMN}": "observation.gripper_pixel",
    f"{QUALITY} --depth none {COLUMN}": "observation.gripper_pixel",
    f"{PREPROCESS} --depth-recipe refrence": "reference",
    f"{PREPROCESS} --depth-scaling stedy": "steady",
    f"{QUALITY} --keyframes moton": "motion",
    f"{PREPROCESS} --gripper 6=invrt": "invert",
    f"{PREPROCESS} --camera primary=observation.images.frnt": "observation.images.front",
    f"{PREPROCESS} --runner FlinkRuner": "FlinkRunner",
    f"{PREPROCESS} --depth embedded --vqvae embedded --device cuad": "cuda",
    f"preview --dataset-path {DEMO} --output-path s.png --preset embeded": "embedded",
    f"{QUALITY} --depth embeded": "embedded",
    f"{QUALITY} --pointer colunm": "column",
    f"{QUALITY} --pointer-units pixel": "pixels",
    f"{QUALITY} --camera observation.images.frnt": "observation.images.front",
    f"{QUALITY} --truth-depth observation.depth.frnt": "observation.depth.front",
    "export out --format referense --output-path new": "reference",
    "download libero_gaol --output-path new": "libero_goal",
    "train --stage finetun": "finetune",
    f"{TRAIN} --ft-embedding lm_hed": "lm_head",
    f"{TRAIN} --lr-scheduler constnt": "constant",
    f"{TRAIN} --wording relesed": "released",
    f"{TRAIN} --precision bflot16": "bfloat16",
    f"{TRAIN} --device cdua --dry-run": "cuda",
    "export-hf --checkpoint c --output-path new --dtype float23": "float32",
    "merge-lora --adapter a --output-path new --dtype bfloat": "bfloat16",
    "vqvae train --output-path out --preset embeded": "embedded",
    f"{CODEBOOK_RUN} --depth-encoder depth-anything": "depth-anything-v2",
    f"{CODEBOOK_RUN} --depth-kind metrc": "metric",
    f"{CODEBOOK_RUN} --scaling imge": "image",
    f"{CODEBOOK_RUN} --precision fp23": "fp32",
    f"{CODEBOOK_RUN} --device cup": "cpu",
    f"vqvae eval --checkpoint {CODEBOOK} --data simulator:2:tset": "test",
    f"vqvae eval --checkpoint {CODEBOOK} --data procedural:1 --depth-kind metrc": "metric",
    f"vqvae encode --checkpoint {CODEBOOK} --input-path d.npy --output-path c.npy --depth-recipe refrence": "reference",
    f"vqvae encode --checkpoint {CODEBOOK} --input-path d.npy --output-path c.npy --depth-scaling stedy": "steady",
    f"vqvae encode --checkpoint {CODEBOOK} --input-path d.npy --output-path c.npy --resize nearst": "nearest",
    f"vqvae encode --checkpoint {CODEBOOK} --input-path d.npy --output-path c.npy --input-range signd": "signed",
    f"vqvae decode --checkpoint {CODEBOOK} --output-path d.png --tokens 1 --device cdua": "cuda",
}


@pytest.mark.parametrize("typed", NEAREST, ids=lambda t: t.replace(str(ROOT), ""))
def test_a_misspelt_name_is_answered_with_the_nearest(
    typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, molmoact: Molmoact
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = molmoact(*typed.split())
    assert code == 2, err
    assert f"Did you mean {NEAREST[typed]!r}" in err
    assert list(tmp_path.iterdir()) == [], "nothing was written"


@pytest.mark.parametrize(
    ("command", "content", "nearest"),
    [
        ("preprocess", "point-evry: 3", "point_every"),
        (TRAIN, "lora_rnk: 3", "lora_rank"),
        (CODEBOOK_RUN, "bach_size: 3", "batch_size"),
        (CODEBOOK_RUN, "geometry: {gird_size: 3}", "geometry.grid_size"),
    ],
)
def test_a_misspelt_key_of_a_config_file_too(
    command: str, content: str, nearest: str, tmp_path: Path, molmoact: Molmoact
) -> None:
    (tmp_path / "c.yaml").write_text(content)
    code, _, err = molmoact(*command.split(), "--config", tmp_path / "c.yaml")
    assert code == 2
    assert f"Did you mean {nearest!r}" in err


def test_a_column_that_is_not_there_is_a_mistake_and_no_crash(
    tmp_path: Path, molmoact: Molmoact
) -> None:
    code, _, err = molmoact(
        *("evaluate-labels", "--dataset-path", DEMO, "--output-path", tmp_path / "out"),
        *("--depth", "none", "--pointer", "none", "--truth-point", "observation.gripper_pixl"),
    )
    assert code == 2, err
    assert "no 'observation.gripper_pixl'" in err
    assert "--truth-point" in err


def test_statistics_of_a_feature_that_is_not_there_say_why(molmoact: Molmoact) -> None:
    code, _, err = molmoact("stats", DEMO, "--lerobot-feature", "acton")
    assert code == 2
    assert "no 'acton'" in err.splitlines()[-1]
