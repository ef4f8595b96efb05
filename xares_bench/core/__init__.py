"""Foundations that know nothing of audio or models.

errors    what users can cause, as one tree
digests   digests of values, files and of our own code, for keys
parsing   YAML and JSON that others wrote, with errors that name file and key
store     finished results under their keys; the manifest is written last
progress  progress bars where somebody watches
"""
