"""The hub: downloads shards into a data folder and decoders into huggingface_hub's cache, at pinned commits; uploads.

home          a data folder: which files are there, which are missing; downloads and verifies them
models        the files of a decoder
pins          the commit of every repository and the digests of its files, from the lock file or the hub
upload        files that become one commit, or a pull request, of a model's repository
survey        how many files and bytes are needed, and how many are there
client        requests to the hub: retries, waiting, resumed transfers
http_library  the HTTP library of the installed huggingface_hub
lock          reads and writes the lock file
digest_cache  cached digests of large files
"""

from xares_bench.hub.home import DataHome
from xares_bench.hub.models import Model, fetch_model, survey_model
from xares_bench.hub.pins import parse_data_revisions
from xares_bench.hub.survey import HubFile, Survey

__all__ = ["DataHome", "HubFile", "Model", "Survey", "fetch_model", "parse_data_revisions", "survey_model"]
