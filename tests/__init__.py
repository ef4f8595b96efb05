import os

from xares_bench.runtime.variables import shorten_waits

# Tests fetch nothing; those of the hub speak to a server of their own, in processes of their own. It stands here
# because huggingface_hub reads it when it is first imported.
os.environ["HF_HUB_OFFLINE"] = "1"
# Tests run beside each other, and beside processes that they start. Before torch is imported, whose threads read it.
shorten_waits(os.environ)
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
