import os

# Tests fetch nothing; those of the hub speak to a server of their own, in processes of their own. It stands here
# because huggingface_hub reads it when it is first imported.
os.environ["HF_HUB_OFFLINE"] = "1"
