"""Does a language model understand sound through your audio encoder? XARES-LLM as a pytest suite."""

__version__ = "0.1.0"
