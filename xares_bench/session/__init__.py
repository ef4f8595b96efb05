"""pytest's side.

arguments  the options of the command line
options    the command line, read and checked as a whole
hooks      when pytest calls what, and the start of the session
session    what the fixtures call: suite, gate, scores on their way to the reports
header     what the session is going to do, in lines for the terminal
summary    what the session has found out, in lines for the terminal
selection  which datasets a run has, when only what failed before is run again
ending     the run's files, the baseline and the job summary, at the end
workers    how scores travel between the processes of xdist and of launchers
command    the command xares-bench: arguments for pytest, and back
call       the suite as a function, for notebooks and programs: xares_bench.run
starter    files to start from, for the command xares-bench init
clock      the time of a score as pytest-benchmark reports it
"""
