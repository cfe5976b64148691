"""Any order of results and failures: a request ends once, with what its images have given."""

import asyncio

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import EngineLost, InferenceFailed, ServiceError, UndecodableImage
from service.inference.pending_results import PendingResults

EVENTS = ["result"] * 8 + ["failed", "failed", "undecodable", "lost"]


@settings(max_examples=4 * settings.default.max_examples)
@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([True, True, False]),
    st.sets(st.integers(0, 4), max_size=1),
    st.sets(st.integers(0, 4), max_size=1),
    st.data(),
)
def test_a_request_ends_once(
    count: int, passes: int, skips: bool, unreadable: set[int], known: set[int], data: st.DataObject
) -> None:
    skipped: dict[int, ServiceError] | None = None
    if skips:
        skipped = {image: UndecodableImage("no image", image=image) for image in range(count) if image in unreadable}
    cached = {image: [np.float32(-image)] * passes for image in range(count) if image in known - set(skipped or ())}
    images = [image for image in range(count) if image not in cached and image not in (skipped or ())]
    order = data.draw(st.permutations([image * passes + number for image in images for number in range(passes)]))
    events = [(data.draw(st.sampled_from(EVENTS)), index) for index in order]
    # The oracle: what each image has given, until the request is complete or has failed.
    given_by: dict[int, set[int]] = {image: set() for image in images}
    errors: dict[int, ServiceError] = dict(skipped or {})
    failure: ServiceError | None = None

    def missing() -> bool:
        return any(len(given_by[image]) < passes for image in images if image not in errors)

    async def main() -> None:
        nonlocal failure
        pending = PendingResults(count, skipped, passes, cached)
        wait = asyncio.ensure_future(pending.wait())
        await asyncio.sleep(0)
        assert wait.done() == (not missing())
        for event, index in events:
            image = index // passes
            if event == "result":
                pending.on_result(index, np.float32(index), 1.0, 2.0)
            elif event == "lost":
                pending.on_failed(EngineLost("lost"))
            elif event == "failed":
                pending.on_result(index, InferenceFailed("failed", image=image), 1.0, 2.0)
            else:
                pending.on_failed(UndecodableImage("no image", image=image))
            if failure is None and missing() and image not in errors:
                if event == "result":
                    given_by[image].add(index)
                elif skips and event != "lost":
                    errors[image] = UndecodableImage("") if event == "undecodable" else InferenceFailed("")
                else:
                    kinds = {"lost": EngineLost, "failed": InferenceFailed, "undecodable": UndecodableImage}
                    failure = kinds[event]("")
            elif failure is None and missing() and event == "lost":
                failure = EngineLost("")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert wait.done() == (failure is not None or not missing())
        if failure is None and len(errors) == count:
            failure = errors[0]
        if failure is None:
            expected = [
                -image if image in cached else image * passes + number
                for image in range(count)
                if image not in errors
                for number in range(passes)
            ]
            assert [float(result) for result in await wait] == expected
            assert (pending.queue_s, pending.infer_s) == (1.0, 2.0) or not any(
                kind in ("result", "failed") for kind, _ in events
            )
        else:
            error = (await asyncio.gather(wait, return_exceptions=True))[0]
            assert type(error) is type(failure)
        assert {image for image in range(count) if pending.is_skipped(image)} == set(errors if skips else ())
        pending.close()

    asyncio.run(main())
