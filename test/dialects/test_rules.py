"""Every rule of the verifiers is needed: with it switched off, a case of invalid*.mlir comes out differently."""

import ast
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from torch_mlir import ir

from moeloom import dialects
from moeloom.dialects import kernel, moe, moe_rules, rules
from moeloom.passes.diagnostics import collected
from moeloom.tools.opt import parts
from moeloom.tools.verify import mismatches

RULES = ("require", "one_of", "element", "rank", "shape", "static")
STATED_IN = (moe, moe_rules, kernel)
Site = tuple[str, int]


def sites() -> list[Site]:
    """Where rules are stated: file and line of every call of one."""
    found = []
    for module in STATED_IN:
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in RULES:
                found.append((Path(module.__file__).name, node.lineno))
    return sorted(set(found))


@contextmanager
def without(monkeypatch: pytest.MonkeyPatch, off: Site | None, broken: list[Site]) -> Iterator[None]:
    """Run with the rules at `off` switched off; the sites of those that broke are added to `broken`."""

    def wrap(rule):
        def wrapped(*args):
            frame = sys._getframe(1)
            site = (Path(frame.f_code.co_filename).name, frame.f_lineno)
            try:
                return rule(*args)
            except rules.Broken:
                if site == off:
                    return 1 if rule is rules.static else None
                broken.append(site)
                raise

        return wrapped

    with monkeypatch.context() as patch:
        for module in STATED_IN:
            for name in RULES:
                if hasattr(module, name):
                    patch.setattr(module, name, wrap(getattr(rules, name)))
        yield


def cases() -> list[str]:
    here = Path(__file__).parent
    return [part for file in sorted(here.glob("invalid*.mlir")) for part in parts(file.read_text())]


def wrong(context: ir.Context, case: str) -> list[str]:
    """How the diagnostics of `case` differ from what it expects. A crash of a later rule counts as different."""
    with context, collected(context) as diagnostics:
        try:
            ir.Module.parse(case)
        except ir.MLIRError:
            pass
        except Exception as error:
            return [str(error)]
    return mismatches(case, list(diagnostics), "case")


def test_every_rule_is_needed(monkeypatch):
    context = dialects.context()
    needed_by: dict[Site, list[str]] = {}
    for case in cases():
        broken: list[Site] = []
        with without(monkeypatch, None, broken):
            assert wrong(context, case) == []
        for site in broken:
            needed_by.setdefault(site, []).append(case)

    untested = [site for site in sites() if site not in needed_by]
    assert untested == [], "rules without a case"
    redundant = []
    for site in sites():
        with without(monkeypatch, site, []):
            if not any(wrong(context, case) for case in needed_by[site]):
                redundant.append(site)
    assert redundant == [], "rules that another rule states already"


def test_messages_name_the_op_and_say_what_was_wanted():
    expected = re.findall(r"expected-error@below \{\{('(?:moe|kernel)\..*)\}\}", "\n".join(cases()))
    wanted = re.compile(r"'(moe|kernel)\.\w+' .*\b(must|needs?|goes with|there are|takes|yields)\b")
    assert len(expected) > len(sites())
    assert [message for message in expected if not wanted.match(message)] == []
