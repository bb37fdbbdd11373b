#!/usr/bin/env bash
# array_record 0.8.6: `ArrayRecordReader.read([i])` takes time in proportion to the file's chunks.
#
# Reading one record by a list of one index makes a list for every chunk of the file, and looks
# through all of them, each time; the range `read(i, i + 1)` goes to the chunk. With one record a
# chunk, as random access wants it, and 200,000 records, the list takes some hundred times as long.
# Both return the same record, and both check its hash.
#
# Seen: "10,000 records: [i] 66 us, (i, i + 1) 2 us", "200,000 records: [i] 764 us, (i, i + 1) 3 us".
# Exits with 1 if the list takes less than ten times as long in the large file.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet array_record==0.8.6
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import random
import sys
import time

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

folder = sys.argv[1]
for count in (10_000, 200_000):
    path = f"{folder}/{count}.array_record"
    writer = ArrayRecordWriter(path, "group_size:1,uncompressed")
    for number in range(count):
        writer.write(b"record %d" % number)
    writer.close()
    reader = ArrayRecordReader(path, options="readahead_buffer_size:0")
    places = random.Random(0).sample(range(count), 300)

    def microseconds(read):
        start = time.perf_counter()
        records = [read(place) for place in places]
        elapsed = time.perf_counter() - start
        assert records == [[b"record %d" % place] for place in places]
        return elapsed / len(places) * 1e6

    by_list = microseconds(lambda place: reader.read([place]))
    by_range = microseconds(lambda place: reader.read(place, place + 1))
    print(f"{count:,} records: [i] {by_list:.0f} us, (i, i + 1) {by_range:.0f} us")
sys.exit(by_list < 10 * by_range)
PYTHON
