"""From a tar file to samples.

shards   tar files: located, verified, read sample by sample
audio    the bytes of a sound file as a mono waveform at 16 kHz
targets  what of a sample's JSON the model is to predict
"""
