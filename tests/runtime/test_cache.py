"""Caches that last for a run, and values that steps of one command share."""

from __future__ import annotations

from spectrim.runtime.cache import Cache, lasting


def test_a_cache_with_a_directory_lasts_by_itself(tmp_path):
    cache = Cache(tmp_path)
    with lasting(cache) as found:
        assert found is cache
    assert tmp_path.exists()


def test_a_cache_without_one_lasts_until_the_end():
    for given in (None, Cache(None)):
        with lasting(given) as found:
            assert found.root is not None
            assert found.root.is_dir()
        assert not found.root.exists()


def test_values_are_made_once_where_they_are_shared():
    made = []

    def make() -> int:
        made.append(True)
        return len(made)

    shared, alone = Cache(None, share=True), Cache(None)
    assert [shared.once("a", make), shared.once("a", make), shared.once("b", make)] == [1, 1, 2]
    assert [alone.once("a", make), alone.once("a", make)] == [3, 4]
