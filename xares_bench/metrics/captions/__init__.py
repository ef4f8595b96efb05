"""The caption metrics FENSE and DATE: models that judge what the language model says of a clip.

    judges     the two models: loaded once, on the device when asked for
    formulas   from embeddings and probabilities to row values
    files      the models' files: found, fetched, identified

Importing this package imports none of them, because `judges` needs torch.
"""
