"""`moeloom inspect --html`: one page that needs nothing beside it, its plots inline SVG."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from moeloom.runtime.artifact import Manifest
from moeloom.tools import output, plots
from moeloom.tools.describe import origin, setting, table_of, workspace_bytes
from moeloom.tools.errors import CommandError

TOKENS = (1, 4, 16, 64, 256, 1024, 4096)
PLOTTED = tuple(1 << power for power in range(15))
"""Numbers of tokens at which the workspace is plotted."""
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2430; max-width: 68rem; margin: 2rem auto; padding: 0 1.5rem }
h1 { font-size: 1.6rem } h2 { margin-top: 3rem; border-bottom: 2px solid #d5dae2 } h3 { margin-top: 2rem }
h1, h2, h3 { line-height: 1.25 } h4 { margin: 1.25rem 0 .25rem }
code, td.code { font: 13px/1.5 ui-monospace, monospace; overflow-wrap: anywhere }
div.wide { overflow-x: auto } table { border-collapse: collapse; margin: .5rem 0 1rem }
th, td { text-align: left; vertical-align: top; padding: .2rem .7rem; border-bottom: 1px solid #e4e8ee }
th { background: #f4f6f9; font-weight: 600 } td.number { text-align: right; font-variant-numeric: tabular-nums }
td.fused { color: #11693a; font-weight: 600 } td.refused { color: #a33b12; font-weight: 600 }
p.note { color: #55607a } svg { max-width: 100%; height: auto }
"""


def write(path: Path, manifest: Manifest, found: Mapping[str, Any]) -> None:
    """The page of what `describe` found, at `path`. CommandError where it cannot be made or written."""
    text = page(manifest, found)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"--html {path} cannot be written: {error}") from error


def page(manifest: Manifest, found: Mapping[str, Any]) -> str:
    """The page as text."""
    title = f"{Path(found['path']).name}: moeloom report"
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><meta name="viewport" content="width=device-width">'
    body = "\n".join(_body(manifest, found))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n'
    )


