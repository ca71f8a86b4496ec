"""Assessment: everything a run says about itself at the end, from the stored evidence and the student.

Glue between the store, the evaluation and the report. Knows Ray only to run a classifier where the resources
are.

Shapes: N rows, M teachers, C union labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from muki_ray.config_method import AnyMethod, BaselineMethod, DropoutConfig
from muki_ray.corpus import Corpus
from muki_ray.errors import ConfigError, CorpusError, TeacherError
from muki_ray.evaluation import confusion_matrix, evaluate_run, owners, predictions, top_confusions
from muki_ray.integration import scatter, teacher_weights
from muki_ray.labels import LabelSpace
from muki_ray.learned import Learned, Rows
from muki_ray.pipeline import ScoringTask
from muki_ray.report import Example
from muki_ray.runtime import Cluster, ray, user_error
from muki_ray.uncertainty import softmax

_EXAMPLES = 3
# longer lists of labels are cut, and labels too: a wrong column may hold whole texts
_MOST_LABELS, _LABEL_WIDTH = 5, 40


@dataclass(frozen=True)
class Classifier:
    """A classifier to evaluate: where it lies and how long its inputs may be (None: its own limit).

    Attributes:
        setting: what names it in the configuration, for messages.
    """

    name: str
    location: str
    max_length: int | None = None
    setting: str | None = None


@dataclass(frozen=True)
class Assessment:
    """What the test set says: `metrics` as `evaluate_run` gives them, and what the pictures need.

    `shown_NM` are the scores, or the teachers' weights where the scores have no bounds.
    """

    metrics: dict[str, Any]
    confusion_CC: NDArray[np.int64]
    confusions: list[dict[str, Any]]
    shown_NM: NDArray[np.float64]
    owner_N: NDArray[np.int64]
    examples: list[Example]


def read_texts(corpus: Corpus, columns: Sequence[str]) -> dict[str, list[Any]]:
    """Whole columns of a small corpus (a test set), in row order."""
    tables = [corpus.read(shard) for shard in range(len(corpus.rows_per_part))]
    return {name: [v for table in tables for v in table[name].to_pylist()] for name in columns}


def check_test_labels(test: Corpus, space: LabelSpace) -> str:
    """Refuse a test set that shares no label with the teachers, before anything is scored.

    Returns:
        a line about the rows whose label no teacher knows; empty where there are none.

    Raises:
        CorpusError: with labels of both sides, so that the mismatch can be seen.
    """
    counts, known = Counter(read_texts(test, ["label"])["label"]), set(space.names)
    unknown = {label: rows for label, rows in counts.items() if label not in known}
    if len(unknown) == len(counts):
        raise CorpusError(
            f"no label of the test set ({_few(sorted(unknown))}) is one that a teacher knows "
            f"({_few(space.names)}); check test.label and the teachers' labels maps"
        )
    if not unknown:
        return ""
    frequent = sorted(unknown, key=lambda label: (-unknown[label], label))
    return (
        f"{sum(unknown.values()):,} of {counts.total():,} rows have a label that no teacher knows ({_few(frequent)}) "
        "and will count as wrong; check test.label and the teachers' labels maps"
    )


def _few(labels: Sequence[str]) -> str:
    lines = (" ".join(label.split()) for label in labels[:_MOST_LABELS])
    shown = [one if len(one) <= _LABEL_WIDTH else one[: _LABEL_WIDTH - 3] + "..." for one in lines]
    return ", ".join([*shown, "..."] if len(labels) > _MOST_LABELS else shown)


def shared_labels(own: Sequence[str], labels: Sequence[str], what: str) -> list[int]:
    """Places in `own` of what is among `labels` too; `what` is how a message calls the classifier.

    Raises:
        ConfigError: there are none.
    """
    known = set(labels)
    shared = [i for i, name in enumerate(own) if name in known]
    if not shared:
        raise ConfigError(
            f"{what} knows none of the labels ({_few(labels)}), but {_few(own)}; name another classifier, or mend its id2label"
        )
    return shared


def predict(
    classifier: Classifier, texts: list[str], pairs: list[str] | None, labels: Sequence[str], threads: int,
    gpu: bool = True,
) -> NDArray[np.float64]:  # fmt: skip
    """Probabilities of any classifier over `labels`, matched by name: `[N, C]`; mass on other labels is lost.

    Args:
        gpu: whether a GPU may be used, if there is one. A task that asked Ray for none has to say no: it sees them all.

    Raises:
        ConfigError: it shares no label with `labels`.
    """
    import torch

    from muki_ray.teachers.loading import load_classifier
    from muki_ray.teachers.scoring import Scorer

    torch.set_num_threads(threads)
    device = "cuda" if gpu and torch.cuda.is_available() else "cpu"
    what = classifier.setting or f"classifier {classifier.name!r}"
    loaded = load_classifier(
        classifier.name, classifier.location, max_length=classifier.max_length, dtype="auto", device=device,
        what=what,
    )  # fmt: skip
    scorer = Scorer(loaded, samples=0, dropout=DropoutConfig(), seed_key="")
    own = [loaded.model.config.id2label[i] for i in range(loaded.num_labels)]
    places = {name: i for i, name in enumerate(labels)}
    known = shared_labels(own, labels, what)
    probs = softmax(scorer.score(texts, pairs).logits)[:, known]
    return scatter(probs, np.array([places[own[i]] for i in known]), len(labels))


def predict_where(
    cluster: Cluster, classifiers: Sequence[Classifier], texts: list[str], pairs: list[str] | None,
    labels: Sequence[str], num_cpus: float, num_gpus: float,
) -> dict[str, NDArray[np.float64]]:  # fmt: skip
    """`predict` for each classifier with the resources of a training worker: by name, `[N, C]`.

    In this process where the cluster is this machine: a new process only takes seconds to start.
    """
    where = predict_here if cluster.is_here(num_gpus) else predict_on_cluster
    return where(classifiers, texts, pairs, labels, num_cpus, num_gpus)


def predict_on_cluster(
    classifiers: Sequence[Classifier], texts: list[str], pairs: list[str] | None, labels: Sequence[str],
    num_cpus: float, num_gpus: float,
) -> dict[str, NDArray[np.float64]]:  # fmt: skip
    """`predict_where`, as Ray tasks."""
    task = ray.remote(predict).options(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=2)
    sent, threads = ray.put(texts), max(1, int(num_cpus))
    try:
        results = ray.get(
            [task.remote(c, sent, pairs, list(labels), threads, num_gpus > 0) for c in classifiers]
        )
    except ray.exceptions.RayError as error:
        known = user_error(error)
        raise (known or error) from None
    return {c.name: probs for c, probs in zip(classifiers, results, strict=True)}


def predict_here(
    classifiers: Sequence[Classifier], texts: list[str], pairs: list[str] | None, labels: Sequence[str],
    num_cpus: float, num_gpus: float,
) -> dict[str, NDArray[np.float64]]:  # fmt: skip
    """`predict_where`, in this process."""
    import torch

    before = torch.get_num_threads()
    try:
        threads = max(1, int(num_cpus))
        return {c.name: predict(c, texts, pairs, labels, threads, num_gpus > 0) for c in classifiers}
    finally:
        torch.set_num_threads(before)


def assess(
    tasks: Sequence[ScoringTask],
    space: LabelSpace,
    method: AnyMethod,
    probs: Mapping[str, NDArray[np.float64]],
    learned: Learned | None = None,
) -> Assessment:
    """Metrics on the test set (the tasks' second corpus).

    Args:
        learned: from the corpus; None compares the scores as they are.
        probs: name -> `[N, C]` of the classifiers to evaluate; `student` is the student.

    Rows on which a teacher gave no finite answer are left out of every figure, and counted.
    """
    test = tasks[0].corpora[1]
    shards = [test.read(shard) for shard in range(len(test.rows_per_part))]
    evidence = [[task.read(1, s, t["row_id"].to_numpy()) for s, t in enumerate(shards)] for task in tasks]
    answered = [np.all([one[s].finite() for one in evidence], axis=0) for s in range(len(shards))]
    good = np.concatenate(answered)
    if not good.any():
        raise TeacherError("no row of the test set has a finite answer from every teacher")
    parts = [[one[s].take(answered[s]) for s in range(len(shards))] for one in evidence]
    logits = [np.concatenate([p.logits for p in one]) for one in parts]
    learned = learned or Learned()
    rows = [Rows([one[s] for one in parts], t.filter(pa.array(answered[s]))) for s, t in enumerate(shards)]
    scores_NM = np.concatenate([learned(method.score, some) for some in rows])
    columns = read_texts(test, ["text", "label"])
    truth = np.array([space.label2id.get(label, -1) for label in columns["label"]], dtype=np.int64)[good]
    kept = {name: p[good] for name, p in probs.items()}
    compare = {name: p for name, p in kept.items() if name != "student"}
    metrics = evaluate_run(
        space=space,
        truth_N=truth,
        logits=logits,
        scores_NM=scores_NM,
        student_probs_NC=kept["student"],
        compare=compare,
    )
    metrics["rows_unanswered"] = int((~good).sum())
    matrix = confusion_matrix(kept["student"], truth)
    texts = [text for text, keep in zip(columns["text"], good, strict=True) if keep]
    gold = [label for label, keep in zip(columns["label"], good, strict=True) if keep]
    return Assessment(
        metrics,
        matrix,
        top_confusions(matrix, space.names),
        scores_NM
        if isinstance(method, BaselineMethod) or method.bounded
        else teacher_weights(scores_NM, "soft", method.tau),
        owners(space, truth),
        _examples(kept["student"], texts, gold, scores_NM, space),
    )


def _examples(
    probs_NC: NDArray[np.float64],
    texts: list[str],
    gold: list[str],
    scores_NM: NDArray[np.float64],
    space: LabelSpace,
) -> list[Example]:
    """A few rows spread evenly over the test set."""
    chosen = np.unique(np.linspace(0, len(texts) - 1, min(_EXAMPLES + 2, len(texts))).astype(int))[1:-1]
    chosen = chosen if len(chosen) else np.array([0])
    said = predictions(probs_NC)
    return [
        Example(
            text=texts[i],
            predicted=space.names[int(said[i])],
            confidence=float(probs_NC[i].max()),
            gold=gold[i],
            teacher=space.teachers[int(scores_NM[i].argmax())],
        )
        for i in chosen
    ]
