"""pytest's side.

session  the hooks: header, deselection, scores on reports, files, exit status
header   what the session is going to do, in lines for the terminal
workers  how scores travel between the processes of xdist and of launchers
"""
