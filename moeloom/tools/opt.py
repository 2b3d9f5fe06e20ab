"""`moeloom-opt`: read a module, run passes on it, write it. Made for lit tests and for looking at what a pass does."""

import sys
from pathlib import Path

import click
from torch_mlir import ir
from torch_mlir.passmanager import PassManager

from moeloom import dialects
from moeloom.lowering.lower_to_kernels import LowerToKernels
from moeloom.passes import ALL
from moeloom.passes.base import OptionError, Pass
from moeloom.passes.diagnostics import Diagnostic, collected
from moeloom.passes.pipeline import PipelineError, parse, run
from moeloom.passes.report import Report
from moeloom.tools.verify import mismatches

PASSES: dict[str, type[Pass]] = {**ALL, LowerToKernels.name: LowerToKernels}
SPLIT = "// -----"
# MLIR calls text that came from no file this.
UNNAMED = "-"


class CommandError(click.ClickException):
    """A wrong command line: one line and exit code 2, without the usage text."""

    exit_code = 2


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", default="-", type=click.Path(allow_dash=True, dir_okay=False))
@click.option("-p", "--pass-pipeline", "pipeline", default="", help="Passes, ours and upstream's, by name.")
@click.option("-o", "output", default="-", type=click.Path(allow_dash=True, dir_okay=False), help="Output file.")
@click.option("--split-input-file", "split", is_flag=True, help=f"Process the parts between '{SPLIT}' lines apart.")
@click.option("--verify-diagnostics", "verify", is_flag=True, help="Check expected-error and its like; print no IR.")
@click.option("--print-ir-after-all", is_flag=True, help="Print the module after each pass (stderr).")
@click.option("--print-ir-before-all", is_flag=True, help="Print the module before each pass (stderr).")
@click.option("--mlir-print-debuginfo", "debuginfo", is_flag=True, help="Print locations.")
@click.option("--timing", is_flag=True, help="Print the time of each pass (stderr).")
@click.option("--list-passes", is_flag=True, help="Print our passes and their options, and exit.")
def main(
    file: str,
    pipeline: str,
    output: str,
    split: bool,
    verify: bool,
    print_ir_after_all: bool,
    print_ir_before_all: bool,
    debuginfo: bool,
    timing: bool,
    list_passes: bool,
) -> None:
    """Run a pass pipeline on FILE ('-': stdin) and print the result.

    Decisions of passes are printed as remarks on stderr. Exit code: 0; 1 where a part does not parse, verify or pass,
    or where --verify-diagnostics finds a difference; 2 for a wrong command line.

        moeloom-opt layer.mlir -p "moe-plan-experts{stages=1},moe-fuse-quant-sort,canonicalize,cse"
    """
    if list_passes:
        click.echo("\n".join(str(kind()) for _, kind in sorted(PASSES.items())))
        return
    try:
        steps = parse(pipeline)
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
    except (OptionError, OSError, UnicodeDecodeError) as error:
        raise CommandError(str(error)) from None

    def configure(manager: PassManager) -> None:
        if print_ir_after_all or print_ir_before_all:
            manager.enable_ir_printing(print_before_all=print_ir_before_all, print_after_all=print_ir_after_all)
        if timing:
            manager.enable_timing()

    name = "<stdin>" if file == "-" else file
    outputs, failed = [], False
    for part in parts(text) if split else [text]:
        report = Report()
        module, diagnostics = process(part, steps, report, configure, debuginfo)
        diagnostics += [Diagnostic(r.location, "remark", r.message()) for r in report.records]
        diagnostics = [named(diagnostic, name) for diagnostic in diagnostics]
        if verify:
            try:
                wrong = mismatches(part, diagnostics, name)
            except ValueError as error:
                raise CommandError(f"{name}: {error}") from None
            failed |= bool(wrong)
            click.echo("".join(f"{line}\n" for line in wrong), nl=False, err=True)
            continue
        click.echo("".join(f"{diagnostic}\n" for diagnostic in diagnostics), nl=False, err=True)
        failed |= module is None
        if module is not None:
            outputs.append(module.replace(f'loc("{UNNAMED}":', f'loc("{name}":'))
    if outputs:
        with click.open_file(output, "w") as stream:
            stream.write(f"{SPLIT}\n".join(outputs))
    sys.exit(int(failed))


def parts(text: str) -> list[str]:
    """The parts of `text` between split lines, each padded with newlines so that its line numbers hold."""
    found: list[list[str]] = [[]]
    for number, line in enumerate(text.split("\n")):
        if line.startswith(SPLIT):
            found.append([""] * (number + 1))
        else:
            found[-1].append(line)
    return ["\n".join(lines) for lines in found]


def process(text: str, steps, report: Report, configure, debuginfo: bool) -> tuple[str | None, list[Diagnostic]]:
    """Parse `text` and run `steps`: the module as text (None where something failed) and the diagnostics."""
    context = dialects.context()
    with context, collected(context) as diagnostics:
        try:
            module = ir.Module.parse(text)
            run(module, steps, report, configure)
        except PipelineError as error:
            return None, error.diagnostics
        except OptionError as error:
            raise CommandError(str(error)) from None
        except ir.MLIRError:
            return None, list(diagnostics)
        return module.operation.get_asm(enable_debug_info=debuginfo), list(diagnostics)


def named(diagnostic: Diagnostic, name: str) -> Diagnostic:
    """The diagnostic with the file's name for MLIR's name of unnamed text."""
    if not diagnostic.location.startswith(f"{UNNAMED}:"):
        return diagnostic
    location = name + diagnostic.location.removeprefix(UNNAMED)
    return Diagnostic(location, diagnostic.severity, diagnostic.message)
