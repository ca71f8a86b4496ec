"""DFA: which layers meet, the loss by hand, and whom its gradient reaches."""

from __future__ import annotations

import pytest
import torch

from muki_ray.baselines.dfa import Dfa, DfaLayer, aligned, squared_error


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (3, 3, [0, 1, 2]),
        (6, 12, [1, 3, 5, 7, 9, 11]),
        (3, 12, [3, 7, 11]),
        (2, 5, [2, 4]),
        (6, 2, [0, 0, 0, 1, 1, 1]),
        (3, 2, [0, 1, 1]),
        (1, 4, [3]),
    ],
)
def test_which_layers_meet(student: int, teacher: int, expected: list[int]) -> None:
    assert aligned(student, teacher) == expected


def test_any_depths_end_together_and_never_go_back() -> None:
    for student in range(1, 30):
        for teacher in range(1, 30):
            places = aligned(student, teacher)
            assert len(places) == student and places[-1] == teacher - 1
            assert places[0] >= 0 and places == sorted(places)


def test_squared_error_by_hand() -> None:
    found = squared_error(torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    assert found.tolist() == [2.5, 0.0]


def layer_by_hand() -> DfaLayer:
    """Student of width 1, teachers of width 1 and 2: r = 2 a + b, decoded to (r, 0, r), student taken threefold."""
    layer = DfaLayer(1, [1, 2])
    with torch.no_grad():
        for module in (layer.encode_teachers, layer.decode_teachers, layer.encode_student):
            module.bias.zero_()
        layer.encode_teachers.weight.copy_(torch.tensor([[2.0, 1.0, 0.0]]))
        layer.decode_teachers.weight.copy_(torch.tensor([[1.0], [0.0], [1.0]]))
        layer.encode_student.weight.fill_(3.0)
    return layer


def test_a_layer_by_hand() -> None:
    # r = 2 * 1 + 2 = 4; MSE of teacher one (4 - 1)^2 = 9; of teacher two ((0 - 2)^2 + (4 - 5)^2) / 2 = 2.5;
    # of the student (3 * 1 - 4)^2 = 1
    teachers = [torch.tensor([[1.0]]), torch.tensor([[2.0, 5.0]])]
    found = layer_by_hand()(torch.tensor([[1.0]]), teachers)
    assert found.tolist() == [12.5]


def test_the_student_follows_and_does_not_lead() -> None:
    """The teachers' encoder learns from the reconstruction only."""
    teachers = [torch.tensor([[1.0]]), torch.tensor([[2.0, 5.0]])]
    gradients = []
    for student in (torch.tensor([[1.0]]), torch.tensor([[-7.0]])):
        layer, student = layer_by_hand(), student.requires_grad_()
        layer(student, teachers).sum().backward()
        assert student.grad is not None and float(student.grad) != 0
        assert float(layer.encode_student.weight.grad) != 0
        gradients.append(layer.encode_teachers.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
    assert float(gradients[0].abs().max()) > 0


def heads() -> Dfa:
    torch.manual_seed(0)
    return Dfa([4, 4, 4], [[3, 3, 3, 3, 3, 3], [5, 6]])


def features(rows: int, seed: int = 0) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
    generator = torch.Generator().manual_seed(seed)
    student = [torch.randn(rows, 4, generator=generator, requires_grad=True) for _ in range(3)]
    teachers = [
        [torch.randn(rows, 3, generator=generator) for _ in range(6)],
        [torch.randn(rows, width, generator=generator) for width in (5, 6)],
    ]
    return student, teachers


def test_teachers_of_other_depths_and_widths() -> None:
    made = heads()
    student, teachers = features(2)
    layers = [
        [teachers[0][1], teachers[1][0]],
        [teachers[0][3], teachers[1][1]],
        [teachers[0][5], teachers[1][1]],
    ]
    expected = sum(made.layers[j](student[j], layers[j]) for j in range(3))
    weights = torch.tensor([1.0, 0.5])
    torch.testing.assert_close(made(student, teachers, weights), (weights * expected).sum())


def test_the_gradient_reaches_every_layer_and_every_projection() -> None:
    made = heads()
    student, teachers = features(4)
    made(student, teachers, torch.ones(4)).backward()
    for layer in student:
        assert layer.grad is not None and float(layer.grad.abs().max()) > 0
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, name


def test_rows_add_up_and_rows_of_weight_zero_do_not_count() -> None:
    made = heads()
    student, teachers = features(4)
    total = made(student, teachers, torch.ones(4))
    parts = [
        made(
            [layer[rows] for layer in student],
            [[layer[rows] for layer in one] for one in teachers],
            torch.ones(len(rows)),
        )
        for rows in ([0], [1, 2, 3])
    ]
    torch.testing.assert_close(parts[0] + parts[1], total)
    torch.testing.assert_close(made(student, teachers, torch.tensor([1.0, 0, 0, 0])), parts[0])
