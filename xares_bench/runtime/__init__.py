"""The process and the machine it runs on.

device         device and precision from accelerate, experiment trackers, and what else can affect results
determinism    random seeds and deterministic algorithms for the length of a block
memory         smaller batches when memory runs out
recording      work whose kernels a GPU starts as one (a CUDA graph)
processes      what the processes of a launcher do together
process_state  what the user's code may change of the process, kept apart from the session's
settings       settings of the process: of Python, numpy and the operating system
torch_settings settings of torch
patches        functions and classes of libraries that code has replaced
exits          exits of the process from within the user's code: never with status 0
variables      environment variables that libraries read: refused, keyed or recorded
signals        interrupts that wait for the end of a step, and a deadline for the user's code
"""
