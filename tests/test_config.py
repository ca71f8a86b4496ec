"""The configuration: defaults, every refusal as one line, overrides, and the way back to YAML."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from muki_ray.config import IntegrateConfig, load_config, parse_config, to_yaml
from muki_ray.config_method import (
    BaselineMethod,
    CflMethod,
    DfaMethod,
    MukiMethod,
    PaperMethod,
    UhcMethod,
    VanillaKdMethod,
)
from muki_ray.errors import ConfigError

MINIMAL: dict[str, Any] = {
    "teachers": [{"name": "news", "model": "org/news"}],
    "corpus": {"path": "texts/*.parquet"},
    "student": {"model": "org/base"},
    "output": "runs/one",
}
FULL: dict[str, Any] = {
    "teachers": [
        {
            "name": "news",
            "model": "s3://models/news",
            "revision": "v1",
            "labels": {"LABEL_0": "yes", "LABEL_1": "1e3", "muki": "paper"},
            "merge_labels": True,
            "resources": {"num_cpus": 0.5, "num_gpus": 0.25, "max_actors": 3},
        },
        {"name": "sport", "model": "/models/sport", "dtype": "float32", "adapter": "lora", "max_length": 64},
    ],
    "corpus": {
        "path": ["a.csv", "b.csv"],
        "format": "csv",
        "text": ["question", "answer"],
        "limit": 10,
        "test": {"path": "test.csv", "label": "topic", "compare": {"old": "org/old"}},
    },
    "student": {"model": "org/base", "max_length": 128},
    "output": "s3://runs/zw\u00f6lf",
    "method": {"integration": "hard", "tau": 1e-7, "dropout": {"layers": 2, "rate": 0.2}},
    "training": {"learning_rate": "5e-5", "patience": None, "dropout": 0.0},
    "tracking": {"enabled": False},
}


def parsed(*overrides: str, **changes: Any) -> IntegrateConfig:
    return parse_config({**copy.deepcopy(MINIMAL), **changes}, overrides)


# -- what is accepted ------------------------------------------------------------------------------------


def test_minimal_configuration_gets_the_defaults() -> None:
    config = parsed()
    method = config.method
    assert isinstance(method, MukiMethod) and method.kind == "muki"
    assert (method.samples, method.score, method.integration) == (4, "mutual_information", "soft")
    assert (method.tau, method.margin, method.temperature, method.weights) == (None, True, 1.0, "normalize")
    assert (method.dropout.masks, method.dropout.layers, method.dropout.rate) == ("per_sample", "all", 0.2)
    assert config.corpus.path == ["texts/*.parquet"]
    assert config.corpus.text == ("text",)
    assert (config.corpus.split, config.corpus.test) == ("train", None)
    assert config.teachers[0].labels is None and not config.teachers[0].allow_pickle
    assert (config.training.epochs, config.training.batch_size) == (3, 32)
    assert config.tracking.enabled


@pytest.mark.parametrize(
    ("method", "tau"),
    [({}, None), ({"cotraining": False}, 0.2), ({"cotraining": "n"}, 0.2), ({"cotraining": False, "tau": 0.5}, 0.5), ({"tau": 0.5}, 0.5),
     ({"kind": "paper"}, 0.2), ({"kind": "paper", "cotraining": True}, None)],
)  # fmt: skip
def test_scores_have_a_temperature_and_beliefs_need_none(method: Any, tau: float | None) -> None:
    found = parsed(method=method).method
    assert isinstance(found, MukiMethod)
    assert found.tau == tau


@pytest.mark.parametrize("method", ["paper", {"kind": "paper"}])
def test_paper_is_the_papers_setting(method: Any) -> None:
    config = parsed(method=method)
    assert isinstance(config.method, PaperMethod)
    assert (config.method.samples, config.method.tau, config.method.integration) == (16, 0.2, "soft")
    assert (config.method.margin, config.method.weights) == (True, "raw")
    assert (config.method.dropout.masks, config.method.dropout.rate) == ("per_element", None)


def test_paper_keeps_its_masks_when_another_part_of_dropout_is_set() -> None:
    config = parsed(method={"kind": "paper", "dropout": {"rate": 0.2}})
    assert (config.method.dropout.masks, config.method.dropout.rate) == ("per_element", 0.2)
    assert parsed(method={"kind": "paper", "dropout": {"masks": "per_sample"}}).method.dropout.masks == (
        "per_sample"
    )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("vanilla_kd", VanillaKdMethod), ("uhc", UhcMethod), ("dfa", DfaMethod), ("cfl", CflMethod)],
)
def test_baselines_have_no_samples_and_count_every_row_the_same(
    kind: str, expected: type[BaselineMethod]
) -> None:
    method = parsed(method=kind).method
    assert type(method) is expected and isinstance(method, BaselineMethod)
    assert method == parsed(method={"kind": kind}).method == expected()
    assert (method.temperature, method.samples, method.weights, method.score) == (1.0, 0, "raw", "entropy")
    assert not {"samples", "score", "margin", "dropout", "weights"} & method.model_dump().keys()
    assert parsed(method=kind, training={"num_workers": 1}).method == method


def test_settings_of_the_feature_baselines() -> None:
    assert parsed("method=dfa").method.head_learning_rate == 1e-3
    config = parsed("method=cfl", "method.width=64", "method.head_learning_rate=1e-4", "method.temperature=5")
    assert config.method == CflMethod(width=64, head_learning_rate=1e-4, temperature=5)
    assert parsed("method=dfa", "training.num_workers=2").training.num_workers == 2


def test_kind_may_be_left_out() -> None:
    config = parsed(method={"integration": "hard"})
    assert (config.method.kind, config.method.integration) == ("muki", "hard")
    assert parsed(method="muki") == parsed(method={}) == parsed()


def test_no_monte_carlo_needs_the_plain_score() -> None:
    assert parsed(method={"samples": 0, "score": "entropy"}).method.samples == 0


def test_text_may_be_a_pair() -> None:
    assert parsed(corpus={"path": "x", "text": ["a", "b"]}).corpus.text == ("a", "b")


def test_the_test_set_is_not_read_from_the_training_split() -> None:
    config = parsed(corpus={"path": "org/data", "test": {"path": "org/data"}})
    assert config.corpus.test is not None
    assert (config.corpus.split, config.corpus.test.split) == ("train", "test")


def test_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        parsed().training.epochs = 4  # type: ignore[misc]


def test_exponents_without_a_dot_are_numbers(tmp_path: Path) -> None:
    # YAML 1.1 reads 5e-5 as a string
    assert parsed("training.learning_rate=5e-5").training.learning_rate == 5e-5


def test_labels_may_be_numbers_where_they_are_text() -> None:
    assert parsed('teachers.0.labels={"0": "1", "1": "1"}').teachers[0].labels == {"0": "1", "1": "1"}
    assert parsed("teachers.0.labels.0=neg").teachers[0].labels == {"0": "neg"}
    assert parsed("teachers.0.labels=null").teachers[0].labels is None


# -- what is refused: key and value, and a message with place, value and remedy --------------------------

BAD = [
    ("epochs=3", r"^epochs is not a known setting \(value 3\); check the spelling$"),
    ("training.epoch=3", r"^training\.epoch is not a known setting \(value 3\); check the spelling$"),
    ("teachers=[]", r"^teachers: .*at least 1 item.* got \[\]$"),
    ("teachers=3", r"^teachers: .*valid list, got 3$"),
    (
        "teachers.0=org/news",
        r"^teachers\.0 must be a mapping of settings, got 'org/news'; write {name: <name>, model: org/news}$",
    ),
    (
        "corpus=d/ok.parquet",
        r"^corpus must be a mapping of settings, got 'd/ok\.parquet'; write corpus: {path: d/ok\.parquet}$",
    ),
    ("corpus='*.csv'", r"^corpus must be .*, got '\*\.csv'; write corpus: {path: '\*\.csv'}$"),
    ("corpus=s3://key:secret@b/c", r"^corpus must be .* 's3://b/c'; write corpus: {path: 's3://b/c'}$"),
    ("corpus=[a, b]", r"^corpus must be .*, got \['a', 'b'\]; write corpus: {path: <path>}$"),
    ("corpus={path: x, test: t.csv}", r"^corpus\.test must be .*; write test: {path: t\.csv}$"),
    ("student=org/base", r"^student must be .*, got 'org/base'; write student: {model: org/base}$"),
    ("student=null", r"^student must be .*, got None; write student: {model: <model>}$"),
    ("training=3", r"^training must be a mapping of settings, got 3$"),
    ("teachers=[{name: a}]", r"^teachers\.0\.model is missing; add it$"),
    ("teachers=[{name: a, model: x}, {name: a, model: y}]", r"names must differ, got 'a' more than once$"),
    ("teachers.0.name=a b", r"^teachers\.0\.name: .*'a b' must be 1-64 letters, digits"),
    ("teachers.0.name=../x", r"^teachers\.0\.name: .*'\.\./x' must be"),
    ("teachers.0.name=yes", r"^teachers\.0: name must not be true or false, got True; .*quote a word$"),
    ("teachers.0.model=' '", r"^teachers\.0\.model: is empty, got ' '; give a hub id"),
    ("teachers.0.dtype=int8", r"^teachers\.0\.dtype: Input should be 'auto'.* got 'int8'$"),
    ("teachers.0.device=tpu", r"^teachers\.0\.device: Input should be 'auto'.* got 'tpu'$"),
    ("teachers.0.max_length=0", r"^teachers\.0\.max_length: .*greater than or equal to 1, got 0$"),
    ("teachers.0.labels={LABEL_0: 3}", r"^teachers\.0\.labels\.LABEL_0: .*valid string, got 3$"),
    ("teachers.0.labels={paper: 3}", r"^teachers\.0\.labels\.paper: .*valid string, got 3$"),
    (
        "teachers.0.labels={0: neg, 1: pos}",
        r"^teachers\.0\.labels: keys are the model's own label names, as text, such as {LABEL_0: neg}; got the key 0; quote",
    ),
    (
        "teachers.0.labels={a: b, yes: no}",
        r"^teachers\.0\.labels: keys are .*; got the key True; quote it if",
    ),
    ("teachers.0.labels=[x, y]", r"^teachers\.0\.labels: .*such as {LABEL_0: neg}, got \['x', 'y'\]$"),
    ("teachers.0.labels=x", r"^teachers\.0\.labels: must be a mapping such as {LABEL_0: neg}, got 'x'$"),
    (
        "corpus.test={path: t, compare: {1: m}}",
        r"^corpus\.test\.compare: keys are names .*; got the key 1; quote",
    ),
    (
        "corpus.test={path: t, compare: m}",
        r"^corpus\.test\.compare: .*such as {old: org/old-model}, got 'm'$",
    ),
    ("teachers.0.resources={min_actors: 4, max_actors: 2}", r"max_actors \(2\) is below min_actors \(4\)$"),
    ("teachers.0.resources.num_cpus=0", r"num_cpus: .*greater than 0, got 0$"),
    ("teachers.0.resources.num_gpus=-1", r"num_gpus: .*greater than or equal to 0, got -1$"),
    ("teachers.0.resources.num_gpus=1.5", r"num_gpus must be whole above 1, got 1\.5; use 1 or 2$"),
    ("corpus={}", r"^corpus\.path is missing; add it$"),
    ("corpus.path=[]", r"^corpus\.path: .*at least 1 item.* got \[\]$"),
    ("corpus.path=''", r"^corpus\.path\.0: is empty, got ''; give files"),
    ("corpus.format=xml", r"^corpus\.format: Input should be 'auto'.* got 'xml'$"),
    ("corpus.text=[a, b, c]", r"^corpus\.text: .*at most 2 items.* got \['a', 'b', 'c'\]$"),
    ("corpus.text=[a, a]", r"named and distinct, got \['a', 'a'\]; name one, or two for pairs$"),
    ("corpus.text=''", r"named and distinct, got \[''\]; name one, or two for pairs$"),
    ("corpus.shard_rows=0", r"^corpus\.shard_rows: .*greater than or equal to 1, got 0$"),
    ("corpus.limit=0", r"^corpus\.limit: .*greater than or equal to 1, got 0$"),
    ("corpus.test={path: t, labl: x}", r"^corpus\.test\.labl is not a known setting"),
    ("student.model=''", r"^student\.model: is empty, got ''; give a hub id"),
    (
        "student.init=''",
        r"^student\.init: is empty, got ''; give base, previous, or a finished student's folder",
    ),
    ("training.start=streaming", r"^training: start: streaming .* epochs must be 1, got 3; set epochs: 1"),
    ("training={start: soon, epochs: 1}", r"^training\.start: Input should be 'after' or 'streaming'"),
    ("output=' '", r"^output: is empty, got ' '; give the folder"),
    (
        "method.dropout={masks: per_element, early_stop: 0.1}",
        r"^method\.dropout: early_stop \(0\.1\) works with masks: per_sample only",
    ),
    (
        "method.dropout.early_stop=0.02",
        r"^method: dropout\.early_stop \(0\.02\) looks .* after every 4 samples, so with samples 4 it stops none",
    ),
    (
        "teachers.0={name: a, model: m, device: cuda, resources: {num_gpus: 0}}",
        r"^teachers\.0: device: cuda and resources\.num_gpus: 0 contradict each other; leave one of them out",
    ),
    (
        "teachers.0={name: a, model: m, device: cpu, resources: {num_gpus: 0.5}}",
        r"^teachers\.0: device: cpu and resources\.num_gpus: 0\.5 contradict",
    ),
    ("method=muka", r"^method: .*'muka'.*'muki', 'paper', 'vanilla_kd', 'uhc', 'dfa', 'cfl', got"),
    (
        "method={kind: uhc, samples: 4}",
        r"^method\.samples is not a setting of method uhc \(value 4\); check the spelling and the kind$",
    ),
    ("method={kind: vanilla_kd, score: entropy}", r"^method\.score is not a setting of method vanilla_kd"),
    (
        "method={kind: uhc, head_learning_rate: 1}",
        r"^method\.head_learning_rate is not a setting of method uhc",
    ),
    ("method={kind: dfa, width: 8}", r"^method\.width is not a setting of method dfa"),
    ("method.tauu=1", r"^method\.tauu is not a setting of method muki \(value 1\)"),
    (
        "method.dropout.tau=1",
        r"^method\.dropout\.tau is not a known setting \(value 1\); check the spelling$",
    ),
    ("method={kind: cfl, width: 0}", r"^method\.width: .*greater than or equal to 1, got 0$"),
    ("method={kind: vanilla_kd, temperature: 0}", r"^method\.temperature: .*greater than 0, got 0$"),
    ("method={kind: dfa, head_learning_rate: -1}", r"^method\.head_learning_rate: .*greater than 0, got -1$"),
    ("method=3", r"^method must be a mapping of settings, got 3$"),
    (
        "method.samples=1",
        r"^method: score 'mutual_information' needs samples >= 2, got 1; use score: entropy",
    ),
    ("method.samples=2000", r"^method\.samples: .*less than or equal to 1024, got 2000$"),
    ("method.tau=0", r"^method\.tau: .*greater than 0, got 0$"),
    ("method.tau=.nan", r"^method\.tau: .*finite number, got nan$"),
    ("method.temperature=.inf", r"^method\.temperature: .*finite number, got inf$"),
    (
        "method.score=bald",
        r"^method\.score: Input should be 'entropy', 'msp', .* or 'mc_variance', got 'bald'$",
    ),
    ("method.integration=mean", r"^method\.integration: Input should be 'hard' or 'soft', got 'mean'$"),
    ("method.dropout.masks=all", r"^method\.dropout\.masks: .*'per_sample' or 'per_element', got 'all'$"),
    ("method.dropout.rate=1", r"^method\.dropout\.rate: .*less than 1, got 1$"),
    ("method.dropout.layers=0", r"^method\.dropout\.layers: must be 'all' or .*at least 1, got 0$"),
    ("method.dropout.layers=last", r"^method\.dropout\.layers: must be 'all' or .*, got 'last'$"),
    ("training.epochs=true", r"^training: epochs must not be true or false, got True; give a number"),
    ("training.epochs=many", r"^training\.epochs: .*valid integer.* got 'many'$"),
    ("training.num_workers=3", r"batch_size \(32\) must be a multiple of num_workers \(3\)$"),
    ("training.learning_rate=0", r"^training\.learning_rate: .*greater than 0, got 0$"),
    ("training.warmup=1", r"^training\.warmup: .*less than 1, got 1$"),
    ("training.validation=0", r"^training\.validation: .*greater than 0, got 0$"),
    ("training.schedule=step", r"^training\.schedule: Input should be 'linear'.* got 'step'$"),
    ("training.num_gpus=2.5", r"num_gpus must be whole above 1, got 2\.5; use 2 or 3$"),
    ("tracking.enabled=maybe", r"^tracking\.enabled: .*valid boolean.* got 'maybe'$"),
]


def test_cfl_wants_one_worker() -> None:
    with pytest.raises(
        ConfigError, match=r"method cfl .* got training\.num_workers: 2; set it to 1$"
    ) as refusal:
        parsed("method=cfl", "training.num_workers=2")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("setting", "match"), BAD, ids=[setting for setting, _ in BAD])
def test_bad_settings_are_refused_in_one_line(setting: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match) as refusal:
        parsed(setting)
    assert "\n" not in str(refusal.value)
    assert refusal.value.exit_code == 2


@pytest.mark.parametrize(
    ("content", "received"),
    [(None, "nothing"), ([1], "list"), ("text", "str")],
    ids=["empty", "list", "text"],
)
def test_a_configuration_is_a_mapping(content: Any, received: str) -> None:
    with pytest.raises(ConfigError, match=f"must be a mapping with teachers.*; got {received}$"):
        parse_config(content, ["training.epochs=1"])


@pytest.mark.parametrize("key", MINIMAL)
def test_each_required_part_is_named_when_missing(key: str) -> None:
    content = {name: value for name, value in MINIMAL.items() if name != key}
    with pytest.raises(ConfigError, match=f"^{key} is missing; add it$"):
        parse_config(content)


def test_further_problems_are_counted() -> None:
    with pytest.raises(ConfigError, match=r"^teachers is missing; add it \(and 3 more problems\)$"):
        parse_config({})
    with pytest.raises(ConfigError, match=r"got 0 \(and 1 more problem\)$"):
        parsed("training.epochs=0", "training.batch_size=0")


def test_long_values_are_cut_in_messages() -> None:
    with pytest.raises(ConfigError, match=r"\.\.\.\); check the spelling$") as refusal:
        parsed(extra={"x": "y" * 10_000})
    assert len(str(refusal.value)) < 200


# -- overrides -------------------------------------------------------------------------------------------


def test_overrides_reach_mappings_lists_and_absent_parts() -> None:
    content = copy.deepcopy(FULL)
    config = parse_config(
        content,
        [
            "teachers.1.dtype=bfloat16",
            "training.epochs=7",
            "tracking.experiment=a=b",
            "corpus.text=[q]",
            "method.dropout.layers=all",
            "teachers.1.resources.threads=2",
        ],
    )
    assert [teacher.dtype for teacher in config.teachers] == ["auto", "bfloat16"]
    assert config.training.epochs == 7
    assert config.tracking.experiment == "a=b"
    assert config.corpus.text == ("q",)
    assert config.method.dropout.layers == "all"
    assert config.teachers[1].resources.threads == 2
    assert content == FULL, "the content given must not change"


def test_the_last_override_wins() -> None:
    assert parsed("training.epochs=1", "training.epochs=2").training.epochs == 2


def test_method_can_be_overridden_as_a_word_and_then_in_part() -> None:
    assert parsed("method=paper").method == PaperMethod()
    config = parsed("method=paper", "method.samples=4", "method.dropout.seed=1")
    assert isinstance(config.method, PaperMethod)
    assert (config.method.samples, config.method.dropout.seed, config.method.weights) == (4, 1, "raw")
    assert (config.method.dropout.masks, config.method.dropout.rate) == ("per_element", None)
    assert parse_config({**MINIMAL, "method": "paper"}, ["method.samples=4"]).method.kind == "paper"
    assert parsed("method.samples=4").method == MukiMethod(samples=4)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("training.epochs", r"'training\.epochs' is not of the form dotted\.key=value; write it like"),
        ("=3", r"'=3' is not of the form"),
        ("training..epochs=3", r"'training\.\.epochs=3' is not of the form"),
        ("training.epochs=[1", r"value of override 'training\.epochs=\[1' is not valid YAML"),
        ("teachers.1.name=b", r"'1' is not an index into a list of 1; count from 0$"),
        ("teachers.-1.name=b", r"'-1' is not an index"),
        ("teachers.\u00b2.name=b", r"'\u00b2' is not an index"),
        ("teachers.news.name=b", r"'news' is not an index"),
        ("output.x=1", r"'x' lies inside a value that is not a mapping \('runs/one'\); set that value"),
        ("student={model: a, model: b}", r"key 'model' is given twice"),
    ],
)
def test_bad_overrides_are_refused_in_one_line(text: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match) as refusal:
        parsed(text)
    assert "\n" not in str(refusal.value)


# -- files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [MINIMAL, FULL, {**MINIMAL, "method": "paper"}, {**MINIMAL, "method": {"kind": "cfl", "width": 8}}],
    ids=["min", "full", "paper", "cfl"],
)
def test_the_resolved_configuration_reads_back_as_itself(content: dict[str, Any], tmp_path: Path) -> None:
    config = parse_config(content)
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    again = load_config(str(path))
    assert again == config
    assert type(again.method) is type(config.method)
    assert to_yaml(again) == to_yaml(config)


def test_the_resolved_configuration_spells_out_every_default() -> None:
    text = to_yaml(parsed())
    for line in ("samples: 4", "masks: per_sample", "learning_rate: 5.0e-05", "shard_rows: 2048"):
        assert line in text


def test_a_file_is_read_with_overrides(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "teachers:\n- {name: a, model: m}\ncorpus: {path: x}\nstudent: {model: b}\noutput: o\n",
        encoding="utf-8",
    )
    assert load_config(str(path), ["output=p"]).output == "p"


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no configuration file at '.*none\.yaml'; give the path"):
        load_config(str(tmp_path / "none.yaml"))


def test_folder_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read configuration"):
        load_config(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"teachers: [\n  - a", r"is not valid YAML: .*line 2"),
        (b"a: !!python/object/apply:os.getcwd []", r"is not valid YAML: .*could not determine a constructor"),
        (b"output: a\noutput: b\n", r"is not valid YAML: .*'output' is given twice; keep one.*line 2"),
        (b"teachers:\n- {name: a, name: b}\n", r"'name' is given twice"),
        (b"output: \xff\xfe", r"cannot read configuration .*utf-8"),
        (b"", r"got nothing$"),
    ],
    ids=["syntax", "object", "key twice", "nested key twice", "not UTF-8", "empty"],
)
def test_files_that_are_no_configuration(content: bytes, match: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=match) as refusal:
        load_config(str(path))
    assert "\n" not in str(refusal.value)


def test_yaml_anchors_and_merge_keys_still_work(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "teachers:\n- &t {name: a, model: m, dtype: float32}\n- {<<: *t, name: b}\n"
        "corpus: {path: x}\nstudent: {model: b}\noutput: o\n",
        encoding="utf-8",
    )
    assert [(t.name, t.dtype) for t in load_config(str(path)).teachers] == [
        ("a", "float32"),
        ("b", "float32"),
    ]


def test_the_resolved_configuration_holds_no_credentials() -> None:
    content = {
        "teachers": [{"name": "one", "model": "s3://key:hush@bucket/one"}],
        "corpus": {"path": ["s3://key:hush@bucket/a.parquet", "b.parquet"]},
        "student": {"model": "base"},
        "output": "s3://bucket/run",
    }
    text = to_yaml(parse_config(content))
    assert "hush" not in text
    assert yaml.safe_load(text)["corpus"]["path"] == ["s3://bucket/a.parquet", "b.parquet"]
