"""What is shipped: the wheel holds every module, and its runtime runs where no compiler is installed."""

import importlib.metadata
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {"moeloom": "moeloom", **{room: f"moeloom/{room}" for room in ("dialects", "passes", "lowering", "runtime")}}
COMPILER = ("torch_mlir", "triton", "transformers")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # setuptools builds beside the sources: a copy keeps the checkout, and other workers, out of it.
    sources = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "README.md", *ROOMS):
        (sources / name).symlink_to(ROOT / name)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder))
    build = [sys.executable, "-m", "pip", "wheel", *options, str(sources)]
    subprocess.run(build, check=True, capture_output=True, text=True)
    (built,) = folder.glob("*.whl")
    return built


def test_every_module_is_in_the_wheel(wheel):
    in_tree = {
        f"{place}/{path.relative_to(ROOT / room).as_posix()}"
        for room, place in ROOMS.items()
        for path in (ROOT / room).rglob("*.py")
    }
    in_wheel = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
    assert in_tree == in_wheel


def test_wheel_is_typed_and_has_both_commands(wheel):
    archive = zipfile.ZipFile(wheel)
    assert "moeloom/py.typed" in archive.namelist()
    (entry_points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
    text = archive.read(entry_points).decode()
    assert "moeloom = moeloom.tools.main:console" in text
    assert "moeloom-opt = moeloom.tools.opt:main" in text


def required(distribution: str, known: set[str]) -> set[str]:
    """`distribution` and everything that it requires here, extras left out."""
    if distribution in known:
        return known
    try:
        requires = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return known  # for another platform
    known.add(distribution)
    for requirement in requires:
        if "extra ==" not in requirement:
            required(re.split(r"[^\w.-]", requirement, maxsplit=1)[0], known)
    return known


@pytest.fixture(scope="session")
def without_compiler(wheel, tmp_path_factory) -> Path:
    """A folder for sys.path with the wheel and what it requires without extras, and nothing else from here."""
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    (metadata,) = folder.glob("moeloom-*.dist-info/METADATA")
    wanted = [line for line in metadata.read_text().splitlines() if line.startswith("Requires-Dist: ")]
    base = [line.removeprefix("Requires-Dist: ") for line in wanted if "extra ==" not in line]
    names: set[str] = set()
    for requirement in base:
        required(re.split(r"[^\w.-]", requirement, maxsplit=1)[0], names)
    for name in names:
        for file in importlib.metadata.files(name) or []:
            top = Path(file.parts[0])
            if top.suffix not in (".pth", "") and top.suffix != ".dist-info" and len(file.parts) > 1:
                continue
            if str(top) not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(Path(str(file.locate())).parents[len(file.parts) - 1] / top)
    return folder


def run_clean(folder: Path, code: str) -> subprocess.CompletedProcess:
    """`code` in a Python that sees the standard library and `folder` alone."""
    start = f"import sys; sys.path.append({str(folder)!r})\n"
    return subprocess.run([sys.executable, "-I", "-S", "-c", start + code], cwd=folder, capture_output=True, text=True)


def test_clean_environment_has_no_compiler(without_compiler):
    code = f"import importlib.util\nprint([n for n in {COMPILER} if importlib.util.find_spec(n)])"
    assert run_clean(without_compiler, code).stdout == "[]\n"


@pytest.mark.parametrize("command", ["run", "check", "inspect"])
def test_artifact_runs_without_compiler(without_compiler, tiny_artifact, command):
    done = run_clean(
        without_compiler,
        "import moeloom.tools.main\n"
        f"assert moeloom.__file__.startswith({str(without_compiler)!r}), moeloom.__file__\n"
        f"moeloom.tools.main.main([{command!r}, {str(tiny_artifact)!r}, '--json'])",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {"run": "outputs", "check": "figures", "inspect": "targets"}[command] in found


def test_compile_without_compiler_says_what_to_install(without_compiler, tiny_checkpoint, tmp_path):
    arguments = ["compile", str(tiny_checkpoint), "-o", str(tmp_path / "a.moel")]
    done = run_clean(without_compiler, f"import moeloom.tools.main as m\nm.main({arguments!r})")
    assert done.returncode == 1
    assert done.stderr.endswith("pip install 'moeloom[compiler]'\n") and done.stderr.count("\n") == 1
