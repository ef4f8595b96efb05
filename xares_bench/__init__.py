"""Does a language model understand sound through your audio encoder? XARES-LLM as a pytest suite.

The suite is used through pytest and `python -m xares_bench`. Public to Python is `xares_bench.metrics`; everything else
may change without notice.
"""

__all__ = ["__version__", "metrics"]

__version__ = "0.1.0"
