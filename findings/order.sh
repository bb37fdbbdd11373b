#!/usr/bin/env bash
# grain 0.2.18: what `MapDataset.mix` makes of its weights, and `shuffle` of short data sets.
#
# 1. Weights are scaled so that the smallest is 100 and are then cut off to whole numbers: 7 and 3
#    become 233 and 100, so that a third of a percent of the examples are of the other data set;
#    1 and 1.0099 become 1 and 1. Nothing says so.
# 2. The permutation is of 2^16 values at least, and is applied again and again until a value below
#    the length comes out: to look up one element takes the longer the fewer there are. In a data
#    set of two elements it takes longer by far than in one of a million.
#
# Seen: "7000 of 10000 asked, 6997 got", "1.0099 to 1: 5000 of 10000 for the first", "a look-up
# among 2 takes 14.0 ms, 1760 times that among 1,000,000". Exits with 1 if this has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet grain==0.2.18 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import time

import grain


def of_the_first(weights, draws=10_000):
    parts = [grain.MapDataset.source([name]).repeat(10**6) for name in "ab"]
    mixed = grain.MapDataset.mix(parts, weights)
    return sum(mixed[position] == "a" for position in range(draws))


got, equal = of_the_first([0.7, 0.3]), of_the_first([1.0099, 1.0])
print(f"7000 of 10000 asked, {got} got")
print(f"1.0099 to 1: {equal} of 10000 for the first")


def seconds_for(length, times=200):
    shuffled = grain.MapDataset.range(length).shuffle(seed=0)
    start = time.process_time()
    for number in range(times):
        shuffled[number * 7919 % length]
    return (time.process_time() - start) / times


few, many = seconds_for(2), seconds_for(10**6)
print(f"a look-up among 2 takes {1000 * few:.1f} ms, {few / many:.0f} times that among 1,000,000")
sys.exit(not (got == 6997 and equal == 5000 and few > 20 * many))
PYTHON
