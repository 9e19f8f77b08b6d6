"""What keeps the code easy to take over: short functions and files, and each class name once."""

import ast
from collections import Counter
from pathlib import Path

HOUSE = Path(__file__).parents[1]
MODULES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in (HOUSE / "medsd").rglob("*.py")}
FUNCTION, FILE = 60, 400  # lines at most


def test_no_function_and_no_file_is_long() -> None:
    lengths = {f"{path.relative_to(HOUSE)}": len(path.read_text().splitlines()) for path in MODULES}
    assert {name: length for name, length in lengths.items() if length > FILE} == {}
    nodes = [(path, node) for path, module in MODULES.items() for node in ast.walk(module)]
    functions = [(path, node) for path, node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [f"{path}: {node.name}" for path, node in functions if node.end_lineno - node.lineno >= FUNCTION] == []  # type: ignore[operator]
    assert len(lengths) > 200 and len(functions) > 1000


def test_each_class_name_stands_for_one_thing() -> None:
    names = [node.name for module in MODULES.values() for node in ast.walk(module) if isinstance(node, ast.ClassDef)]
    assert [name for name, count in Counter(names).items() if count > 1] == [] != names
