"""Features: what the encoder computes from every clip.

encoding       encodes clips in batches that do not change any clip's features
feature_store  computes the features of a shard while they are used, and caches them per encoder
chunks         runs of neighbouring samples that are encoded together
cached_shard   files of a shard's cached features
disk_budget    how much disk features may take, and which are evicted first
prefetch       reads audio ahead, on threads
rows           the (clip, target) pairs of a split, and a count of its samples
"""
