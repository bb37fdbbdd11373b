"""What setup.cfg packs is what there is; .ci/run installs the wheel itself and starts with it."""

import configparser
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def files() -> list[Path]:
    paths = [path for path in (ROOT / "flaxclip").rglob("*") if "__pycache__" not in path.parts]
    return [path.relative_to(ROOT) for path in paths if path.is_file()]


def test_every_folder_with_modules_is_a_package_that_is_packed():
    folders = {".".join(path.parent.parts) for path in files() if path.suffix == ".py"}
    assert set(SETUP["options"]["packages"].split()) == folders | {"flaxclip.experiments"}
    assert all((ROOT / folder.replace(".", "/") / "__init__.py").is_file() for folder in folders)


def test_every_file_that_is_no_module_is_packed():
    patterns = [
        f"{package.replace('.', '/')}/{pattern}"
        for package, found in SETUP["options.package_data"].items()
        for pattern in found.split()
    ]
    data = [path for path in files() if path.suffix != ".py"]
    assert [path for path in data if not any(path.match(p) for p in patterns)] == []
    assert [p for p in patterns if not any(path.match(p) for path in data)] == []


def test_users_type_checkers_read_our_annotations():
    assert "py.typed" in SETUP["options.package_data"]["flaxclip"].split()
    assert (ROOT / "flaxclip" / "py.typed").is_file()
