"""Scores, their errors, and the decision whether they pass.

records        predictions, scores and runs as data; overall scores
clip_sums      the sums behind a score, clip by clip
robustness     what a score loses when the test clips are corrupted
statistics     confidence intervals, paired differences, correction for many tests
baselines      scores to compare a run with
new_baseline   writes the scores of a run as a baseline
comparability  what two runs must have in common for their scores to be compared
gate           decides which scores pass, and says why others fail
"""
