"""Reports on results, for people and for programs.

results           the results of a session, and what reports show beside them
origin            what wrote a run's files, and when: version, commit, date
earlier           scores and losses of earlier sessions of the same run, which stay in its files
report            the list of a run's files; the terminal's table, TSV, Markdown and JSON
described         a run in words: its encoder, and what differs from its preset
runs              reads the folders of finished runs, and checks them
tables            scores and predictions as rows for pandas, polars and Parquet
compare           compares runs: differences with confidence intervals
leaderboard       many runs on one page
html_report       report.html, one page that opens offline
robustness        the matrix of what is lost by corruptions
score_rows        the rows of a table of scores, beside baseline and chance level
chance            what an answer that hears nothing scores
verdict           whether a run passes, in a sentence
templating        fills the templates in templates/
charts            coordinates of lines, points and labels
confusion_matrix  counts of predicted labels per true label
worst_clips       the clips with the lowest scores, and short copies of their audio
eval_results      the scores in the hub's form for .eval_results/
model_card        the scores in the hub's older form, model-index
publication       a finished run as files of a model's repository
github            annotations and job summary of GitHub Actions
"""
