"""Images of one colour in Parquet, as `push_to_hub` of Hugging Face datasets writes them."""

import json

import pyarrow
import pyarrow.parquet

from tests.helpers.image_tars import png


def write_table(path, shades, labels, names=("cat", "dog"), image="image", label="label"):
    """A part: images with their paths, classes named in the metadata."""
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    images = [{"bytes": png(shade), "path": f"{shade}.png"} for shade in shades]
    columns = {image: pyarrow.array(images, kind), label: pyarrow.array(labels, pyarrow.int64())}
    features = {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": list(names)}}
    table = pyarrow.table(columns)
    table = table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path)
