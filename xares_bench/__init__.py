"""Does a language model understand sound through your audio encoder? XARES-LLM as a pytest suite.

The suite is used through pytest, through the command `xares-bench`, and from Python:

    import xares_bench

    run = xares_bench.run(MyEncoder(), preset="mini")
    run.scores, run.predictions          # rows, for pandas.DataFrame or polars.DataFrame
    xares_bench.read_runs("runs")        # finished runs

Public are the names of `__all__`; everything else may change without notice.
"""

from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import TYPE_CHECKING as _TYPE_CHECKING

__all__ = ["Run", "__version__", "metrics", "read_run", "read_runs", "run"]

__version__ = "0.2.0"

# In a clone `bench`, `fixtures` and `examples` lie beside the package, in a wheel inside it: `xares_bench.bench` is
# found in both.
if (_Path(__path__[0]).parent / "hatch_build.py").is_file():
    __path__.append(str(_Path(__path__[0]).parent))

# Imported when they are asked for: pytest imports this package in every run of an environment, for the plugin.
_HOMES = {"Run": "reports.runs", "read_run": "reports.runs", "read_runs": "reports.runs", "run": "session.call"}

if _TYPE_CHECKING:
    from xares_bench.reports.runs import Run as Run
    from xares_bench.reports.runs import read_run as read_run
    from xares_bench.reports.runs import read_runs as read_runs
    from xares_bench.session.call import run as run
else:

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(_import_module(f"{__name__}.{_HOMES[name]}"), name)
