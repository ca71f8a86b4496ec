"""The command line as a user meets it: exit codes and one-line errors, each for a kind of bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from muki_ray.cli import main
from tests import tiny


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good teachers and a base model."""
    root = tmp_path_factory.mktemp("models")
    tiny.classifier(root / "one", ["business", "tech"], seed=1)
    tiny.classifier(root / "two", ["film", "politics", "sport"], "distilbert", seed=2)
    tiny.base(root / "base", seed=3)
    return root


@pytest.fixture
def good(models: Path, tmp_path: Path) -> dict[str, Any]:
    """A configuration that would run."""
    pq.write_table(pa.table({"text": tiny.texts(20), "label": ["tech"] * 20}), tmp_path / "corpus.parquet")
    return {
        "teachers": [
            {"name": "one", "model": str(models / "one")},
            {"name": "two", "model": str(models / "two")},
        ],
        "corpus": {"path": str(tmp_path / "corpus.parquet"), "text": "text"},
        "student": {"model": str(models / "base")},
        "output": str(tmp_path / "run"),
    }


def edited(folder: Path, target: Path, name: str, change: Callable[[dict[str, Any]], None]) -> str:
    """A copy of a model folder with one JSON file changed."""
    import shutil

    shutil.copytree(folder, target)
    content = json.loads((target / name).read_text())
    change(content)
    (target / name).write_text(json.dumps(content))
    return str(target)


Spoil = Callable[[dict[str, Any], Path], None]


def put(dotted: str, value: Any) -> Spoil:
    """Set one value of the configuration; `...` removes it."""

    def spoil(config: dict[str, Any], _: Path) -> None:
        *path, last = dotted.split(".")
        node: Any = config
        for key in path:
            node = node[int(key)] if key.isdigit() else node.setdefault(key, {})
        if value is ...:
            del node[last]
        else:
            node[last] = value

    return spoil


def spoiled_model(name: str, change: Callable[[dict[str, Any]], None], file: str = "config.json") -> Spoil:
    def spoil(config: dict[str, Any], tmp: Path) -> None:
        config["teachers"][0]["model"] = edited(
            Path(config["teachers"][0]["model"]), tmp / name, file, change
        )

    return spoil


def without(*files: str) -> Spoil:
    """The first teacher's folder with files missing."""

    def spoil(config: dict[str, Any], tmp: Path) -> None:
        config["teachers"][0]["model"] = edited(
            Path(config["teachers"][0]["model"]), tmp / "less", "config.json", lambda c: None
        )
        for file in files:
            (tmp / "less" / file).unlink()

    return spoil


def pickled(config: dict[str, Any], tmp: Path) -> None:
    without("model.safetensors")(config, tmp)
    (tmp / "less" / "pytorch_model.bin").write_bytes(b"x")


def truncated(config: dict[str, Any], tmp: Path) -> None:
    without()(config, tmp)
    path = tmp / "less" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def nan_weights(config: dict[str, Any], tmp: Path) -> None:
    without()(config, tmp)
    tensors = load_file(tmp / "less" / "model.safetensors")
    tensors["classifier.weight"] = np.full_like(tensors["classifier.weight"], np.nan)
    save_file(tensors, tmp / "less" / "model.safetensors", {"format": "pt"})


def base_as_teacher(config: dict[str, Any], _: Path) -> None:
    config["teachers"][0]["model"] = config["student"]["model"]
    config["teachers"][0]["labels"] = {"LABEL_0": "a", "LABEL_1": "b"}


def compared(make: Callable[[dict[str, Any], Path], Any]) -> Spoil:
    """A test set, and something to compare with."""

    def spoil(config: dict[str, Any], tmp: Path) -> None:
        config["corpus"]["test"] = {"path": "TEST", "compare": {"ub": str(make(config, tmp))}}

    return spoil


def rival(change: Callable[[dict[str, Any]], None]) -> Spoil:
    """Compare with a teacher whose config.json is changed."""
    return compared(lambda c, tmp: edited(Path(c["teachers"][0]["model"]), tmp / "ub", "config.json", change))


