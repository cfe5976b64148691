"""Any seconds of batches, and any times of calls and arrivals: the former has a plan that the lanes can follow."""

from hypothesis import given
from hypothesis import strategies as st

from model.engines.batch_seconds import BatchCurves, BatchSeconds
from service.inference.batch_former import BatchFormer
from service.inference.queue import BatchKey
from tests.support.engines import fake_info

KEY = BatchKey("embed", 4)
LANES, LARGEST = 2, 4


@given(
    one=st.floats(1e-5, 1e3),
    ratios=st.tuples(st.floats(0.1, 10), st.floats(0.1, 10), st.floats(0.1, 10)),
    calls=st.lists(
        st.tuples(st.floats(-1, 1e9) | st.floats(-1, 1), st.integers(0, LANES), st.floats(1e-9, 1e9)), max_size=20
    ),
    of_key=st.integers(1, 9),
    others=st.integers(0, 300),
)
def test_any_times_give_a_plan(
    one: float, ratios: tuple[float, float, float], calls: list[tuple[float, int, float]], of_key: int, others: int
) -> None:
    """A pause below 0 is a time that was read before the last one, as by a thread that then waited for the lock."""
    lone, four, joined = (ratio * one for ratio in ratios)
    seconds = BatchSeconds(lone=lone, lanes={1: one, 4: four}, joined={1: joined})
    curves = BatchCurves(shapes={"embed whole": seconds, "embed quarter": seconds})
    info = fake_info(lanes=LANES, preferred_batch=LARGEST)
    former = BatchFormer(info.model_copy(update={"batch_curves": curves, "joined": True}))
    now = 100.0
    for pause, busy, call_s in calls:
        now += pause
        former.advance(now, busy)
        former.count_arrival(busy)
        former.note_seconds(KEY, 1, busy == LANES, call_s)
        for idle in range(1, LANES + 1):
            plan = former.plan(KEY, of_key, of_key + others, of_key + others, idle)
            assert 1 <= plan.size <= min(of_key, LARGEST)
            assert not plan.joined or idle == LANES
