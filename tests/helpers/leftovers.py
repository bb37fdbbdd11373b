"""Files that nobody wants in a data set."""


def leave_behind(root):
    """What macOS and Jupyter leave in a folder of images, and a folder with an image's name."""
    for name in ("._a.png", "cat/._a.png", "__MACOSX/cat/b.png", "cat/.ipynb_checkpoints/a-1.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"\0\5\x16\7")
    (root / "._a.txt").write_bytes(b"\0\5\x16\7")  # no text beside any image of the corpus
    (root / "cat/.DS_Store").write_bytes(b"\0")
    (root / "cat/folder.png").mkdir()
