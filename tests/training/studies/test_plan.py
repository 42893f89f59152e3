"""The plan of `compare`: names, order and the quick form."""

from foldserve.training.studies import plan


def test_the_plan_has_no_name_twice_and_takes_turns():
    """Every case has a key of its own, every recipe is valid, and first seeds come first."""
    cases = plan.in_turns(plan.studies(8).values())
    assert len({case.key for case in cases}) == len(cases)
    assert [case.seed for case in cases] == sorted(case.seed for case in cases)
    assert all(case.arm.recipe(case.seed).epochs >= 1 for case in cases)
    quick = plan.quickened(cases)
    assert {case.arm.recipe(0).epochs for case in quick} == {1}
    assert all(case.arm.train_rows <= plan.QUICK_ROWS for case in quick)
