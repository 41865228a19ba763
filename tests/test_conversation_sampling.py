"""How many rows of each source, and which."""

import pytest

from zhllama.conversation.sampling import draw_rows, even_out, rows_per_source


@pytest.mark.parametrize(
    ("available", "samples", "weights", "repeats", "counts"),
    [
        ([10, 20], [0, 0], [0, 0], [4, 4], [10, 20]),
        ([10, 20], [5, 0], [0, 0], [4, 4], [5, 20]),
        ([10, 20], [25, 50], [0, 0], [4, 4], [25, 50]),
        ([10, 20], [25, 50], [0, 0], [2, 4], [20, 50]),
        ([10, 40], [0, 0], [1, 1], [4, 4], [40, 40]),
        ([10, 40], [0, 0], [1, 1], [2, 4], [20, 20]),
        ([10, 40], [0, 0], [1, 1], [1, 1], [10, 10]),
        ([10, 40], [0, 0], [1, 4], [1, 1], [10, 40]),
        ([10, 40, 7], [0, 0, 0], [2, 8, 0], [1, 1, 1], [10, 40, 7]),
        ([10, 40, 7], [0, 0, 14], [2, 8, 0], [1, 1, 2], [10, 40, 14]),
        ([10, 0], [5, 5], [0, 0], [4, 4], [5, 0]),
        ([10, 1000], [0, 0], [1, 1000], [1.5, 1], [1, 1000]),
        ([10, 20], [0, 0], [0, 0], [1.5, 1], [10, 20]),
    ],
)
def test_counts(
    available: list[int], samples: list[int], weights: list[float], repeats: list[float], counts: list[int]
) -> None:
    assert rows_per_source(available, samples, weights, repeats) == counts


def test_without_temperature_rows_come_in_their_order_and_again() -> None:
    rows = draw_rows([["a"] * 3, ["b"] * 2], [7, 1], [4, 4], 1)
    assert [of.tolist() for of in rows] == [[0, 1, 2, 0, 1, 2, 0], [0]]


@pytest.mark.parametrize("temperature", [0.5, 1, 2, 5, 100])
def test_shares_go_as_the_root_and_the_sum_stays(temperature: float) -> None:
    counts = {"many": 900, "few": 100}
    factors = even_out(counts, temperature)
    new = {task: counts[task] * factors[task] for task in counts}
    assert sum(new.values()) == pytest.approx(1000)
    assert new["many"] / new["few"] == pytest.approx(9 ** (1 / temperature))


def test_a_high_temperature_evens_tasks_out_across_sources() -> None:
    rows = draw_rows([["nli"] * 64 + ["mrc"] * 20, ["nli"] * 16], [84, 16], [4, 4], 1e9)
    assert [len(of) for of in rows] == [40 + 50, 10]
    first = rows[0].tolist()
    assert sum(row < 64 for row in first) == 40
    assert sorted(set(first[40:])) == list(range(64, 84))


def test_no_row_comes_more_often_than_it_may() -> None:
    (rows,) = draw_rows([["nli"] * 90 + ["mrc"] * 10], [100], [2], 1e9)
    assert sorted(row for row in rows.tolist() if row >= 90) == sorted([*range(90, 100)] * 2)


def test_a_source_without_rows_gives_none() -> None:
    assert [len(of) for of in draw_rows([[], ["a"]], [0, 1], [4, 4], 2)] == [0, 1]
