"""Scores, their errors, and the decision whether they pass.

records     predictions, scores and runs as data; overall scores
clip_sums   the sums behind a score, clip by clip
statistics  confidence intervals, paired differences, correction for many tests
baselines   scores to compare a run with
gate        decides which scores pass, and says why others fail
"""
