"""The general vision-language sets of the published pre-training: where they are, whose they are, how they are drawn.

A set is one entry here and a function of `layouts/`. Licences are what the authors publish; read them before use.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from molmoact_data.errors import unknown_name
from molmoact_data.web.examples import WebExample

Group = Literal["demo", "vqa", "pointing"]
GROUP_RATES: Mapping[Group, float] = {
    "demo": 0.05 * 0.15,
    "vqa": 0.05 * 0.40,
    "pointing": 0.05 * 0.35,
}
"""Share of the published pre-training mixture; inside a group by the square root of the sizes."""
PIXMO_GROUP = "pixmo"
_COCO_IMAGES = "http://images.cocodataset.org/zips"
_VQA2 = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa"
_FIGUREQA = "https://download.microsoft.com/download/c/3/1/c315c9d8-8239-487e-a895-2d3ff805b508"
_VISUAL_GENOME = "https://cs.stanford.edu/people/rak248/VG_100K_2"
_ANDROID = "https://storage.googleapis.com/gresearch/android_control"
_CONVERTED = "refs/convert/parquet"
"""The Hub's own Parquet copy of a set whose repository holds a script, which is never run."""


@dataclass(frozen=True)
class HubFiles:
    """Parquet files of a dataset repository."""

    repo_id: str
    patterns: tuple[str, ...] = ("*.parquet",)
    revision: str | None = None


@dataclass(frozen=True)
class WebFile:
    """One file of a plain server."""

    url: str
    name: str
    """Below the set's folder."""
    unpack: str | None = None
    """Folder below the set's that a ZIP or tar file is unpacked into; "" is the set's own; None = kept as it is."""


@dataclass(frozen=True)
class ByHand:
    """What only a person who registers can fetch."""

    page: str
    files: tuple[str, ...]
    """What has to be put into the set's folder."""


Fetch = HubFiles | WebFile | ByHand


@dataclass(frozen=True)
class WebSet:
    """One set as the published mixture names it."""

    name: str
    reference: str
    """Class of the public training code."""
    group: Group
    folder: str
    """Its raw files; sets that share files share the folder."""
    layout: str
    """`module:function` of `layouts/`."""
    licence: str
    fetch: tuple[Fetch, ...]
    cap: int | None = None
    """Size that counts in the mixture instead of the number of examples."""

    def examples(self, root: Path, split: str) -> Iterator[WebExample]:
        """The examples of a split, in the order of its files; pictures are not read."""
        module, _, function = self.layout.partition(":")
        read: Callable[[Path, str], Iterator[WebExample]] = getattr(
            importlib.import_module(f"molmoact_data.web.layouts.{module}"), function
        )
        return read(root / self.folder, split)


def _pixmo(
    name: str, repository: str, reference: str, group: Group, function: str, cap: int | None = None
) -> WebSet:
    return WebSet(
        name,
        reference,
        group,
        repository,
        f"pixmo:{function}",
        "ODC-BY-1.0; pictures belong to their sites",
        (HubFiles(f"allenai/{repository}"),),
        cap,
    )


def _hub_table(
    name: str,
    reference: str,
    folder: str,
    function: str,
    licence: str,
    repo_id: str,
    revision: str | None = None,
) -> WebSet:
    files = (HubFiles(repo_id, revision=revision),)
    return WebSet(name, reference, "vqa", folder, f"tables:{function}", licence, files)


def _unpacked(url: str, into: str = "") -> WebFile:
    return WebFile(url, url.rpartition("/")[2].partition("?")[0], into)


def _drive(file_id: str, name: str, into: str | None) -> WebFile:
    return WebFile(
        f"https://drive.usercontent.google.com/download?id={file_id}&confirm=t", name, into
    )


_COCO_2014 = (_unpacked(f"{_COCO_IMAGES}/train2014.zip"), _unpacked(f"{_COCO_IMAGES}/val2014.zip"))
_COCO_TERMS = "pictures under Flickr's terms"
_CHALLENGE_TERMS = "terms of the Robust Reading Competition"
_NC = "CC-BY-NC-SA-4.0: not for commercial use"
_A_OKVQA_FILES = (
    _unpacked("https://prior-datasets.s3.us-east-2.amazonaws.com/aokvqa/aokvqa_v1p0.tar.gz"),
    _unpacked(f"{_COCO_IMAGES}/train2017.zip"),
    _unpacked(f"{_COCO_IMAGES}/val2017.zip"),
)

