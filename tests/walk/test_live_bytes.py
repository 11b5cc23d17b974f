"""Bytes of tensors that were made inside a context: of what is in use, once, and of nothing from outside."""

import torch

from owl_compress.walk.live_bytes import LiveBytes


def test_what_is_made_counts_until_it_is_gone() -> None:
    weight = torch.ones(8, 8)
    with LiveBytes() as live:
        first = weight @ weight
        assert live.count() == 8 * 8 * 4
        second = first.half()
        assert live.count() == 8 * 8 * (4 + 2)
        del first
        assert live.count() == 8 * 8 * 2
    assert second.shape == weight.shape


def test_views_count_as_what_they_are_views_of() -> None:
    weight = torch.ones(8, 8)
    with LiveBytes() as live:
        view = weight.t()
        assert live.count() == 0, "of what was there before"
        made = view + 1
        part = made[:2]
        del made
        assert live.count() == 8 * 8 * 4, "a part keeps the whole"
    assert part.shape == (2, 8)
