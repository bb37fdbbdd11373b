"""The two passes of `data.prepare`, `scan.py` and `write_shards.py`, as Apache Beam pipelines.

Workers know the corpus and the output by their paths, and write their results into the folder of
the preparation. So a pass can be run again at any time, and does only the parts that are missing.
"""

import argparse
import contextlib
import dataclasses
import logging
import os
import re
import shlex
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.environments import SubprocessSDKEnvironment

from flaxclip.data.prepare.folder import PreparationFolder
from flaxclip.data.prepare.scan import ROW, SCENE_SIZE, SPLITS, Recipe, scan_examples, shard_numbers
from flaxclip.data.prepare.write_shards import write_shard
from flaxclip.data.sources.corpus import open_corpus
from flaxclip.errors import InputError


class _ReadsCorpus(beam.DoFn):
    def __init__(self, recipe: Recipe, folder: PreparationFolder):
        self.recipe, self.folder = recipe, folder

    def setup(self) -> None:
        self.source = open_corpus(self.recipe.corpus, SCENE_SIZE)
        if len(self.source) != self.folder.examples:
            raise InputError(
                f"the corpus has {len(self.source):,} examples for a worker, "
                f"{self.folder.examples:,} for who started it\n"
                "every worker must see the same files under the same paths"
            )


class ScanRange(_ReadsCorpus):
    """Number of a range of examples -> its scan, in the folder."""

    def process(self, number: int) -> None:
        scan = scan_examples(self.source, self.recipe, self.folder.range(number))
        self.folder.write_scan(number, scan)


class RowsByShard(beam.DoFn):
    """Number of a range -> its rows, packed, for each shard that is not written yet."""

    def __init__(self, folder: PreparationFolder, shards: Mapping[str, int]):
        self.folder, self.shards, self.written = folder, shards, folder.written()

    def process(self, number: int) -> Iterator[tuple[tuple[str, int], bytes]]:
        rows = self.folder.read_rows(number)
        for place, split in enumerate(SPLITS):
            of_split = rows[rows["split"] == place]
            if not len(of_split):
                continue
            shards = shard_numbers(of_split, self.shards[split])
            for shard in np.unique(shards).tolist():
                if (split, shard) not in self.written:
                    yield (split, shard), of_split[shards == shard].tobytes()


class WriteShard(_ReadsCorpus):
    """A shard and its rows -> the shard, in the folder."""

    def process(self, shard_rows: tuple[tuple[str, int], Iterable[bytes]]) -> None:
        (split, shard), packed = shard_rows
        rows = np.frombuffer(b"".join(packed), ROW)
        with self.folder.new_shard(split, shard) as new:
            new.report = write_shard(self.source, self.recipe, rows, new.path, new.encoded)


@dataclasses.dataclass(frozen=True)
class Runner:
    """Runs pipelines where the options for Beam say, by default in `workers` processes here."""

    options: tuple[str, ...]
    workers: int

    def __post_init__(self) -> None:
        if not self._is_here:
            return  # some runners have options that only their servers know
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        for known in PipelineOptions.__subclasses__():
            known._add_argparse_args(parser)
        unknown = parser.parse_known_args(self.options)[1]
        if unknown:
            raise InputError(
                f"Apache Beam has no option {' '.join(unknown)}\nwhat stands after -- is for Beam; "
                "options of flaxclip.data.prepare stand before it"
            )

    @property
    def _is_here(self) -> bool:
        return not any(option.partition("=")[0] == "--runner" for option in self.options)

    def pipeline(self) -> beam.Pipeline:
        """A new pipeline.

        Raises:
            InputError: there is no such runner, or it misses an option.
        """
        try:
            if not self._is_here:
                return beam.Pipeline(options=PipelineOptions(list(self.options)))
            # Not Beam's DirectRunner, which looks on the network for another runner's program.
            runner = FnApiRunner()
            if self.workers > 1:
                # Silent: what goes wrong in them is said here, and a log could fill the disk.
                python = f"exec {shlex.quote(sys.executable)} -m flaxclip.data.prepare.beam_worker"
                runner = FnApiRunner(
                    SubprocessSDKEnvironment.from_command_string(
                        f"{python} {os.getpid()} 2>{os.devnull}"
                    )
                )
            here = [f"--direct_num_workers={self.workers}", *self.options]
            return beam.Pipeline(runner, PipelineOptions(here))
        except (ValueError, ImportError) as error:
            options = " ".join(self.options)
            raise InputError(f"Apache Beam cannot run with {options}\n{error}") from None


@contextlib.contextmanager
def errors_of_workers(program: str) -> Iterator[None]:
    """Recover an `InputError` that a worker raised: runners pass errors on as text.

    If a worker dies, this process ends: Beam would wait for it forever, and cannot be stopped.
    """
    hook = threading.excepthook

    def exit_if_worker_died(arguments: threading.ExceptHookArgs) -> None:
        # Only the thread of Beam that follows the worker notices.
        if "Worker subprocess exited" in str(arguments.exc_value):
            print(
                f"{program}: a worker process has died\n"
                "  if it was killed for want of memory, take fewer --workers\n"
                "  the same command goes on from there",
                file=sys.stderr,
                flush=True,
            )
            os._exit(2)
        hook(arguments)

    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)  # has a traceback for each

    threading.excepthook = exit_if_worker_died
    try:
        yield
    except Exception as error:
        before, _, message = f"{type(error).__name__}: {error}".rpartition("InputError: ")
        if not message or (before and "Traceback" not in before):
            raise
        raise InputError(re.split(r" \[while running|\n\n", message)[0].strip()) from None
    finally:
        threading.excepthook = hook


def scan(recipe: Recipe, folder: PreparationFolder, runner: Runner) -> None:
    """The first pass, over the ranges that are not scanned yet.

    Raises:
        InputError: see `scan_examples`; the runner, or its options, cannot be used.
    """
    ranges = folder.unscanned()
    if ranges:
        with errors_of_workers("flaxclip.data.prepare"), runner.pipeline() as pipeline:
            _ = (
                pipeline
                | "Ranges" >> beam.Create(ranges)
                | "Spread" >> beam.Reshuffle()
                | "Scan" >> beam.ParDo(ScanRange(recipe, folder))
            )


def write(
    recipe: Recipe, folder: PreparationFolder, shards: Mapping[str, int], runner: Runner
) -> None:
    """The second pass, over the shards that are not written yet.

    Raises:
        InputError: see `write_shard`.
    """
    with errors_of_workers("flaxclip.data.prepare"), runner.pipeline() as pipeline:
        _ = (
            pipeline
            | "Ranges" >> beam.Create(range(folder.ranges))
            | "Spread" >> beam.Reshuffle()
            | "Rows by shard" >> beam.ParDo(RowsByShard(folder, shards))
            | "Shards" >> beam.GroupByKey()
            | "Write" >> beam.ParDo(WriteShard(recipe, folder))
        )
