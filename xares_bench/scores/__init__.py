"""Scores and what is decided on them.

records     predictions, scores and runs as data; overall scores
clip_sums   per clip, the sums that a metric is a function of
statistics  confidence intervals, paired differences, several tests at once
baselines   scores to compare a run with
gate        whether scores may pass, and if not, why
"""
