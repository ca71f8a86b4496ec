"""Objectives: which goes with which method, what each makes of a batch, and that training lowers it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from muki_ray.baselines.targets import blocks, uhc_targets
from muki_ray.config import TeacherConfig, TrainingConfig
from muki_ray.config_method import CflMethod, DfaMethod, MukiMethod, UhcMethod, VanillaKdMethod
from muki_ray.errors import TeacherError
from muki_ray.labels import TeacherLabels, join
from muki_ray.runtime import listening
from muki_ray.student.loop import STATE_FILE, TrainingJob, run
from muki_ray.student.losses import kl_rows, weighted_kl
from muki_ray.student.objectives import BlockKl, FeatureKd, FeatureLoss, WeightedKl, objective_of
from muki_ray.student.train import train_student, training_name
from muki_ray.teachers.loading import inspect
from muki_ray.teachers.spec import TeacherSpec
from tests import tiny
from tests.student import toy
from tests.student.test_loop import CPU, Resumable, close, recorder, trainer

SPACE = join([TeacherLabels("one", ("b", "a")), TeacherLabels("two", ("c", "a"))])
FEATURES = [DfaMethod(), CflMethod()]


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> tuple[TeacherSpec, ...]:
    """Two teachers of two architectures, depths and widths."""
    root = tmp_path_factory.mktemp("teachers")
    tiny.classifier(root / "one", ["business", "sport"], "bert")
    tiny.classifier(root / "two", ["film", "sport"], "distilbert", seed=1, dim=24)
    return tuple(
        inspect(TeacherConfig(name=name, model=str(root / name), dtype="float32")) for name in ("one", "two")
    )


def job(tmp_path: Path, objective: Any, rows: int = 96, **settings: Any) -> TrainingJob:
    return replace(toy.job(tmp_path, rows, **settings), objective=objective)


# -- which objective -------------------------------------------------------------------------------------


def test_the_objective_that_goes_with_each_method(specs: Any) -> None:
    assert objective_of(MukiMethod(temperature=3), SPACE, specs) == WeightedKl(1.0), (
        "muki's temperature is that of its targets"
    )
    assert objective_of(VanillaKdMethod(temperature=3), SPACE, specs) == WeightedKl(3.0)
    assert objective_of(UhcMethod(temperature=2), SPACE, specs) == BlockKl(((1, 0), (2, 0)), 2.0)
    for method in FEATURES:
        assert objective_of(method, SPACE, specs) == FeatureKd(method, specs)


def test_jobs_have_the_plain_objective(tmp_path: Path) -> None:
    assert toy.job(tmp_path, 12).objective == WeightedKl()


def test_objectives_travel_light_and_name_their_training(specs: Any, tmp_path: Path) -> None:
    base = toy.job(tmp_path, 12)
    objectives = [
        WeightedKl(),
        WeightedKl(2.0),
        BlockKl(((0, 1),)),
        BlockKl(((1, 0),)),
        FeatureKd(DfaMethod(), specs),
        FeatureKd(DfaMethod(head_learning_rate=1e-2), specs),
        FeatureKd(DfaMethod(), specs[:1]),
        FeatureKd(CflMethod(), specs),
        FeatureKd(CflMethod(width=3), specs),
        FeatureKd(CflMethod(), (specs[0], replace(specs[1], content="0"))),
    ]
    names = set()
    for objective in objectives:
        packed = pickle.dumps(objective)
        assert len(packed) < 10_000
        assert pickle.loads(packed) == objective
        assert json.loads(json.dumps(objective.content))["kind"]
        names.add(training_name(replace(base, objective=objective), "abc"))
    assert len(names) == len(objectives)


# -- what it makes of a batch ----------------------------------------------------------------------------


def loss_of(objective: Any, tmp_path: Path, **settings: Any) -> Any:
    return trainer(job(tmp_path, objective, 24, **settings), recorder(tmp_path)).loss


def test_weighted_kl_at_a_temperature(tmp_path: Path) -> None:
    loss = loss_of(WeightedKl(2.0), tmp_path)
    logits, targets = torch.randn(3, 2), torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.2, 0.8]])
    weights = torch.tensor([1.0, 0.0, 2.0])
    expected = 4 * weights @ kl_rows(logits / 2, targets)
    torch.testing.assert_close(loss.total(logits, targets, weights), expected)
    assert loss.groups() == [] and loss.network is None
    plain = loss_of(WeightedKl(), tmp_path / "plain")
    assert torch.equal(plain.total(logits, targets, weights), weighted_kl(logits, targets, weights))


def test_blocks_are_compared_with_their_own_columns(tmp_path: Path) -> None:
    loss = loss_of(BlockKl(((1, 0), (2, 0))), tmp_path)
    logits = torch.tensor([[1.0, 2.0, 5.0]]).log()
    # within (b, a): 2/3, 1/3; within (c, a): 5/6, 1/6
    agreed = torch.tensor([[2 / 3, 1 / 3, 5 / 6, 1 / 6]])
    assert float(loss.total(logits, agreed, torch.ones(1))) == pytest.approx(0, abs=1e-6)
    swapped = torch.tensor([[1 / 3, 2 / 3, 5 / 6, 1 / 6]])
    expected = 1 / 3 * np.log(2)  # 1/3 log(1/2) + 2/3 log 2
    assert float(loss.total(logits, swapped, torch.ones(1))) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", FEATURES, ids=lambda m: m.kind)
def test_every_micro_batch_has_its_teachers_tokens(method: Any, specs: Any, tmp_path: Path) -> None:
    one = trainer(job(tmp_path, FeatureKd(method, specs), 24, micro_batch_size=3), recorder(tmp_path))
    batch = one.loss.prepare(next(one.job.supervision.train(0, 8, 0)))
    micro = one._tokenized(batch)
    assert [len(parts[1]) for parts in micro] == [3, 3, 2]
    assert [len(tokens["input_ids"]) for per in batch.beside for tokens in per.tokens] == [3, 3, 3, 3, 2, 2]
    more = one.loss.more(batch, 2, torch.ones(2))
    widths = [[layer.shape for layer in layers] for layers in more["features"]]
    if method.kind == "dfa":
        assert widths == [[(2, 16)] * 3, [(2, 24)] * 2]
    else:  # which asks for the last layers alone
        assert widths == [[(0,), (0,), (2, 16)], [(0,), (2, 24)]]
    # the second teacher's tokens of the last micro-batch are those of its texts
    again = one.loss.reader.teachers[1].tokenize(batch.texts[6:], None)
    assert torch.equal(batch.beside[2].tokens[1]["input_ids"], again["input_ids"])


@pytest.mark.parametrize("method", FEATURES, ids=lambda m: m.kind)
def test_teachers_read_a_row_in_the_first_epoch_alone(method: Any, specs: Any, tmp_path: Path) -> None:
    one = trainer(job(tmp_path, FeatureKd(method, specs), 24), recorder(tmp_path))
    read = [0, 0]
    for m, teacher in enumerate(one.loss.reader.teachers):
        teacher.model.register_forward_hook(lambda *_, m=m: read.__setitem__(m, read[m] + 1))
    seen: list[dict[str, list[list[torch.Tensor]]]] = []
    for epoch in range(2):
        seen.append({})
        for batch in one.job.supervision.train(epoch, 8, 0):
            prepared = one.loss.prepare(batch)
            features = one.loss.more(prepared, 0, torch.ones(len(batch.texts)))["features"]
            for i, text in enumerate(batch.texts):
                seen[-1][text] = [[layer[i] for layer in layers if len(layer)] for layers in features]
        if epoch == 0:
            first = list(read)
    assert read == first and min(first) > 0
    assert seen[0].keys() == seen[1].keys()
    for text, before in seen[0].items():
        torch.testing.assert_close(before, seen[1][text], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", FEATURES, ids=lambda m: m.kind)
def test_a_step_trains_student_and_heads_and_leaves_the_teachers(
    method: Any, specs: Any, tmp_path: Path
) -> None:
    one = trainer(job(tmp_path, FeatureKd(method, specs), 24), recorder(tmp_path))
    assert isinstance(one.loss, FeatureLoss)
    teachers = [{n: p.clone() for n, p in t.model.named_parameters()} for t in one.loss.reader.teachers]
    before = {n: p.detach().clone() for n, p in one.lean.named_parameters()}
    assert {n.split(".")[0] for n in before} == {"student", "heads"}
    one.model.train()
    batch = one.loss.prepare(next(one.job.supervision.train(0, 8, 0)))
    one.settings = one.settings.model_copy(update={"clip_norm": 1e9})
    one._step(batch, one._tokenized(batch))
    moved = {n: float((p.detach() - before[n]).abs().max()) for n, p in one.lean.named_parameters()}
    for name, distance in moved.items():
        if name.startswith("heads.") or "encoder.layer" in name:
            assert distance > 0, name
    for teacher, weights in zip(one.loss.reader.teachers, teachers, strict=True):
        assert not teacher.model.training
        for name, parameter in teacher.model.named_parameters():
            assert parameter.grad is None and torch.equal(parameter, weights[name]), name
    rates = [group["initial_lr"] for group in one.optimizer.param_groups]
    assert rates == [3e-3, 3e-3, method.head_learning_rate]


@pytest.mark.parametrize("method", FEATURES, ids=lambda m: m.kind)
def test_features_are_one_to_one_with_the_distillation(method: Any, specs: Any, tmp_path: Path) -> None:
    one = trainer(job(tmp_path, FeatureKd(method, specs), 24), recorder(tmp_path))
    batch = one.loss.prepare(next(one.job.supervision.train(0, 8, 0)))
    ((inputs, targets, weights),) = one._tokenized(batch)
    one.model.eval()
    more = one.loss.more(batch, 0, weights)
    answer = one.model(**inputs, **more)
    whole = one.loss.total(answer, targets, weights)
    kl = weighted_kl(one.plain(**inputs).logits, targets, weights)
    hidden = one.plain(**inputs, output_hidden_states=True).hidden_states
    share = inputs["attention_mask"] / inputs["attention_mask"].sum(1, keepdim=True)
    own = [torch.einsum("bt,bth->bh", share, layer) for layer in hidden[1:]]
    features = one.loss.heads(own, more["features"], weights)
    assert float(features.detach()) > 0.1
    torch.testing.assert_close(whole, kl + features)


def test_the_heads_are_drawn_from_the_trainings_seed(specs: Any, tmp_path: Path) -> None:
    states = []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)
        loss = loss_of(FeatureKd(DfaMethod(), specs), tmp_path / str(number), seed=seed)
        states.append(loss.heads.state_dict())
    close(states[0], states[1], atol=0)
    assert not torch.equal(*(s["layers.0.encode_student.weight"] for s in states[1:]))


def test_a_teacher_that_changed_is_refused(specs: Any, tmp_path: Path) -> None:
    changed = replace(specs[0], content="0")
    with pytest.raises(TeacherError, match=r"^teacher 'one': the model on this machine differs"):
        loss_of(FeatureKd(DfaMethod(), (changed,)), tmp_path)


# -- training --------------------------------------------------------------------------------------------


def uhc_job(tmp_path: Path) -> TrainingJob:
    """Two teachers over the same two labels, the second of which calls them in the other order."""
    texts, targets = toy.separable(96)
    index = [np.array([0, 1]), np.array([1, 0])]
    logits = [np.log(targets), np.log(targets[:, ::-1])]
    made = job(tmp_path, BlockKl(blocks(index)), epochs=5, learning_rate=1e-2)
    side_by_side = uhc_targets(logits, index, 2, 1.0).astype(np.float32)
    toy.write(tmp_path / "supervision", [32, 32, 32], texts, side_by_side)
    return made


@pytest.mark.parametrize("name", ["vanilla_kd", "uhc", "dfa", "cfl"])
def test_training_lowers_the_loss(name: str, specs: Any, tmp_path: Path) -> None:
    objective: Any = {
        "vanilla_kd": WeightedKl(2.0),
        "dfa": FeatureKd(DfaMethod(head_learning_rate=1e-2), specs),
        "cfl": FeatureKd(CflMethod(width=8, head_learning_rate=1e-2), specs),
    }.get(name)
    made = (
        uhc_job(tmp_path)
        if objective is None
        else job(tmp_path, objective, epochs=10, learning_rate=1e-2, patience=None)
    )
    world = recorder(tmp_path / "best")
    one = trainer(made, world)
    at_start = one.held_out_kl(made.supervision.held_out(8, one.encode))
    run(made, world)
    assert world.epochs[-1]["train_kl"] < 0.5 * world.epochs[0]["train_kl"]
    assert min(epoch["held_out_kl"] for epoch in world.epochs) < 0.3 * at_start
    # the product is the student alone
    assert set(load_file(world.folder / "model.safetensors")) == set(one.plain.state_dict())


def test_held_out_rows_are_judged_by_the_distillation_alone(specs: Any, tmp_path: Path) -> None:
    one = trainer(job(tmp_path, FeatureKd(DfaMethod(), specs)), recorder(tmp_path))
    plain = trainer(job(tmp_path / "plain", WeightedKl()), recorder(tmp_path))
    held_out = list(one.job.supervision.held_out(8, one.encode))
    assert one.held_out_kl(held_out) == pytest.approx(plain.held_out_kl(held_out), rel=1e-5)


@pytest.mark.parametrize("method", FEATURES, ids=lambda m: m.kind)
def test_a_resumed_training_goes_on_with_its_heads(method: Any, specs: Any, tmp_path: Path) -> None:
    made = job(tmp_path, FeatureKd(method, specs), 48, epochs=2, dropout=0.1)
    run(made, Resumable(tmp_path / "whole", device=CPU))
    with pytest.raises(KeyboardInterrupt):
        run(made, Resumable(tmp_path / "halves", device=CPU, dies_after=1))
    run(made, Resumable(tmp_path / "halves", device=CPU))
    whole, halves = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "halves"))
    # what a teacher says of a text is rounded as in the batch in which this process first read it
    close(whole, halves, atol=1e-5)
    heads = [
        torch.load(tmp_path / name / STATE_FILE, weights_only=True)["heads"] for name in ("whole", "halves")
    ]
    assert heads[0]
    close(*heads, atol=1e-5)


# no step moves anything, so that every batch is met with the same parameters
STILL = {"learning_rate": 1e-30}
STILL_DFA = DfaMethod(head_learning_rate=1e-30)


def gradients(made: TrainingJob, tmp_path: Path, rank: int = 0, size: int = 1) -> Iterator[dict[str, Any]]:
    """Of every batch of an epoch, from one worker of so many."""
    one = trainer(made, replace(recorder(tmp_path), rank=rank, size=size))
    caught: dict[str, torch.Tensor] = {}
    one.optimizer.register_step_pre_hook(
        lambda *_: caught.update({n: p.grad.clone() for n, p in one.lean.named_parameters()})
    )
    one.model.train()
    for batch in replace(made.supervision, rank=rank, world=size).train(0, 6, 0):
        prepared = one.loss.prepare(batch)
        one._step(prepared, one._tokenized(prepared))
        yield dict(caught)


def test_accumulated_gradients_are_the_whole_batch(specs: Any, tmp_path: Path) -> None:
    whole = job(tmp_path, FeatureKd(STILL_DFA, specs), 20, **STILL)
    parts = replace(whole, training=whole.training.model_copy(update={"micro_batch_size": 4}))
    for one, other in zip(gradients(whole, tmp_path), gradients(parts, tmp_path), strict=True):
        close(one, other, atol=1e-5)


@pytest.mark.parametrize("world", [2, 3])
def test_the_workers_gradients_are_the_gradient_of_one(world: int, specs: Any, tmp_path: Path) -> None:
    """Averaged over workers, of which some have no row of the last batch."""
    made = job(tmp_path, FeatureKd(STILL_DFA, specs), 20, **STILL)
    every = [gradients(made, tmp_path, rank, world) for rank in range(world)]
    for whole, *each in zip(gradients(made, tmp_path), *every, strict=True):
        close(whole, {n: sum(g[n] for g in each) / world for n in whole}, atol=1e-5)  # type: ignore[misc]


@pytest.mark.heavy
def test_two_workers_are_one_with_heads_beside_them(specs: Any, tmp_path: Path, ray_session: None) -> None:
    made = job(tmp_path, FeatureKd(DfaMethod(), specs), 59, epochs=1, batch_size=6)
    assert made.supervision.split.train_rows % 6 == 1, "in the last batch one of the two workers is idle"
    alone = recorder(tmp_path / "alone")
    run(made, alone)
    two = replace(
        made, training=TrainingConfig.model_validate(made.training.model_dump() | {"num_workers": 2})
    )
    with listening(lambda *_: None, every=0.1) as messenger:
        trained = train_student(two, "student-1", str(tmp_path / "runs"), {"CPU": 4.0}, False, messenger)
    best, own = (load_file(Path(f) / "model.safetensors") for f in (trained.checkpoint, alone.folder))
    close(own, best, atol=1e-4)
    heads = [
        torch.load(Path(f) / STATE_FILE, weights_only=True)["heads"]
        for f in (trained.checkpoint, alone.folder)
    ]
    close(*heads, atol=1e-4)
