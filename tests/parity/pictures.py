"""Real photographs for comparisons."""

import importlib.util
import pathlib


def photographs() -> list[pathlib.Path]:
    """Pictures in the wheels of three packages, found without importing these."""
    paths = []
    folders = {
        "skimage": "data",
        "sklearn": "datasets/images",
        "matplotlib": "mpl-data/sample_data",
    }
    for package, folder in folders.items():
        spec = importlib.util.find_spec(package)
        for root in spec.submodule_search_locations if spec else ():
            for suffix in ("png", "jpg", "gif"):
                paths += pathlib.Path(root, folder).glob(f"*.{suffix}")
    return sorted(paths)
