"""Arrays of a row that are for teachers, beside the student's image and tokens."""

VIEWS = ("images", "tokens")
"""What a teacher that runs beside the student sees."""
VECTORS = ("zimg", "ztxt")
"""What a teacher has made of an example before, and is stored with it."""


def extra_name(teacher: int, array: str) -> str:
    """Name of an array of teacher number `teacher`, one of `VIEWS` or `VECTORS`, in `Row.extra`."""
    return f"teacher_{teacher}/{array}"
