"""The README's code blocks, by their language:

bash      .ci/run runs them, in order, on the model that the first of them trains
sh        need a cloud, a cluster or somebody's data: their flags and files are checked
python    run by tests/test_readme.py

    python -m tests.helpers.readme        prints the bash blocks after the first
"""

import re
from pathlib import Path

TEXT = (Path(__file__).parents[2] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", TEXT)


if __name__ == "__main__":
    print("\n".join(blocks("bash")[1:]))
