"""The models behind FENSE and DATE, called judges because they judge predicted captions.

judges     the two models: loaded once, moved to the device only while in use
formulas   row values from embeddings and error probabilities
files      the models' files: located, downloaded, hashed

Importing this package imports none of its modules, because `judges` needs torch.
"""
