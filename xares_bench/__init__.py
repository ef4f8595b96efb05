"""Does a language model understand sound through your audio encoder? XARES-LLM as a pytest suite.

The suite is used through pytest and `xares-bench`. Public to Python is `xares_bench.metrics`; everything else may
change without notice.
"""

from pathlib import Path as _Path

__all__ = ["__version__", "metrics"]

__version__ = "0.2.0"

# In a clone `bench`, `fixtures` and `examples` lie beside the package, in a wheel inside it: `xares_bench.bench` is
# found in both.
if (_Path(__path__[0]).parent / "hatch_build.py").is_file():
    __path__.append(str(_Path(__path__[0]).parent))
