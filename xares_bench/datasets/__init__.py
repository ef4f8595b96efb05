"""Samples: read from tar files, with their audio and their targets.

shards       tar files: located, verified, read sample by sample
audio        reads an audio file as a mono waveform at 16 kHz, to its end
containers   an audio file's headers, held against its bytes
mpeg         the frames of MP3 are counted
ogg          the pages of Ogg are counted
part         one stream of an audio file, as libsndfile reads it
corruptions  what --corrupt does to the audio of test clips
targets      the texts of a sample's JSON that the model should predict
inventory    what a shard holds, found by walking it once
download     what a run of the full preset reads, fetched beforehand
"""
