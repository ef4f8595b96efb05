"""The process and the machine it runs on.

device       device and precision, as accelerate finds them, and what else results can depend on
determinism  random numbers and algorithms, fixed for a block
memory       smaller batches where memory runs out
processes    what the processes of a launcher do together
signals      interrupts that wait for the end of a step, and a deadline for the user's code
"""
