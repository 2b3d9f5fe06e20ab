"""Errors as one line, and the exit codes."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_FAILED_CHECK = 3
COMPILER_PACKAGES = ("torch_mlir", "triton", "transformers")


USER_ERRORS = {
    "moeloom.compiler": ("CompileRefused",),
    "moeloom.model_config": ("ModelError",),
    "moeloom.lowering.cache": ("CacheError",),
    "moeloom.lowering.settings": ("SettingError",),
    "moeloom.lowering.targets": ("UnknownTargetError",),
    "moeloom.lowering.jobs": ("CompileError",),
    "moeloom.peers": ("PeerDisagrees",),
    "moeloom.passes.base": ("OptionError", "PassError"),
    "moeloom.passes.pipeline": ("PipelineError",),
    "moeloom.runtime.errors": ("ArtifactError", "LaunchError"),
    "moeloom.shape": ("ShapeError",),
    "moeloom.tuning.plan": ("TuningError",),
}
"""The errors of each module whose message is one line for the user; anything else is a fault of ours."""


class CommandError(click.ClickException):
    """A command cannot do what it was asked; the message is one line."""


@contextmanager
def needs_compiler() -> Iterator[None]:
    """Turn the absence of a package of the compiler extra into one line."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in COMPILER_PACKAGES:
            raise
        raise CommandError(f"compiling needs {error.name}: pip install 'moeloom[compiler]'") from error


def user_errors() -> tuple[type[Exception], ...]:
    """The user errors of the modules imported so far, as no other can have been raised, and the system's."""
    loaded = {module: names for module, names in USER_ERRORS.items() if module in sys.modules}
    return OSError, *(getattr(sys.modules[module], name) for module, names in loaded.items() for name in names)
