"""Foundations that know nothing of audio or models.

errors      what users can cause, as one tree
digests     digests of values, files and our own code, for cache keys
parsing     what users write: YAML and JSON files, with errors that name file and key, and paths
yaml_text   YAML text to values, by rules that leave no word open
text        text from outside, made writable
locks       locks between processes, with a word where one waits
store       the cache on disk: finished results under their keys
progress    progress bars on a terminal
own_files   folders that come with the package: suite, miniature, examples
edition     the version and the commit of xares-bench itself
file_kinds  what is in the place of a tar file: a pointer, a web page, a link to nothing
"""
