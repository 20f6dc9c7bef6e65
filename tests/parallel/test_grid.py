import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from internvl.errors import ParallelError
from internvl.parallel.grid import Grid, GridShape, build_grid, check_heads


@st.composite
def shapes(draw):
    ulysses, ring, data = (draw(st.integers(1, 5)) for _ in range(3))
    return GridShape(world_size=data * ring * ulysses, chunk_num=ring * ulysses, ulysses_degree=ulysses)


def test_groups_of_the_picture():
    shape = GridShape(world_size=8, chunk_num=4, ulysses_degree=2)
    assert shape.row_groups() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert shape.ulysses_groups() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert shape.ring_groups() == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert (shape.data_size, shape.ring_size) == (2, 2)


@settings(max_examples=40, deadline=None)
@given(shapes())
def test_every_rank_finds_itself_at_its_place(shape):
    for kind, groups in (
        ("data", shape.row_groups()),
        ("ring", shape.ring_groups()),
        ("ulysses", shape.ulysses_groups()),
    ):
        assert sorted(rank for ranks in groups for rank in ranks) == list(range(shape.world_size))
        for number, ranks in enumerate(groups):
            for index, rank in enumerate(ranks):
                place = shape.locate(rank)._asdict()
                assert place[kind] == (number if kind == "data" else index)
    grids = [Grid(shape, rank) for rank in range(shape.world_size)]
    for grid in grids:
        assert (grid.data_rank, grid.group_rank) == divmod(grid.rank, shape.chunk_num)
        place = shape.locate(grid.rank)
        assert grid.group_rank == place.ring * shape.ulysses_degree + place.ulysses
        assert grid.data_size * grid.group_size == shape.world_size
    assert shape.ring_size * shape.ulysses_degree == shape.chunk_num


def test_layout_of_the_picture():
    shape = GridShape(world_size=4, chunk_num=4, ulysses_degree=2)
    shards = [shape.shard(torch.arange(15), group_rank=rank, pad_value=-1).tolist() for rank in range(4)]
    assert shards == [[0, 1, 2, 3], [12, 13, 14, -1], [4, 5, 6, 7], [8, 9, 10, 11]]


@settings(max_examples=60, deadline=None)
@given(shapes(), st.integers(0, 70), st.integers(0, 2))
def test_unshard_is_the_inverse_of_shard(shape, length, dim):
    sizes = [2, 3, 2]
    sizes[dim] = length
    row = torch.arange(torch.Size(sizes).numel()).reshape(sizes)
    parts = [shape.shard(row, group_rank=rank, dim=dim, pad_value=-1) for rank in range(shape.chunk_num)]
    assert {part.shape[dim] for part in parts} == {shape.pad_length(length) // shape.chunk_num}
    assert torch.equal(shape.unshard(parts, dim=dim, length=length), row)
    padded = shape.unshard(parts, dim=dim)
    assert padded.shape[dim] == shape.pad_length(length) < length + 2 * shape.chunk_num
    assert (padded.narrow(dim, length, padded.shape[dim] - length) == -1).all()


def test_shards_are_in_row_order():
    shape = GridShape(world_size=6, chunk_num=6, ulysses_degree=3)
    for rank in range(6):
        shard = shape.shard(torch.arange(48), group_rank=rank)
        assert torch.equal(shard, shard.sort().values)


def test_unshard_wants_every_part():
    with pytest.raises(ParallelError, match="got 1 parts, expected one per rank of the group: 2"):
        GridShape(world_size=2, chunk_num=2).unshard([torch.arange(2)])


@pytest.mark.parametrize(
    ("sizes", "match"),
    [
        ((8, 3), "--chunk_num 3 does not divide the 8 processes of the run; use one of 1, 2, 4, 8"),
        ((8, 16), "--chunk_num 16 does not divide"),
        ((8, 0), "--chunk_num 0 does not divide"),
        ((8, 4, 3), "--ulysses_degree 3 does not divide --chunk_num 4; use one of 1, 2, 4"),
        ((8, 4, 0), "--ulysses_degree 0 does not divide"),
    ],
)
def test_sizes_that_do_not_fit_name_the_flag(sizes, match):
    with pytest.raises(ParallelError, match=match):
        GridShape(*sizes)


def test_a_process_on_its_own_is_a_grid_of_one():
    grid = build_grid()
    assert grid == Grid()
    assert (grid.data_rank, grid.data_size, grid.group_rank, grid.group_size) == (0, 1, 0, 1)
    assert grid.group is grid.ring_group is grid.ulysses_group is None
    row = torch.arange(5)
    assert torch.equal(grid.unshard([grid.shard(row)], length=5), row)
    with pytest.raises(ParallelError, match="--chunk_num 2 does not divide the 1 processes"):
        build_grid(chunk_num=2)


def test_heads_are_checked_before_training():
    check_heads(8, 2, ulysses_degree=4)
    with pytest.raises(ParallelError, match="--ulysses_degree 3 does not divide the 8 attention heads"):
        check_heads(8, 8, ulysses_degree=3)


@pytest.mark.parametrize(("backend", "created"), [("nccl", ["gloo"]), ("gloo", [])])
def test_numbers_of_the_host_have_a_group_that_no_gpu_waits_for(monkeypatch, backend, created):
    made = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_backend", lambda: backend)
    monkeypatch.setattr(dist, "new_group", lambda backend: made.append(backend))
    build_grid()
    assert made == created
