from pathlib import Path

import numpy as np
from quality_cache import arrays, code, digest


def test_arrays_are_made_once_per_content(tmp_path: Path) -> None:
    made = []

    def make() -> dict[str, np.ndarray]:
        made.append(1)
        return {"a": np.arange(3) + len(made)}

    assert [arrays(tmp_path, ["x"], make)["a"].tolist() for _ in range(2)] == [[1, 2, 3], [1, 2, 3]]
    assert arrays(tmp_path, ["y"], make)["a"].tolist() == [2, 3, 4]
    assert len(list(tmp_path.iterdir())) == 2  # nothing half written is left


def test_a_digest_tells_where_one_part_ends() -> None:
    assert digest(["ab", "c"]) != digest(["a", "bc"])
    assert digest([np.array([1, 2])]) == digest([np.array([1, 2])]) != digest([np.array([2, 1])])


def test_the_code_of_a_folder_has_a_digest(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.py").write_text("pass\n")
    assert code(tmp_path / "one") == code(tmp_path / "two")
    (tmp_path / "two" / "b.py").write_text("pass\n")
    code.cache_clear()
    assert code(tmp_path / "one") != code(tmp_path / "two")
