"""`moeloom inspect`: what it describes, for one target or several, and the HTML page."""

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from moeloom.runtime.artifact import Manifest, read
from moeloom.runtime.target import Architecture
from moeloom.tools.describe import describe, origin
from moeloom.tools.errors import CommandError
from moeloom.tools.html_report import TOKENS, page
from moeloom.tools.main import main

FACTS = {
    "threads": 256,
    "shared": 4096,
    "registers": 77,
    "spills": 0,
    "matrix": {"mma": 2},
    "file": "f",
    "sha256": "s",
}


@pytest.fixture
def two_targets(tiny_artifact: Path) -> Manifest:
    """The tiny artifact, as if it also held the same programs for a GPU."""
    manifest = read(tiny_artifact)
    cpu = manifest.targets["cpu"]
    kernels = {name: {**kernel, "code": FACTS} for name, kernel in cpu.kernels.items()}
    gpu = replace(cpu, name="sm_90", libraries=(), kernels=kernels, architecture=Architecture("cuda", "sm_90", 32))
    return replace(manifest, targets={"cpu": cpu, "sm_90": gpu})


class Page(HTMLParser):
    """Collects the text of each table row and heading, and checks that every tag is closed in order."""

    VOID = ("meta", "br")

    def __init__(self, text: str):
        super().__init__()
        self.rows: list[list[str]] = []
        self.headings: list[str] = []
        self.open: list[str] = []
        self.feed(re.sub("<svg.*?</svg>", "", text, flags=re.DOTALL))
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag in ("h2", "h3"):
            self.headings.append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        if self.open and self.open[-1] in ("h2", "h3"):
            self.headings[-1] += data


def test_switch_points_kernels_and_weights_are_described(tiny_artifact):
    (target,) = describe(read(tiny_artifact), (1,))["targets"]
    block = target["programs"][0]
    assert [(s["choice"], s["max_m"]) for s in block["switches"]] == [("fusion", 2), ("fusion", 8192)]
    assert target["kernels"]["quant_sort_0"]["template"] == "quant_sort"
    assert target["weights_bytes"] == sum(target["weights"].values())
    packed = read(tiny_artifact).map_weights("cpu")
    assert target["weights"] == {name: tensor.nbytes for name, tensor in packed.items()}


def test_one_target_alone(two_targets):
    assert [t["target"] for t in describe(two_targets, ())["targets"]] == ["cpu", "sm_90"]
    assert [t["target"] for t in describe(two_targets, (), "sm_90")["targets"]] == ["sm_90"]
    with pytest.raises(CommandError, match="the artifact has no target 'gfx942'; it has cpu, sm_90"):
        describe(two_targets, (), "gfx942")


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"checkpoint": None, "options": {"weights": "copy"}}, "in the artifact"),
        ({"checkpoint": None, "options": {"weights": "none"}}, "none; load with --weights-from"),
        ({"checkpoint": {"random": {"seed": 7}}, "options": {}}, "random, made at load from seed 7"),
        ({"checkpoint": {"reference": {"directory": "/m"}}, "options": {}}, "packed at load from /m"),
    ],
)
def test_origin_of_the_weights(raw, says):
    assert origin(raw) == says


def test_page_has_a_section_a_target_and_every_launch(two_targets):
    found = describe(two_targets, TOKENS)
    text = page(two_targets, found)
    parsed = Page(text)
    assert [h for h in parsed.headings if h.startswith("Target")] == ["Target cpu", "Target sm_90"]
    assert text.count("<svg") == text.count("</svg>") == 4
    assert "<script" not in text and not re.search(r'(src|href)="(?!#)', re.sub("xlink:", "", text))
    assert ["step", *(f"M = {m}" for m in TOKENS)] in parsed.rows
    launches = next(row for row in parsed.rows if row[0] == "launches")
    block = found["targets"][0]["programs"][0]
    assert launches[1:] == [str(sum("launch" in step for step in at["steps"])) for at in block["at"]]
    fused = next(row for row in parsed.rows if row[0] == "quant_sort_0 (quant_sort)")
    assert fused[1] and not any(fused[2:])
    assert ["fusion", "M = 2", block["switches"][0]["reason"]] in parsed.rows


def test_page_has_the_facts_of_gpu_kernels(two_targets):
    rows = Page(page(two_targets, describe(two_targets, (1,), "sm_90"))).rows
    header = next(row for row in rows if row[0] == "kernel")
    assert header[2:-1] == ["threads", "shared", "registers", "spills", "matrix"]
    assert next(row for row in rows if row[0] == "route_0")[2:-1] == ["256", "4096", "77", "0", "2 mma"]


def test_page_escapes_what_it_is_told(two_targets):
    found = describe(two_targets, (1,), "cpu") | {"options": {"scope": "<b>&"}}
    assert ["scope", "<b>&"] in Page(page(two_targets, found)).rows


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code or 0, *capsys.readouterr()


def test_command_writes_the_page(capsys, tiny_artifact, tmp_path):
    code, out, _ = run(capsys, "inspect", tiny_artifact, "--html", tmp_path / "r.html", "--tokens", "5")
    assert (code, out) == (0, f"{tmp_path / 'r.html'}: written\n")
    assert ["step", "M = 5"] in Page((tmp_path / "r.html").read_text()).rows


def test_page_that_cannot_be_written_is_one_line(capsys, tiny_artifact, tmp_path):
    code, _, err = run(capsys, "inspect", tiny_artifact, "--html", tmp_path / "none" / "r.html")
    assert code == 1 and "r.html cannot be written" in err and err.count("\n") == 1


def test_missing_matplotlib_is_one_line(capsys, tiny_artifact, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = run(capsys, "inspect", tiny_artifact, "--html", tmp_path / "r.html")
    assert (code, err) == (1, "moeloom: error: --html needs matplotlib: pip install 'moeloom[report]'\n")
    assert not (tmp_path / "r.html").exists()


def test_text_of_two_targets(capsys, tiny_artifact, two_targets, monkeypatch):
    monkeypatch.setattr("moeloom.runtime.artifact.read", lambda path, verify: two_targets)
    code, out, _ = run(capsys, "inspect", tiny_artifact)
    cpu, gpu = out.split("target sm_90:")
    assert code == 0 and "library generic: needs sse2" in cpu and "registers" not in cpu
    assert "library" not in gpu
    assert ["route_0", "256", "4096", "77", "0"] in [line.split() for line in gpu.splitlines()]


def test_target_option(capsys, tiny_artifact):
    code, out, _ = run(capsys, "inspect", tiny_artifact, "--target", "cpu", "--json")
    assert code == 0 and [t["target"] for t in json.loads(out)["targets"]] == ["cpu"]
    code, _, err = run(capsys, "inspect", tiny_artifact, "--target", "sm_90")
    assert code == 1 and "no target 'sm_90'" in err