def pickled_rival(config: dict[str, Any], tmp: Path) -> Path:
    tiny.classifier(tmp / "ub", ["business", "tech"])
    (tmp / "ub" / "model.safetensors").rename(tmp / "ub" / "pytorch_model.bin")
    return tmp / "ub"


def corpus_file(name: str, content: bytes) -> Spoil:
    def spoil(config: dict[str, Any], tmp: Path) -> None:
        (tmp / name).write_bytes(content)
        config["corpus"]["path"] = str(tmp / name)

    return spoil


def numbers_as_text(config: dict[str, Any], tmp: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2, 3]}), tmp / "numbers.parquet")
    config["corpus"]["path"] = str(tmp / "numbers.parquet")


def rates(**values: float) -> Callable[[dict[str, Any]], None]:
    return lambda c: c.update(values)


BAD: list[tuple[str, Spoil, str]] = [
    # the configuration itself
    ("no teachers", put("teachers", []), "teachers"),
    ("teachers missing", put("teachers", ...), "teachers is missing"),
    ("student missing", put("student", ...), "student is missing"),
    ("output missing", put("output", ...), "output is missing"),
    ("misspelt setting", put("method.tauu", 0.2), "tauu"),
    ("tau of zero", put("method.tau", 0), "tau"),
    ("one sample for mc_entropy", put("method.samples", 1), "samples"),
    ("unknown method", put("method", "mukki"), "method"),
    ("unknown score", put("method.score", "luck"), "score"),
    ("teachers of one name", put("teachers.1.name", "one"), "more than once"),
    ("teacher name with a slash", put("teachers.0.name", "a/b"), "a/b"),
    ("dropout rate of 1", put("method.dropout", {"rate": 1.0}), "rate"),
    ("batch not divisible by workers", put("training", {"num_workers": 5}), "num_workers"),
    ("compare name that is taken", put("corpus.test", {"path": "x.parquet", "compare": {"student": "x"}}), "student"),
    ("compare name that the run's metrics have", put("corpus.test", {"path": "x.parquet", "compare": {"rows": "x"}}), "'rows' cannot be"),
    ("pair in the corpus, one text in the test", put("corpus.test", {"path": "x.parquet", "text": ["a", "b"]}), "pair"),
    # teachers
    ("teacher folder that is not there", put("teachers.0.model", "/nowhere/model"), "/nowhere/model"),
    ("hub id that cannot be had", put("teachers.0.model", "nobody/nothing"), "nobody/nothing"),
    ("unnamed labels", spoiled_model("m", lambda c: c.update(id2label={"0": "LABEL_0", "1": "LABEL_1"})), "LABEL_0"),
    ("multi-label head", spoiled_model("m", lambda c: c.update(problem_type="multi_label_classification")), "multi-label"),
    ("regression head", spoiled_model("m", lambda c: c.update(problem_type="regression")), "regression"),
    ("more labels than the head", spoiled_model("m", lambda c: c.update(id2label={"0": "a", "1": "b", "2": "c"})), "shape"),
    ("model type unknown", spoiled_model("m", lambda c: c.update(model_type="nonesuch")), "config.json"),
    ("config.json missing", without("config.json"), "config.json"),
    ("weights missing", without("model.safetensors"), "safetensors"),
    ("pickled weights", pickled, "allow_pickle"),
    ("truncated weights", truncated, "model.safetensors"),
    ("tokenizer missing", without("tokenizer.json", "tokenizer_config.json"), "tokenizer"),
    ("base model as teacher", base_as_teacher, "head"),
    ("rename of a label it has not", put("teachers.0.labels", {"sports": "sport"}), "sports"),
    ("two labels made one", put("teachers.1.labels", {"film": "sport"}), "merge_labels"),
    ("max_length beyond its positions", put("teachers.0.max_length", 4096), "4096"),
    ("adapter that is not there", put("teachers.0.adapter", "/nowhere/adapter"), "/nowhere/adapter"),
    # what to compare with
    ("compare with what is not there", compared(lambda *_: "m/nope"), "corpus.test.compare.ub: 'm/nope'"),
    ("compare with a base model", compared(lambda c, _: c["student"]["model"]), "corpus.test.compare.ub: its classification head"),
    ("compare with pickled weights", compared(pickled_rival), "convert them to safetensors"),
    ("compare with other labels", compared(lambda _, tmp: tiny.classifier(tmp / "ub", ["x", "y"])),
     "corpus.test.compare.ub knows none of the labels (business, film, politics, sport, tech), but x, y"),
    ("compare with a multi-label head", rival(lambda c: c.update(problem_type="multi_label_classification")),
     "corpus.test.compare.ub is a multi-label"),
    ("compare with gaps in id2label", rival(lambda c: c.update(id2label={"0": "tech", "2": "film"})),
     "corpus.test.compare.ub: id2label has positions [0, 2]"),
    # student
    ("student folder that is not there", put("student.model", "/nowhere/base"), "/nowhere/base"),
    ("student max_length", put("student.max_length", 9999), "9999"),
    # corpus
    ("corpus that is not there", put("corpus.path", "/nowhere/c.parquet"), "/nowhere/c.parquet"),
    ("glob without files", put("corpus.path", "/nowhere/*.parquet"), "/nowhere/"),
    ("column that is not there", put("corpus.text", "body"), "body"),
    ("text column of numbers", numbers_as_text, "int64"),
    ("suffix unknown", corpus_file("c.docx", b"x"), "c.docx"),
    ("corrupt parquet", corpus_file("c.parquet", b"PAR1 no"), "c.parquet"),
    ("corrupt gzip", corpus_file("c.txt.gz", b"\x1f\x8bgarbage"), "c.txt.gz"),
    ("empty corpus", corpus_file("c.txt", b""), "c.txt"),
    ("only blank lines", corpus_file("c.txt", b"\n \n\n"), "row"),
    ("test labels nobody knows", put("corpus.test", {"path": "TEST", "label": "text"}), "label"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "spoil", "says"), BAD, ids=[kind for kind, *_ in BAD])
