"""What the encoder makes of every clip.

encoding  clips encoded in batches that leave every clip's features its own
store     features of a shard, computed while they are used and cached per encoder
recorder  writes a shard's features, and reads them back
budget    how much disk features may take, and which are evicted first
prefetch  sound files read ahead by threads, in order
rows      a test split as (clip, target) pairs, and a count of the samples that cannot be used
"""
