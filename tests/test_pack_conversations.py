"""pack_conversations: whole samples to blocks with a mask of what is learnt."""

import numpy as np

from zhllama.pack.conversations import pack_conversations


def conversations(count: int) -> list[tuple[list[int], list[bool]]]:
    """Samples of 5 to 59 tokens, numbered by their ids, the second half of each learnt."""
    lengths = np.random.default_rng(0).integers(5, 60, count).tolist()
    return [
        ([index] * length, [at >= length // 2 for at in range(length)])
        for index, length in enumerate(lengths)
    ]


def test_conversations_are_packed_whole_and_once() -> None:
    samples = conversations(300)
    blocks = pack_conversations(samples, 128, padding=999)
    seen = []
    assert blocks.loss is not None
    for block in range(len(blocks)):
        at = 0
        for length in blocks.lengths[blocks.offsets[block] : blocks.offsets[block + 1]]:
            ids = blocks.ids[block, at : at + length].tolist()
            assert (ids, blocks.loss[block, at : at + length].tolist()) == samples[ids[0]]
            seen.append(ids[0])
            at += length
        assert set(blocks.ids[block, at:].tolist()) <= {999}
        assert not blocks.loss[block, at:].any()
    assert sorted(seen) == list(range(300))


def test_best_fit_wastes_little() -> None:
    samples = conversations(300)
    blocks = pack_conversations(samples, 128, padding=0)
    used = sum(len(ids) for ids, _ in samples)
    assert len(blocks) == -(-used // 128)


def test_only_learnt_tokens_after_the_first_have_labels() -> None:
    blocks = pack_conversations([([4, 5, 6, 7], [True, False, True, True])], 8, padding=0)
    block = blocks[0]
    assert block["labels"].tolist() == [-100, -100, 6, 7, -100, -100, -100, -100]
    assert block["position_ids"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
