#!/usr/bin/env bash
# pyarrow 26.0.1: `ParquetFile(buffer_size=N)` alone does not bound what is read at a time.
#
# buffer_size is documented as "If positive, perform read buffering when deserializing individual
# column chunks", so one expects memory for some buffers and the batch at hand. But pre_buffer is
# True by default, and with it `iter_batches()` holds all column chunks of the row group from the
# first batch on, whatever buffer_size and the batch's size are. pre_buffer=False makes
# buffer_size count.
#
# Seen, Arrow's memory after the first batch of 10 rows (1 MB) of a row group of 200 MB:
#   default                               about 200 MB
#   buffer_size=2**20                     about 200 MB
#   buffer_size=2**20, pre_buffer=False   below 10 MB
#
# Exits with 1 where that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pyarrow==26.0.1
cat > "$folder/measure.py" <<'PYTHON'
import os, sys
import pyarrow as pa
import pyarrow.parquet as pq

path = sys.argv[1]
schema = pa.schema([("data", pa.binary())])
values = pa.array([os.urandom(100_000) for _ in range(2_000)])
table = pa.table([values], schema=schema)
# Pages of about 1 MB: their size is looked at once in so many rows.
pq.write_table(table, path, row_group_size=2_000, use_dictionary=False, write_batch_size=10)
del table, values


def held(**options):
    before = pa.total_allocated_bytes()
    batches = pq.ParquetFile(path, **options).iter_batches(10)
    first = next(batches)
    held = (pa.total_allocated_bytes() - before) / 1e6
    print(f"{options}: {held:.0f} MB after the first batch of {first.nbytes / 1e6:.1f} MB")
    return held


default, buffered = held(), held(buffer_size=2**20)
bounded = held(buffer_size=2**20, pre_buffer=False)
sys.exit(not (default > 150 and buffered > 150 and bounded < 10))
PYTHON
"$folder/venv/bin/python" "$folder/measure.py" "$folder/data.parquet"
echo "as described"
