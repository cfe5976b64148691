"""The rate limit in virtual time, against a bucket of tokens that is filled step by step."""

from fractions import Fraction
from random import Random

import pytest

from service.inference.image_rate import ImageRate


class Bucket:
    """What textbooks describe: it holds up to `burst` tokens, gets `per_s` of them a second, and an image takes one."""

    def __init__(self, per_s: int, burst: int) -> None:
        self.per_s, self.burst, self.tokens = per_s, burst, Fraction(burst)

    def wait(self, nanoseconds: int) -> None:
        self.tokens = min(self.tokens + Fraction(nanoseconds * self.per_s, 10**9), Fraction(self.burst))

    def take(self, count: int) -> bool:
        passes = count <= self.tokens
        self.tokens -= count if passes else 0
        return passes


@pytest.mark.parametrize("seed", range(50))
def test_as_many_images_pass_as_a_bucket_of_tokens_allows(seed: int) -> None:
    draw = Random(seed)
    per_s, burst = draw.choice([1, 2, 5, 10]), draw.randint(1, 20)
    requests = [(draw.choice([0, 10**7, 10**8, 10**9, 10**10]), draw.randint(1, 20)) for _ in range(50)]
    now = [10**12]
    rate, bucket = ImageRate(per_s, burst, lambda: now[0]), Bucket(per_s, burst)
    for pause, count in requests:
        count = min(count, burst)
        now[0] += pause
        bucket.wait(pause)
        announced, seconds = rate.seconds_until(count), rate.take(count)
        assert announced == seconds
        assert (seconds == 0) == bucket.take(count)
        if seconds:  # it passes after that time, and would not have a second before
            now[0] += 10**9 * (seconds - 1)
            bucket.wait(10**9 * (seconds - 1))
            assert seconds == 1 or (rate.seconds_until(count) == 1 and bucket.tokens < count)
            now[0] += 10**9
            bucket.wait(10**9)
            assert rate.take(count) == 0 and bucket.take(count)


def test_a_rate_below_one_image_a_second() -> None:
    now = [0]
    rate = ImageRate(0.1, 64, lambda: now[0])
    assert rate.take(64) == 0 and rate.take(1) == 10
    now[0] += 10 * 10**9
    assert rate.take(1) == 0 and rate.take(2) == 20