_SETS = (
    _pixmo(
        "pixmo_ask_model_anything",
        "pixmo-ask-model-anything",
        "PixMoAskModelAnything",
        "demo",
        "asked",
    ),
    _pixmo("pixmo_cap", "pixmo-cap", "PixMoCap", "demo", "captions", 50_000),
    _pixmo("pixmo_cap_qa", "pixmo-cap-qa", "PixMoCapQa", "demo", "caption_questions"),
    _pixmo(
        "pixmo_pointing_explanations",
        "pixmo-point-explanations",
        "PixMoPointExplanations",
        "demo",
        "explanations",
    ),
    WebSet(
        "coco_2014_vqa_multi",
        "Vqa2",
        "vqa",
        "coco",
        "coco:vqa2",
        f"CC-BY-4.0; {_COCO_TERMS}",
        (
            *(
                _unpacked(f"{_VQA2}/v2_{kind}_{part}_mscoco.zip")
                for kind in ("Questions", "Annotations")
                for part in ("Train", "Val")
            ),
            *_COCO_2014,
        ),
    ),
    _hub_table(
        "text_vqa", "TextVqa", "text_vqa", "text_vqa", "CC-BY-4.0", "facebook/textvqa", _CONVERTED
    ),
    _hub_table("okvqa", "OkVqa", "okvqa", "okvqa", _COCO_TERMS, "HuggingFaceM4/OK-VQA", _CONVERTED),
    _hub_table(
        "chart_qa_weighted", "ChartQa", "chart_qa", "chart_qa", "GPL-3.0", "HuggingFaceM4/ChartQA"
    ),
    _hub_table(
        "doc_qa", "DocQa", "doc_qa", "doc_qa", _CHALLENGE_TERMS, "HuggingFaceM4/DocumentVQA"
    ),
    WebSet(
        "info_qa",
        "InfoQa",
        "vqa",
        "info_qa",
        "documents:info_qa",
        _CHALLENGE_TERMS,
        (
            ByHand(
                "https://rrc.cvc.uab.es/?ch=17 (task 3)",
                (
                    "infographicsVQA_train_v1.0.json",
                    "infographicsVQA_val_v1.0_withQT.json",
                    "images/",
                ),
            ),
        ),
    ),
    WebSet(
        "ai2_diagram_v2_mix_transparent",
        "AI2D",
        "vqa",
        "ai2d",
        "diagrams:ai2d",
        "CC-BY-SA-4.0",
        (
            _unpacked("http://ai2-website.s3.amazonaws.com/data/ai2d-all.zip"),
            WebFile(
                "https://s3-us-east-2.amazonaws.com/prior-datasets/ai2d_test_ids.csv",
                "ai2d_test_ids.csv",
            ),
        ),
    ),
    WebSet(
        "a_okvqa_mc",
        "AOkVqa",
        "vqa",
        "coco",
        "coco:a_okvqa_choices",
        f"Apache-2.0; {_COCO_TERMS}",
        _A_OKVQA_FILES,
    ),
    WebSet(
        "a_okvqa_da",
        "AOkVqa",
        "vqa",
        "coco",
        "coco:a_okvqa_direct",
        f"Apache-2.0; {_COCO_TERMS}",
        _A_OKVQA_FILES,
    ),
    WebSet(
        "android_control",
        "AndroidControl",
        "vqa",
        "android_control",
        "android:android_control",
        "Apache-2.0",
        (
            *(
                WebFile(
                    f"{_ANDROID}/android_control-{i:05d}-of-00020",
                    f"android_control-{i:05d}-of-00020",
                )
                for i in range(20)
            ),
            WebFile(f"{_ANDROID}/splits.json", "splits.json"),
        ),
    ),
    _hub_table(
        "science_qa_img",
        "ScienceQAImageOnly",
        "science_qa",
        "science_qa",
        _NC,
        "derek-thomas/ScienceQA",
    ),
    WebSet(
        "tabwmp_da",
        "TabWMPDirectAnswer",
        "vqa",
        "tabwmp",
        "tables:tabmwp",
        _NC,
        (
            WebFile(
                "https://codeload.github.com/lupantech/PromptPG/legacy.zip/main", "PromptPG.zip", ""
            ),
        ),
    ),
    WebSet(
        "st_qa",
        "SceneTextQa",
        "vqa",
        "st_qa",
        "documents:st_qa",
        _CHALLENGE_TERMS,
        (
            ByHand(
                "https://rrc.cvc.uab.es/?ch=11 (task 3)",
                ("train_task_3.json", "and the folders of pictures it names"),
            ),
        ),
    ),
    WebSet(
        "tally_qa",
        "TallyQa",
        "vqa",
        "coco",
        "coco:tally_qa",
        f"by its authors; {_COCO_TERMS}, CC-BY-4.0",
        (
            *_COCO_2014,
            _unpacked(f"{_VISUAL_GENOME}/images.zip"),
            _unpacked(f"{_VISUAL_GENOME}/images2.zip"),
            WebFile(
                "https://github.com/manoja328/tallyqa/blob/master/tallyqa.zip?raw=true",
                "tallyqa.zip",
                "tallyqa",
            ),
        ),
    ),
    WebSet(
        "dv_qa",
        "DvQa",
        "vqa",
        "dv_qa",
        "charts:dv_qa",
        "CC-BY-NC-4.0: not for commercial use",
        (
            _drive("1iKH2lTi1-QxtNUVRxTUWFvUvRHq6HAsZ", "images.tar.gz", ""),
            _drive("1VKYd3kaiCFziSsSv4SgQJ2T5m7jxuh5u", "qa.tar.gz", ""),
        ),
        cap=10_000,
    ),
    WebSet(
        "figure_qa",
        "FigureQa",
        "vqa",
        "figure_qa",
        "charts:figure_qa",
        "Microsoft Research Data Licence",
        tuple(
            _unpacked(f"{_FIGUREQA}/figureqa-{part}-v1.tar.gz")
            for part in ("train1", "validation1")
        ),
        cap=10_000,
    ),
    WebSet(
        "plot_qa",
        "PlotQa",
        "vqa",
        "plot_qa",
        "charts:plot_qa",
        "CC-BY-4.0",
        (
            _drive("1AYuaPX-Lx7T0GZvnsPgN11Twq2FZbWXL", "train_png.tar.gz", "train"),
            _drive("1UNvkdq1YJD_ne6D3zbWtoQij37AtfpNp", "train/qa_pairs_V2.json", None),
            _drive("1i74NRCEb-x44xqzAovuglex5d583qeiF", "validation_png.tar.gz", "validation"),
            _drive("1y9RwXSye2hnX0e2IlfSK34ESbeVblhH_", "validation/qa_pairs_V2.json", None),
        ),
        cap=20_000,
    ),
    _pixmo("pixmo_points_train", "pixmo-points", "PixMoPoints", "pointing", "points"),
    _pixmo("pixmo_count_train", "pixmo-count", "PixMoCount", "pointing", "counts"),
    _pixmo(
        "pixmo_points_high_freq_train",
        "pixmo-points",
        "PixMoPoints",
        "pointing",
        "high_frequency_points",
    ),
)
WEB_SETS: Mapping[str, WebSet] = {entry.name: entry for entry in _SETS}


def web_set(name: str) -> WebSet:
    """The set of this name. Raises `UserError` with the nearest name."""
    if name not in WEB_SETS:
        raise unknown_name("general set", name, WEB_SETS)
    return WEB_SETS[name]


def chosen(name: str) -> list[WebSet]:
    """Sets by their name, by the reference's class, or by group: `web`, `academic`, `pixmo`; none if unknown."""
    groups = {
        "web": list(_SETS),
        "academic": [s for s in _SETS if not s.name.startswith(PIXMO_GROUP)],
        PIXMO_GROUP: [s for s in _SETS if s.name.startswith(PIXMO_GROUP)],
    }
    if name in groups:
        return groups[name]
    return [s for s in _SETS if name in (s.name, s.reference)]
