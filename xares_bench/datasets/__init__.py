"""Samples: read from tar files, with their audio and their targets.

shards     tar files: located, verified, read sample by sample
audio      reads an audio file as a mono waveform at 16 kHz
targets    the texts of a sample's JSON that the model should predict
inventory  what a shard holds, found by walking it once
"""
