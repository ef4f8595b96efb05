"""Training a LALM on a mix of datasets.

loop         optimiser, schedule, steps
sampler      which row of which dataset comes next
dataloader   drawn rows as batches: shuffled in a buffer, sorted by length within a window
checkpoints  how far an unfinished training has come
"""
