"""Who holds what after a change of members: the latest copies are found, and what may be stale is never used."""

from __future__ import annotations

from typing import Any

import torch

from stretto.server.rules import Rule
from stretto.server.settlement import Copy, Plan, Report, Spec, made
from stretto.server.space import Extent, plan_slots

EXTENTS = (Extent("float32", ((32, 0),), 0),)
SPEC = Spec("asp", EXTENTS, Rule.of(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)))
SLOTS = plan_slots(EXTENTS, 64)


def report(uid: int, copies: dict[int, tuple[int, int]] | None = None, **more: Any) -> Report:
    """Of a member of the epoch 1, whose plan it knows; ``copies``: version and place, by slot."""
    told = {"entered": 1, "force": 0, "plan": 1, "changes": 0} | more
    changes = told.pop("changes")
    has = {slot: Copy(version, changes, place) for slot, (version, place) in (copies or {}).items()}
    return Report(uid, False, SPEC, copies=has, **told)


def planned(*reports: Report, staleness: int | None = None) -> Plan:
    return made(reports, range(len(reports)), SLOTS, staleness, 2)


def test_at_first_all_slots_are_made() -> None:
    plan = planned(report(1, plan=0), report(2, plan=0))
    assert all(len(chain) == 2 for chain in plan.chains) and not any(plan.having)


def test_who_is_behind_is_given_the_latest() -> None:
    plan = planned(report(1, {0: (7, 1), 1: (5, 0)}), report(2, {0: (8, 0), 1: (5, 1)}))
    assert plan.having == ((1,), (0, 1)) and plan.lacking(0) == (0,) and not plan.lacking(1)


def test_who_has_the_same_pushes_but_was_asked_less_about_samples_is_given_the_latest() -> None:
    first, second = report(1, {0: (7, 0), 1: (5, 0)}, changes=4), report(2, {0: (7, 1), 1: (5, 1)}, changes=3)
    assert planned(first, second).having[0] == (0,)


def test_a_copy_that_was_kept_for_a_chain_that_is_gone_is_not_used() -> None:
    """Those who are gone may have answered pushes that it does not have."""
    plan = planned(report(1, {0: (7, -1), 1: (5, 0)}), report(2, {1: (5, 1)}))
    assert plan.chains[0] == () and plan.having[0] == () and plan.good[0] == ()


def test_a_copy_that_was_kept_is_used_while_one_of_the_chain_lacks_it() -> None:
    plan = planned(report(1, {0: (7, -1), 1: (5, 0)}), report(2, {1: (5, 1)}, lacking=(0,)))
    assert plan.having[0] == (0,) and plan.lacking(0) == (1,)


def test_a_plan_that_somebody_does_not_know_was_never_in_force() -> None:
    """So who was in the chain before it has all that was answered."""
    told, missed = report(1, {0: (7, -1), 1: (5, 0)}, plan=2), report(2, {0: (8, 0)})
    plan = planned(told, missed)
    assert plan.having == ((1,), (0,)) and set(plan.good[0]) == {0, 1}


def test_a_newcomer_that_missed_a_plan_makes_nobody_begin_anew() -> None:
    """What was in force before it goes on."""
    plan = planned(report(1, {0: (8, 0), 1: (5, -1)}, force=1, plan=2), report(2, entered=2, plan=0))
    assert plan.having == ((0,), (0,))


def test_who_came_later_need_not_know_a_plan() -> None:
    plan = planned(report(1, {0: (7, 0), 1: (5, 0)}), report(2, entered=2, plan=0))
    assert plan.having == ((0,), (0,)) and plan.lacking(0) == (1,)


def test_what_nobody_has_been_answered_from_is_made_again() -> None:
    plan = planned(report(1, {0: (0, 0)}), report(2, plan=0))
    assert not any(plan.having) and all(plan.chains)


def test_with_staleness_0_all_go_back_to_the_step_that_every_slot_has_made() -> None:
    plan = planned(report(1, {0: (8, 0), 1: (7, 0)}), report(2, {0: (8, 1), 1: (7, 1)}), staleness=0)
    assert plan.clock == 7 and plan.having == ((0, 1), (0, 1))
