"""What the documents say exists: commands with their options, paths, links, scripts and Python names."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from fnmatch import fnmatch
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import typer.main
from made_commands import ALL, walk

import cli
from molmoact_data.errors import RejectReason

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "examples" / "demo_dataset" / "README.md",
    *sorted((ROOT / "molmoact_data" / "teachers" / "weights").glob("*.md")),
]
PACKAGES = ("molmoact_data", "pipelines", "vqvae", "molmoact_train", "molmoact_robot")
PROGRAMS = ("scripts", "benchmarks")
TOP = {
    *PACKAGES,
    "molmoact",
    *PROGRAMS,
    "docs",
    "tests",
    "examples",
    "deploy",
    "cli.py",
    ".ci",
    "Makefile",
}
# Options of other programs that the documents mention.
FOREIGN_OPTIONS = {
    "--trust-remote-code",
    "--local-dir",
    "--add-opens",
    "--nproc-per-node",
    "--extra",
}
FOREIGN_OPTIONS |= {"--nnodes", "--rdzv-endpoint", "--log-cli-level"}
BEAM_OPTIONS = {"--environment_cache_millis", "--environment_type", "--sdk_worker_parallelism"}

each_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=[p.relative_to(ROOT).as_posix() for p in DOCUMENTS]
)


def code_blocks(text: str) -> str:
    """Fenced and indented code, with continued lines joined."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^ {4}.+$", text, re.MULTILINE)
    return re.sub(r"\\\n\s*", " ", "\n".join([*fenced, *(line[4:] for line in indented)]))


def inline_code(text: str) -> list[str]:
    """Spans between backticks, outside fenced blocks, on one line or broken over two."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", prose)]


def shell_variables(code: str) -> dict[str, str]:
    return dict(re.findall(r"^([A-Z]+)=\(([^)]*)\)", code, re.MULTILINE))


def command_lines(document: Path) -> list[list[str]]:
    """Arguments of every `molmoact ...` that a document shows, in blocks and in prose."""
    text = document.read_text()
    code = code_blocks(text)
    variables = shell_variables(code)
    lines = [line.strip() for line in code.splitlines()] + inline_code(text)
    found = []
    for line in lines:
        plain = re.sub(r"^torchrun .*? -m cli ", "molmoact ", line)
        if re.match(r"molmoact [a-z]", plain):
            for name, value in variables.items():
                plain = plain.replace(f'"${{{name}[@]}}"', value)
            found.append(shlex.split(plain, comments=True)[1:])
    return found


def parse(arguments: Sequence[str]) -> None:
    """Parse as the program would, and do nothing; `...` stands for whatever is left out.

    Raises SystemExit with a code other than 0 for a command line that the program would refuse.
    """
    program = typer.main.get_command(cli.app)
    for _, command in walk(program):
        command.callback = lambda **_: None
        for parameter in command.params:
            parameter.required = parameter.required and "..." not in arguments
    program.main([word for word in arguments if word != "..."], prog_name="molmoact")


@cache
def our_options() -> frozenset[str]:
    """Every option of every command, script and benchmark."""
    options: set[str] = set()
    for command in ALL.values():
        for parameter in command.params:
            options |= {*parameter.opts, *parameter.secondary_opts}
    return frozenset(options | program_options() | {"--help"})


@cache
def program_options() -> frozenset[str]:
    sources = [p.read_text() for folder in PROGRAMS for p in (ROOT / folder).rglob("*.py")]
    return frozenset(re.findall(r'"(--[a-z][\w-]*)"', "\n".join(sources)))


@each_document
def test_commands_parse(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in command_lines(document):
        if len(arguments) > 1:  # not one that is only named
            with pytest.raises(SystemExit) as ended:
                parse(arguments)
            assert ended.value.code == 0, f"{shlex.join(arguments)}: {capsys.readouterr().err}"


def test_the_readme_shows_the_commands_of_the_quick_start() -> None:
    shown = {arguments[0] for arguments in command_lines(ROOT / "README.md")}
    assert {"preview", "preprocess", "validate", "train", "merge-lora", "predict"} <= shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["preproces", "x"], "No such command"),
        (["preprocess", "--dataset", "x", "..."], "No such option"),
        (["publish", "out"], "Missing option"),
    ],
)
def test_a_wrong_command_line_is_noticed(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@each_document
def test_options_exist(document: Path) -> None:
    text = " ".join(inline_code(document.read_text()))
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))
    assert not named - our_options() - FOREIGN_OPTIONS - BEAM_OPTIONS


@each_document
def test_scripts_exist_and_know_their_options(document: Path) -> None:
    text = document.read_text()
    lines = [*code_blocks(text).splitlines(), *inline_code(text)]
    for line in lines:
        ran = re.search(r"(?:python|torchrun[^#]*?) ((?:scripts|benchmarks)/\S+\.py)(.*)", line)
        if ran and "..." not in ran[1]:
            for path in expand(ran[1]):
                assert (ROOT / path).is_file(), line
            asked = set(re.findall(r"(?<!\S)--[a-z][\w-]*", ran[2].partition("#")[0]))
            assert not asked - program_options(), line


def expand(name: str) -> list[str]:
    """`a_{b,c}.py` -> both names."""
    braces = re.search(r"\{([^}]*)\}", name)
    if braces is None:
        return [name]
    before, after = name[: braces.start()], name[braces.end() :]
    return [path for word in braces[1].split(",") for path in expand(before + word + after)]


def paths_in(span: str) -> set[str]:
    """Words of a code span that look like files of this repository; `...` is somebody else's path."""
    words = re.findall(r"(?<![\w/.~$=-])[\w.{},*-]+(?:/[\w.{},*-]+)*(?![\w(])", span)
    in_folders = {word for word in words if "/" in word and word.partition("/")[0] in TOP}
    python = {word for word in words if word.endswith(".py")}
    return {word for word in in_folders | python if "..." not in word}


