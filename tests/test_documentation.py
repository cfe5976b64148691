"""The documentation is true where a program can tell: links, settings, parameters, codes, commands, flags, paths."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from model.anomaly.render import AnomalyView
from model.config import PRESETS
from model.images.render import View
from service.errors import ServiceError
from service.metrics import Metrics
from service.parameters import (
    AnomalyParameters,
    ClassifyParameters,
    EmbedParameters,
    ExplainParameters,
    ReconstructParameters,
    SearchParameters,
)
from service.settings import Settings
from tests.support.command_line import all_commands

ROOT = Path(__file__).parents[1]
FOLDERS = ("service", "model", "docker", "tests")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
COMMAND = re.compile(r"(?<![\w-])mae(?: ([a-z]+))?((?: [^#|]*)?)")
FLAG = re.compile(r"(?<=\s)(--[a-z][a-z0-9-]*|-[a-z])\b")
COMMANDS = all_commands()
GROUPS = {name.split()[0] for name in COMMANDS if " " in name}
GLOBAL_FLAGS = {"--help", "--version"}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    seen: Counter[str] = Counter()
    result = set()
    for heading in re.findall(r"^#+ +(.+?) *$", FENCE.sub("", page.read_text()), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        result.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return result


def code_spans(page: Path) -> Iterator[str]:
    """The code of a page: each line of its blocks, continuations joined, and each span within a sentence."""
    text = page.read_text()
    for block in FENCE.findall(text):
        yield from block.replace("\\\n", " ").splitlines()[1:-1]
    prose = FENCE.sub("", text)
    for block in re.findall(r"(?:^ {4}.*\n)+", prose, re.MULTILINE):
        yield from block.replace("\\\n", " ").splitlines()
    for span in re.findall(r"`([^`]+)`", prose):
        yield " ".join(span.split())


def flags_of(command: str) -> set[str]:
    return {flag for parameter in COMMANDS[command].params for flag in (*parameter.opts, *parameter.secondary_opts)}


def section(page: Path, heading: str) -> str:
    """The text under a heading, up to the next one of any level."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", page.read_text(), re.MULTILINE | re.DOTALL)
    assert found, f"{name_of(page)} has no section {heading}"
    return found[1]


def first_table(text: str) -> list[list[str]]:
    """Rows of the first table in a text, without its head."""
    found = re.search(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    assert found
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in found[0].splitlines()[2:]]


@every_page
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


def test_the_picture_that_the_readme_sends_is_small_and_attributed() -> None:
    picture = ROOT / "tests/data/chelsea.jpg"
    assert picture.stat().st_size <= 30_000
    assert "CC0" in next(line for line in (picture.parent / "README.md").read_text().splitlines() if "chelsea" in line)


def test_every_page_is_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in reached:
            reached.add(page)
            links = LINK.findall(FENCE.sub("", page.read_text()))
            waiting += [(page.parent / link.partition("#")[0]).resolve() for link in links if ".md" in link]
    assert set(PAGES) <= reached


def test_the_table_of_settings() -> None:
    rows = {row[0].strip("`"): row[1] for row in first_table(section(ROOT / "service/README.md", "Settings"))}
    fields = dict(settings_fields(Settings))
    assert set(rows) == {name.upper() for name in fields}
    for name, field in fields.items():
        default = field.get_default()
        if not field.is_required() and isinstance(default, str | int | float):  # not None, no tuple, no factory
            shown = rows[name.upper()].replace(",", "")
            expected = str(default).lower() if isinstance(default, bool) else str(default)
            assert shown == expected, name


