"""Training a LALM on a mix of datasets.

loop         optimiser, schedule, steps
sampler      which row of which dataset comes next
dataloader   batches of drawn rows: shuffled in a buffer, sorted by length within a window
checkpoints  the state of an unfinished training, to resume from
"""
