"""AMD GPUs, through the HIP runtime (libamdhip64.so). Importing this opens nothing.

Tested against a recording stand-in for the HIP entry points; it has not met silicon.
"""

import ctypes

from moeloom.runtime.gpu import Driver


class Hip(Driver):
    """The HIP runtime for `cuda:index`, as torch calls AMD's GPUs too. Any shared memory (LDS) may be asked for."""

    library = "libamdhip64.so"
    load_entry, function_entry, launch_entry = "hipModuleLoadData", "hipModuleGetFunction", "hipModuleLaunchKernel"

    def open(self) -> ctypes.CDLL:
        # torch brings a HIP runtime of its own; a second one in the process would not know its streams.
        loaded = _mapped(self.library)
        if loaded is not None:
            return ctypes.CDLL(loaded)
        return super().open()

    def enter_thread(self) -> None:
        """Nothing: HIP gives every thread the context of its current device."""

    def error(self, code: int) -> str:
        describe = self.code.hipGetErrorString
        describe.argtypes, describe.restype = (ctypes.c_int,), ctypes.c_char_p
        return (describe(code) or b"unknown error").decode()


def _mapped(library: str) -> str | None:
    """The path of a library that this process has already loaded."""
    with open("/proc/self/maps") as lines:
        paths = [line.rstrip().partition("/")[2] for line in lines]
    return next((f"/{path}" for path in paths if path.rpartition("/")[2].startswith(library)), None)
