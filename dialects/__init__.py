"""The dialects programs are made of: `moe` (what is computed) and `kernel` (what is launched)."""

from torch_mlir import ir
from torch_mlir.dialects.torch import register_dialect
from torch_mlir.passmanager import PassManager

from moeloom.dialects import kernel, moe


def context() -> ir.Context:
    """A context with our dialects, torch's and upstream's, whose diagnostics reach Python handlers."""
    made = ir.Context()
    made.emit_error_diagnostics = True
    load_torch(made)
    load(made)
    return made


def load_torch(context: ir.Context) -> None:
    """Load torch's dialects into `context`: `torch`, and `torch_c`, the casts between its tensors and MLIR's."""
    register_dialect(context)
    with context, ir.Location.unknown():
        # Nothing in Python registers torch_c; a pass that depends on it loads it, also on an empty module.
        PassManager.parse("builtin.module(torch-func-backend-type-conversion)").run(ir.Module.create().operation)


def load(context: ir.Context) -> None:
    """Load both dialects into `context`; loading twice is harmless."""
    with context, ir.Location.unknown():
        for dialect in (moe.Moe, kernel.Kernel):
            if not context.is_dialect_loaded(dialect.DIALECT_NAMESPACE):
                dialect.load()
