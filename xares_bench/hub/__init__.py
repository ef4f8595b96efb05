"""The hub: shards into a data folder, decoders into huggingface_hub's cache, each at a commit that is written down.

home      a data folder: what is there, what is missing, fetching it
models    a decoder's files
pins      which commit a repository is at, and what its files are; kept in the lock file
survey    how much is wanted, how much is there
client    talking to the hub: requests, waits, resumed transfers
lock      the lock file's form
digest_memory  digests of large files, remembered
"""

from xares_bench.hub.home import DataHome
from xares_bench.hub.models import Model, fetch_model, survey_model
from xares_bench.hub.pins import parse_data_revisions
from xares_bench.hub.survey import HubFile, Survey

__all__ = ["DataHome", "HubFile", "Model", "Survey", "fetch_model", "parse_data_revisions", "survey_model"]
