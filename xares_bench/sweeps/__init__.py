"""Many runs from one file.

points  what a sweep's file asks for: encoders, arguments and options, every combination
jobs    runs them on this machine, some at a time
board   the table of a sweep
sweep   from the file to the table
"""
