"""What TensorBoard and W&B would show, read from the files that they are given."""

import json
import struct

from tensorboardX.proto.event_pb2 import Event


def read_events(folder):
    """(name, step) -> scalar, and -> PNG; of a run that was resumed, of all its files."""
    scalars, images = {}, {}
    for path in sorted(folder.glob("events.*")):
        data, place = path.read_bytes(), 0
        while place < len(data):
            # TFRecord: length, its checksum, the record, its checksum.
            (length,) = struct.unpack_from("<Q", data, place)
            event = Event.FromString(data[place + 12 : place + 12 + length])
            place += 12 + length + 4
            for value in event.summary.value:
                if value.HasField("image"):
                    images[value.tag, event.step] = value.image.encoded_image_string
                else:
                    scalars[value.tag, event.step] = value.simple_value
    return scalars, images


def read_wandb(folder):
    """Run's name -> what was logged, step -> name -> value; from the files of the offline mode."""
    import wandb

    # `finish` only tells W&B's own process to close a run's file; this waits for its end.
    wandb.teardown()
    runs = {}
    for path in sorted(folder.glob("offline-run-*/run-*.wandb")):
        steps = runs.setdefault(path.stem, {})
        for history in _histories(path):
            values = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in history.item
            }
            steps.setdefault(history.step.num, {}).update(values)
    return runs


def _histories(path):
    from wandb.proto.wandb_internal_pb2 import Record

    # LevelDB's log format, behind a header of 7 bytes.
    data, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:  # the end of a block is padding
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            message, record = Record.FromString(record), b""
            if message.HasField("history"):
                yield message.history
