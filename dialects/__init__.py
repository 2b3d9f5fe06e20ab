"""The dialects programs are made of: `moe` (what is computed) and `kernel` (what is launched)."""

from torch_mlir import ir

from . import kernel, moe


def load(context: ir.Context) -> None:
    """Load both dialects into `context`; loading twice is harmless."""
    with context, ir.Location.unknown():
        for dialect in (moe.Moe, kernel.Kernel):
            if not context.is_dialect_loaded(dialect.DIALECT_NAMESPACE):
                dialect.load()
