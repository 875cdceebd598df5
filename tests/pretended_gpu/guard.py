"""Registers the pretended device with torch. `load` comes before torch's import, `register` after.

Autograd looks for a device's hooks while torch is imported, so they must be there before.
"""

import ctypes
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("guard.cpp")


def why_not() -> str:
    """Why the device cannot be pretended here; "" if it can."""
    if "torch" in sys.modules:
        return "torch was imported before the pretended GPU"
    if not shutil.which("g++"):
        return "the pretended GPU needs g++"
    return ""


def load() -> ctypes.CDLL:
    """Build the guard, once for each torch and source, and load it."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    torch = Path(spec.origin).parent
    version = (torch / "version.py").read_bytes()
    name = hashlib.sha256(SOURCE.read_bytes() + version + bytes(torch)).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"moebench-pretended-gpu-{name}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            made = Path(folder) / library.name
            options = ["-std=c++20", "-O1", "-shared", "-fPIC", f"-I{torch}/include"]
            linked = [f"-L{torch}/lib", f"-Wl,-rpath,{torch}/lib", "-lc10", "-ltorch_cpu"]
            subprocess.run(["g++", *options, str(SOURCE), *linked, "-o", str(made)], check=True)
            made.replace(library)
    ctypes.CDLL(str(torch / "lib" / "libtorch_global_deps.so"), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(library))
