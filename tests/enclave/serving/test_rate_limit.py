"""Token buckets against a clock that a test sets."""

from enclave.serving.rate_limit import Rate, TokenBuckets

MINUTELY = Rate(per_minute=60, burst=3)


def test_a_full_bucket_gives_its_burst_and_no_more() -> None:
    buckets = TokenBuckets(MINUTELY)
    assert [buckets.take("a", 100.0) for _ in range(5)] == [0, 0, 0, 1, 1]


def test_tokens_come_back_at_the_rate() -> None:
    buckets = TokenBuckets(MINUTELY)
    for _ in range(3):
        buckets.take("a", 100.0)
    assert [buckets.take("a", 101.0), buckets.take("a", 101.0)] == [0, 1]


def test_no_more_than_the_burst_is_saved_up() -> None:
    buckets = TokenBuckets(MINUTELY)
    buckets.take("a", 0.0)
    assert [buckets.take("a", 1e6) for _ in range(4)] == [0, 0, 0, 1]


def test_a_refusal_costs_no_token() -> None:
    buckets = TokenBuckets(MINUTELY)
    for _ in range(100):
        buckets.take("a", 100.0)
    assert buckets.take("a", 101.0) == 0


def test_tells_the_whole_seconds_until_the_next_token() -> None:
    slow = TokenBuckets(Rate(per_minute=1, burst=1))
    assert [slow.take("a", 0.0), slow.take("a", 0.5), slow.take("a", 59.9), slow.take("a", 60.0)] == [
        0,
        60,
        1,
        0,
    ]


def test_one_key_does_not_spend_anothers_tokens() -> None:
    buckets = TokenBuckets(MINUTELY)
    for _ in range(10):
        buckets.take("a", 100.0)
    assert buckets.take("b", 100.0) == 0


def test_the_table_is_bounded_and_forgets_whom_it_saw_longest_ago() -> None:
    buckets = TokenBuckets(Rate(per_minute=1, burst=1), max_buckets=2)
    for key in ("a", "b", "a", "c"):  # a was seen after b
        buckets.take(key, 0.0)
    assert len(buckets) == 2
    assert [buckets.take("a", 0.0), buckets.take("b", 0.0)] == [60, 0]
