"""Training a LALM on a mix of datasets.

loop         a training from its first step, or a checkpoint, to its last
steps        optimiser steps, learning rate; on a GPU one CUDA graph each
losses       the losses of the steps, read from a GPU later
sampler      which row of which dataset comes next
dataloader   batches of drawn rows: shuffled in a buffer, sorted by length within a window
checkpoints  the state of an unfinished training, to resume from
"""
