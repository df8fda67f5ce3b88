"""Where rows wait: no two at one place, nothing over a live bucket, and updates in an order that fits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_moo.buckets.blocks import BucketPlan
from megatron_moo.buckets.parking import Parking, rooms


def plans_of(sizes: list[int], members: int = 2) -> tuple[torch.Tensor, list[BucketPlan]]:
    buffer = torch.arange(sum(sizes), dtype=torch.float32)
    return buffer, [
        BucketPlan(f"b{index}", piece, 0, tuple(range(members)), ())
        for index, piece in enumerate(buffer.split(sizes))
    ]


SIZES = ([8], [8, 8, 8, 8], [8, 6, 8, 4, 8], [20, 2, 2], [10, 8, 8, 6, 10, 6])
UNEVEN = ([4, 8, 8, 6, 8], [2, 2, 2, 2, 20], [58] * 7 + [534], [6, 8, 2, 8, 4], [10, 8, 8, 12, 8, 8, 8])


@pytest.mark.parametrize("sizes", [*SIZES, *UNEVEN], ids=str)
def test_rows_last_until_their_update_is_written(sizes: list[int]) -> None:
    """Whatever has no room is received elsewhere and copied home, as the step does."""
    buffer, plans = plans_of(sizes)
    parking = Parking(plans)
    for _ in range(2):
        parking.begin()
        for index, plan in enumerate(plans):
            alive = buffer[sum(sizes[:index]) :].clone()
            room = parking.room(plan)
            received = torch.empty_like(plan.grad) if room is None else room
            assert received.numel() == plan.grad.numel()
            received.fill_(-index - 1.0)
            assert torch.equal(buffer[sum(sizes[:index]) :], alive)  # what is not exchanged yet is untouched
            if not parking.stay(plan, received.view(plan.members, -1)):
                assert room is None
                plan.rows.copy_(received.view(plan.members, -1))
        assert [plan.name for plan in parking.backwards] == [plan.name for plan in reversed(plans)]
        for plan in parking.backwards:
            assert torch.equal(plan.parked, torch.full_like(plan.parked, -plans.index(plan) - 1.0))
            plan.grad.fill_(7.0)  # the update
        parking.end()
        assert all(plan.at is None for plan in plans)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_large_first_bucket_serves_all(sizes: list[int]) -> None:
    _, plans = plans_of(sizes)
    parking = Parking(plans)
    parking.begin()
    for plan in plans:
        room = parking.room(plan)
        assert room is not None and parking.stay(plan, room.view(plan.members, -1))


@pytest.mark.parametrize("sizes", [*SIZES, *UNEVEN, [8, 10] * 40], ids=lambda sizes: str(sizes[:8]))
def test_the_memory_beside_the_gradients_is_that_of_the_largest_bucket(sizes: list[int]) -> None:
    """Spare and receive buffer together, as the exchange holds them: a buffer ends when a bucket has room."""
    assert held_beside([sizes]) == rooms([sizes])[1] <= max(sizes) + sum(sizes) // 50


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=8), min_size=1, max_size=3))
def test_the_memory_of_several_buffers(buffers: list[list[int]]) -> None:
    """What `plan` announces is never less than what is held, and one receive buffer's memory and 2 % at most."""
    buffers = [[200 * size for size in sizes] for sizes in buffers]
    announced = rooms(buffers)[1]
    assert held_beside(buffers) <= announced <= max(map(max, buffers)) + sum(map(sum, buffers)) // 50


def held_beside(buffers: list[list[int]]) -> int:
    """Most values that lie beside the gradient buffers in a pass over all buckets."""
    plans, homes = [], set()
    for number, sizes in enumerate(buffers):
        buffer, held = plans_of(sizes)
        homes.add(buffer.untyped_storage().data_ptr())
        for plan in held:
            plan.name = f"{number}.{plan.name}"
        plans += held
    parking = Parking(plans)
    parking.begin()
    spares, received, most = dict[int, int](), 0, 0
    for plan in plans:
        room = parking.room(plan)
        if room is None:
            received = max(received, plan.grad.numel())
        else:
            received, place = 0, room.untyped_storage().data_ptr()
            if place not in homes:
                spares[place] = room.numel()
            assert parking.stay(plan, room.view(plan.members, -1))
        most = max(most, sum(spares.values()) + received)
    return most


def test_spares_of_several_buffers_are_held_side_by_side() -> None:
    """Two buffers of one bucket each (a pipeline's chunks): one receive buffer serves both, two spares would not."""
    plans = []
    for name in ("a", "b"):
        (plan,) = plans_of([64])[1]
        plan.name = name
        plans.append(plan)
    assert all(Parking(plans).room(plan) is None for plan in plans)
    assert Parking(plans[:1]).room(plans[0]) is not None


def test_a_buffer_whose_rows_do_not_travel_costs_nothing() -> None:
    """Experts with one data-parallel member, beside a dense buffer of the same size."""
    (dense,), (experts,) = plans_of([64])[1], plans_of([64], members=1)[1]
    experts.name = "experts"
    parking = Parking([dense, experts])
    assert parking.room(dense) is not None and parking.room(experts) is None
    assert parking.backwards == [dense, experts]


def test_the_next_pass_starts_with_live_buckets() -> None:
    """What was exchanged in the last pass holds a new gradient: no rows over it before it is exchanged again."""
    _, plans = plans_of([8, 8, 8])
    parking = Parking(plans)
    parking.begin()
    for plan in plans:
        room = parking.room(plan)
        assert room is not None and parking.stay(plan, room.view(2, -1))
    parking.begin()
    assert parking.room(plans[2]) is None and parking.room(plans[1]) is None


def test_out_of_order_no_room_is_given_over_a_bucket_that_is_alive() -> None:
    _, plans = plans_of([8, 8, 8])
    parking = Parking(plans)
    parking.begin()
    assert parking.room(plans[2]) is None and parking.room(plans[1]) is None
    room = parking.room(plans[0])
    assert room is not None and parking.room(plans[1]) is None  # not before it arrived
    assert parking.stay(plans[0], room.view(2, -1))
    assert parking.room(plans[1]) is not None
    received = torch.zeros(2, 4)
    assert not parking.stay(plans[1], received) and torch.equal(plans[1].parked, plans[1].rows)
    assert parking.room(plans[2]) is None  # the second bucket's rows were copied home


def test_who_is_not_served() -> None:
    _, (alone,) = plans_of([8], members=1)
    assert Parking([alone]).room(alone) is None
    _, (instances,) = plans_of([8])
    instances.instances = object()
    assert Parking([instances]).room(instances) is None
