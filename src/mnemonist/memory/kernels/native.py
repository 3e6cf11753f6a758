"""C++ beside Python: compiled by the compiler of the machine, once, and only if it has one.

The compiled file lies under the cache folder of the user (``$XDG_CACHE_HOME`` or ``~/.cache``), in the name of its
source, its compiler and the processor. ``MNEMONIST_KERNELS=off`` does without; whoever asks then reads through torch.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from struct import Struct
from typing import Any

import torch
from torch import Tensor

from mnemonist.files import FileError, atomic_path

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-shared", "-fPIC", "-pthread")
SECONDS_TO_COMPILE = 120
LARGE_PAGE = 2**21
MADV_HUGEPAGE = 14
_ALONE_UNTIL = ctypes.c_int64()
"""When kernels call other threads again, after one came late; theirs to read and write."""


class Structure(ctypes.Structure):
    """What a kernel is given: the structure ``Work`` of its source."""


@cache
def kernel(source: str, functions: tuple[str, ...], work: type[Structure] | Struct) -> ctypes.CDLL | None:
    """The compiled ``source`` of this folder, or None if there is no way to have it.

    Its functions take a pointer to ``work`` and return nothing; ``size_of_work`` says how large they believe it to be.
    Where calls are many and short, ``work`` may be a format: functions then take the bytes that it packs.
    """
    pointer, size = (
        (ctypes.c_char_p, work.size) if isinstance(work, Struct) else (ctypes.POINTER(work), ctypes.sizeof(work))
    )
    if os.environ.get("MNEMONIST_KERNELS", "on") == "off":
        return None
    found = (shutil.which(name) for name in (os.environ.get("CXX", ""), *COMPILERS) if name)
    compiler = next((path for path in found if path), None)
    if compiler is None or os.name != "posix":
        log.info("No C++ compiler was found; memories are read through torch.")
        return None
    try:
        library = ctypes.CDLL(str(compiled(compiler, FOLDER / source, _cache_folder())))
        for name in functions:
            function = getattr(library, name)
            function.argtypes, function.restype = [pointer], None
        if library.size_of_work() != size:
            raise OSError("its arguments have another size")
        library.share_team(_team(), ctypes.byref(_ALONE_UNTIL))
    except (OSError, FileError, subprocess.SubprocessError, AttributeError) as error:
        log.warning("The kernel %s could not be made (%s); memories are read through torch.", source, error)
        return None
    return library


def fits(*tensors: Tensor, halves: Tensor | None = None) -> bool:
    """Whether kernels may be given these tensors: plain ones of one floating type on the CPU, here and now.

    Compilers that trace, and transforms of functions, see operations of torch and nothing else.

    Args:
        tensors: of float32 or float64.
        halves: one more, in bfloat16; the others must be of float32 then.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    dtype = tensors[0].dtype
    if dtype not in _TYPES:
        return False
    for t in tensors:  # no generator: the shortest kernels take no longer than one
        if type(t) not in _PLAIN or t.dtype != dtype or not t.is_cpu:
            return False
    if halves is None:
        return True
    return dtype == torch.float32 and halves.dtype == torch.bfloat16 and type(halves) in _PLAIN and halves.is_cpu


_PLAIN = (Tensor, torch.nn.Parameter)
_TYPES = (torch.float32, torch.float64)


def may_multiply() -> bool:
    """Whether kernels may stand for products of torch here and now: no precision is chosen for those, and no mode, such
    as one that counts operations, is to see them."""
    return not (torch.is_autocast_enabled("cpu") or torch._C._len_torch_dispatch_stack())


def wants_derivatives(*tensors: Tensor) -> bool:
    """Whether what is made of these tensors must keep what the way back needs; not where a model only reads."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _team() -> ctypes.c_void_p:
    """OpenMP's way into the threads of torch, or null where torch has none."""
    name = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        return ctypes.cast(ctypes.CDLL(str(name)).GOMP_parallel, ctypes.c_void_p)  # found among what torch depends on
    except (OSError, AttributeError):
        return ctypes.c_void_p()


def compiled(compiler: str, source: Path, folder: Path) -> Path:
    """The shared library of ``source`` and the headers beside it in ``folder``, compiled unless it is there.

    Raises:
        OSError: it cannot be compiled or written.
    """
    texts = [path.read_text() for path in (source, *sorted(source.parent.glob("*.h")))]
    facts = [*texts, _output(compiler, "--version"), *FLAGS, _processor()]
    name = hashlib.sha256("\0".join(facts).encode()).hexdigest()[:24]
    library = folder / f"{source.stem}-{name}.so"
    if library.exists():
        return library
    # A warning, for it is seen where nobody has set up logging, and whoever waits should know for what.
    log.warning("Compiling %s for this machine; this is done once and takes about ten seconds.", source.name)
    with atomic_path(library) as unfinished:
        _output(compiler, *FLAGS, str(source), "-o", str(unfinished))
    return library


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_COMPILE)
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if "error" in line), "no reason given")
        raise OSError(f"{Path(command[0]).name} failed: {reason.strip()}")
    return done.stdout


def _processor() -> str:
    """What tells processors apart: code for one may not run on another that shares the folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mnemonist"


def on_large_pages(*tensors: Tensor) -> None:
    """Ask for large pages under new tensors, where they are long and the system gives pages one by one as they are met.

    A page that is met for the first time costs about as much as filling it: on small ones long texts cost more a token.
    """
    madvise = _madvise()
    for tensor in tensors if madvise is not None else ():
        begin = -(-tensor.data_ptr() // LARGE_PAGE) * LARGE_PAGE
        length = (tensor.data_ptr() + tensor.nbytes - begin) // LARGE_PAGE * LARGE_PAGE
        if length > 0:
            madvise(begin, length, MADV_HUGEPAGE)  # advice: a refusal changes nothing


@cache
def _madvise() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int], ctypes.c_int
    return function


def point(pointers: ctypes.Array[ctypes.c_void_p], tensors: Sequence[Tensor]) -> None:
    """Let the pointers point to the tensors' data."""
    for i, tensor in enumerate(tensors):
        pointers[i] = tensor.data_ptr()
