"""Measure ArtifactFS side by side with `git clone` and others: see ``scripts/benchmark --help``."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.contenders import (
    ArtifactFS,
    BloblessClone,
    Contender,
    Peer,
    PlainClone,
    ShallowClone,
)
from benchmarks.make_django_history import DEFAULT_CACHE, RELEASES, django_history
from benchmarks.make_synthetic import synthetic_repository
from benchmarks.measures import Run, Workload, run_once
from benchmarks.report import Result, machine, print_tables, read_json, write_json, write_page
from tests.e2e.processes import ArtifactsProcess

PROJECT = Path(__file__).resolve().parent.parent


def make_workload(name: str, cache: Path) -> Workload:
    """Return the workload ``django`` or ``synthetic-COUNT``."""
    if name == "django":
        return Workload(
            name=f"Django history ({RELEASES[-1]}: 6,798 files, 3,206 commits)",
            source=django_history(cache),
            readme="README.rst",
            grep_directory="django/contrib",
            copied_directory="django/conf/locale",
            edited="README.rst",
            releases=(RELEASES[-1], RELEASES[-2]),
        )
    count = int(name.partition("-")[2])
    return Workload(
        name=f"synthetic, {count:,} files",
        source=synthetic_repository(count, cache),
        readme="README.md",
        grep_directory="dir0",
        copied_directory="dir1",
        edited="README.md",
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/benchmark", description=__doc__)
    parser.add_argument(
        "--workload",
        action="append",
        metavar="NAME",
        help="django or synthetic-COUNT; repeatable (default: django and three synthetic ones)",
    )
    parser.add_argument("--rtt", default="0,20,100", metavar="MS,…", help="(default: 0,20,100)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peer", type=Path, metavar="PATH", help="another implementation")
    parser.add_argument("--only", metavar="NAME", help="only contenders whose name contains NAME")
    parser.add_argument("--json", type=Path, default=PROJECT / "build" / "benchmark.json")
    parser.add_argument("--page", type=Path, help="write Markdown and charts there")
    parser.add_argument(
        "--from-json",
        type=Path,
        action="append",
        metavar="FILE",
        help="measure nothing, report what earlier runs wrote; repeatable",
    )
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    return parser.parse_args()


def measure(options: argparse.Namespace, scratch: Path) -> list[Result]:
    kinds: list[type[Contender]] = [ArtifactFS, PlainClone, BloblessClone, ShallowClone]
    if options.peer:
        Peer.program = options.peer.resolve()
        kinds.append(Peer)
    if options.only:
        kinds = [kind for kind in kinds if options.only in kind.name]
    names = options.workload or ["django", "synthetic-1000", "synthetic-10000", "synthetic-100000"]
    server = ArtifactsProcess(scratch / "server")
    server.start()
    results: list[Result] = []
    try:
        for name in names:
            workload = make_workload(name, options.cache)
            url = server.create(name, workload.source).url
            for rtt in map(float, options.rtt.split(",")):
                results += measure_side_by_side(
                    kinds, scratch, server, workload, url, rtt, options.runs
                )
                write_json(results, options.json)
    finally:
        server.stop()
    return results


def measure_side_by_side(
    kinds: list[type[Contender]],
    scratch: Path,
    server: ArtifactsProcess,
    workload: Workload,
    url: str,
    rtt: float,
    count: int,
) -> list[Result]:
    """`count` rounds, the contenders in turn in each, so that noise meets all of them."""
    results = [Result(workload.name, rtt, kind.name, []) for kind in kinds]
    for number in range(count):
        for kind, result in zip(kinds, results, strict=True):
            print(f"{workload.name}, {rtt:g} ms, {kind.name}, run {number + 1}", file=sys.stderr)
            try:
                run = run_once(kind, scratch / "tree", server, workload, url, rtt)
            except (OSError, RuntimeError, AssertionError) as error:
                print(f"  failed: {error}", file=sys.stderr)
                run = Run()
            result.runs.append(run)
    return results


def main() -> None:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that everything is stopped
    os.environ.setdefault("GIT_CONFIG_GLOBAL", os.devnull)
    if options.from_json:
        reports = [read_json(path) for path in options.from_json]
        where, results = reports[0][0], [result for _, found in reports for result in found]
    else:
        scratch = Path(tempfile.mkdtemp(prefix="afb-", dir="/tmp"))
        try:
            where, results = machine(), measure(options, scratch)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        write_json(results, options.json)
    print_tables(results)
    if options.page:
        write_page(results, options.page, where=where)


if __name__ == "__main__":
    main()