def settings_fields(settings: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    """Every field that is a variable, also of models inside."""
    for name, field in settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from settings_fields(field.annotation)
        else:
            yield name, field


@pytest.mark.parametrize(
    ("heading", "parameters"),
    [
        ("POST /embed", EmbedParameters),
        ("POST /classify", ClassifyParameters),
        ("POST /reconstruct", ReconstructParameters),
        ("POST /explain", ExplainParameters),
        ("POST /anomaly", AnomalyParameters),
        ("POST /search", SearchParameters),
    ],
)
def test_the_tables_of_parameters(heading: str, parameters: type[BaseModel]) -> None:
    rows = {row[0]: row for row in first_table(section(ROOT / "service/README.md", heading))}
    assert {f"`{name}`" for name in parameters.model_fields} == {name for name in rows if re.fullmatch(r"`\w+`", name)}
    for name, field in parameters.model_fields.items():
        row, default = rows[f"`{name}`"], field.default
        if default is not None:
            assert row[1] == f"`{str(default).lower() if isinstance(default, bool) else default}`", name
        for choice in get_args(field.annotation):
            if isinstance(choice, str) and name != "view":  # views have a table of their own
                assert f"`{choice}`" in row[2], choice


@pytest.mark.parametrize(("heading", "views"), [("POST /reconstruct", View), ("POST /anomaly", AnomalyView)])
def test_the_table_of_views(heading: str, views: Any) -> None:
    text = section(ROOT / "service/README.md", heading)
    (head,) = re.findall(r"^\| `view` \| PNG \|$", text, re.MULTILINE)
    assert [row[0].strip("`") for row in first_table(text[text.index(head) :])] == list(get_args(views))


def test_the_table_of_statuses() -> None:
    rows = first_table(section(ROOT / "service/README.md", "Statuses"))
    shown = {(int(row[0]), code) for row in rows for code in re.findall(r"`(\w+)`", row[1])}
    assert shown == {(error.status, error.code) for error in [ServiceError, *subclasses(ServiceError)]}


def subclasses(error: type[ServiceError]) -> list[type[ServiceError]]:
    return [deeper for direct in error.__subclasses__() for deeper in (direct, *subclasses(direct))]


@every_page
def test_every_command_and_flag_exists(page: Path) -> None:
    wrong = []
    for span in code_spans(page):
        for command, arguments in COMMAND.findall(span):
            if command in GROUPS and arguments.strip():
                command = f"{command} {arguments.split()[0]}"
            known = GLOBAL_FLAGS | (flags_of(command) if command in COMMANDS else set())
            if (command and command not in (*COMMANDS, *GROUPS)) or set(FLAG.findall(f" {arguments}")) - known:
                wrong.append(span)
    assert not wrong


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent != ROOT / "docker"], ids=name_of)
def test_every_flag_that_stands_alone_is_one_of_some_command(page: Path) -> None:
    known = {flag for command in COMMANDS for flag in flags_of(command)}
    alone = {flag for span in code_spans(page) if span.startswith("--") for flag in FLAG.findall(f" {span}")}
    assert alone <= known


@every_page
def test_every_file_and_target_that_is_named_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    missing = []
    for span in code_spans(page):
        for path in re.findall(r"(?<![\w./:-])((?:service|model|tests|docker)/[\w./-]+\.\w+)\b", span):
            if not (ROOT / path).exists() and page.name != "CHANGELOG.md":  # which tells of the past too
                missing.append(path)
        missing += [name for name in re.findall(r"(?<![\w-])make ([a-z][a-z-]*)\b", span) if name not in targets]
    assert not missing


@every_page
def test_every_metric_that_is_named_exists(page: Path) -> None:
    metrics: Any = Metrics()
    names = {sample.name for family in metrics.registry.collect() for sample in family.samples}
    families = {family.name for family in metrics.registry.collect()}
    names |= {f"{family.name}_total" for family in metrics.registry.collect() if family.type == "counter"}
    metrics.close()
    others = {*PRESETS, "mae_finetuned_", "mae_visualize_", "mae_pretrain_", "mae_probe_tiny", "mae_gpu_", "mae_serve"}
    named = {name for span in code_spans(page) for name in re.findall(r"(?<![\w/.])mae_\w+", span)}
    assert named <= names | families | others


def test_the_licence_of_the_packaged_weights_is_the_same_everywhere() -> None:
    card = (ROOT / "model/weights/README.md").read_text()
    assert re.match(r"---\nlicense: cc-by-4\.0\n", card)
    assert 'image.licenses="Apache-2.0 AND CC-BY-4.0"' in (ROOT / "Dockerfile").read_text()
    for page in ("README.md", "docker/README.md"):
        assert re.search(r"weights\s+(are\s+)?under\s+CC BY 4\.0", (ROOT / page).read_text()), page
