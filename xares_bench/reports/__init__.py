"""From results to what people read.

results           all that a session found out
report            the terminal's table, TSV, Markdown and JSON; writes a run's files
runs              folders of finished runs, read back and checked
compare           run against run
leaderboard       many runs on one page
html_report       report.html, one page that opens offline
templating        templates (templates/) to HTML files
charts            where lines, points and labels of a drawing lie
confusion_matrix  which label was predicted in place of which
worst_clips       the worst clips with a short copy of their audio
model_card        the hub's model-index
github            annotations and job summary of GitHub Actions
"""
