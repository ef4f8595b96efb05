"""What is to be done: presets, options and YAML files, read and checked before any work starts.

catalogue     datasets, tasks, mixes and presets, from datasets.yaml and presets.yaml
recipe        every hyper-parameter, with its type and range
own_data      the two YAML forms for a user's own tar files
encoder_spec  --encoder and --encoder-args, checked without importing the encoder
plan          the whole command line as one checked value
"""