def _body(manifest: Manifest, found: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h1>{escape(Path(found['path']).name)}</h1>"
    tools = ", ".join(f"{name} {version}" for name, version in found["tools"].items())
    yield f'<p class="note">Compiled by moeloom {escape(found["compiler"])} ({escape(tools)}).</p>'
    yield table(["option", "value"], [[name, str(value)] for name, value in found["options"].items()])
    yield f"<p>Weights: {escape(origin(found))}.</p>"
    yield "<h2>Fusion of quantiser and scale sort</h2>"
    yield fusion(found["report"])
    for target in found["targets"]:
        yield from _target(manifest, target)


def fusion(records: Sequence[Mapping[str, str]]) -> str:
    """The match report: what was fused, and why the rest was not."""
    if not records:
        return "<p>No candidate: nothing is quantised.</p>"
    keys = ("decision", "entry", "sites", "site", "reason", "location")
    rows = [[record[key] for key in keys] for record in records]
    return table(["decision", "first entry", "layers", "site", "reason", "location"], rows)


def _target(manifest: Manifest, target: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h2>Target {escape(target['target'])}</h2>"
    yield f"<p>{output.mebibytes(target['weights_bytes'])} of packed weights.</p>"
    yield f"<p>Table: {escape(table_of(target))}.</p>"
    if target["tuning"]:
        yield table(["tuned", "where", "setting"], [setting(row) for row in target["tuning"]["settings"]])
    yield plots.weights(_by_part(target["weights"]))
    if target["libraries"]:
        yield "<h3>Libraries</h3>"
        rows = [
            [own["tier"], " ".join(own["features"]), "yes" if own["tier"] == target["runs_here"] else ""]
            for own in target["libraries"]
        ]
        yield table(["tier", "CPU features it needs", "taken here"], rows)
    yield "<h3>Workspace</h3>"
    programs = manifest.targets[target["target"]].programs
    yield plots.workspace(
        {
            program["entries"][0]: [
                workspace_bytes(manifest.targets[target["target"]], programs[program["program"]], m) for m in PLOTTED
            ]
            for program in target["programs"]
        },
        PLOTTED,
    )
    for program in target["programs"]:
        yield from _program(program)
    yield "<h3>Kernels</h3>"
    yield kernels(target["kernels"])


def _by_part(sizes: Mapping[str, int]) -> dict[str, int]:
    """Bytes of the weights of all layers, by the last parts of their names."""
    found: dict[str, int] = {}
    for name, size in sizes.items():
        part = ".".join(name.rsplit(".", 2)[-2:])
        found[part] = found.get(part, 0) + size
    return found


def _program(program: Mapping[str, Any]) -> Iterator[str]:
    entries = program["entries"]
    more = f" and {len(entries) - 1} more of the same program" if len(entries) > 1 else ""
    yield f"<h3>{escape(entries[0])}{more}</h3>"
    inputs = ", ".join(f"{name}: {about}" for name, about in program["inputs"].items())
    yield f"<p><code>({escape(inputs)}) &rarr; {escape(', '.join(program['outputs']))}</code></p>"
    if program["switches"]:
        yield "<h4>Switch points</h4>"
        rows = [[s["choice"], f"M = {s['max_m']}", s["reason"]] for s in program["switches"]]
        yield table(["between", "first up to", "reason"], rows)
    if program["rounding"]:
        names = escape(", ".join(program["rounding"]))
        yield f"<p>Round x to MXFP4, so that no quantiser is launched: <code>{names}</code></p>"
    yield "<h4>Steps by number of tokens M</h4>"
    yield launches(program["at"])


def launches(at: Sequence[Mapping[str, Any]]) -> str:
    """A row a step, a column a number of tokens: how many tiles of it run, if it runs."""
    names: list[str] = []
    for column in at:
        place = 0
        for step in column["steps"]:
            name = _label(step)
            if name not in names:
                names.insert(place, name)
            place = names.index(name) + 1
    counts = [_tiles(column["steps"]) for column in at]
    rows = [[name, *(own.get(name, "") for own in counts)] for name in names]
    rows.append(["launches", *(str(sum("launch" in step for step in column["steps"])) for column in at)])
    rows.append(["workspace, MiB", *(f"{column['workspace_bytes'] / 2**20:,.1f}" for column in at)])
    return table(["step", *(f"M = {column['tokens']}" for column in at)], rows)


def _label(step: Mapping[str, Any]) -> str:
    return f"{step['launch']} ({step['template']})" if "launch" in step else step["aten"]


def _tiles(steps: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """How often each step runs: its tiles, or its calls where it is an ATen operator."""
    found: dict[str, int] = {}
    for step in steps:
        name = _label(step)
        found[name] = found.get(name, 0) + step.get("tiles", 1)
    return {name: str(count) for name, count in found.items()}


def kernels(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A row a kernel; on a GPU with every fact that the compiler noted of its code."""
    facts = list(dict.fromkeys(fact for kernel in found.values() for fact in kernel["code"] or ()))
    tuned = any("tile" in kernel for kernel in found.values())
    rows = []
    for name, kernel in found.items():
        params = ", ".join(f"{key}={value}" for key, value in kernel["params"].items())
        own = [kernel["template"], *([kernel.get("tile", "")] if tuned else [])]
        rows.append([name, *own, *(_fact((kernel["code"] or {}).get(fact, "")) for fact in facts), params])
    return table(
        ["kernel", "template", *(["tile"] if tuned else []), *(fact.replace("_", " ") for fact in facts), "params"],
        rows,
    )


def _fact(value: Any) -> str:
    """A fact as text; counts by name, such as those of matrix instructions, as a list."""
    return ", ".join(f"{count} {name}" for name, count in value.items()) if isinstance(value, Mapping) else str(value)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table; numbers to the right."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "\n".join(f"<tr>{''.join(map(_cell, header, row))}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _cell(column: str, text: str) -> str:
    return f'<td class="{_class(column, text)}">{escape(text)}</td>'


def _class(column: str, cell: str) -> str:
    if column == "decision":
        return cell
    if column in ("params", "matrix", "location", "CPU features it needs", "kernel", "step", "first entry"):
        return "code"
    return "number" if cell.replace(",", "").replace(".", "").isdigit() else ""
