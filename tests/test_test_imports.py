"""What tests share is in tests/helpers or a fixture: any test's file can run alone or be moved."""

import ast
from pathlib import Path

TESTS = Path(__file__).parent


def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_no_file_of_tests_is_imported():
    modules = {
        ".".join(path.relative_to(TESTS.parent).with_suffix("").parts)
        for pattern in ("test_*.py", "conftest.py")
        for path in TESTS.rglob(pattern)
    }
    assert "tests.test_test_imports" in modules
    for path in sorted(TESTS.rglob("*.py")):
        assert imported(path).isdisjoint(modules), path
