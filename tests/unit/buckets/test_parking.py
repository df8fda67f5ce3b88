"""Where rows wait: no two at one place, nothing over a live bucket, and updates in an order that fits."""

from __future__ import annotations

import pytest
import torch

from megatron_moo.buckets.blocks import BucketPlan
from megatron_moo.buckets.parking import Parking


def plans_of(sizes: list[int], members: int = 2) -> tuple[torch.Tensor, list[BucketPlan]]:
    buffer = torch.arange(sum(sizes), dtype=torch.float32)
    return buffer, [
        BucketPlan(f"b{index}", piece, 0, tuple(range(members)), ())
        for index, piece in enumerate(buffer.split(sizes))
    ]


@pytest.mark.parametrize(
    "sizes", [[8], [8, 8, 8, 8], [4, 8, 8, 6, 8], [2, 2, 2, 2, 20], [20, 2, 2], [6, 8, 2, 8, 4]]
)
def test_every_bucket_has_room_and_its_rows_last(sizes: list[int]) -> None:
    buffer, plans = plans_of(sizes)
    parking = Parking(plans)
    for _ in range(2):
        parking.begin()
        for index, plan in enumerate(plans):
            alive = buffer[sum(sizes[:index]) :].clone()
            room = parking.room(plan)
            assert room is not None and room.numel() == plan.grad.numel()
            room.fill_(-index - 1.0)
            assert parking.stay(plan, room.view(plan.members, -1))
            assert torch.equal(buffer[sum(sizes[:index]) :], alive)  # what is not exchanged yet is untouched
        assert [plan.name for plan in parking.backwards] == [plan.name for plan in reversed(plans)]
        for plan in parking.backwards:
            assert torch.equal(plan.parked, torch.full_like(plan.parked, -plans.index(plan) - 1.0))
            plan.grad.fill_(7.0)  # the update
        parking.end()


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


def test_the_memory_beside_the_gradients_is_about_the_largest_bucket() -> None:
    for sizes in ([8, 8, 8, 8], [4, 8, 8, 8], [2, 2, 2, 2, 20]):
        _, plans = plans_of(sizes)
        room = Parking(plans).room(plans[0])
        assert room is not None
        beside = room.untyped_storage().nbytes() // 4
        assert max(sizes) <= beside <= 2 * max(sizes)