@cache
def files() -> frozenset[str]:
    every = (path for name in TOP for path in (ROOT / name).rglob("*"))
    return frozenset(path.relative_to(ROOT).as_posix() for path in every)


@each_document
def test_paths_exist(document: Path) -> None:
    spans = inline_code(document.read_text())
    named = {path for span in spans for name in paths_in(span) for path in expand(name)}
    assert not [path for path in sorted(named) if not exists(path)]


def exists(path: str) -> bool:
    """From the root, or as the end of a longer path: `model/vision.py`."""
    return any(ROOT.glob(path)) or any(f"/{path}" in f"/{file}" for file in files())


@each_document
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if link.startswith(("http:", "https:")):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        if anchor:
            heads = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in slugs, link


@each_document
def test_python_names_exist(document: Path) -> None:
    text = document.read_text()
    for name in set(re.findall(rf"(?<![\w/.])((?:{'|'.join(PACKAGES)})(?:\.\w+)+)", text)):
        if not name.endswith((".md", ".py")):
            assert resolves(name), name


def resolves(dotted: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parts = dotted.split(".")
    for size in range(len(parts), 0, -1):
        try:
            found: object = import_module(".".join(parts[:size]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[size:]:
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
        return True
    return False


def test_the_readme_lists_every_page_once() -> None:
    text = (ROOT / "README.md").read_text()
    contents = text.partition("## Documentation")[2].partition("\n## ")[0]
    listed = re.findall(r"\]\((docs/[^)]+\.md)\)", contents)
    assert sorted(listed) == sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))


def test_the_file_map_has_every_module_and_nothing_else() -> None:
    tree = (ROOT / "docs/map.md").read_text().partition("```")[2].partition("```")[0]
    mapped: dict[str, set[str]] = {"": set()}
    folder = ""
    for line in tree.splitlines():
        if not line.startswith(" "):
            folder = next((f"{name}/" for name in PACKAGES if line.startswith(f"{name}/")), "")
        names = re.findall(r"(?<!\S)[\w*./]+(?:/|\.py)(?!\S)", line.removeprefix(folder))
        mapped.setdefault(folder, set()).update(names)
    for name in PACKAGES:
        modules = {path.name for path in (ROOT / name).glob("*.py")} - {"__init__.py"}
        modules |= {f"{p.name}/" for p in (ROOT / name).iterdir() if any(p.glob("*.py"))}
        listed = mapped[f"{name}/"] | {"commands.py", "*_commands.py", "command_options.py"}
        forgotten = [m for m in modules if not any(fnmatch(m, pattern) for pattern in listed)]
        assert not forgotten, f"{name}: {sorted(forgotten)} are not in the map"
        gone = [p for p in mapped[f"{name}/"] if not any(fnmatch(m, p) for m in modules)]
        assert not gone, f"{name}: {sorted(gone)} are in the map alone"
    for name in (
        "cli.py",
        *(f"{name}/" for name in (*PROGRAMS, "docs", "tests", "examples", "deploy")),
    ):
        assert name in mapped[""], name


def test_every_reason_of_a_rejection_is_explained() -> None:
    """No reason without a line that says what to do, and no line for a reason that is none."""
    page = (ROOT / "docs/preprocess.md").read_text().partition("## What a rejection means")[2]
    first_cells = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    explained = [name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(explained) == sorted(reason.value for reason in RejectReason)