def test_bad_input_is_one_line_and_exit_code_2(
    kind: str,
    spoil: Spoil,
    says: str,
    good: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(good, tmp_path)
    test = good["corpus"].get("test")
    if test and test["path"] == "TEST":
        test["path"] = good["corpus"]["path"]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(good))
    assert main(["integrate", str(path)]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, captured.err
    assert captured.err.splitlines()[-1] == lines[0]
    assert says in lines[0]
    assert "Traceback" not in captured.err + captured.out
    output = Path(good["output"]) if "output" in good else tmp_path / "run"
    # nothing that looks finished, nothing a later run would trust
    left = [p for p in output.rglob("*") if p.is_file()] if output.exists() else []
    assert not [p for p in left if not p.is_relative_to(output / "corpus")]


def test_no_such_configuration_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["integrate", "/nowhere/config.yaml"]) == 2
    assert "/nowhere/config.yaml" in capsys.readouterr().err


def test_relative_output_inside_a_ray_job(
    good: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(good))
    assert main(["integrate", str(path), "output=runs/x"]) == 2
    assert "absolute" in capsys.readouterr().err


def test_evaluate_before_integrate(
    good: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good["corpus"]["test"] = {"path": good["corpus"]["path"]}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(good))
    assert main(["evaluate", str(path)]) == 2
    assert "no finished student" in capsys.readouterr().err


def test_an_address_that_is_no_clusters(
    good: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("muki_ray.runtime.ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(good))
    assert main(["plan", str(path)]) == 2
    captured = capsys.readouterr().err
    assert "error: RAY_ADDRESS='http://127.0.0.1:8265' is an address of the jobs API" in captured
    assert "Traceback" not in captured
