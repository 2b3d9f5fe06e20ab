"""NVIDIA GPUs, through the CUDA driver (libcuda.so.1). Importing this opens nothing."""

import ctypes

from moeloom.runtime.gpu import Driver, Handle, Start
from moeloom.runtime.target import Code

MAX_DYNAMIC_SHARED_SIZE = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
FREE_SHARED_BYTES = 48 << 10
"""What a kernel may use without asking."""
PROGRAMMATIC_STREAM_SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION


class LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute: the value is a union of 64 bytes, of which a switch is the first int."""

    _fields_ = (
        ("id", ctypes.c_int),
        ("pad", ctypes.c_char * 4),
        ("value", ctypes.c_int),
        ("rest", ctypes.c_char * 60),
    )


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(LaunchAttribute)),
        ("attribute_count", ctypes.c_uint),
    )


class Cuda(Driver):
    """The driver of `cuda:index`."""

    library = "libcuda.so.1"
    load_entry, function_entry, launch_entry = "cuModuleLoadData", "cuModuleGetFunction", "cuLaunchKernel"

    def __init__(self, index: int):
        super().__init__(index)
        handle, number = ctypes.c_void_p, ctypes.c_int
        self._error = self.entry("cuGetErrorString", number, ctypes.POINTER(ctypes.c_char_p))
        self._set_attribute = self.entry("cuFuncSetAttribute", handle, number, number)
        self._get_attribute = self.entry("cuFuncGetAttribute", ctypes.POINTER(number), number, handle)
        self._set_context = self.entry("cuCtxSetCurrent", handle)
        config = ctypes.POINTER(LaunchConfig)
        self._launch_configured = self.entry("cuLaunchKernelEx", config, handle, handle, handle)
        device, self._context = ctypes.c_int(), ctypes.c_void_p()
        self.check(self.entry("cuInit", ctypes.c_uint)(0), "CUDA does not start")
        found = self.entry("cuDeviceGet", ctypes.POINTER(number), number)(ctypes.byref(device), index)
        self.check(found, "the device is not to be had")
        retain = self.entry("cuDevicePrimaryCtxRetain", ctypes.POINTER(handle), number)
        self.check(retain(ctypes.byref(self._context), device), "torch's context is not to be had")

    def error(self, code: int) -> str:
        text = ctypes.c_char_p()
        self._error(code, ctypes.byref(text))
        return (text.value or b"unknown error").decode()

    def function(self, module: Handle, symbol: str, shared: int) -> Handle:
        found = super().function(module, symbol, shared)
        allowed = ctypes.c_int()
        code = self._get_attribute(ctypes.byref(allowed), MAX_DYNAMIC_SHARED_SIZE, found)
        self.check(code, f"kernel {symbol!r} does not say how much shared memory it may have")
        # Another artifact may launch the very same code with more.
        if shared > max(FREE_SHARED_BYTES, allowed.value):
            code = self._set_attribute(found, MAX_DYNAMIC_SHARED_SIZE, shared)
            self.check(code, f"kernel {symbol!r} cannot have {shared} bytes of shared memory")
        return found

    def start(self, function: Handle, tiles: int, code: Code, overlaps: bool) -> Start:
        if not (overlaps and code.dependent):
            return super().start(function, tiles, code, overlaps)
        early = (LaunchAttribute * 1)(LaunchAttribute(id=PROGRAMMATIC_STREAM_SERIALIZATION, value=1))
        sizes = (tiles, 1, 1), (code.threads, 1, 1), code.shared
        config = LaunchConfig(*sizes, None, early, len(early))
        launch, place = self._launch_configured, ctypes.pointer(config)

        def started(stream: Handle, arguments: ctypes.Array) -> int:
            config.stream = stream
            return launch(place, function, arguments, None)

        return started

    def enter_thread(self) -> None:
        # A thread that never used CUDA has no context, and torch sets none where device 0 is wanted.
        self.check(self._set_context(self._context), "torch's context cannot be entered")
