"""NVIDIA GPUs, through the CUDA driver (libcuda.so.1). Importing this opens nothing."""

import ctypes

from moeloom.runtime.gpu import Driver, Handle

MAX_DYNAMIC_SHARED_SIZE = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
FREE_SHARED_BYTES = 48 << 10
"""What a kernel may use without asking."""


class Cuda(Driver):
    """The driver of `cuda:index`."""

    library = "libcuda.so.1"
    load_entry, function_entry, launch_entry = "cuModuleLoadData", "cuModuleGetFunction", "cuLaunchKernel"

    def __init__(self, index: int):
        super().__init__(index)
        handle, number = ctypes.c_void_p, ctypes.c_int
        self._error = self.entry("cuGetErrorString", number, ctypes.POINTER(ctypes.c_char_p))
        self._set_attribute = self.entry("cuFuncSetAttribute", handle, number, number)
        self._set_context = self.entry("cuCtxSetCurrent", handle)
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
        if shared > FREE_SHARED_BYTES:
            code = self._set_attribute(found, MAX_DYNAMIC_SHARED_SIZE, shared)
            self.check(code, f"kernel {symbol!r} cannot have {shared} bytes of shared memory")
        return found

    def enter_thread(self) -> None:
        # A thread that never used CUDA has no context, and torch sets none where device 0 is wanted.
        self.check(self._set_context(self._context), "torch's context cannot be entered")
