"""Measure ArtifactFS side by side with `git clone` and others: see ``scripts/benchmark --help``."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass, replace
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
from benchmarks.make_synthetic import large_repository, synthetic_repository
from benchmarks.measures import Run, Workload, run_once
from benchmarks.report import Result, machine, print_tables, read_json, write_json, write_page
from tests.e2e.processes import ArtifactsProcess

PROJECT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Part:
    """One workload with some delays (ms of round trip), so many runs of each."""

    workload: str
    rtts: tuple[float, ...]
    runs: int


DOCUMENTED = (
    Part("django", (0, 20, 100), 3),
    Part("synthetic-1000", (20,), 3),
    Part("synthetic-10000", (20,), 3),
    Part("synthetic-100000", (20,), 2),
    Part("large", (0,), 2),
)
"""What docs/benchmarks.md shows: some 20 minutes on two cores with nothing else to do."""
QUICK = (Part("django", (20,), 1), Part("synthetic-10000", (20,), 1))


def make_workload(name: str, cache: Path) -> Workload:
    """Return the workload ``django``, ``large`` or ``synthetic-COUNT``."""
    if name == "django":
        return Workload(
            name=f"Django history ({RELEASES[-1]}: 6,798 files, 3,206 commits)",
            source=django_history(cache),
            readme="README.rst",
            grep_directory="django/contrib",
            copied_directory="django/conf/locale",
            edited="README.rst",
            blamed="django/db/models/query.py",
            releases=(RELEASES[-1], RELEASES[-2]),
        )
    if name == "large":
        return Workload(
            name="one file of 300 MB",
            source=large_repository(cache),
            readme="README.md",
            grep_directory="small",
            copied_directory="small",
            edited="README.md",
            large="large.bin",
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
        help="django, large or synthetic-COUNT; repeatable (default: what the documentation shows)",
    )
    parser.add_argument("--quick", action="store_true", help="two workloads, one run: minutes")
    parser.add_argument("--rtt", metavar="MS,…", help="round trips (default: by workload)")
    parser.add_argument("--runs", type=int, help="of each (default: by workload)")
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


def chosen_parts(options: argparse.Namespace) -> list[Part]:
    parts = list(QUICK if options.quick else DOCUMENTED)
    if options.workload:
        known = {part.workload: part for part in DOCUMENTED}
        parts = [known.get(name, Part(name, (20,), 3)) for name in options.workload]
    if options.rtt:
        rtts = tuple(map(float, options.rtt.split(",")))
        parts = [replace(part, rtts=rtts) for part in parts]
    return [replace(part, runs=options.runs or part.runs) for part in parts]


def measure(options: argparse.Namespace, scratch: Path) -> list[Result]:
    kinds: list[type[Contender]] = [ArtifactFS, PlainClone, BloblessClone, ShallowClone]
    if options.peer:
        Peer.program = options.peer.resolve()
        kinds.append(Peer)
    if options.only:
        kinds = [kind for kind in kinds if options.only in kind.name]
    server = ArtifactsProcess(scratch / "server")
    server.start()
    results: list[Result] = []
    try:
        for part in chosen_parts(options):
            workload = make_workload(part.workload, options.cache)
            url = server.create(part.workload, workload.source).url
            for rtt in part.rtts:
                results += measure_side_by_side(
                    kinds, scratch, server, workload, url, rtt, part.runs
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
