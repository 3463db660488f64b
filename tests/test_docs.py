"""The documentation is true: it is built from the code, its links lead somewhere, and what it
shows can be typed."""

import importlib.util
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest
import typer

from tacit_common.plugins import PluginTable
from tacit_simulations.cli import app

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs/examples"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLE_FILES = sorted(EXAMPLES.glob("my_*"))

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r'\]\(([^)\s]+)\)|src="([^"]+)"')
IN_THE_REPOSITORY = re.compile(
    r"(common|client|server|simulations|tests|docs|deploy)(/|$)|Makefile$|\w+\.txt$"
)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """Every fenced block in a language: page and text."""
    for page in PAGES:
        for found, text in FENCE.findall(page.read_text(encoding="utf-8")):
            if found == language:
                yield named(page), text


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


# --- what is built from the code -------------------------------------------------------


def build() -> ModuleType:
    specification = importlib.util.spec_from_file_location("docs_build", ROOT / "docs/build.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_built_pages_are_what_the_code_says_now() -> None:
    stale = [
        named(path)
        for path, text in build().pages().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    assert not stale, "run `make docs`"


def test_the_readme_shows_every_example_verbatim() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = [text for _, text in FENCE.findall(readme)]
    assert len(EXAMPLE_FILES) == 4
    for path in EXAMPLE_FILES:
        assert path.read_text(encoding="utf-8") in shown, named(path)


def test_an_example_that_changes_makes_the_readme_stale() -> None:
    shown = "<!-- docs/examples/my_encoder.py -->\n```python\nold\n```\n"
    renewed = build().with_examples(shown)
    assert renewed != shown
    assert (EXAMPLES / "my_encoder.py").read_text(encoding="utf-8") in renewed


def test_the_command_page_does_not_depend_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = []
    for columns in ("40", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        pages.append(build().commands())
    assert pages[0] == pages[1]


# --- links and names -------------------------------------------------------------------


def headings(page: Path) -> set[str]:
    """The fragments that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    kept = ("".join(c for c in t.lower() if c.isalnum() or c in " -_") for t in titles)
    return {title.replace(" ", "-") for title in kept}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in ("".join(match) for match in LINK.findall(prose(page))):
        if target.startswith("https://"):
            continue
        path, _, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not fragment or fragment in headings(file), target


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_file_and_module_that_is_named_exists(page: Path) -> None:
    for span in SPAN.findall(prose(page)):
        if IN_THE_REPOSITORY.match(span) and re.fullmatch(r"[\w./-]+", span):
            assert (ROOT / span).exists(), span
        if re.fullmatch(r"tacit_\w+(\.\w+)*", span):
            pkgutil.resolve_name(span)


def test_the_front_page_has_a_picture_with_words_for_it() -> None:
    tags = re.findall(r"<img [^>]+>", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert tags
    for tag in tags:
        assert len(re.findall(r'alt="([^"]{40,})"', tag)) == 1
        (source,) = re.findall(r'src="([^"]+)"', tag)
        assert (ROOT / source).stat().st_size <= 300_000


# --- commands --------------------------------------------------------------------------


def parse(line: str) -> None:
    """Parse a `tacit …` line as the command would, and do nothing else.

    Raises:
        click.UsageError: no such command, option or value, or an argument is missing.
    """
    words = shlex.split(line.partition(" > ")[0], comments=True)
    command: click.Command = typer.main.get_command(app)
    context = click.Context(command, info_name=words.pop(0))
    while isinstance(command, click.Group) and words:
        command.parse_args(context, words)  # `tacit report RUN` leaves a command's name out
        words = [*context._protected_args, *context.args]
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        command, context = found, click.Context(found, info_name=name, parent=context)
    if not isinstance(command, click.Group):
        command.make_context(context.info_name, words, parent=context.parent)


def typed_lines() -> list[tuple[str, str]]:
    """Lines of console blocks, without the environment that they set."""
    return [
        (page, re.sub(r"^([A-Z]+=\S+ )+", "", line))
        for page, text in blocks("console")
        for line in text.replace("\\\n", " ").splitlines()  # a command may go on in the next line
    ]


def test_every_command_shown_in_a_console_parses() -> None:
    lines = [line for _, line in typed_lines() if line.startswith("tacit")]
    assert len(lines) >= 8
    for line in lines:
        parse(line)


def test_every_command_named_in_the_text_exists() -> None:
    spans = [span for page in PAGES for span in SPAN.findall(prose(page))]
    mentioned = {span for span in spans if span.startswith("tacit ")}
    assert mentioned
    for span in mentioned:
        try:
            parse(span)
        except click.MissingParameter:  # the name alone, as in "`tacit embed` writes …"
            assert "-" not in span


@pytest.mark.parametrize(
    "line",
    [
        "tacit serve",
        "tacit simulate --sett x=1",
        "tacit simulate --engine slurm",
        "tacit study chek",
    ],
)
def test_a_command_that_does_not_exist_would_be_noticed(line: str) -> None:
    with pytest.raises(click.UsageError):
        parse(line)


def test_every_make_target_that_is_shown_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = {line for _, line in typed_lines() if line.startswith("make ")}
    shown |= {s for page in PAGES for s in SPAN.findall(prose(page)) if s.startswith("make ")}
    assert {"make demo", "make test"} <= shown
    assert {line.removeprefix("make ") for line in shown} <= targets


# --- code ------------------------------------------------------------------------------


@pytest.fixture
def reader_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with a run in it, and the examples on the path."""
    from tacit_common.encoders import build_encoder, save_encoder
    from tacit_common.study_file import parse_study
    from tacit_simulations.recipes import recipe_text

    study = parse_study(recipe_text("digits"))
    encoder = build_encoder(study.encoder, PluginTable(), seed=0)
    save_encoder(tmp_path / "runs/digits/encoder", encoder, study.encoder, provenance={})
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)


def code() -> list[tuple[str, str]]:
    files = {path.read_text(encoding="utf-8") for path in EXAMPLE_FILES}
    return [(page, text) for page, text in blocks("python") if text not in files]


@pytest.mark.parametrize(("page", "text"), code(), ids=[page for page, _ in code()])
def test_code_that_is_shown_runs(page: str, text: str, reader_at_work: None) -> None:
    exec(compile(text, page, "exec"), {"__name__": "shown"})  # noqa: S102 - our own pages


def test_settings_that_are_shown_are_toml() -> None:
    for page, text in blocks("toml"):
        assert tomllib.loads(text), page


@pytest.mark.parametrize("path", [p for p in EXAMPLE_FILES if p.suffix == ".py"], ids=named)
def test_an_example_is_thirty_lines(path: Path) -> None:
    assert sum(bool(line.strip()) for line in path.read_text(encoding="utf-8").splitlines()) <= 30


def test_the_examples_pass_the_conformance_suite(reader_at_work: None) -> None:
    import torch

    from tacit_common.testing import check_data_source, check_encoder, check_objective

    plugins = PluginTable(tomllib.loads((EXAMPLES / "my_study.toml").read_text())["plugins"])
    for channels in (1, 3):
        size = {"image_size": 8, "channels": channels}
        source = plugins.load("my_data", "data set")(**size)
        encoder = plugins.load("my_encoder", "encoder")(**size)
        objective = plugins.load("my_objective", "objective")(**size)
        batch = torch.stack([source[index] for index in range(5)])
        check_data_source(source)
        check_encoder(encoder, batch)
        check_objective(objective, encoder, batch)


# --- a whole run -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_of_the_example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the README's last command leaves behind."""
    (line,) = [line for _, line in typed_lines() if "my_study.toml" in line]
    folder = tmp_path_factory.mktemp("example") / "run"
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            "from tacit_simulations.cli import main; main()",
            *shlex.split(line)[1:],
            *("--plain", "--out", str(folder)),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(EXAMPLES), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.slow
def test_the_study_of_the_readme_runs_to_its_report(run_of_the_example: Path) -> None:
    report = json.loads((run_of_the_example / "report.json").read_text())["report"]
    assert report["run"]["status"] == "complete"
    assert report["study"]["document"]["objective"]["name"] == "my_objective"
    assert report["privacy"]["epsilon_spent"] <= 8
    assert report["evaluation"]["classes"] == 4


@pytest.mark.slow
def test_a_run_leaves_every_file_that_the_guide_lists(run_of_the_example: Path) -> None:
    page = (ROOT / "docs/run-folder.md").read_text(encoding="utf-8")
    tree = next(text for language, text in FENCE.findall(page) if not language)
    folders: list[str] = []
    listed = []
    for line in tree.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [name]
        listed.append("".join(folders))
    assert len(listed) >= 12
    for path in listed:
        pattern = re.sub(r"(round|initial)-[^.]+", r"\1-*", path.rstrip("/"))
        assert list(run_of_the_example.glob(pattern)), path
    top = {entry.name for entry in run_of_the_example.iterdir()}
    assert top == {path.split("/")[0] for path in listed}, "the guide lists the whole folder"
