"""The `moeloom` command. Nothing heavy is imported before a command needs it."""

import atexit
import gc
import os
import sys
import traceback

import click

from moeloom.tools import bench, check, compile, inspect, run, tune
from moeloom.tools.errors import EXIT_ERROR, EXIT_USAGE, user_errors
from moeloom.version import VERSION

EXIT_DONE = 0
EXIT_INTERRUPTED = 130


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="\b\nExit codes: 0 done; 1 an error, told in one line; 2 a wrong command line; 3 a failed check.",
)
@click.version_option(VERSION, prog_name="moeloom")
@click.option("--traceback", "show_traceback", is_flag=True, help="On an error, show Python's traceback too.")
def cli(show_traceback: bool) -> None:
    """Compile mixture-of-experts models to fused MXFP4 programs, and run them.

    \b
    moeloom compile checkpoint/ -o model.moel     a gpt-oss checkpoint becomes an artifact
    moeloom inspect model.moel --tokens 16        what was fused and why not, which kernels run
    moeloom check model.moel                      numbers against a float64 reference
    moeloom bench model.moel --tokens 1,4,16      times against the memory floor
    moeloom run model.moel --tokens 16            random tokens through the first layer
    moeloom tune checkpoint/ -o tuned --target cpu    measure variants here, write a table for compile --tuning
    """


for command in (compile.command, run.command, check.command, bench.command, inspect.command, tune.command):
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit; errors go to stderr as one line, `moeloom: error: ...`."""
    sys.exit(exit_code(arguments))


def console() -> None:
    """`main` in a process of its own, which ends here: taking torch and MLIR down takes half a second to two.

    What modules have asked to be done at the end is done.
    """
    code = exit_code(None)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def exit_code(arguments: list[str] | None) -> int:
    """Run the command line, and tell errors."""
    # Searching what torch and transformers import for cycles, every 700 objects, takes a fifth of their time.
    gc.set_threshold(100_000)
    given = sys.argv[1:] if arguments is None else arguments
    try:
        return cli.main(given, prog_name="moeloom", standalone_mode=False) or EXIT_DONE
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "moeloom"
        return _fail(f"{error.format_message()} (see '{where} --help')", EXIT_USAGE)
    except click.ClickException as error:
        return _fail(error.format_message(), EXIT_ERROR)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", EXIT_INTERRUPTED)
    except user_errors() as error:
        if "--traceback" in given:
            traceback.print_exc()
        return _fail(_told(error), EXIT_ERROR)


def _told(error: Exception) -> str:
    """An error's line; of one of the system's, the file and what is wrong with it."""
    if isinstance(error, OSError) and error.filename:
        return f"{os.fspath(error.filename)}: {error.strerror}"
    return str(error)


def _fail(message: str, code: int) -> int:
    line = " ".join(message.split())
    click.echo(f"moeloom: error: {line}", err=True)
    return code


if __name__ == "__main__":
    console()
