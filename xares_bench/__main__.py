"""`xares-bench`, or `python -m xares_bench`: the suite from any folder, and what can be done without pytest.

With options alone it runs the suite; `sweep` runs it many times. `download` fetches the data of the published
benchmark, `compare` compares finished runs, `leaderboard` puts many of them on one page, `publish` puts one on the hub.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xares_bench import __version__
from xares_bench.core.edition import own_commit
from xares_bench.core.errors import UsageError, XaresError, usage_errors_of_paths
from xares_bench.core.parsing import local_path
from xares_bench.core.store import write_atomically
from xares_bench.hub import parse_data_revisions
from xares_bench.reports.runs import find_runs, read_run
from xares_bench.runtime.signals import interrupt_on_end_signals

_DOWNLOAD_DESCRIPTION = """\
Downloads what a run of the full preset reads: the shards into the data folder, the decoder into the cache of
huggingface_hub, and, for test sets that are scored with FENSE or DATE, the models that judge captions
(docs/captions.md). Interrupted transfers resume. Afterwards a machine without network can run the benchmark, with the
same data folder, the same cache (HF_HOME) and HF_HUB_OFFLINE=1. HF_ENDPOINT, HF_TOKEN and proxies are respected.

The current commit of each repository's main branch is written to xares-bench.lock.json in the data folder. Later
downloads and runs with that folder use the same commit, until --data-revision names another.
"""

_COMPARE_DESCRIPTION = """\
Shows the scores of finished runs of one preset side by side. Differences are to the first run, with 95 % confidence
intervals, paired by clip if both runs have their clip sums. * marks the best score of a row.
"""

_PUBLISH_DESCRIPTION = """\
Uploads a finished run to a model's repository on the hub, in one commit: its scores as .eval_results/, and page,
results, clip sums and predictions below xares-bench/. Shows every file, its size and the licences of the test data,
and asks before. Other files of the repository stay as they are. Needs a token with write access (HF_TOKEN).
"""


class _Once(argparse.Action):
    """Stores the value of an option; given twice, it is an error, where argparse would let the last one win."""

    _is_given = False

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if option_string is not None and self._is_given:
            parser.error(f"{option_string} is given twice; give it once")
        self._is_given = True
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    """A parser, and parsers of commands, whose options can be given once."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.register("action", None, _Once)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status: 0 done, 1 something could not be downloaded or read, 2 wrong usage.

    The suite's exit status is pytest's.
    """
    given = [*(sys.argv[1:] if arguments is None else arguments)]
    if given and given[0].startswith("-") and given[0] not in ("-h", "--help", "--version"):
        return _run_suite(given)
    options = _parser().parse_args(given or ["--help"])
    restore = interrupt_on_end_signals()
    try:
        with usage_errors_of_paths():
            options.do(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of a pipe, such as `head`, has had enough. Python would complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("xares-bench: interrupted; run the same command again to resume\n")
        return 130
    except XaresError as cause:
        sys.stderr.write(f"xares-bench: {cause}\n")
        return 2 if isinstance(cause, UsageError) else 1
    finally:
        restore()
    return 0


def _version() -> str:
    commit = own_commit()
    return f"xares-bench {__version__}" + (f", commit {commit[:12]}" if commit else "")


def _run_suite(arguments: Sequence[str]) -> int:
    """Run the suite with options of the suite and of pytest; return pytest's exit status."""
    import pytest

    from xares_bench.session.command import pytest_arguments

    try:
        return int(pytest.main(pytest_arguments(arguments, os.environ)))
    except UsageError as cause:
        sys.stderr.write(f"xares-bench: {cause}\n")
        return int(pytest.ExitCode.USAGE_ERROR)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="xares-bench",
        usage="xares-bench OPTIONS | COMMAND ...",
        description="Runs the suite with the given options, e.g. xares-bench --preset=mini --encoder=enc.py -k task1. "
        "The options are those of the suite and of pytest: xares-bench --preset=mini --help lists them.",
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    init = commands.add_parser(
        "init",
        help="write files to start from: an encoder, a workflow for CI, lines for .gitignore",
        description="Writes encoder.py, .github/workflows/xares-bench.yml, and the lines that .gitignore lacks. Asks "
        "before it replaces a file.",
    )
    init.add_argument("folder", nargs="?", default=".", metavar="DIR", help="default: the current folder")
    init.add_argument("--force", action="store_true", help="replace files without asking")
    init.set_defaults(do=_init)
    download = commands.add_parser(
        "download",
        help="download shards and decoder of the published benchmark",
        description=_DOWNLOAD_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = download.add_argument
    add("names", nargs="*", metavar="NAME", help="task1, task2, all, or datasets such as esc-50; default: all")
    add(
        "--split",
        choices=("train", "eval"),
        help="only the training shards or only the test shards; default: both, which a run needs",
    )
    add("--dry-run", action="store_true", help="only show how much there is to download; writes nothing")
    add("--data-home", metavar="DIR", help="folder for the shards; default: $XARES_DATA_HOME, else ./xares_data")
    add(
        "--data-revision",
        action="append",
        default=[],
        metavar="[OWNER/NAME@]REVISION",
        help="branch, tag or commit to use from now on, for one repository or for all; repeatable",
    )
    add(
        "--decoder",
        metavar="NAME[@REVISION]",
        help="language model to download, with either split; default: the one of the full preset",
    )
    add(
        "--no-models",
        action="store_true",
        help="download shards only, neither the language model nor the models that judge captions",
    )
    download.set_defaults(do=_download)
    compare = commands.add_parser(
        "compare",
        help="compare finished runs",
        description=_COMPARE_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compare.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or its results.json")
    compare.add_argument(
        "--clips", type=int, default=10, metavar="N", help="for two runs: show the N rows that differ most; default: 10"
    )
    compare.set_defaults(do=_compare)
    sweep = commands.add_parser(
        "sweep",
        help="many runs from one file: encoders, arguments, options",
        description="Runs every combination that a YAML file names, some at a time, and shows a table. Started again, "
        "it goes on with what is not finished.",
    )
    sweep.add_argument("file", metavar="SWEEP.yaml", help="encoders, tasks and options: docs/sweeps.md")
    sweep.add_argument(
        "--jobs", type=int, metavar="N", help="so many runs at a time; default: one per GPU, or one without a GPU"
    )
    sweep.add_argument("--runs-dir", default="runs", metavar="DIR", help="folder for results; default: ./runs")
    sweep.add_argument("--dry-run", action="store_true", help="only show the command of every run")
    sweep.set_defaults(do=_sweep)
    board = commands.add_parser(
        "leaderboard",
        help="one page over many finished runs",
        description="Writes one HTML file that works offline, with a sortable table of all runs per preset.",
    )
    board.add_argument("folder", metavar="RUNS_DIR", help="the folder of --runs-dir")
    board.add_argument("--output", metavar="FILE", help="default: RUNS_DIR/leaderboard.html")
    board.set_defaults(do=_leaderboard)
    publish = commands.add_parser(
        "publish",
        help="upload a finished run to a model's repository on the hub",
        description=_PUBLISH_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    publish.add_argument("run", metavar="RUN", help="a run's folder, or its results.json")
    publish.add_argument("--repo", required=True, metavar="OWNER/NAME", help="a model's repository that exists")
    publish.add_argument("--create-pr", action="store_true", help="open a pull request; the main branch stays as it is")
    asking = publish.add_mutually_exclusive_group()
    asking.add_argument("--yes", action="store_true", help="upload without asking")
    asking.add_argument("--dry-run", action="store_true", help="only show what would be uploaded")
    publish.set_defaults(do=_publish)
    return parser


def _init(options: argparse.Namespace) -> None:
    from xares_bench.session.starter import write_starter

    def may_replace(path: Path) -> bool:
        if options.force:
            return True
        found = f"{path} is there with other contents"
        return _confirmed(f"{found}. Replace it?", f"{found}; move it, or replace it with --force")

    for line in write_starter(local_path(options.folder), may_replace):
        _print(line)
    _print("next: xares-bench --preset=mini --encoder=encoder.py")


def _compare(options: argparse.Namespace) -> None:
    from xares_bench.reports.compare import compare, comparison_table, differing_clips

    runs = [read_run(path) for path in options.runs]
    _print(comparison_table(compare(runs)))
    if len(runs) == 2 and options.clips > 0:
        rows = differing_clips(runs[0], runs[1], options.clips)
        _print(f"\n{rows}" if rows else "\nno rows differ")


def _sweep(options: argparse.Namespace) -> None:
    from xares_bench.sweeps.sweep import commands, sweep

    file, runs = local_path(options.file), local_path(options.runs_dir)
    if options.jobs is not None and options.jobs < 1:
        raise UsageError(f"--jobs={options.jobs}: expected a whole number of at least 1")
    if options.dry_run:
        for command in commands(file, runs):
            _print(command)
    else:
        sweep(file, runs, options.jobs, _print)


def _leaderboard(options: argparse.Namespace) -> None:
    from xares_bench.reports.leaderboard import leaderboard_html

    folder = local_path(options.folder)
    runs, problems = find_runs(folder)
    for problem in problems:
        sys.stderr.write(f"xares-bench: left out: {problem}\n")
    output = local_path(options.output) if options.output else folder / "leaderboard.html"
    write_atomically(output, leaderboard_html(runs, output.parent))
    _print(f"{output}: {len(runs)} runs")


def _publish(options: argparse.Namespace) -> None:
    from xares_bench.hub.upload import check_token, commit_upload, model_repository, plan_upload
    from xares_bench.reports.publication import publication_in_words, publication_of

    repository = model_repository(options.repo)
    publication = publication_of(read_run(local_path(options.run)))
    if not options.dry_run:
        check_token()
    upload = plan_upload(repository, publication.contents)
    _print(publication_in_words(publication, upload, create_pr=options.create_pr))
    if options.dry_run or not upload.changed:
        _print("nothing is uploaded: " + ("--dry-run" if options.dry_run else "the repository has all of it"))
        return
    if not options.yes and not _confirmed("Upload?", "upload it with --yes; there is no terminal to ask in"):
        _print("nothing is uploaded")
        return
    _print(commit_upload(upload, message=publication.title, create_pr=options.create_pr))


def _download(options: argparse.Namespace) -> None:
    from xares_bench.datasets.download import download

    if options.no_models and options.decoder:
        raise UsageError(f"--decoder={options.decoder} and --no-models contradict each other; give one of them")
    folder = local_path(options.data_home or os.environ.get("XARES_DATA_HOME") or "xares_data").absolute()
    download(
        options.names or ["all"],
        folder,
        split=options.split,
        revisions=parse_data_revisions(options.data_revision),
        decoder=options.decoder,
        with_models=not options.no_models,
        dry_run=options.dry_run,
        say=_print,
    )


def _confirmed(question: str, without_terminal: str) -> bool:
    """Ask in the terminal; without one, raise a UsageError that says what to do instead."""
    if not sys.stdin.isatty():
        raise UsageError(without_terminal)
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _print(line: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"  # one that lacks a letter of a name must not cost the table
    sys.stdout.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
