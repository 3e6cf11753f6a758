"""What a mixer is to take over is what the teacher's does, and learning it touches nothing else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from streams import small_model

from mnemonist.models import BLOCKS, LanguageModel, with_blocks
from mnemonist.models.alignment import AlignedMixers, Example, MixerTeacher, differing_mixers
from mnemonist.models.blocks import BlockState

B, T = 2, 23
TOKENS = torch.randint(0, 17, (B, T), generator=torch.Generator().manual_seed(2))
STARTS = torch.zeros(B, T, dtype=torch.bool)
STARTS[0, 0] = STARTS[0, 9] = STARTS[0, 10] = STARTS[1, 17] = True
COUNTED = torch.rand(B, T, generator=torch.Generator().manual_seed(3)) > 0.2
DOCUMENTS = [(0, 0, 9), (0, 9, 10), (0, 10, T), (1, 0, 17), (1, 17, T)]


def teacher_of(*blocks: str) -> LanguageModel:
    return small_model(blocks=blocks or ("attention",) * 3, persistent_tokens=0)


def student_of(teacher: LanguageModel, *blocks: str, **changes: object) -> LanguageModel:
    torch.manual_seed(5)
    return with_blocks(teacher, blocks or ("lmm",), **changes)[0]


def watched(block: torch.nn.Module, i: int, given: dict[int, torch.Tensor], said: dict[int, torch.Tensor]) -> list[Any]:
    """Hooks that note what enters a block, and what its mixer says."""
    return [
        block.register_forward_pre_hook(lambda _, inputs: given.update({i: inputs[0]})),
        block.mixer.register_forward_hook(lambda _, __, mixed: said.update({i: mixed.y})),
    ]


def by_hand(teacher: LanguageModel, student: LanguageModel, blocks: tuple[int, ...]) -> tuple[list[float], list[float]]:
    """Squared errors and squares of each mixer: documents one by one, with hooks, and no code of the module."""
    errors, squares = [0.0] * len(blocks), [0.0] * len(blocks)
    for row, begin, end in DOCUMENTS:
        given: dict[int, torch.Tensor] = {}
        said: dict[int, torch.Tensor] = {}
        hooks = [hook for i in blocks for hook in watched(teacher.blocks[i], i, given, said)]
        with torch.no_grad():
            teacher(TOKENS[row : row + 1, begin:end])
        for hook in hooks:
            hook.remove()
        counted = COUNTED[row, begin:end]
        for number, i in enumerate(blocks):
            mine: dict[int, torch.Tensor] = {}
            hooks = watched(student.blocks[i], i, {}, mine)
            with torch.no_grad():
                student.blocks[i](given[i])
            for hook in hooks:
                hook.remove()
            errors[number] += float((mine[i] - said[i])[0, counted].pow(2).sum())
            squares[number] += float(said[i][0, counted].pow(2).sum())
    return errors, squares


@pytest.mark.parametrize("kind", [*BLOCKS, "mag:gate=add"])
@torch.no_grad()
def test_errors_are_those_of_each_document_read_by_itself(kind):
    teacher = teacher_of("attention", "mag", "attention")
    student = student_of(teacher, kind, persistent_tokens=1) if kind == "attention" else student_of(teacher, kind)
    blocks = differing_mixers(student, teacher)
    assert len(blocks) == (2 if kind in ("mag",) else 3)
    example = MixerTeacher(teacher, blocks)(TOKENS, STARTS, COUNTED)
    errors, squares = by_hand(teacher, student, blocks)
    assert AlignedMixers(student, blocks)(example).tolist() == pytest.approx(errors, rel=1e-9)
    assert example.squares.tolist() == pytest.approx(squares, rel=1e-9)
    assert int(example.counted.sum()) == int(COUNTED.sum())


@torch.no_grad()
def test_rows_of_one_document_each_are_read_as_they_are():
    teacher = teacher_of()
    starts = torch.zeros_like(STARTS)
    example = MixerTeacher(teacher, (1,))(TOKENS, starts, COUNTED)
    between = teacher(TOKENS, hidden=True).hidden
    assert example.mask is None and torch.equal(example.counted, COUNTED)
    assert torch.equal(example.inputs[0], between[1])
    mixed = teacher.blocks[1].mix(between[1], BlockState(), None, learn=True, surprise=False)
    torch.testing.assert_close(example.answers[0], mixed.y)


def test_gradients_stay_within_a_block():
    teacher = teacher_of()
    student = student_of(teacher)
    example = MixerTeacher(teacher, (0, 1, 2))(TOKENS, STARTS, COUNTED)
    aligned = AlignedMixers(student, (0, 1, 2))
    for number in range(3):
        student.zero_grad()
        aligned(example)[number].backward()
        reached = {name for name, p in student.named_parameters() if p.grad is not None and bool(p.grad.any())}
        assert reached and all(name.startswith(f"blocks.{number}.mixer") for name in reached), reached
        assert f"blocks.{number}.mixer_norm.weight" in reached
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_model_itself_leaves_nothing_unexplained():
    """Exactly, where both are read alike; with a way back other kernels read, which round otherwise."""
    teacher = small_model()
    student = copy.deepcopy(teacher)
    blocks = tuple(range(4))
    example = MixerTeacher(teacher, blocks)(TOKENS, STARTS, COUNTED)
    with torch.no_grad():
        assert AlignedMixers(student, blocks)(example).tolist() == [0.0] * 4
    errors = AlignedMixers(student, blocks)(example)
    errors.sum().backward()
    assert float(errors.detach().max()) < 1e-25
    assert max(float(p.grad.abs().max()) for p in student.parameters() if p.grad is not None) < 1e-10


@torch.no_grad()
def test_mixers_that_say_nothing_leave_all_of_it():
    teacher = teacher_of()
    student = student_of(teacher)
    for block in student.blocks:
        block.mixer.memory.out_proj.weight.zero_()
    example = MixerTeacher(teacher, (0, 1, 2))(TOKENS, STARTS, COUNTED)
    assert torch.equal(AlignedMixers(student, (0, 1, 2))(example), example.squares)


def test_tokens_that_do_not_count_are_read_all_the_same():
    teacher = teacher_of()
    student = student_of(teacher)
    module, teach = AlignedMixers(student, (1,)), MixerTeacher(teacher, (1,))
    with torch.no_grad():
        none, some, rest, every = (
            module(teach(TOKENS, STARTS, counted)).item()
            for counted in (torch.zeros_like(COUNTED), COUNTED, ~COUNTED, torch.ones_like(COUNTED))
        )
    assert none == 0 and some + rest == pytest.approx(every, rel=1e-12) and min(some, rest) > 0


def test_computing_again_changes_no_gradient():
    teacher = teacher_of()
    example = MixerTeacher(teacher, (0, 2))(TOKENS, STARTS, COUNTED)
    gradients = []
    for again in (False, True):
        student = student_of(teacher).train()
        student.gradient_checkpointing = again
        aligned = AlignedMixers(student, (0, 2))
        assert aligned.gradient_checkpointing == again
        aligned(example).sum().backward()
        gradients.append([parameter.grad for parameter in aligned.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_the_teacher_is_left_as_it_was():
    teacher = teacher_of().train()
    teacher.blocks[1].eval()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    example = MixerTeacher(teacher, (0, 1))(TOKENS, STARTS, COUNTED)
    assert teacher.training and not teacher.blocks[1].training
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert not any(tensor.requires_grad for tensor in (*example.inputs, *example.answers))


def test_what_is_trained_is_the_students_own_and_nothing_else():
    teacher = teacher_of()
    student = student_of(teacher, "attention", "lmm")
    aligned = AlignedMixers(student, differing_mixers(student, teacher))
    own = {id(p) for name, p in student.named_parameters() if name.startswith("blocks.1.mixer")}
    assert {id(parameter) for parameter in aligned.parameters()} == own
    assert isinstance(copy.deepcopy(aligned)(MixerTeacher(teacher, (1,))(TOKENS, STARTS, COUNTED)), torch.Tensor)


# Which mixers differ.


@pytest.mark.parametrize(
    ("blocks", "changes", "expected"),
    [
        (("attention",), {}, ()),
        (("attention",), {"rule": "gla", "window": 2}, ()),  # nothing in these blocks is made of that
        (("lmm", "attention"), {}, (0, 2)),
        (("attention", "window"), {}, (1,)),
        (("attention",), {"sink": 3}, (0, 1, 2)),
    ],
)
def test_those_that_are_built_otherwise_differ(blocks, changes, expected):
    teacher = teacher_of()
    assert differing_mixers(student_of(teacher, *blocks, **changes), teacher) == expected


@pytest.mark.parametrize(
    "changes", [{"rule": "titans:chunk_size=5,expansion=3"}, {"rule": "titans:chunk_size=5,momentum=false"}]
)
def test_another_rule_is_another_mixer(changes):
    teacher = teacher_of("attention", "lmm", "window")
    student = small_model(blocks=("attention", "lmm", "window"), persistent_tokens=0, **changes)
    assert differing_mixers(student, teacher) == (1,)
    window = small_model(blocks=("attention", "lmm", "window"), persistent_tokens=0, window=6)
    assert differing_mixers(window, teacher) == (2,)
    assert differing_mixers(copy.deepcopy(teacher), teacher) == ()


def test_mixers_that_are_held_are_left_out():
    teacher = teacher_of()
    student = student_of(teacher)
    student.blocks[1].mixer.requires_grad_(False)
    assert differing_mixers(student, teacher) == (0, 2)


def test_models_whose_blocks_have_no_counterparts_are_refused():
    teacher = teacher_of()
    with pytest.raises(ValueError, match=r"has 2 blocks of width 12 and the teacher 3 of width 12; mixers are matched"):
        differing_mixers(small_model(blocks=("lmm",) * 2), teacher)
    with pytest.raises(ValueError, match="of width 8 and the teacher 3 of width 12"):
        differing_mixers(small_model(blocks=("lmm",) * 3, width=8), teacher)


def test_an_example_of_a_teacher_in_half_precision_is_compared_in_single():
    teacher = teacher_of().bfloat16()
    example = MixerTeacher(teacher, (0,))(TOKENS, STARTS, COUNTED)
    assert isinstance(example, Example) and example.answers[0].dtype == torch.bfloat16
    assert example.squares.dtype == torch.float32
